//! The runner against the real `python3` of this machine: a job must be what `python3 -c` is.

mod programs;

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Command, Stdio};

use tartarus_guest::{End, Frame, HelloAck, Kind, ProcessState, RunnerState, Start, StartRunner, message};

use super::spare::{Lines, Plan, RANDOM, Spare};
use super::zygote::{Heard, Zygote};
use super::{Job, root};
use crate::agent::tests::{Host, agent};
use crate::spawn::{Held, PATH};

/// Where `python3` is looked for; `TARTARUS_TEST_PYTHON` puts a folder before the others.
fn path() -> String {
    let first = std::env::var("TARTARUS_TEST_PYTHON").map(|folder| folder + ":").unwrap_or_default();
    first + PATH
}

fn python(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(arguments).env_clear().env("PATH", path()).env("HOME", "/root").current_dir("/");
    command
}

fn has(module: &str) -> bool {
    let import = format!("import {module}");
    python(&["-c", &import]).output().is_ok_and(|output| output.status.success())
}

/// An agent with a runner that is ready; `None`, said in one line, where there can be none.
fn runner(preload: &[&str]) -> Option<Host> {
    let mut host = started(preload)?;
    assert_eq!(state(&mut host), RunnerState::Ready);
    Some(host)
}

/// The same, not waited for.
fn started(preload: &[&str]) -> Option<Host> {
    let mut host = agent(None)?;
    if !has("sys") {
        println!("skipped: there is no python3 on this machine");
        return None;
    }
    host.hello(1);
    host.message(Kind::StartRunner, 0, &message::encode(&request(preload)));
    Some(host)
}

fn request(preload: &[&str]) -> StartRunner {
    let preload = preload.iter().map(|module| (*module).to_owned()).collect();
    StartRunner { language: "python".into(), preload, env: [("PATH".to_owned(), path())].into() }
}

fn state(host: &mut Host) -> RunnerState {
    let Frame { header, payload } = host.next();
    assert_eq!(header.kind, Kind::Runner, "{}", String::from_utf8_lossy(&payload));
    message::decode("state", &payload).unwrap()
}

fn job(code: &str) -> Start {
    let env = [("PATH".to_owned(), path())].into();
    Start { token: "t".into(), argv: Vec::new(), env, cwd: None, user: None, stdin: false, code: Some(code.to_owned()) }
}

fn start(host: &mut Host, number: u32, job: &Start) {
    host.message(Kind::Start, number, &message::encode(job));
}

/// What it wrote, and how it ended.
fn finish(host: &mut Host, number: u32) -> (String, String, End) {
    host.attach(number, 0, 0);
    let mut outputs = Default::default();
    let end = host.end(number, &mut outputs).unwrap();
    let [out, err] = outputs.map(|output| String::from_utf8_lossy(&output).into_owned());
    (out, err, end)
}

fn run(host: &mut Host, number: u32, code: &str) -> (String, String, End) {
    start(host, number, &job(code));
    finish(host, number)
}

fn good(host: &mut Host, number: u32, code: &str) -> String {
    let (out, err, end) = run(host, number, code);
    assert_eq!((err.as_str(), end), ("", End::Exited { code: 0, oom_kills: 0 }), "{code}");
    out
}

/// What differs between any two runs: addresses and the kernel's numbers of threads.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for (count, part) in text.split("0x").enumerate() {
        let part = if count == 0 { part } else { part.trim_start_matches(|letter: char| letter.is_ascii_hexdigit()) };
        plain.push_str(if count == 0 { "" } else { "0x…" });
        plain.push_str(part);
    }
    plain
}

