//! A restore with nothing of Tartarus around it: what the hypervisor and the guest cost by themselves. `cargo xtask
//! bench start` compares the product with it.
//!
//! `bare_restore PID SNAPSHOT CODE DIR`: PID is a hypervisor that the product restored from the golden snapshot in the
//! folder SNAPSHOT. Its command line, and the sealed memory that it maps, are used again; that sandbox may go as soon as
//! this program has said `ready`. For each line on standard input it copies the layer, starts the hypervisor in DIR, greets
//! the guest, has the runner run the file CODE, and prints one line of JSON: milliseconds until its output and end were
//! there, and that output. Every machine is killed before the answer.

#![allow(clippy::print_stdout, reason = "its answers go to standard output")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use serde::Deserialize;
use tartarus_guest::frame::{self, Assembler, Decoder, Found, NONCE};
use tartarus_guest::{End, Frame, Header, Hello, HelloAck, Kind, Start, message};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Where the product's hypervisors find their sockets, memory and device state.
const AGENT_FD: RawFd = 100;
const QMP_FD: RawFd = 101;
const MEMORY_FD: RawFd = 102;
const STATE_FD: RawFd = 103;
const BASE_FD: RawFd = 104;
/// Longest wait for the guest's next words.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is read of the `launch.json` in a machine's folder.
#[derive(Deserialize)]
struct Launch {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    files: Vec<Given>,
}

#[derive(Deserialize)]
struct Given {
    path: PathBuf,
    at: RawFd,
}

/// All that is prepared once.
struct Bare {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    memory: File,
    state: PathBuf,
    layer: PathBuf,
    code: String,
    dir: PathBuf,
}

fn main() -> Fallible<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [pid, snapshot, code, dir] = &args[..] else { return Err("usage: bare_restore PID SNAPSHOT CODE DIR".into()) };
    let bare = Bare::open(pid, Path::new(snapshot), Path::new(code), Path::new(dir))?;
    println!("ready");
    for line in io::stdin().lock().lines() {
        line?;
        let answer = match bare.run() {
            Ok((took, output)) => serde_json::json!({"ms": took.as_secs_f64() * 1000.0, "output": output}),
            Err(error) => serde_json::json!({"ms": 0.0, "output": "", "error": error.to_string()}),
        };
        println!("{answer}");
    }
    Ok(())
}

impl Bare {
    fn open(pid: &str, snapshot: &Path, code: &Path, dir: &Path) -> Fallible<Self> {
        let proc = Path::new("/proc").join(pid);
        // Its supervisor is in the machine's folder; it itself may be locked up.
        let status = fs::read_to_string(proc.join("status"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).ok_or("it has no parent")?.trim();
        let launch: Launch = serde_json::from_slice(&fs::read(format!("/proc/{parent}/cwd/launch.json"))?)?;
        let base = launch.files.iter().find(|file| file.at == BASE_FD).ok_or("it has no base")?;
        let argv = with_files(launch.argv, &base.path, &dir.join("layer"))?;
        // The memfd itself, not a copy: sealed, so that nobody can change it.
        let memory = File::options().read(true).write(true).open(proc.join("fd").join(MEMORY_FD.to_string()))?;
        let state = snapshot.join("state");
        let code = fs::read_to_string(code)?;
        fs::metadata(&state)?;
        Ok(Self { argv, env: launch.env, memory, state, layer: snapshot.join("layer"), code, dir: dir.to_owned() })
    }

    fn run(&self) -> Fallible<(Duration, String)> {
        let start = Instant::now();
        let layer = self.dir.join("layer");
        copy(&self.layer, &layer)?;
        let agent = listen(&self.dir.join("agent.sock"))?;
        let qmp = listen(&self.dir.join("qmp.sock"))?;
        let state = File::open(&self.state)?;
        // It waits in the listener's queue until the hypervisor takes it.
        let mut line = Line::open(UnixStream::connect(self.dir.join("agent.sock"))?)?;
        let fds = [
            (agent.as_raw_fd(), AGENT_FD),
            (qmp.as_raw_fd(), QMP_FD),
            (self.memory.as_raw_fd(), MEMORY_FD),
            (state.as_raw_fd(), STATE_FD),
        ];
        let mut machine = Machine(spawn(&self.argv, &self.env, &self.dir, fds)?);
        let ran = line.run(&self.code);
        let took = start.elapsed();
        machine.end()?;
        fs::remove_file(&layer)?;
        Ok((took, ran.map_err(|error| format!("{error}; {}", machine.said()))?))
    }
}

/// The hypervisor; dropping it kills it.
struct Machine(Child);

impl Machine {
    fn end(&mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }

