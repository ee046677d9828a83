# The runner for Python: `python3 -c` of this text, started by the agent. It imports the modules that it is given as
# arguments, then forks a spare child whenever the agent asks for one; the child waits for one job and becomes it.
# The protocol is in docs/runner-protocol.md. After a restore every instruction is new to the emulator, so what can be
# done before the wait is done there, and nothing is imported for it that a plain `python3 -c` would not have.


def _tartarus(names):
    import os
    import sys

    kept = set(names) - {"_tartarus"}
    control = int(os.environ.pop("TARTARUS_RUNNER_FD"))
    os.set_inheritable(control, False)
    coerced = None
    if not os.environ.get("LC_ALL") and not os.environ.get("LANG"):
        coerced = os.environb.get(b"LC_CTYPE")
    preload, sys.argv = sys.argv[1:], ["-c"]
    new = sys.version_info

    # The folder that it happens to be started in is no place to import from.
    local = sys.path[:1] == [""]
    if local:
        del sys.path[0]
    for name in preload:
        __import__(name)
    if local:
        sys.path.insert(0, "")

    modules = sys.modules
    known = set(modules)
    import _socket
    import gc

    for name in ("_socket", "gc"):
        if name not in known:
            del modules[name]

    def spare():
        """Forks when asked; returns in the child only, as an orphan, with its end of a new socket."""
        zygote = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        # Collections in the jobs leave the preloaded objects, and their memory pages, alone.
        gc.collect()
        gc.freeze()
        while True:
            if zygote.recv(16) != b"fork":
                os._exit(0)
            child = os.fork()
            if child:
                if os.waitpid(child, 0)[1]:
                    raise OSError("could not fork a child for a job")
                continue
            parent = os.getpid()
            try:
                if os.fork():
                    os._exit(0)
            except OSError:
                os._exit(1)
            break
        # The agent is the parent of a job. The process between has nothing to do but to end.
        while os.getppid() == parent:
            os.sched_yield()
        os.setsid()
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        right = theirs.fileno().to_bytes(4, sys.byteorder)
        zygote.sendmsg([b"spare"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, right)])
        zygote.close()
        theirs.close()
        return ours

    def environ(items):
        values = dict([item.split(b"=", 1) for item in items])
        held = os.environ._data
        # An interpreter without a locale gives itself one, and to its children.
        if coerced and not (b"LC_ALL" in values or b"LC_CTYPE" in values or b"LANG" in values):
            values[b"LC_CTYPE"] = held.get(b"LC_CTYPE", coerced)
        for name in held:
            os.unsetenv(name)
        held.clear()
        held.update(values)
        for name in values:
            os.putenv(name, values[name])

    def standard_input():
        old = sys.stdin
        encoding, errors = (old.encoding, old.errors) if old is not None else ("utf-8", "strict")
        raw = modules["io"].open(0, "rb", -1, None, None, None, False)
        raw.raw.name = "<stdin>"
        sys.stdin = sys.__stdin__ = stream = modules["io"].TextIOWrapper(raw, encoding, errors, "\n")
        stream.mode = "r"

    def reseed(random):
        if "random" in modules:
            modules["random"].seed(int.from_bytes(random[:32], "little"))
        if "numpy.random" in modules:
            modules["numpy.random"].seed([*memoryview(random[32:64]).cast("I")])
        if "_ssl" in modules:
            modules["_ssl"].RAND_add(random[64:96], 32.0)
        if "multiprocessing.process" in modules:
            modules["multiprocessing.process"].current_process().authkey = random[96:128]

    def job():
        """Returns in the child only, with the source and the namespace for it."""
        agent = spare()
        for name in list(names):
            if name not in kept:
                del names[name]
        # A module younger than the freeze: else the interpreter's end would not collect what it holds.
        main = type(sys)("__main__")
        main.__dict__.update(names)
        modules["__main__"], main = main, main.__dict__
        size = _socket.CMSG_SPACE(16)
        packet, rights, _, _ = agent.recvmsg(16384, size)
        if not packet:
            os._exit(0)
        agent.close()
        stdin, stdout, stderr, *more = memoryview(rights[0][2]).cast("i")
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.close(stdin)
        os.close(stdout)
        os.close(stderr)
        random, body = packet[:128], packet[128:]
        if more:
            body = os.pread(more[0], os.fstat(more[0]).st_size, 0)
            os.close(more[0])
        piped, ids, cwd, arguments, *fields = body.split(b"\0")
        try:
            if ids:
                uid, gid, *groups = [int(number) for number in ids.split()]
                os.setgroups(groups)
                os.setgid(gid)
                os.setuid(uid)
            os.chdir(cwd)
        except OSError as error:
            os.write(2, b"could not become the user or enter %r: %s\n" % (cwd.decode(), str(error).encode()))
            os._exit(126)
        arguments = int(arguments)
        source = fields.pop().decode() + "\n"
        if fields[arguments] == b"env":
            environ(fields[arguments + 1 :])
        sys.argv[1:] = [argument.decode() for argument in fields[:arguments]]
        if new >= (3, 10):
            sys.orig_argv = ["python3", "-c", source[:-1], *sys.argv[1:]]
        if piped == b"1":
            standard_input()
        reseed(random)
        if new >= (3, 13):
            # From there on `python3 -c` shows lines of its source; how it keeps them has changed since.
            lines = modules["linecache"]
            if "<string>" in lines.cache:
                lines._register_code("<string>", source, "<string>")
            elif hasattr(lines, "_interactive_cache"):
                lines._interactive_cache.clear()
                try:
                    code = compile(source, "<string>", "exec")
                except BaseException:
                    return source, main  # fails again where no frame of this text is in the way
                lines._register_code(code, source, "<string>")
                return code, main
        return source, main

    class Frameless:
        """Takes the frame of this text out of the traceback of the job's last exception."""

        def __init__(self):
            self.job = job

        def __enter__(self):
            return None

        def __exit__(self, kind, error, trace):
            if kind is None or issubclass(kind, SystemExit):
                return
            error.__traceback__ = trace.tb_next
            if new >= (3, 11):
                return
            # Older ones raise it again with the traceback as it was.
            hook = sys.excepthook

            def frameless(kind, error, trace):
                sys.excepthook = hook
                sys.last_traceback = error.__traceback__ = trace.tb_next
                hook(kind, error, trace.tb_next)

            sys.excepthook = frameless

    return Frameless()


# With globals of its own: those of the job are the job's alone.
_tartarus = type(_tartarus)(_tartarus.__code__, {"__builtins__": __builtins__, "__name__": "tartarus"})(globals())
with _tartarus:
    exec(*_tartarus.job())