#[test]
fn a_job_is_what_python3_makes_of_the_same_program() {
    use std::io::Write;
    use std::os::unix::process::{CommandExt, ExitStatusExt};

    let Some(mut host) = runner(&[]) else { return };
    let mut number = 0;
    for (code, arguments, input) in programs::ALL {
        number += 1;
        let mut command = python(&["-c", code]);
        command.args(*arguments).env("K", "v=1").stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        // SAFETY: a plain system call. A command of the agent leads a session of its own as well.
        unsafe { command.pre_exec(|| rustix::process::setsid().map(|_| ()).map_err(Into::into)) };
        let mut child = command.spawn().unwrap();
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes()).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let end = match (output.status.code(), output.status.signal()) {
            (Some(code), _) => End::Exited { code, oom_kills: 0 },
            (None, signal) => End::Signalled { signal: signal.unwrap(), oom_kills: 0 },
        };

        let mut job = job(code);
        job.argv = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        job.env.insert("K".into(), "v=1".into());
        job.stdin = input.is_some();
        start(&mut host, number, &job);
        if let Some(input) = input {
            host.send(Kind::Stdin, number, 0, 0, input.as_bytes());
            host.send(Kind::StdinEof, number, 0, input.len() as u64, b"");
        }
        let (out, err, ended) = finish(&mut host, number);
        let [want_out, want_err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert_eq!(plain(&out), plain(&want_out), "stdout of {code}");
        assert_eq!(plain(&err), plain(&want_err), "stderr of {code}");
        assert_eq!(ended, end, "end of {code}");
        host.send(Kind::Forget, number, 0, 0, b"");
    }
    assert!(number >= 25);
}

#[test]
fn the_second_job_sees_nothing_of_the_first() {
    let numpy = has("numpy");
    if !numpy {
        println!("skipped in part: there is no numpy on this machine");
    }
    let Some(mut host) = runner(if numpy { &["numpy", "random", "json"] } else { &["random", "json"] }) else { return };
    let first = "import builtins, sys, os, threading, json, time\n\
        builtins.abs = None; sys.modules['json'] = None; json.x = 1; os.chdir('/tmp'); os.environ['LEFT'] = '1'\n\
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n\
        if 'numpy' in sys.modules: import numpy; numpy.x = 1\n\
        left = 1";
    assert_eq!(good(&mut host, 1, first), "");
    let second = "import sys, os, threading, json\n\
        print(abs(-2), hasattr(json, 'x'), os.getcwd(), 'LEFT' in os.environ, threading.active_count(), 'left' in globals(),\n\
        \x20     hasattr(sys.modules.get('numpy'), 'x'))";
    assert_eq!(good(&mut host, 2, second), "2 False / False 1 False False\n");
}

/// Two children of one zygote, which would go on with one state: numpy does not notice a fork.
#[test]
fn each_job_has_randomness_of_its_own() {
    let modules: Vec<&str> =
        ["random", "ssl", "multiprocessing", "numpy.random"].into_iter().filter(|module| has(module)).collect();
    if !modules.contains(&"numpy.random") {
        println!("skipped in part: there is no numpy on this machine");
    }
    let Some(mut host) = runner(&modules) else { return };
    let code = "import sys\n\
        print(sys.modules['random'].random())\n\
        if 'ssl' in sys.modules: print(sys.modules['ssl'].RAND_bytes(8))\n\
        if 'multiprocessing' in sys.modules: print(bytes(sys.modules['multiprocessing'].current_process().authkey))\n\
        if 'numpy' in sys.modules: print(sys.modules['numpy'].random.rand(), sys.modules['numpy'].random.randint(1 << 30))";
    let (first, second) = (good(&mut host, 1, code), good(&mut host, 2, code));
    assert!(first.lines().count() >= modules.len(), "{first}");
    for (one, other) in first.lines().zip(second.lines()) {
        assert_ne!(one, other);
    }
}

