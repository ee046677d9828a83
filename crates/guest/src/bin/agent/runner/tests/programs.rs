//! Programs that are run both ways: source, arguments, standard input.

type Program = (&'static str, &'static [&'static str], Option<&'static str>);

/// As in a session of its own, with `K=v=1` beside `PATH` and `HOME` in the environment.
pub(super) const ALL: &[Program] = &[
    (r#"print("hi", 1)"#, &[], None),
    (r#"print("ünïcødé ☃")"#, &[], None),
    (r#"print("x"*1000000)"#, &[], None),
    (r#"import sys; sys.exit()"#, &[], None),
    (r#"import sys; sys.exit(3)"#, &[], None),
    (r#"import sys; sys.exit("text")"#, &[], None),
    (r#"import sys; sys.exit(256)"#, &[], None),
    (r#"import sys; sys.exit(-1)"#, &[], None),
    (r#"raise SystemExit(2.5)"#, &[], None),
    (r#"raise ValueError("x")"#, &[], None),
    (
        r#"try:
  1/0
except Exception as e:
  raise KeyError("k") from e"#,
        &[],
        None,
    ),
    (
        r#"def f():
  g()
def g():
  raise RuntimeError("deep")
f()"#,
        &[],
        None,
    ),
    (
        r#"try:
  1/0
except Exception:
  undefined"#,
        &[],
        None,
    ),
    (r#"x = = 1"#, &[], None),
    (
        r#"print("a"
"#,
        &[],
        None,
    ),
    (
        r#"if 1:
print(1)"#,
        &[],
        None,
    ),
    (
        r#"def f():
	return 1
  x"#,
        &[],
        None,
    ),
    (r#"'unterminated"#, &[], None),
    (r#"raise KeyboardInterrupt"#, &[], None),
    (r#"import os,signal; os.kill(os.getpid(), signal.SIGTERM)"#, &[], None),
    (r#"import os,signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)"#, &[], None),
    (r#"import os; print("lost"); os._exit(7)"#, &[], None),
    (r#"import atexit; atexit.register(print, "bye"); print("hi")"#, &[], None),
    (r#"import atexit; atexit.register(print, "bye"); raise ValueError"#, &[], None),
    (
        r#"import threading,time
def f():
  time.sleep(.1); print("thread")
threading.Thread(target=f).start(); print("main")"#,
        &[],
        None,
    ),
    (
        r#"import threading,time
threading.Thread(target=time.sleep,args=(60,),daemon=True).start(); print("main")"#,
        &[],
        None,
    ),
    (
        r#"import threading
def f(): raise ValueError("in thread")
t=threading.Thread(target=f, name="T"); t.start(); t.join()"#,
        &[],
        None,
    ),
    (r#"import sys; print(sys.stdin.read())"#, &[], Some("some\r\ninput")),
    (r#"print(input("p> ")); print(input())"#, &[], Some("a\nb\n")),
    (r#"print(input())"#, &[], Some("")),
    (r#"input()"#, &[], None),
    (
        r#"import sys; print(sys.stdin, sys.stdout, sys.stderr, sys.stdin.buffer, sys.stdin.buffer.raw, sys.stdin.seekable(), sys.__stdin__ is sys.stdin, sys.stdin.line_buffering, sys.stdin.newlines,sys.stdin.mode, sys.stdin.buffer.raw.closefd)"#,
        &[],
        Some(""),
    ),
    (r#"import sys; print(sys.argv, sys.path, sys.flags)"#, &[r#"a"#, r#"b c"#, r#"ü"#], None),
    (
        r#"import sys; print(getattr(sys,"orig_argv",0)[1:] if hasattr(sys,"orig_argv") else 0)"#,
        &[r#"a"#, r#"-x"#],
        None,
    ),
    (r#"import os; print(os.getcwd(), sorted(os.environ.items()), os.environb[b"HOME"])"#, &[], None),
    (r#"import subprocess; print(subprocess.run(["env"],capture_output=True).stdout)"#, &[], None),
    (
        r#"print(sorted(globals().items(), key=str), __name__, __spec__, __loader__, __builtins__, __doc__, "__file__" in globals())"#,
        &[],
        None,
    ),
    (r#"print(list(globals()))"#, &[], None),
    (r#"import sys; print(sorted(sys.modules))"#, &[], None),
    (r#"import sys; print(sys.modules["__main__"].__dict__ is globals(), sys.modules["__main__"])"#, &[], None),
    (
        r#""""doc"""
print(__doc__)"#,
        &[],
        None,
    ),
    (
        r#"from __future__ import annotations
x: int = 1
print(__annotations__)"#,
        &[],
        None,
    ),
    (
        r#"x: int = 1
print(__annotations__)"#,
        &[],
        None,
    ),
    (
        r#"import os
try: os.wait()
except ChildProcessError as e: print(e)"#,
        &[],
        None,
    ),
    (
        r#"def f(n): return f(n+1)
try: f(0)
except RecursionError as e: print(e)"#,
        &[],
        None,
    ),
    (
        r#"import sys; print("err", file=sys.stderr); print("out"); sys.stdout.flush(); sys.stderr.write("partial")"#,
        &[],
        None,
    ),
    (
        r#"import multiprocessing as m
m.set_start_method("fork")
def f(q): q.put(42)
q=m.Queue(); p=m.Process(target=f,args=(q,)); p.start(); print(q.get()); p.join(); print(p.exitcode)"#,
        &[],
        None,
    ),
    (
        r#"import concurrent.futures as c
with c.ThreadPoolExecutor(2) as e: print(list(e.map(abs,[-1,2])))"#,
        &[],
        None,
    ),
    (
        r#"import sys
def h(t,v,b): print("hook",t,v,b.tb_frame.f_code.co_name,b.tb_next)
sys.excepthook=h
raise ValueError(3)"#,
        &[],
        None,
    ),
    (
        r#"import sys
def h(t,v,b): raise KeyError("in hook")
sys.excepthook=h
raise ValueError(3)"#,
        &[],
        None,
    ),
    (
        r#"class A:
  def __del__(self): print("del")
a=A()"#,
        &[],
        None,
    ),
    (r#"import warnings; warnings.warn("w")"#, &[], None),
    (
        r#"import asyncio
async def f():
  await asyncio.sleep(0.01); return 5
print(asyncio.run(f()))"#,
        &[],
        None,
    ),
    (
        r#"import os,time; os.write(1,b"raw\n"); print(os.getppid()>0, os.getpid()==os.getsid(0)==os.getpgrp())"#,
        &[],
        None,
    ),
    (r#"import os; os.close(1); print("x")"#, &[], None),
    (r#"import sys; sys.stdout.close()"#, &[], None),
    (r#"import gc; print(gc.isenabled(), gc.get_threshold(), gc.garbage, gc.get_debug())"#, &[], None),
    (r#"raise BaseException("b")"#, &[], None),
    (r#"raise ExceptionGroup("g",[ValueError(1)])"#, &[], None),
    (
        r#"import signal; print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGPIPE), signal.pthread_sigmask(0,[]))"#,
        &[],
        None,
    ),
    (
        r#"import inspect
print(len(inspect.stack())>0)"#,
        &[],
        None,
    ),
    (r#"assert False, "no""#, &[], None),
    (r#"print(__debug__)"#, &[], None),
    (r#"import dataclasses,typing,json,re; print(json.dumps({"a":[1,None]}), re.findall("a.", "abac"))"#, &[], None),
    (r#"exec("raise ValueError")"#, &[], None),
    (r#"print("no newline", end="")"#, &[], None),
    (
        r#"import sys; print(sys.getrecursionlimit(), sys.executable, sys.prefix, sys.getfilesystemencoding(), sys.stdout.encoding, sys.stderr.errors, sys.stdin.errors)"#,
        &[],
        None,
    ),
    (r#"import sys; sys.stdin.readline(); sys.exit(sys.stdin.readline())"#, &[], Some("1\n2\n3")),
    (r#"import pdb, traceback, logging; logging.warning("w")"#, &[], None),
    (
        r#"import traceback,sys
try: 1/0
except Exception: traceback.print_exc()"#,
        &[],
        None,
    ),
    (r#"import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0]>0)"#, &[], None),
    (
        r#"print(1);
print(2"#,
        &[],
        None,
    ),
    (
        r#"

  
print(1)

"#,
        &[],
        None,
    ),
    (r#""#, &[], None),
    (
        r#"lambda: (yield)
raise SystemExit"#,
        &[],
        None,
    ),
    (
        r#"import pickle
class C: pass
print(pickle.loads(pickle.dumps(C())).__class__)"#,
        &[],
        None,
    ),
    // How it ends: what must still be written, and by whom.
    (r#"import ctypes; ctypes.CDLL(None).printf(b"c stdio\n"); print("py")"#, &[], None),
    (
        r#"import threading,time
class A:
 def __del__(s): print("del")
a=A()
threading.Thread(target=time.sleep,args=(9,),daemon=True).start()"#,
        &[],
        None,
    ),
    (
        r#"import sys
class A:
 def __del__(s): print("del", s.n)
 def __init__(s,n): s.n=n; s.me=s
sys.foo=A(1); import json; json.foo=A(2); a=A(3)"#,
        &[],
        None,
    ),
    (
        r#"import os
if os.fork()==0:
  print("child"); sys=__import__("sys"); sys.exit(3)
print(os.wait()[1])"#,
        &[],
        None,
    ),
    (
        r#"import sys,json
del sys.modules["json"]
import json, sqlite3
print(1)"#,
        &[],
        None,
    ),
    (
        r#"import collections,sys,weakref
d=collections.deque(); d.append(d); sys.keep=weakref.ref(d,print); del d
print("end")"#,
        &[],
        None,
    ),
    (
        r#"class A:
 def __del__(s): print("del")
a=A(); raise ValueError"#,
        &[],
        None,
    ),
    (
        r#"import sys
sys.addaudithook(lambda name, rest: name.startswith(("gc.", "socket.", "sys._")) and print(name))
print("end")"#,
        &[],
        None,
    ),
    (
        r#"import gc
gc.collect(); gc.callbacks.append(lambda phase, info: print(phase))
print("end")"#,
        &[],
        None,
    ),
    (
        r#"class A:
 def __del__(s): raise ValueError("in del")
a=A()"#,
        &[],
        None,
    ),
    (r#"import sys; sys.exit(True)"#, &[], None),
    (r#"import sys; sys.exit(10**30)"#, &[], None),
    (r#"import sys; sys.exit(2**40+7)"#, &[], None),
    (
        r#"class E(SystemExit): pass
raise E(4)"#,
        &[],
        None,
    ),
    (
        r#"class K(KeyboardInterrupt): pass
raise K"#,
        &[],
        None,
    ),
    (
        r#"import sys
def h(*a): sys.exit(9)
sys.excepthook=h
1/0"#,
        &[],
        None,
    ),
    (
        r#"import atexit
@atexit.register
def f(): raise ValueError("ex")
"#,
        &[],
        None,
    ),
    (
        r#"import atexit
@atexit.register
def f(): print("in", list(__import__("sys").modules)[:2])"#,
        &[],
        None,
    ),
    (r#"import sys; sys.stdout.write("x"); sys.stdout.detach()"#, &[], None),
    (
        r#"import weakref
class A: pass
a=A(); weakref.finalize(a, print, "fin")"#,
        &[],
        None,
    ),
    (
        r#"def g():
 try: yield 1
 finally: print("gen closed")
x=g(); next(x)"#,
        &[],
        None,
    ),
    (r#"import sys; sys.stderr=None; print("ok")"#, &[], None),
    (r#"import sys; sys.stdout=None; print("ok")"#, &[], None),
    (r#"import os; os.dup2(os.open("/dev/full",1),1); print("full")"#, &[], None),
    (
        r#"import asyncio
async def f(): pass
c=f()"#,
        &[],
        None,
    ),
    (
        r#"import subprocess
p=subprocess.Popen(["sleep","0.1"])
print("left")"#,
        &[],
        None,
    ),
    (
        r#"import concurrent.futures as c, time
e=c.ThreadPoolExecutor(1); e.submit(lambda:(time.sleep(.1),print("pool")))"#,
        &[],
        None,
    ),
];
