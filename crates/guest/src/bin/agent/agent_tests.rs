//! The whole agent against a host, over a socket instead of the port, in a child process because it reaps every child of
//! its process. Clock and host name stay alone. The same in a real guest is part of the real-VM suite.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tartarus_guest::frame::{Found, NONCE, encode, encode_message, preamble, short_preamble, tag};
use tartarus_guest::{
    Decoder, End, Frame, HelloAck, OUTPUT_WINDOW, ProcessState, ProcessStatus, Start, VERSION, message,
};

use crate::port::tests::Socket;

pub(crate) struct Host {
    agent: libc::pid_t,
    pub(crate) stream: UnixStream,
    nonce: [u8; NONCE],
    decoder: Decoder,
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: plain system calls; the pid is the child that `agent` forked and nobody else reaps.
        unsafe {
            libc::kill(self.agent, libc::SIGKILL);
            libc::waitpid(self.agent, std::ptr::null_mut(), 0);
        }
    }
}

/// Starts an agent and says hello to it; `None`, said in one line, where it cannot start commands.
pub(crate) fn agent(ground: Option<&str>) -> Option<Host> {
    agent_on(ground, || (None, None))
}

struct Anybody;

impl Identify for Anybody {
    fn take(&mut self, hello: &tartarus_guest::Hello) -> Result<(), String> {
        if hello.hostname == "bad" { Err("refused".to_owned()) } else { Ok(()) }
    }

    fn settle(&mut self, _: &tartarus_guest::Freeze) -> Result<(), String> {
        Ok(())
    }
}

/// The same with what a guest has beside.
fn agent_on(ground: Option<&str>, beside: impl FnOnce() -> (Option<Freezer>, Option<Hooks>)) -> Option<Host> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the agent sets users and limits, which takes root");
        return None;
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    Some(agent_at(Port::serial(theirs.into()), ours, ground, beside))
}

/// The same at this port, whose host is `ours`.
fn agent_at(
    port: Port,
    ours: UnixStream,
    ground: Option<&str>,
    beside: impl FnOnce() -> (Option<Freezer>, Option<Hooks>),
) -> Host {
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // SAFETY: the child only runs the agent, which is made to be a process with one thread, and never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // Else it would hold the host's end itself, and never see it close.
        drop(ours);
        // As PID 1 of a guest, it is the parent of every orphan.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let (freezer, hooks) = beside();
        let ground = match ground {
            Some(why) => Err(why.to_owned()),
            None => Ok(Ground {
                held: Held::open().unwrap(),
                pressure: None,
                identity: Box::new(Anybody),
                freezer,
                hooks,
                still: Still::default(),
            }),
        };
        let _ = Agent::new(port, ground).unwrap().serve();
        std::process::abort();
    }
    Host { agent: pid, stream: ours, nonce: [0; NONCE], decoder: Decoder::host([0; NONCE]) }
}

impl Host {
    pub(crate) fn hello(&mut self, nonce: u8) -> Frame {
        self.hello_as(nonce, "h")
    }

    /// With this host name; the agent refuses "bad".
    fn hello_as(&mut self, nonce: u8, hostname: &str) -> Frame {
        self.hello_after(nonce, preamble(&[nonce; NONCE]), hostname)
    }

    fn hello_after(&mut self, nonce: u8, preamble: Vec<u8>, hostname: &str) -> Frame {
        self.nonce = [nonce; NONCE];
        self.decoder = Decoder::host(self.nonce);
        self.stream.write_all(&preamble).unwrap();
        let hello = Hello {
            version: VERSION,
            time_ns: 1,
            entropy: vec![1],
            hostname: hostname.into(),
            machine_id: None,
            net: None,
        };
        self.message(Kind::Hello, 0, &message::encode(&hello));
        self.next()
    }

    pub(crate) fn message(&mut self, kind: Kind, process: u32, message: &[u8]) {
        let mut out = Vec::new();
        encode_message(tag(&self.nonce), kind, process, message, &mut out);
        self.stream.write_all(&out).unwrap();
    }

    pub(crate) fn send(&mut self, kind: Kind, process: u32, stream: u8, offset: u64, payload: &[u8]) {
        let mut out = Vec::new();
        encode(tag(&self.nonce), Header { kind, stream, process, offset }, payload, &mut out);
        self.stream.write_all(&out).unwrap();
    }