    fn said(&mut self) -> String {
        let mut text = String::new();
        if let Some(stderr) = &mut self.0.stderr {
            // Only for an error's text.
            let _ = stderr.take(2000).read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// The same command line, by path instead of by descriptor and on a layer of our own: raw, whatever the product's was, since
/// the guest sees no difference.
fn with_files(argv: Vec<String>, base: &Path, layer: &Path) -> Fallible<Vec<String>> {
    let mut found = 0;
    let mut with = Vec::new();
    let mut argv = argv.into_iter();
    while let Some(arg) = argv.next() {
        let path = match arg.as_str() {
            "-add-fd" => {
                argv.next();
                continue;
            }
            drive if drive.starts_with("if=none,id=base,") => base,
            drive if drive.starts_with("if=none,id=layer,") => layer,
            _ => {
                with.push(arg);
                continue;
            }
        };
        found += 1;
        let other = |option: &&str| !["file=", "format=", "backing."].iter().any(|start| option.starts_with(start));
        // A comma in a path is doubled there.
        let path = path.display().to_string().replace(',', ",,");
        with.push(format!("{},format=raw,file={path}", arg.split(',').filter(other).collect::<Vec<_>>().join(",")));
    }
    if found != 2 {
        return Err(format!("the command line has {found} disks").into());
    }
    Ok(with)
}

/// By reference where the file system can, else the parts that hold data.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let (source, target) = (File::open(from)?, File::create(to)?);
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let (mut at, mut chunk) = (0, vec![0; 1 << 20]);
    loop {
        let start = match seek(&source, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            start => start?,
        };
        let end = seek(&source, SeekFrom::Hole(start))?.min(length);
        at = start;
        while at < end {
            let most = chunk.len().min((end - at) as usize);
            source.read_exact_at(&mut chunk[..most], at)?;
            target.write_all_at(&chunk[..most], at)?;
            at += most as u64;
        }
    }
}

fn spawn(argv: &[String], env: &[(String, String)], dir: &Path, fds: [(RawFd, RawFd); 4]) -> Fallible<Child> {
    let (program, args) = argv.split_first().ok_or("no program")?;
    if fds.iter().any(|(from, _)| *from >= AGENT_FD) {
        return Err("too many descriptors are open".into());
    }
    let parent = rustix::process::getpid();
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(env.iter().cloned()).current_dir(dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: the closure only makes system calls; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            if rustix::process::getppid() != Some(parent) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            for (from, to) in fds {
                // dup2 clears close-on-exec; no target is one of the sources.
                if libc::dup2(from, to) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(command.spawn()?)
}

/// The line to the guest agent.
struct Line {
    stream: UnixStream,
    decoder: Decoder,
    tag: u32,
}

impl Line {
    /// Greets the guest; its answer comes once it runs.
    fn open(mut stream: UnixStream) -> Fallible<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut random = [0; NONCE + 64 + 16];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let (nonce, rest) = random.split_at(NONCE);
        let (entropy, machine_id) = rest.split_at(64);
        let nonce: [u8; NONCE] = nonce.try_into()?;
        let time_ns = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
        let hello = Hello {
            version: tartarus_guest::VERSION,
            time_ns,
            entropy: entropy.to_vec(),
            // As long as the product's names are.
            hostname: "sbx-0000000000000000".to_owned(),
            net: None,
            machine_id: Some(machine_id.iter().map(|byte| format!("{byte:02x}")).collect()),
        };
        let tag = frame::tag(&nonce);
        let mut opening = frame::short_preamble(&nonce).to_vec();
        frame::encode_message(tag, Kind::Hello, 0, &message::encode(&hello), &mut opening);
        // Less than a socket holds, so that this does not wait for the hypervisor.
        stream.write_all(&opening)?;
        Ok(Self { stream, decoder: Decoder::host(nonce), tag })
    }

    /// Runs code in the runner; gives standard output when it exited with 0 and said nothing on standard error.
    fn run(&mut self, code: &str) -> Fallible<String> {
        let ack: HelloAck = message::decode("hello-ack", &self.message(Kind::HelloAck)?)?;
        if ack.version < 2 {
            return Err(format!("the guest agent has version {} and no runner", ack.version).into());
        }
        let start = Start {
            token: "bare".to_owned(),
            argv: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            stdin: false,
            code: Some(code.to_owned()),
        };
        let mut out = Vec::new();
        frame::encode_message(self.tag, Kind::Start, 0, &message::encode(&start), &mut out);
        for stream in [1, 2] {
            frame::encode(self.tag, Header { kind: Kind::Attach, stream, process: 0, offset: 0 }, &[], &mut out);
        }
        self.stream.write_all(&out)?;
        let mut streams = [Vec::new(), Vec::new()];
        loop {
            let Frame { header, payload } = self.frame()?;
            match (header.kind, header.stream) {
                (Kind::Output, 1) => streams[0].extend(payload),
                (Kind::Output, 2) => streams[1].extend(payload),
                (Kind::Ended, _) => {
                    let [stdout, stderr] = streams;
                    return match message::decode("end", &payload)? {
                        End::Exited { code: 0, .. } if stderr.is_empty() => Ok(String::from_utf8(stdout)?),
                        end => Err(format!("{end:?}: {}", String::from_utf8_lossy(&stderr)).into()),
                    };
                }
                (Kind::Fault, _) => return Err(format!("fault: {}", String::from_utf8_lossy(&payload)).into()),
                _ => {}
            }
        }
    }

    fn message(&mut self, kind: Kind) -> Fallible<Vec<u8>> {
        let mut assembler = Assembler::default();
        loop {
            let frame = self.frame()?;
            match frame.header.kind {
                Kind::Fault => return Err(format!("fault: {}", String::from_utf8_lossy(&frame.payload)).into()),
                found if found == kind => {
                    if let Some(whole) = assembler.push(frame)? {
                        return Ok(whole);
                    }
                }
                other => return Err(format!("{other:?} instead of {kind:?}").into()),
            }
        }
    }

    fn frame(&mut self) -> Fallible<Frame> {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            match self.decoder.next_found()? {
                Some(Found::Frame(frame)) => return Ok(frame),
                Some(Found::Session(_)) => {}
                None => match self.stream.read(&mut bytes)? {
                    0 => return Err("the hypervisor ended".into()),
                    n => self.decoder.push(&bytes[..n]),
                },
            }
        }
    }
}