/// What a fork does by itself is of no use to a child that was forked before a snapshot, so the bytes of the job alone
/// must decide: two clones are the same child with other bytes.
#[test]
fn the_bytes_of_the_job_decide_its_randomness() {
    if !rustix::process::geteuid().is_root() || !has("random") {
        println!("skipped: it takes root and a python3");
        return;
    }
    let modules: Vec<&str> = ["random", "numpy.random"].into_iter().filter(|module| has(module)).collect();
    let held = Held::open().unwrap();
    let mut zygote = Zygote::launch(&request(&modules), &root(), &held, &|_, _| Ok(())).unwrap();
    let code = "import sys\n\
        print(sys.modules['random'].random(), sys.modules['numpy'].random.rand() if 'numpy' in sys.modules else 0)";
    let mut run = |seed: u8| {
        let plan = Plan { ids: None, cwd: "/", arguments: &[], env: None, code };
        let (lines, theirs) = Lines::new(1, &root(), &|_, _| Ok(())).unwrap();
        zygote.ask(&theirs);
        drop(theirs);
        let spare = loop {
            match zygote.hear() {
                Heard::Spare(socket) => break Spare::new(socket, lines).unwrap(),
                Heard::Nothing => std::thread::yield_now(),
                Heard::End => panic!("{}", zygote.last_words()),
            }
        };
        let given = spare.seeded(&Job::new(&plan, None).unwrap(), &[seed; RANDOM]).unwrap();
        let mut text = String::new();
        for pipe in given.outputs {
            rustix::io::ioctl_fionbio(&pipe, false).unwrap();
            std::fs::File::from(pipe).read_to_string(&mut text).unwrap();
        }
        text
    };
    let (first, again, other) = (run(1), run(1), run(2));
    assert_eq!(first, again);
    for (one, two) in first.split(' ').zip(other.split(' ')) {
        assert!(one != two || one == "0\n", "{first} {other}");
    }
    assert_eq!(first.split(' ').count(), 2, "{first}");
}

#[test]
fn a_job_waits_for_the_runner_and_a_repeated_request_starts_nothing() {
    let Some(mut host) = started(&["json"]) else { return };
    start(&mut host, 7, &job("print('early')"));
    start(&mut host, 8, &job("import os; print('next', os.getppid() > 0)"));
    host.attach(7, 0, 0);
    host.attach(8, 0, 0);
    let mut outputs: [String; 2] = Default::default();
    let mut ends = 0;
    while ends < 2 {
        let Frame { header, payload } = host.next();
        match header.kind {
            Kind::Output => outputs[header.process as usize - 7] += std::str::from_utf8(&payload).unwrap(),
            Kind::Ended => ends += 1,
            Kind::Started | Kind::Runner => {}
            other => panic!("{other:?}: {}", String::from_utf8_lossy(&payload)),
        }
    }
    assert_eq!(outputs, ["early\n", "next True\n"]);
    for nonce in 2..4 {
        host.hello(nonce);
        host.message(Kind::StartRunner, 0, &message::encode(&request(&["json"])));
        assert_eq!(state(&mut host), RunnerState::Ready);
    }
}

