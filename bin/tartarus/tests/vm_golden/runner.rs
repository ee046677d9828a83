//! Jobs of a warm runner are what `python3 -c` is.

use std::io::Write;
use std::process::Stdio;

use crate::harness::Server;
use crate::world::{newest, running, started_from};

/// Programs whose output, errors and exit status must be the same either way.
const PROGRAMS: [&str; 20] = [
    "print('hello'); print('wörld €')",
    "import sys; print(sys.argv, sys.path[0] == '', __name__, __spec__)",
    "import sys; sys.exit()",
    "import sys; sys.exit(3)",
    "import sys; sys.exit('text')",
    "import sys; sys.exit(300)",
    "raise SystemExit",
    "1/0",
    "def f():\n  raise ValueError('x')\ntry:\n  f()\nexcept ValueError as e:\n  raise KeyError('y') from e",
    "if:",
    "raise KeyboardInterrupt",
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "import os; print('lost', end=''); os._exit(4)",
    "import atexit; atexit.register(print, 'at exit'); print('first')",
    "import threading, time; threading.Thread(target=lambda: (time.sleep(.1), print('thread'))).start(); print('main')",
    "import sys; print('out'); print('err', file=sys.stderr); sys.stdout.write('no newline')",
    "import os; print(os.getcwd(), sorted(k for k in os.environ if k.startswith('X')))",
    "print(sorted(globals()))",
    "import os\ntry: os.wait()\nexcept ChildProcessError as e: print(type(e).__name__)",
    "import sys\ndef f(): f()\nsys.setrecursionlimit(100)\nf()",
];

#[test]
fn jobs_are_what_the_interpreter_would_do() {
    let server = Server::start();
    let id = running(&server, &["python"]);
    for program in PROGRAMS {
        let plain = server.run(&["exec", &id, "-e", "X1=1", "--", "python3", "-c", program, "a", "b c"]);
        let job = server.run(&["exec", &id, "-e", "X1=1", "--code", program, "--", "a", "b c"]);
        assert_eq!(plain.status.code(), job.status.code(), "{program}: {plain:?} {job:?}");
        assert_eq!(String::from_utf8_lossy(&plain.stdout), String::from_utf8_lossy(&job.stdout), "{program}");
        assert_eq!(String::from_utf8_lossy(&plain.stderr), String::from_utf8_lossy(&job.stderr), "{program}");
    }
    server.ok(&["rm", &id]);
    server.nothing_left();
}

#[test]
fn code_comes_from_the_line_a_file_or_standard_input() {
    let server = Server::start();
    let program = "import numpy; print(int(numpy.arange(1000).sum()))";
    assert_eq!(server.ok(&["run", "python", "--code", program]), "499500");
    assert_eq!(started_from(&newest(&server)), "snapshot");
    let file = server.scratch().join("program.py");
    std::fs::write(&file, program).unwrap();
    assert_eq!(server.ok(&["run", "python", "--code-file", file.to_str().unwrap()]), "499500");
    let mut child = server
        .cli(&["run", "python", "--code-file", "-", "--", "x"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"import sys; print(sys.argv[1:])").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"['x']\n");
    // Standard input of a job.
    let mut child = server
        .cli(&["run", "python", "-i", "--code", "import sys; print(sum(map(int, sys.stdin)))"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"1\n2\n3\n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"6\n");
    // After a cold boot it is the same.
    assert_eq!(server.ok(&["run", "--no-snapshot", "python", "--code", program]), "499500");
    server.nothing_left();
}

#[test]
fn two_jobs_in_one_sandbox_know_nothing_of_each_other() {
    let server = Server::start();
    let id = running(&server, &["python"]);
    let first = "import builtins, sys, os, numpy, threading, time\n\
                 builtins.len = lambda x: 42\nsys.modules['mine'] = sys\nos.chdir('/tmp')\nos.environ['MINE'] = '1'\n\
                 threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\nnumpy.x = 1\nprint(len([]))";
    assert_eq!(server.ok(&["exec", &id, "--code", first]), "42");
    let second = "import sys, os, threading, numpy\n\
                  print(len([]), 'mine' in sys.modules, os.getcwd(), 'MINE' in os.environ, threading.active_count(), hasattr(numpy, 'x'))";
    assert_eq!(server.ok(&["exec", &id, "--code", second]), "0 False / False 1 False");
    server.ok(&["rm", &id]);
    server.nothing_left();
}

#[test]
fn a_template_without_a_runner_says_so() {
    let server = Server::start();
    let output = server.run(&["run", "busybox", "--code", "print(1)"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{errors}");
    assert!(errors.contains("runner") && errors.contains("--runner python"), "{errors}");
    let output =
        server.run(&["template", "create", "bad", "--from", "python", "--runner", "python", "--preload", "no_such"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("no_such"), "{errors}");
    server.nothing_left();
}

/// A guest may use all of its memory and much code: what its hypervisor keeps of the code that it translated fits in beside.
#[test]
fn a_hypervisor_has_room_beside_all_of_its_guests_memory() {
    let server = Server::start();
    server.ok(&["template", "create", "small", "--from", "python", "--memory", "128M", "--runner", "python"]);
    let program = "
import asyncio, ctypes, decimal, difflib, email, http.client, json, numpy, re, ssl, unittest, xml.dom.minidom
free = int(next(line for line in open('/proc/meminfo') if line.startswith('MemAvailable')).split()[1])
memory = bytearray((free - 12000) * 1024)
for page in range(0, len(memory), 4096): memory[page] = 1
import pydoc
print('all of it')
";
    let full = ["run", "small", "--memory", "256M", "--no-snapshot", "--", "python3", "-c", program];
    assert_eq!(server.ok(&full), "all of it");
    server.nothing_left();
}