    pub(crate) fn start(&mut self, process: u32, token: &str, script: &str, stdin: bool) {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let start = Start { token: token.into(), argv, env: [].into(), cwd: None, user: None, stdin, code: None };
        self.message(Kind::Start, process, &message::encode(&start));
    }

    pub(crate) fn attach(&mut self, process: u32, out: usize, err: usize) {
        self.send(Kind::Attach, process, 1, out as u64, b"");
        self.send(Kind::Attach, process, 2, err as u64, b"");
    }

    pub(crate) fn next(&mut self) -> Frame {
        self.try_next().unwrap()
    }

    /// Nothing when nothing came within the stream's time.
    pub(crate) fn try_next(&mut self) -> Option<Frame> {
        let mut buffer = [0; 4096];
        loop {
            match self.decoder.next_found().unwrap() {
                Some(Found::Frame(frame)) => return Some(frame),
                Some(Found::Session(_)) => {}
                None => {
                    let count = self.stream.read(&mut buffer).ok()?;
                    self.decoder.push(&buffer[..count]);
                }
            }
        }
    }

    /// Collects output, acknowledging it, until the end or a fault.
    pub(crate) fn end(&mut self, process: u32, outputs: &mut [Vec<u8>; 2]) -> Result<End, String> {
        loop {
            let Frame { header, payload } = self.next();
            match header.kind {
                Kind::Output => {
                    let output = &mut outputs[usize::from(header.stream) - 1];
                    assert_eq!((header.process, header.offset), (process, output.len() as u64));
                    output.extend(payload);
                    let length = output.len() as u64;
                    self.send(Kind::Ack, process, header.stream, length, b"");
                }
                Kind::Ended => return Ok(message::decode("end", &payload).unwrap()),
                Kind::Fault => return Err(String::from_utf8(payload).unwrap()),
                _ => {}
            }
        }
    }
}

fn exited(code: i32) -> Result<End, String> {
    Ok(End::Exited { code, oom_kills: 0 })
}

#[test]
fn a_command_is_run_with_separate_streams_and_input() {
    let Some(mut host) = agent(None) else { return };
    assert_eq!(host.hello(1).header.kind, Kind::HelloAck);
    host.start(0, "t", "read line; echo out $line; echo err >&2; exit 3", true);
    host.attach(0, 0, 0);
    host.send(Kind::Stdin, 0, 0, 0, b"wor");
    host.send(Kind::Stdin, 0, 0, 0, b"world\n");
    let mut outputs = Default::default();
    assert_eq!(host.end(0, &mut outputs), exited(3));
    assert_eq!(outputs, [b"out world\n".to_vec(), b"err\n".to_vec()]);
}

#[test]
fn a_child_that_outlives_the_command_delays_nothing() {
    let Some(mut host) = agent(None) else { return };
    host.hello(1);
    host.start(0, "t", "(sleep 60; echo late) & echo last line", false);
    host.attach(0, 0, 0);
    let mut outputs = Default::default();
    assert_eq!(host.end(0, &mut outputs), exited(0));
    assert_eq!(outputs[0], b"last line\n");
}

#[test]
fn no_signal_is_blocked_in_a_command() {
    let Some(mut host) = agent(None) else { return };
    host.hello(1);
    host.start(0, "t", "grep SigBlk /proc/self/status", false);
    host.attach(0, 0, 0);
    let mut outputs = Default::default();
    assert_eq!(host.end(0, &mut outputs), exited(0));
    assert_eq!(outputs[0], b"SigBlk:\t0000000000000000\n");
}

#[test]
fn every_byte_arrives_across_hosts_that_die_within_a_frame() {
    let Some(mut host) = agent(None) else { return };
    host.hello(1);
    host.start(0, "t", "seq 1 300000; echo end", false);
    let mut outputs: [Vec<u8>; 2] = Default::default();
    for round in 2..6 {
        host.attach(0, outputs[0].len(), 0);
        while outputs[0].len() < OUTPUT_WINDOW * usize::from(round - 1) {
            let Frame { header, payload } = host.next();
            if header.kind == Kind::Output {
                outputs[0].extend(payload);
                host.send(Kind::Ack, 0, 1, outputs[0].len() as u64, b"");
            }
        }
        let mut half = Vec::new();
        encode(tag(&host.nonce), Header::new(Kind::Stdin, 0), &[7; 100], &mut half);
        host.stream.write_all(&half[..usize::from(round) * 20]).unwrap();
        let ack = host.hello(round);
        let ack: HelloAck = message::decode("ack", &ack.payload).unwrap();
        assert!(matches!(ack.processes[0].state, ProcessState::Running { .. }));
    }
    host.attach(0, outputs[0].len(), 0);
    assert_eq!(host.end(0, &mut outputs), exited(0));
    let expected: String = (1..=300_000).map(|line| format!("{line}\n")).chain(["end\n".to_owned()]).collect();
    assert!(outputs[0] == expected.as_bytes(), "{} of {} bytes", outputs[0].len(), expected.len());
}