/// Its parent is gone by then, so nobody could say that it ended.
#[test]
fn a_child_that_ends_before_it_is_heard_of_is_replaced_a_few_times() {
    let folder = std::env::temp_dir().join(format!("runner-lost-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let module = "import os\n\
        depth = 0\n\
        def child():\n\
        \x20 global depth\n\
        \x20 depth += 1\n\
        \x20 left = int(open(COUNT).read())\n\
        \x20 if depth == 2 and left: open(COUNT, 'w').write(str(left - 1)); os.kill(os.getpid(), 9)\n\
        os.register_at_fork(after_in_child=child)\n";
    let count = folder.join("count");
    std::fs::write(folder.join("lost.py"), module.replace("COUNT", &format!("{count:?}"))).unwrap();
    for (left, ready) in [(2, true), (9, false)] {
        std::fs::write(&count, left.to_string()).unwrap();
        let Some(mut host) = started(&[]) else { break };
        let mut request = request(&["lost"]);
        request.env.insert("PYTHONPATH".into(), folder.to_str().unwrap().to_owned());
        assert_eq!(state(&mut host), RunnerState::Ready);
        host.message(Kind::StartRunner, 0, &message::encode(&request));
        let state = state(&mut host);
        assert_eq!(state == RunnerState::Ready, ready, "{state:?}");
        let (_, _, end) = if ready {
            std::fs::write(&count, "2").unwrap();
            good(&mut host, 1, "print('the spare that was there')");
            run(&mut host, 2, "print(1)")
        } else {
            run(&mut host, 2, "print(1)")
        };
        let failed = matches!(&end, End::NotExecutable { message } if message.contains("in a row"));
        assert_eq!((failed, end == End::Exited { code: 0, oom_kills: 0 }), (!ready, ready), "{end:?}");
        std::fs::write(&count, "0").unwrap();
        assert_eq!(good(&mut host, 3, "print('later')"), "later\n");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_queued_job_can_be_ended() {
    let Some(mut host) = started(&["time"]) else { return };
    start(&mut host, 1, &job("import time; time.sleep(3600)"));
    host.send(Kind::Signal, 1, 0, 9, b"");
    let (_, _, end) = finish(&mut host, 1);
    assert_eq!(end, End::Signalled { signal: 9, oom_kills: 0 });
}

#[test]
fn a_killed_zygote_is_started_anew_for_the_next_job() {
    let Some(mut host) = runner(&[]) else { return };
    // The spare's own parent is gone; the zygote is the other python3 with this text in its command line.
    let kill = "import os, signal\n\
        me = os.getppid()\n\
        for pid in filter(str.isdigit, os.listdir('/proc')):\n\
        \x20 try:\n\
        \x20   parent = int(open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[1])\n\
        \x20   if parent == me and int(pid) != os.getpid(): os.kill(int(pid), signal.SIGKILL); print('killed')\n\
        \x20 except OSError: pass";
    for number in [1, 3, 5] {
        assert_eq!(good(&mut host, number, kill), "killed\n");
        assert_eq!(good(&mut host, number + 1, "print('lives')"), "lives\n");
    }
}

#[test]
fn a_runner_that_cannot_start_says_why_and_so_does_its_job() {
    for (preload, why) in
        [("no_such_module_at_all", "no_such_module_at_all"), ("", "ValueError"), ("this is", "this is")]
    {
        let Some(mut host) = started(&["json", preload]) else { return };
        let RunnerState::Failed { message } = state(&mut host) else { panic!("{preload} was imported") };
        assert!(message.contains(why), "{message}");
        let (_, _, end) = run(&mut host, 1, "print(1)");
        assert!(matches!(&end, End::NotExecutable { message } if message.contains(why)), "{end:?}");
        let ack: HelloAck = message::decode("ack", &host.hello(2).payload).unwrap();
        assert!(matches!(&ack.processes[0].state, ProcessState::Ended(End::NotExecutable { .. })), "{ack:?}");
        host.message(Kind::StartRunner, 0, &message::encode(&request(&["json"])));
        assert_eq!(state(&mut host), RunnerState::Ready, "another request replaces it");
        assert_eq!(good(&mut host, 2, "print(1)"), "1\n");
    }
    let Some(mut host) = agent(None) else { return };
    host.hello(1);
    let (_, _, end) = run(&mut host, 1, "print(1)");
    assert!(matches!(&end, End::NotExecutable { message } if message.contains("no runner")), "{end:?}");
    for (language, path, why) in [("perl", path(), "perl"), ("python", "/nowhere".to_owned(), "no python3")] {
        let env = [("PATH".to_owned(), path)].into();
        let request = StartRunner { language: language.into(), preload: vec![], env };
        host.message(Kind::StartRunner, 0, &message::encode(&request));
        assert!(matches!(state(&mut host), RunnerState::Failed { message } if message.contains(why)), "{why}");
    }
}

#[test]
fn a_mebibyte_of_code_arrives_and_more_than_four_is_refused() {
    let Some(mut host) = runner(&[]) else { return };
    for (number, size) in [15_900, 16_384, 1 << 20].into_iter().enumerate() {
        let code = format!("text = '{}'\nprint(len(text), set(text))", "é".repeat(size / 2));
        assert_eq!(good(&mut host, number as u32, &code), format!("{} {{'é'}}\n", size / 2));
    }
    let (_, _, end) = run(&mut host, 9, &"#".repeat(5 << 20));
    assert!(matches!(&end, End::NotExecutable { message } if message.contains("longer")), "{end:?}");
    let (_, _, end) = run(&mut host, 10, "a\0b");
    assert!(matches!(&end, End::NotExecutable { message } if message.contains("zero byte")), "{end:?}");
}

/// The descriptors that a job printed, and whether it leads its session.
fn descriptors(printed: &str) -> (BTreeSet<u32>, bool) {
    let (numbers, leads) = printed.split_once('\n').unwrap();
    (numbers.split_whitespace().map(|number| number.parse().unwrap()).collect(), leads == "True\n")
}

#[test]
fn user_directory_and_descriptors_are_those_of_a_command() {
    let Some(mut host) = runner(&[]) else { return };
    let mut other = job("import os; print(os.getuid(), os.getgid(), os.getgroups(), os.getcwd(), os.environ['HOME'])");
    other.user = Some("4242:77".into());
    other.cwd = Some("/tmp".into());
    start(&mut host, 1, &other);
    assert_eq!(finish(&mut host, 1).0, "4242 77 [] /tmp /\n");
    // The descriptor of the listing itself is closed, and thus told apart, once the list is there.
    let fds = "import os; there = os.listdir('/proc/self/fd'); \
               print(*(n for n in there if os.path.lexists(f'/proc/self/fd/{n}'))); \
               print(os.getsid(0) == os.getpid() == os.getpgrp())";
    // Whatever runs the tests may leave descriptors to all of its children.
    let command = Start { argv: ["python3", "-c", fds].map(str::to_owned).to_vec(), code: None, ..job("") };
    start(&mut host, 20, &command);
    let (plain, leads) = descriptors(&finish(&mut host, 20).0);
    assert!(leads && (0..=2).all(|number| plain.contains(&number)), "{plain:?}");
    let (mut of_job, leads) = descriptors(&good(&mut host, 2, fds));
    assert!(leads && of_job.remove(&63), "by which a job says that it ends: {of_job:?}");
    assert_eq!(of_job, plain);
    let limits = "import resource; print(resource.getrlimit(7)[0], open('/proc/self/oom_score_adj').read().strip())";
    assert_eq!(good(&mut host, 3, limits), "1024 0\n");
    for (number, cwd, user, why) in
        [(4, Some("/no/such"), None, "working directory"), (5, None, Some("ghost-user"), "ghost-user")]
    {
        let (cwd, user) = (cwd.map(str::to_owned), user.map(str::to_owned));
        start(&mut host, number, &Start { cwd, user, ..job("print(1)") });
        let (_, _, end) = finish(&mut host, number);
        assert!(matches!(&end, End::NotExecutable { message } if message.contains(why)), "{end:?}");
    }
}

#[test]
fn a_job_that_runs_can_be_signalled_and_what_it_leaves_delays_nothing() {
    let Some(mut host) = runner(&[]) else { return };
    start(&mut host, 1, &job("import time; print('on', flush=True); time.sleep(3600)"));
    host.attach(1, 0, 0);
    while host.next().header.kind != Kind::Output {}
    host.send(Kind::Signal, 1, 0, 15, b"");
    let end = host.end(1, &mut [b"on\n".to_vec(), Vec::new()]);
    assert_eq!(end, Ok(End::Signalled { signal: 15, oom_kills: 0 }));
    let leaves = "import subprocess; subprocess.Popen(['sleep', '5']); print('done')";
    let began = std::time::Instant::now();
    assert_eq!(good(&mut host, 2, leaves), "done\n");
    assert!(began.elapsed().as_secs() < 4);
}

/// The host need not wait for the kernel, and a job that only pretends deceives nobody but itself.
#[test]
fn the_end_is_what_the_job_says_before_it_is_reaped() {
    let Some(mut host) = runner(&[]) else { return };
    let lives =
        "import atexit, os, time\nprint(os.getpid())\nos._exit = lambda code: time.sleep(3600)\nraise SystemExit(7)";
    let (out, err, end) = run(&mut host, 1, lives);
    assert_eq!((err.as_str(), end), ("", End::Exited { code: 7, oom_kills: 0 }));
    let pid: u32 = out.trim().parse().unwrap();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "it was not waited for");
    crate::spawn::signal_group(pid, libc::SIGKILL);
    assert_eq!(good(&mut host, 2, "print('next')"), "next\n");
    let (_, _, end) = run(&mut host, 3, "import os; os.write(63, b'too long')\nos.kill(os.getpid(), 9)");
    assert_eq!(end, End::Signalled { signal: 9, oom_kills: 0 }, "what means nothing ends nothing");
}

/// The number of the socket may be a file of the job's, or of a preloaded module's.
#[test]
fn the_end_is_written_to_no_file_of_a_job() {
    let folder = std::env::temp_dir().join(format!("runner-end-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("file");
    let Some(mut host) = runner(&[]) else { return };
    let takes = format!("import os\nos.dup2(os.open({file:?}, os.O_CREAT | os.O_WRONLY), 63)\nos.write(63, b'mine')");
    assert_eq!(good(&mut host, 1, &takes), "");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    assert_eq!(good(&mut host, 2, "import os; os.close(63)"), "");
    let heard = folder.join("heard");
    let other = format!(
        "import os, socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\nos.dup2(a.fileno(), 63)\na.close()\n\
         if not os.fork():\n os.close(63)\n os.close(1)\n os.close(2)\n open({heard:?}, 'wb').write(b'<%s>' % b.recv(9))\n os._exit(0)"
    );
    assert_eq!(good(&mut host, 3, &other), "");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while std::fs::read(&heard).unwrap_or_default() != b"<>" {
        assert!(std::time::Instant::now() < end, "{:?}", std::fs::read(&heard));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // A hook of the job's hears of nothing that it did not do.
    let hook = "import sys\nsys.addaudithook(lambda name, _: name.startswith('socket') and print(name))";
    assert_eq!(good(&mut host, 4, hook), "");

    for (number, module, taken) in [(10, "some", "63, 64"), (20, "all", "3, 200")] {
        // What is taken already stays as it is.
        let text = format!(
            "import os\nfor fd in range({taken}):\n try: os.fstat(fd)\n except OSError: os.dup2(os.open('/dev/null', 0), fd)"
        );
        std::fs::write(folder.join(format!("takes_{module}.py")), text).unwrap();
        let mut request = request(&[&format!("takes_{module}")]);
        request.env.insert("PYTHONPATH".into(), folder.to_str().unwrap().to_owned());
        host.message(Kind::StartRunner, 0, &message::encode(&request));
        assert_eq!(state(&mut host), RunnerState::Ready);
        assert_eq!(good(&mut host, number, "'any'"), "");
        let code = "import os, time\nprint(os.getpid(), os.readlink('/proc/self/fd/63'))\n\
            os._exit = lambda code: time.sleep(3600)\nraise SystemExit(7)";
        let (out, err, end) = run(&mut host, number + 1, code);
        assert_eq!((err.as_str(), end), ("", End::Exited { code: 7, oom_kills: 0 }), "{module}");
        let (pid, taken) = out.trim().split_once(' ').unwrap();
        crate::spawn::signal_group(pid.parse().unwrap(), libc::SIGKILL);
        assert_eq!(taken, "/dev/null");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_end_of_a_forked_child_is_not_that_of_the_job() {
    let Some(mut host) = runner(&[]) else { return };
    let forks = "import os, sys\nif os.fork() == 0: sys.exit(3)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))";
    assert_eq!(good(&mut host, 1, forks), "3\n");
}
