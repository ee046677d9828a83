# The runner for Python, which the agent starts by a loader (`zygote.rs`). It imports the modules that it is given as
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
    # The socket of a job, and what the kernel tells its sockets apart by (SO_COOKIE): to look at the descriptor as a file
    # would cost a job in a fresh clone milliseconds more.
    ours = cookie = None

    def import_first(name):
        """Imports a module without leaving it for the job, which may never ask for it."""
        there = name in modules
        module = __import__(name)
        if not there:
            del modules[name]
        return module

    def finish():
        end()
        # The interpreter ends as it always does: a socket that is left would be complained of.
        if ours:
            ours.detach()

    def end():
        """The last of all exit handlers. An interpreter that ends takes every module to pieces, which takes longer than a
        short job. Here only what the job made goes, as it would there; in any odd case the rest is left to the
        interpreter."""
        try:
            if thread._count() or streams != (sys.stdout, sys.stderr):
                return
            flush()
        except BaseException:
            return  # fails again where it is reported
        # Newest first, and no further than needed: to touch a module is to copy the page that it is on.
        made = []
        odd = status is None or unknown
        for name in reversed(modules):
            module = modules[name]
            if known.get(name) is module:
                break
            made.append(name)
            # What an extension still has to write is known to itself alone.
            if name != "__main__":
                file = getattr(module, "__file__", None)
                odd = odd or (file is not None and not file.endswith(".py"))
        if odd:
            for name in known:
                if name not in ("sys", "builtins"):
                    modules.pop(name, None)
            return
        for name in made:
            del modules[name]
        del module, made
        # What was raised last holds the frames, and they what the job made.
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            sys.__dict__.pop(name, None)
        gc.collect()
        try:
            flush()
        except BaseException:
            os._exit(120)
        if getpid() == pid:
            # The agent does not wait for the kernel, which takes the memory to pieces first.
            try:
                # The job may have closed it, and given the number to a file of its own.
                if ours and ours.getsockopt(level, 57, 8) == cookie:
                    write(socket, bytes((status,)))
            except BaseException:
                pass
        os._exit(status)

    def flush():
        for stream in streams:
            if stream is not None and not stream.closed:
                stream.flush()
        if fflush and not unused():
            fflush(None)

    def twister_of(numpy):
        """The memory of the state of numpy's generator, a position last; `None` where that is not certain."""
        try:
            bits, ctypes = numpy.mtrand._rand._bit_generator, modules["ctypes"]
            if type(bits).__name__ != "MT19937":
                return None
            state = bits.state
            key = state["state"]["key"]
            state["state"]["pos"] = 624
            bits.state = state
            memory = memoryview((ctypes.c_char * 2496).from_address(bits.ctypes.state_address)).cast("B")
            if bytes(memory) != key.tobytes():
                return None
            memory[:] = probe = memory[4:].tobytes() + b"abcd"
            state = bits.state["state"]
            return memory if (state["key"].tobytes(), state["pos"]) == (probe, 624) else None
        except Exception:
            return None

    def twister_of_random():
        """The same for the generator of the module `random`."""
        try:
            ctypes, made = modules["ctypes"], modules["random"]._inst
            place = object.__basicsize__ + 4
            if made.__sizeof__() < place + 2496:
                return None
            memory = memoryview((ctypes.c_char * 2496).from_address(id(made) + place)).cast("B")
            words = memory.cast("I")
            if (*words, 624) != made.getstate()[1]:
                return None
            memory[:] = memory[4:].tobytes() + b"abcd"
            return memory if (*words, 624) == made.getstate()[1] else None
        except Exception:
            return None

    def streams_of_c():
        """Memory that changes when a stream of the C library is opened or has something to write, and what it holds now;
        nothing where it is not known how that library keeps them."""
        try:
            ctypes, size = modules["ctypes"], modules["ctypes"].sizeof(modules["ctypes"].c_void_p)
            library, found = ctypes.CDLL(None), []
            places = [ctypes.addressof(ctypes.c_void_p.in_dll(library, "_IO_list_all"))]
            for name in ("stdout", "stderr"):
                places += [ctypes.addressof(ctypes.c_void_p.in_dll(library, name))]
                places += [ctypes.c_void_p.from_address(places[-1]).value + size * 4]  # start and end of what is written
            for place in places:
                memory = memoryview((ctypes.c_char * (size * 2)).from_address(place)).cast("B")
                found.append((memory, bytes(memory)))
            return found
        except Exception:
            return []

    def unused():
        for memory, before in untouched:
            if memory != before:
                return False
        return untouched

    def authkey(random):
        modules["multiprocessing.process"].current_process().authkey = random[65:97]

    def exit_status(kind, error):
        """What the process will end with, where that is certain."""
        if kind is None:
            return 0
        if issubclass(kind, SystemExit):
            code = error.code
            if code is None:
                return 0
            if type(code) is int and abs(code) < 1 << 31:
                return code & 255
            return 1 if type(code) is str else None
        return None if issubclass(kind, KeyboardInterrupt) or sys.excepthook is not excepthook else 1

    modules = sys.modules
    if new >= (3, 10):  # older ones forget handlers with the module
        import_first("atexit").register(finish)

    # The folder that it happens to be started in is no place to import from.
    local = sys.path[:1] == [""]
    if local:
        del sys.path[0]
    for name in preload:
        __import__(name)
    if local:
        sys.path.insert(0, "")

    known = dict(modules)
    del known["__main__"]
    _socket, gc = import_first("_socket"), import_first("gc")
    pid, getpid, thread, fstat, write = 0, os.getpid, modules["_thread"], os.fstat, os.write
    # A number that no program has open by itself, and for which the kernel's table need not grow.
    for socket in (*range(63, 2, -1), *range(64, 1024)):
        try:
            fstat(socket)
        except OSError:
            break
    else:
        raise OSError("the preloaded modules left no descriptor for the runner")
    level = _socket.SOL_SOCKET

    rehearsal = "import sys; [x for x in (str(1.5), int(sum(range(3))), sys.maxsize)]\n"
    streams, excepthook, status = (sys.stdout, sys.stderr), sys.excepthook, None
    # Extensions may write by the C library, whose buffers are not Python's.
    fflush = modules["ctypes"].CDLL(None).fflush if "ctypes" in modules else None
    untouched = streams_of_c() if fflush else []
    folders = [getattr(modules[name], "__file__", None) or "" for name in known]
    unknown = not fflush and any(".so" in file and "/lib-dynload/" not in file for file in folders)

    read, from_bytes = os.read, int.from_bytes
    # How each generator takes its part of the random bytes. What can be looked up is looked up here.
    seeds = []
    twister = random_twister = None
    numpy = modules.get("numpy.random")
    if numpy:
        numpy.seed()  # so that no half of a pair of normal numbers is left over
        twister = twister_of(numpy)
        if not twister:
            seeds.append(lambda random: numpy.seed(memoryview(random[97:2593]).cast("I").tolist()))
    if "random" in modules:
        modules["random"].seed(0)
        random_twister = twister_of_random()
        if not random_twister:
            core = import_first("_random").Random.seed.__get__(modules["random"]._inst)
            seeds.append(lambda random: core(from_bytes(random[1:33], "little")))
    if "_ssl" in modules:
        seeds.append(lambda random: modules["_ssl"].RAND_add(random[33:65], 32.0))
    if "multiprocessing.process" in modules:
        seeds.append(authkey)

    def spare():
        """Forks when asked; returns in the child only, as an orphan, with its end of a new socket."""
        nonlocal ours, cookie
        zygote = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        # Collections in the jobs leave the preloaded objects, and their memory pages, alone.
        gc.collect()
        gc.freeze()
        while True:
            word, rights, _, _ = zygote.recvmsg(16, _socket.CMSG_SPACE(8))
            if word != b"fork":
                os._exit(0)
            stdout, stderr = memoryview(rights[0][2]).cast("i")
            child = os.fork()
            if child:
                os.close(stdout)
                os.close(stderr)
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
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.close(stdout)
        os.close(stderr)
        # What any program writes to is copied before there is one to wait for that: counters of what all use, and the
        # compiler's memory.
        try:
            exec(rehearsal, {"__name__": "__main__"})
        except BaseException:
            pass  # a preloaded module made something else of the language
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        right = theirs.fileno().to_bytes(4, sys.byteorder)
        zygote.sendmsg([b"spare"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, right)])
        zygote.close()
        theirs.close()
        if ours.fileno() != socket:
            os.dup2(ours.fileno(), socket, False)
            ours.close()
            ours = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, socket)
        try:
            cookie = ours.getsockopt(level, 57, 8)
        except OSError:
            cookie = None  # an old kernel: the agent waits until the job is reaped
        if new < (3, 10) or not cookie:
            ours.detach()
            ours = None

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

    def full():
        """Takes all that a job can be given, which comes in a packet of its own; gives the source."""
        agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, socket)
        body, rights, _, _ = agent.recvmsg(16384, _socket.CMSG_SPACE(8))
        agent.detach()
        if not body:
            os._exit(0)
        files = list(memoryview(rights[0][2]).cast("i")) if rights else []
        if body == b"-":
            file = files.pop()
            body = os.pread(file, os.fstat(file).st_size, 0)
            os.close(file)
        piped, ids, cwd, arguments, *fields = body.split(b"\0")
        if piped == b"1":
            os.dup2(files[0], 0)
            os.close(files[0])
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
        source = fields.pop().decode()
        if fields[arguments] == b"env":
            environ(fields[arguments + 1 :])
        sys.argv[1:] = [argument.decode() for argument in fields[:arguments]]
        if piped == b"1":
            standard_input()
        return source

    def job():
        """Returns in the child only, with the source and the namespace for it."""
        nonlocal unknown, pid
        spare()
        pid = getpid()
        command = ["python3", "-c", None]
        if new >= (3, 10):
            sys.orig_argv = command
        for name in list(names):
            if name not in kept:
                del names[name]
        # A module younger than the freeze: else the interpreter's end would not collect what it holds.
        main = type(sys)("__main__")
        main.__dict__.update(names)
        del modules["__main__"]
        modules["__main__"], main = main, main.__dict__
        # The heap has grown, and what the dynamic linker looks up at a first call is looked up.
        os.write(1, bytes(100000)[:0])
        unused()
        packet = read(socket, 16384)
        if packet[:1] == b"p":
            source = packet[5089:].decode()
        elif packet:
            source = full()
            command += sys.argv[1:]
        else:
            os._exit(0)
        command[2] = source
        source += "\n"
        if twister:
            twister[:] = packet[97:2593]
        if random_twister:
            random_twister[:] = packet[2593:5089]
        for seed in seeds:
            seed(packet)
        if not fflush and "ctypes" in source:
            unknown = True
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

        # Never collected, so that the modules live until the process ends.
        held = known

        def __init__(self):
            self.job = job

        def __enter__(self):
            return None

        def __exit__(self, kind, error, trace):
            nonlocal status
            status = exit_status(kind, error)
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