/// As under a hypervisor with vsock: each host has a connection of its own, and the next one waits for the end of the last.
#[test]
fn hosts_come_one_after_another_by_connections_of_their_own() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: the agent sets users and limits, which takes root");
    }
    let socket = Socket::new("agent");
    let connect = || {
        let stream = UnixStream::connect(&socket.0).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    let port = Port::listening(socket.listener(), |_| true);
    let mut host = agent_at(port, connect(), None, || (None, None));
    host.hello(1);
    host.start(0, "t", "seq 1 100000; read line; echo $line; exit 4", true);
    host.attach(0, 0, 0);
    let mut outputs: [Vec<u8>; 2] = Default::default();
    // All that is sent without an acknowledgement, so that nothing is left that would reset the connection.
    while outputs[0].len() < OUTPUT_WINDOW {
        let Frame { header, payload } = host.next();
        if header.kind == Kind::Output {
            outputs[0].extend(payload);
        }
    }
    let second = connect();
    let mut half = Vec::new();
    encode(tag(&host.nonce), Header::new(Kind::Stdin, 0), &[7; MAX_PAYLOAD], &mut half);
    host.stream.write_all(&half[..60]).unwrap();
    // It died within a frame, which must not swallow what the next one begins with.
    host.stream = second;
    host.hello_after(2, short_preamble(&[2; NONCE]).to_vec(), "h");
    host.attach(0, outputs[0].len(), 0);
    host.send(Kind::Stdin, 0, 0, 0, b"last\n");
    assert_eq!(host.end(0, &mut outputs), exited(4));
    let expected: String = (1..=100_000).map(|line| format!("{line}\n")).chain(["last\n".to_owned()]).collect();
    assert!(outputs[0] == expected.as_bytes(), "{} of {} bytes", outputs[0].len(), expected.len());
    // Its last words count, though it does not wait for an answer.
    host.send(Kind::Forget, 0, 0, 0, b"");
    host.start(1, "t", "echo $$; sleep 60", false);
    host.stream = connect();
    let ack: HelloAck = message::decode("ack", &host.hello(3).payload).unwrap();
    assert!(
        matches!(ack.processes[..], [ProcessStatus { process: 1, state: ProcessState::Running { .. }, .. }]),
        "{ack:?}"
    );
}

#[test]
fn a_start_is_done_once_and_an_end_is_kept_until_it_is_forgotten() {
    let Some(mut host) = agent(None) else { return };
    host.hello(1);
    host.start(4, "t", "echo once", false);
    host.start(4, "t", "echo twice", false);
    host.attach(4, 0, 0);
    let mut outputs = Default::default();
    assert_eq!(host.end(4, &mut outputs), exited(0));
    assert_eq!(outputs[0], b"once\n");
    let ack: HelloAck = message::decode("ack", &host.hello(2).payload).unwrap();
    assert_eq!(ack.processes[0].state, ProcessState::Ended(End::Exited { code: 0, oom_kills: 0 }));
    host.attach(4, 5, 0);
    assert_eq!(host.end(4, &mut outputs), exited(0), "a host that came back is told again");
    host.start(4, "other", "echo never", false);
    assert!(host.end(4, &mut outputs).unwrap_err().contains("another token"));
    host.hello(3);
    host.send(Kind::Forget, 4, 0, 0, b"");
    let ack: HelloAck = message::decode("ack", &host.hello(4).payload).unwrap();
    assert_eq!(ack.processes, []);
}

