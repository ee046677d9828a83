//! A reader that is slow, a command that writes much, and a log that stays small.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Server, wait};
use crate::shell::{sandbox, sh};

const MIB: u64 = 1 << 20;
/// Pieces of 1 MiB and a number that the command writes.
const PIECES: u64 = 150;

/// What is random is made once; the number keeps pieces apart.
const WRITER: &str = "
    dd if=/dev/urandom of=/tmp/piece bs=1M count=1 2>/dev/null
    emit() { i=0; while [ $i -lt 150 ]; do cat /tmp/piece; echo $i; echo $i > /tmp/at; i=$((i + 1)); done; }
    emit
    emit | sha256sum > /tmp/sum
    cut -c 1-64 /tmp/sum >&2
";

#[test]
fn a_slow_reader_slows_the_command_and_misses_nothing_while_the_stored_log_stays_small() {
    let server = Server::start_with(&["--log-tail", "4M"]);
    // An exec, so that another can look at how far it came.
    let id = sandbox(&server, &["busybox"]);
    let mut child = Reading(
        server
            .cli(&["exec", &id, "--", "sh", "-c", WRITER])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut stdout = child.0.stdout.take().unwrap();
    let mut start = vec![0; MIB as usize];
    stdout.read_exact(&mut start).unwrap();

    let stuck = stands_still(&server, &id);
    assert!(stuck < PIECES - 1, "nobody reads, and the command went on to piece {stuck}");
    let log = exec_log(&server, &id);
    // Head, tail and one segment beyond it; in whole blocks.
    let bound = MIB + 4 * MIB + MIB;
    assert!(size_of(&log) <= bound, "{} bytes in {}", size_of(&log), log.display());

    let received = server.scratch().join("received");
    let mut file = File::create(&received).unwrap();
    file.write_all(&start).unwrap();
    let rest = std::io::copy(&mut stdout, &mut file).unwrap();
    let status = wait(&mut child.0, PATIENCE);
    assert!(status.success(), "{status}; server:\n{}", server.log());
    let numbers: u64 = (0..PIECES).map(|i| i.to_string().len() as u64 + 1).sum();
    let whole = PIECES * MIB + numbers;
    assert_eq!(rest + MIB, whole);
    let mut told = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(told.trim(), sha256(&received), "what came is not what was written");

    assert!(size_of(&log) <= bound, "{} bytes in {}", size_of(&log), log.display());
}

#[test]
fn the_stored_log_keeps_start_and_end_and_says_what_it_left_out() {
    let server = Server::start_with(&["--log-tail", "4M"]);
    let command = "seq 1500000; echo end >&2";
    let output = server.run(&["run", "busybox", "--name", "talker", "--", "sh", "-c", command]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let whole = output.stdout;
    assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 1_500_000, "the live stream leaves nothing out");
    assert!(whole.ends_with(b"\n1499999\n1500000\n"));

    let stored = server.run(&["logs", "talker", "--stream", "stdout"]).stdout;
    assert!(stored.len() < 6 * MIB as usize, "{} bytes", stored.len());
    let marker = b"[tartarus: ";
    let at = stored.windows(marker.len()).position(|w| w == marker).expect("a marker");
    let line = stored[at..].split(|byte| *byte == b'\n').next().unwrap();
    let words = String::from_utf8_lossy(line);
    let left_out: usize = words.split(' ').nth(1).unwrap().parse().unwrap();
    // The marker has a line of its own, so one newline before it may not be the command's.
    let head = &stored[..at];
    let head = if whole.starts_with(head) { head } else { &head[..at - 1] };
    let tail = &stored[at + line.len() + 1..];
    assert!(head.len() >= MIB as usize && whole.starts_with(head), "{} bytes of the start", head.len());
    assert!(tail.len() >= 4 * MIB as usize && whole.ends_with(tail), "{} bytes of the end", tail.len());
    assert_eq!(head.len() + left_out + tail.len(), whole.len(), "{words}");
    assert_eq!(server.run(&["logs", "talker", "--stream", "stderr"]).stdout, b"");
    assert_eq!(server.run(&["logs", "talker", "--stream", "stderr"]).stderr, b"end\n");

    let id = server.json(&["inspect", "talker", "--json"])["id"].as_str().unwrap().to_owned();
    let on_disk = size_of(&server.data.join("logs").join(id));
    assert!(on_disk <= 6 * MIB, "{on_disk} bytes on disk");
}

/// A child that does not outlive its test.
struct Reading(Child);

impl Drop for Reading {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The piece at which the writer stands still: the same for three seconds.
fn stands_still(server: &Server, id: &str) -> u64 {
    let end = Instant::now() + PATIENCE;
    let mut last = None;
    loop {
        let at: Option<u64> = sh(server, id, "cat /tmp/at").parse().ok();
        if let Some(at) = at.filter(|_| at == last) {
            return at;
        }
        assert!(Instant::now() < end, "it goes on at {at:?}");
        last = at;
        std::thread::sleep(Duration::from_secs(3));
    }
}

/// The folder of the first exec's log: the one that holds the most.
fn exec_log(server: &Server, id: &str) -> std::path::PathBuf {
    let logs = std::fs::read_dir(server.data.join("logs").join(id)).unwrap();
    logs.flatten().map(|entry| entry.path()).max_by_key(|path| size_of(path)).unwrap()
}

fn size_of(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    entries
        .map(
            |entry| {
                if entry.path().is_dir() { size_of(&entry.path()) } else { entry.metadata().map_or(0, |m| m.len()) }
            },
        )
        .sum()
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}
