//! A guest that only pretends: it speaks the real protocol and runs nothing. `echo TEXT` prints and exits 0, `exit N`
//! exits with N, anything else runs until a signal ends it.

use std::collections::BTreeMap;

use tartarus_guest::frame::{self, Assembler, Decoder, Found, MAGIC};
use tartarus_guest::{End, Header, HelloAck, Kind, RunnerState, Start, message};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::ports::Ports;

#[derive(Clone, Copy)]
pub(crate) struct Mood {
    pub(crate) silent: bool,
    pub(crate) fault: bool,
    pub(crate) nonsense: bool,
    pub(crate) lies: bool,
    pub(crate) old: bool,
    pub(crate) no_runner: bool,
    pub(crate) no_freeze: bool,
    pub(crate) dies_freezing: bool,
}

/// Speaks until the line is cut. True when its hypervisor shall die then.
pub(crate) async fn run(mut line: DuplexStream, mood: Mood) -> bool {
    let mut decoder = Decoder::guest();
    let (mut hello, mut start) = (Assembler::default(), Assembler::default());
    let mut started: BTreeMap<u32, Start> = BTreeMap::new();
    let mut ports = Ports::default();
    let mut tag = 0;
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let mut out = Vec::new();
        while let Ok(Some(found)) = decoder.next_found() {
            let frame = match found {
                Found::Session(nonce) => {
                    tag = frame::tag(&nonce);
                    ports = Ports::default();
                    out.extend([MAGIC.as_slice(), &nonce].concat());
                    continue;
                }
                Found::Frame(frame) => frame,
            };
            let process = frame.header.process;
            match frame.header.kind {
                Kind::Hello if mood.silent => out.clear(),
                Kind::Hello if mood.nonsense => out.extend([0xff; 64]),
                Kind::Hello if mood.fault => {
                    frame::encode(tag, Header::new(Kind::Fault, 0), b"planned: no disks", &mut out);
                }
                Kind::Hello => {
                    if let Ok(Some(_)) = hello.push(frame) {
                        let kernel = "0.0-fake".to_owned();
                        let version = if mood.old { tartarus_guest::CARRIES - 1 } else { tartarus_guest::VERSION };
                        let ack = HelloAck { version, kernel, uptime_ns: 1, processes: Vec::new() };
                        frame::encode_message(tag, Kind::HelloAck, 0, &message::encode(&ack), &mut out);
                    }
                }
                Kind::Start => {
                    if let Ok(Some(whole)) = start.push(frame) {
                        let whole: Start = message::decode("start", &whole).expect("the host sends what it means");
                        frame::encode(tag, Header::new(Kind::Started, process), &[], &mut out);
                        if mood.lies {
                            let header = Header { kind: Kind::Output, stream: 1, process, offset: 1 << 40 };
                            frame::encode(tag, header, b"from nowhere", &mut out);
                        }
                        started.insert(process, whole);
                    }
                }
                Kind::StartRunner => {
                    let message = "planned: no module".to_owned();
                    let state = if mood.no_runner { RunnerState::Failed { message } } else { RunnerState::Ready };
                    frame::encode_message(tag, Kind::Runner, 0, &message::encode(&state), &mut out);
                }
                Kind::Freeze if mood.dies_freezing => return true,
                Kind::Freeze => {
                    let why: &[u8] = if mood.no_freeze { b"planned: busy" } else { b"" };
                    frame::encode(tag, Header::new(Kind::Frozen, 0), why, &mut out);
                }
                // The second stream: both are attached, as the real agent waits for.
                Kind::Attach if frame.header.stream == 2 => {
                    if let Some(command) = started.get(&process) {
                        perform(tag, process, &command.argv, &mut out);
                    }
                }
                Kind::Signal => {
                    let signal = i32::try_from(frame.header.offset).unwrap_or(9);
                    ended(tag, process, &End::Signalled { signal, oom_kills: 0 }, &mut out);
                }
                Kind::Dial | Kind::Carry | Kind::CarryEof | Kind::Carried | Kind::Cut => {
                    assert!(!mood.old, "an agent of this age takes that for noise");
                    ports.heard(tag, frame, &mut out);
                }
                _ => {}
            }
        }
        if line.write_all(&out).await.is_err() {
            return false;
        }
        match line.read(&mut bytes).await {
            Ok(n) if n > 0 => decoder.push(&bytes[..n]),
            _ => return false,
        }
    }
}

fn perform(tag: u32, process: u32, argv: &[String], out: &mut Vec<u8>) {
    let argument = argv.get(1).cloned().unwrap_or_default();
    match argv.first().map(String::as_str) {
        Some("echo") => {
            let header = Header { kind: Kind::Output, stream: 1, process, offset: 0 };
            frame::encode(tag, header, format!("{argument}\n").as_bytes(), out);
            ended(tag, process, &End::Exited { code: 0, oom_kills: 0 }, out);
        }
        // A warm-up: `/bin/sh -c 'exit N'`.
        Some("/bin/sh") => {
            let code = argv.get(2).and_then(|c| c.strip_prefix("exit ")).and_then(|c| c.parse().ok()).unwrap_or(0);
            ended(tag, process, &End::Exited { code, oom_kills: 0 }, out);
        }
        Some("exit") => {
            let code = argument.parse().unwrap_or(0);
            ended(tag, process, &End::Exited { code, oom_kills: 0 }, out);
        }
        _ => {}
    }
}

fn ended(tag: u32, process: u32, end: &End, out: &mut Vec<u8>) {
    frame::encode(tag, Header::new(Kind::Ended, process), &message::encode(end), out);
}