#[test]
fn what_cannot_be_started_says_why() {
    let Some(mut host) = agent(None) else { return };
    host.hello(1);
    let mut ends = Vec::new();
    for (process, program, cwd, user) in
        [(0, "/no/such", None, None), (1, "true", Some("/no/such"), None), (2, "true", None, Some("ghost-user"))]
    {
        let (argv, env) = (vec![program.to_owned()], [].into());
        let (cwd, user) = (cwd.map(str::to_owned), user.map(str::to_owned));
        let start = Start { token: "t".into(), argv, env, cwd, user, stdin: false, code: None };
        host.message(Kind::Start, process, &message::encode(&start));
        ends.push(host.end(process, &mut Default::default()).unwrap());
    }
    assert!(matches!(&ends[0], End::NotFound { message } if message.contains("/no/such")), "{ends:?}");
    assert!(matches!(&ends[1], End::NotExecutable { message } if message.contains("working directory")), "{ends:?}");
    assert!(matches!(&ends[2], End::NotExecutable { message } if message.contains("ghost-user")), "{ends:?}");
}

#[test]
fn a_guest_that_could_not_be_prepared_says_so_to_every_host() {
    let Some(mut host) = agent(Some("no disk")) else { return };
    for nonce in 1..3 {
        let fault = host.hello(nonce);
        assert_eq!((fault.header.kind, fault.payload.as_slice()), (Kind::Fault, b"no disk".as_slice()));
    }
}

#[test]
fn without_a_layer_a_freeze_says_so() {
    let Some(mut host) = agent(None) else { return };
    host.hello(1);
    host.send(Kind::Freeze, 0, 0, 0, b"");
    let frozen = host.next();
    assert_eq!(
        (frozen.header.kind, frozen.payload.as_slice()),
        (Kind::Frozen, b"there is no layer to freeze".as_slice())
    );
}

/// A file system of its own, which is unmounted and removed in the end.
struct Disk(std::path::PathBuf);

