//! The whole agent against a host, over a socket instead of the port, in a child process because it reaps every child of
//! its process. Clock and host name stay alone. The same in a real guest is part of the real-VM suite.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use tartarus_guest::frame::{Found, NONCE, encode, encode_message, preamble, tag};
use tartarus_guest::{Decoder, End, Frame, HelloAck, OUTPUT_WINDOW, ProcessState, Start, VERSION, message};

struct Host {
    agent: libc::pid_t,
    stream: UnixStream,
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
fn agent(ground: Option<&str>) -> Option<Host> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the agent sets users and limits, which takes root");
        return None;
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    theirs.set_nonblocking(true).unwrap();
    // SAFETY: the child only runs the agent, which is made to be a process with one thread, and never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let held = Held {
            proc: open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap(),
            null: open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap(),
        };
        let ground = match ground {
            Some(why) => Err(why.to_owned()),
            None => Ok(Ground { held, pressure: None, become_it: Box::new(|_| Ok(())) }),
        };
        let _ = Agent::new(theirs.into(), ground).unwrap().serve();
        std::process::abort();
    }
    Some(Host { agent: pid, stream: ours, nonce: [0; NONCE], decoder: Decoder::host([0; NONCE]) })
}

impl Host {
    fn hello(&mut self, nonce: u8) -> Frame {
        self.nonce = [nonce; NONCE];
        self.decoder = Decoder::host(self.nonce);
        self.stream.write_all(&preamble(&self.nonce)).unwrap();
        let hello = Hello { version: VERSION, time_ns: 1, entropy: vec![1], hostname: "h".into() };
        self.message(Kind::Hello, 0, &message::encode(&hello));
        self.next()
    }

    fn message(&mut self, kind: Kind, process: u32, message: &[u8]) {
        let mut out = Vec::new();
        encode_message(tag(&self.nonce), kind, process, message, &mut out);
        self.stream.write_all(&out).unwrap();
    }

    fn send(&mut self, kind: Kind, process: u32, stream: u8, offset: u64, payload: &[u8]) {
        let mut out = Vec::new();
        encode(tag(&self.nonce), Header { kind, stream, process, offset }, payload, &mut out);
        self.stream.write_all(&out).unwrap();
    }

    fn start(&mut self, process: u32, token: &str, script: &str, stdin: bool) {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let start = Start { token: token.into(), argv, env: [].into(), cwd: None, user: None, stdin };
        self.message(Kind::Start, process, &message::encode(&start));
    }

    fn attach(&mut self, process: u32, out: usize, err: usize) {
        self.send(Kind::Attach, process, 1, out as u64, b"");
        self.send(Kind::Attach, process, 2, err as u64, b"");
    }

    fn next(&mut self) -> Frame {
        let mut buffer = [0; 4096];
        loop {
            match self.decoder.next_found().unwrap() {
                Some(Found::Frame(frame)) => return frame,
                Some(Found::Session(_)) => {}
                None => {
                    let count = self.stream.read(&mut buffer).unwrap();
                    self.decoder.push(&buffer[..count]);
                }
            }
        }
    }

    /// Collects output, acknowledging it, until the end or a fault.
    fn end(&mut self, process: u32, outputs: &mut [Vec<u8>; 2]) -> Result<End, String> {
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
        let start = Start { token: "t".into(), argv, env, cwd, user, stdin: false };
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
