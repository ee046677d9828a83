//! What several of these tests need: clients in the background, guests that write their own records, and a guest that
//! hangs at boot.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{PATIENCE, Server, wait};

/// A command that prints a nonce of its own at its start, which tells one run from two.
pub(crate) const NONCE: &str = "echo nonce $(cat /proc/sys/kernel/random/uuid)";

/// A command that prints its nonce, then numbered lines every 50 ms.
pub(crate) fn counting(lines: usize, exit: i32) -> String {
    format!("{NONCE}; i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); sleep 0.05; done; exit {exit}")
}

/// One nonce, at the start, and every line once and in order.
pub(crate) fn assert_counted(text: &str, lines: usize) {
    let mut found = text.lines();
    let first = found.next().unwrap_or_default();
    assert!(first.starts_with("nonce ") && first.len() == 42, "it starts with {first:?}");
    let rest: Vec<&str> = found.collect();
    let wanted: Vec<String> = (0..lines).map(|i| format!("line {i}")).collect();
    assert_eq!(rest, wanted);
}

/// How often a text says that the command was started.
pub(crate) fn nonces(text: &str) -> usize {
    text.lines().filter(|l| l.starts_with("nonce ")).count()
}

/// The CLI in the background, its output in files.
pub(crate) struct Client {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

/// What a client left.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

impl Client {
    pub(crate) fn start(server: &Server, args: &[&str]) -> Self {
        Self::start_with(server, args, Stdio::null())
    }

    pub(crate) fn start_with(server: &Server, args: &[&str], stdin: Stdio) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = |name: &str| server.scratch().join(format!("client-{number}.{name}"));
        let (out, err) = (file("out"), file("err"));
        let mut command = server.cli(args);
        command.stdin(stdin).stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        Self { child: command.spawn().unwrap(), out, err }
    }

    /// The pipe to its standard input.
    pub(crate) fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().expect("a pipe")
    }

    pub(crate) fn stdout(&self) -> Vec<u8> {
        std::fs::read(&self.out).unwrap()
    }

    /// Waits until its output holds `text`.
    pub(crate) fn until(&self, text: &str) {
        let what = format!("{text:?}");
        until(&what, PATIENCE, || String::from_utf8_lossy(&self.stdout()).contains(text));
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let code = wait(&mut self.child, PATIENCE).code();
        Ended { code, out: self.stdout(), err: std::fs::read_to_string(&self.err).unwrap() }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, patience: Duration, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !so() {
        assert!(Instant::now() < end, "waited {patience:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a sandbox's command has started; gives its record.
pub(crate) fn started(server: &Server, id: &str) -> Value {
    let mut record = Value::Null;
    until("the command's start", PATIENCE, || {
        let inspected = server.run(&["inspect", id, "--json"]);
        if !inspected.status.success() {
            // A client in the background may not have asked for it yet.
            return false;
        }
        record = serde_json::from_slice(&inspected.stdout).unwrap();
        assert!(record["ended_at"].is_null(), "{record}\n{}", server.log());
        let phases = record["phases"].as_array().unwrap();
        phases.iter().any(|phase| phase["name"] == "command_started")
    });
    record
}

/// The hypervisor's process id.
pub(crate) fn hypervisor(record: &Value) -> u32 {
    record["hypervisor_pid"].as_u64().unwrap_or_else(|| panic!("no hypervisor: {record}")) as u32
}

/// Parent and start time of a living process, which tell it from another of the same id.
pub(crate) fn process(pid: u32) -> Option<(u32, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    (fields[0] != "Z").then(|| (fields[1].parse().unwrap(), fields[19].parse().unwrap()))
}

/// When a living process was born.
pub(crate) fn birth(pid: u32) -> Option<u64> {
    process(pid).map(|p| p.1)
}

/// Waits until a process is gone.
pub(crate) fn gone(pid: u32, patience: Duration) {
    until(&format!("the end of process {pid}"), patience, || process(pid).is_none());
}

/// Reason and exit status of a record that has ended.
pub(crate) fn end_of(record: &Value) -> (&str, i64) {
    let status = record["exit_status"].as_i64().unwrap_or(-1);
    (record["outcome"]["reason"].as_str().unwrap_or("none"), status)
}

/// Guests of this server hang at boot from now on, so that they neither start nor end. Gives the file and what it was.
pub(crate) fn hang_at_boot(server: &Server) -> (PathBuf, Vec<u8>) {
    let path = initramfs(&server.data);
    let was = std::fs::read(&path).unwrap();
    let script = b"#!/bin/busybox sh\nexec /bin/busybox sleep 100000\n";
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut archive = Vec::new();
    entry(&mut archive, "bin", 0o040_755, b"");
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox);
    entry(&mut archive, "init", 0o100_755, script);
    entry(&mut archive, "TRAILER!!!", 0, b"");
    // It is linked to the seed's.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, archive).unwrap();
    (path, was)
}

fn initramfs(data: &Path) -> PathBuf {
    let kernels = std::fs::read_dir(data.join("kernels")).unwrap().flatten();
    let files = kernels.flat_map(|k| std::fs::read_dir(k.path()).into_iter().flatten().flatten());
    let mut found = files.map(|f| f.path()).filter(|p| p.extension().is_some_and(|e| e == "cpio"));
    found.next().expect("the seed has an initramfs")
}

/// One entry of a cpio archive in the format `newc`.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) {
    let (size, name_size) = (bytes.len() as u32, name.len() as u32 + 1);
    let inode = archive.len() as u32;
    archive.extend_from_slice(b"070701");
    for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(bytes);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// A POST to a server that may die meanwhile: the answer's status and body, when there was a whole one.
pub(crate) fn try_post(url: &str, key: &str, idempotency: &str, body: &Value) -> Option<(u16, Value)> {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let body = body.to_string();
    let request = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
         idempotency-key: {idempotency}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, serde_json::from_str(body).ok()?))
}

/// Numbers that look random and are the same in each run (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}