impl Disk {
    fn new() -> Option<Self> {
        let folder = std::env::temp_dir().join(format!("layer-{}", std::process::id()));
        let disk = Self(folder);
        std::fs::create_dir_all(disk.0.join("mount")).unwrap();
        std::fs::File::create(disk.0.join("image")).unwrap().set_len(8 << 20).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut command = std::process::Command::new(program);
            command.args(arguments).current_dir(&disk.0).output().is_ok_and(|output| output.status.success())
        };
        if run("mkfs.ext4", &["-q", "image"]) && run("mount", &["-o", "loop", "image", "mount"]) {
            return Some(disk);
        }
        println!("skipped: no ext4 can be mounted on a loop device");
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mount = self.0.join("mount");
        // A test that failed may have left it frozen, which would keep it for ever.
        if let Ok(file) = std::fs::File::open(&mount) {
            let _ = Freezer::frozen(file.into()).thaw();
        }
        let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that was restored answers the agent before the host hears of the restore; what wanted to write to the frozen
/// layer goes on.
#[test]
fn a_hello_after_a_freeze_thaws_and_tells_of_the_restore() {
    thaws(None);
}

#[test]
fn a_helper_that_ended_leaves_nothing_frozen() {
    thaws(Some("/bin/true"));
    thaws(Some("/no/such/program"));
}

/// `T` when it is stopped.
fn state_of(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().chars().next().unwrap()
}

fn thaws(helper: Option<&'static str>) {
    let Some(disk) = rustix::process::geteuid().is_root().then(Disk::new).flatten() else { return };
    let (mount, run) = (disk.0.join("mount"), disk.0.join("run"));
    let layer = std::fs::File::open(&mount).unwrap();
    let socket = run.to_str().unwrap().to_owned();
    let beside = move || (Some(Freezer::new(layer.into(), helper)), Some(Hooks::listen(&socket).unwrap()));
    let Some(mut host) = agent_on(None, beside) else { return };
    host.hello(1);
    let script = format!(
        "exec python3 -c 'import socket\ns = socket.socket(1, 5)\ns.connect(\"{}/restored\")\nprint(\"waits\", flush=True)\n\
         print(len(s.recv(99)), flush=True)\nopen(\"{}/hook\", \"w\").write(\"x\")\ns.send(b\"k\")\ns.recv(9)'",
        run.display(),
        mount.display()
    );
    let mut outputs: [Vec<u8>; 2] = Default::default();
    host.start(0, "t", &script, false);
    host.attach(0, 0, 0);
    while outputs[0] != b"waits\n" {
        let Frame { header, payload } = host.next();
        if header.kind == Kind::Output {
            outputs[usize::from(header.stream) - 1].extend(payload);
        }
        assert_eq!(outputs[1], b"", "python3 is needed: {}", String::from_utf8_lossy(&outputs[1]));
    }
    host.start(2, "t", "kill -STOP $$; sleep 60", false);
    let [warm, itself] = [0, 2].map(|number| {
        let ack: HelloAck = message::decode("ack", &host.hello(9).payload).unwrap();
        let status = ack.processes.into_iter().find(|status| status.process == number).unwrap();
        let ProcessState::Running { pid } = status.state else { panic!("{status:?}") };
        pid
    });
    while state_of(itself) != 'T' {}
    for _ in 0..2 {
        host.send(Kind::Freeze, 0, 0, 0, b"");
        let frozen = host.next();
        assert_eq!((frozen.header.kind, frozen.payload.as_slice()), (Kind::Frozen, b"".as_slice()));
    }
    assert_eq!((state_of(warm), state_of(itself)), ('T', 'T'), "nobody goes on by itself");
    host.start(1, "t", &format!("echo x > {}/file; echo wrote", mount.display()), false);
    host.attach(1, 0, 0);
    assert_eq!(host.next().header.kind, Kind::Started);
    host.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(host.stream.read(&mut [0; 9]).is_err(), "nobody writes to a frozen layer");
    host.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let refused = host.hello_as(3, "bad");
    assert_eq!((refused.header.kind, state_of(warm)), (Kind::Fault, 'T'));
    let began = std::time::Instant::now();
    assert_eq!(host.hello(2).header.kind, Kind::HelloAck);
    assert!(began.elapsed() < Duration::from_millis(900), "the hook could write to the layer, and was waited for");
    assert_eq!(std::fs::read(mount.join("hook")).unwrap(), b"x");
    assert_eq!((state_of(warm) == 'T', state_of(itself)), (false, 'T'), "only who was stopped goes on");
    host.attach(1, 0, 0);
    let mut wrote: [Vec<u8>; 2] = Default::default();
    assert_eq!(host.end(1, &mut wrote), exited(0));
    assert_eq!(wrote[0], b"wrote\n");
    host.attach(0, 6, 0);
    let Frame { payload, .. } = host.next();
    assert_eq!(payload, b"64\n");
    host.send(Kind::Signal, 0, 0, 9, b"");
    while host.next().header.kind != Kind::Ended {}
    // It stands still, and would for ever.
    let itself = rustix::process::Pid::from_raw(itself.try_into().unwrap()).unwrap();
    rustix::process::kill_process(itself, rustix::process::Signal::KILL).unwrap();
}

/// A helper that has no turn is not waited for longer than until the host says the time again.
#[test]
fn a_helper_that_does_nothing_is_made_up_for() {
    use std::os::unix::fs::PermissionsExt;
    let Some(disk) = rustix::process::geteuid().is_root().then(Disk::new).flatten() else { return };
    let (mount, helper) = (disk.0.join("mount"), disk.0.join("helper"));
    std::fs::write(&helper, "#!/bin/sh\nexec sleep 60 > /dev/null\n").unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let helper: &'static str = Box::leak(helper.to_str().unwrap().to_owned().into_boxed_str());
    let layer = std::fs::File::open(&mount).unwrap();
    let beside = move || (Some(Freezer::new(layer.into(), Some(helper))), None);
    let Some(mut host) = agent_on(None, beside) else { return };
    host.hello(1);
    host.send(Kind::Freeze, 0, 0, 0, b"");
    assert_eq!(host.next().header.kind, Kind::Frozen);
    host.hello(2);
    host.start(1, "t", &format!("echo x > {}/file; echo wrote", mount.display()), false);
    host.attach(1, 0, 0);
    assert_eq!(host.next().header.kind, Kind::Started);
    host.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(host.stream.read(&mut [0; 9]).is_err(), "the helper was told, and does nothing");
    host.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    host.send(Kind::Clock, 0, 0, 0, b"");
    let mut wrote: [Vec<u8>; 2] = Default::default();
    assert_eq!(host.end(1, &mut wrote), exited(0));
    assert_eq!(wrote[0], b"wrote\n");
}
