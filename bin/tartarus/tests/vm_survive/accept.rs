//! What was accepted is on disk before it is answered, and is there after any death of the server.
//!
//! The guests hang at boot here: what is accepted stays as it was.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{PATIENCE, Server, signal, skip, wait};
use crate::scene::{Random, hang_at_boot, try_post, until};

fn wanted() -> Value {
    json!({ "template": "busybox", "command": ["true"], "start_timeout_ms": 3_600_000 })
}

#[test]
fn a_commit_reached_the_disk_between_each_request_and_its_202() {
    const ACCEPTS: usize = 100;
    let server = Server::start();
    hang_at_boot(&server);
    let trace = server.scratch().join("trace");
    let said = server.scratch().join("strace.err");
    let calls = "trace=fdatasync,fsync,write,writev,sendto,sendmsg,recvfrom,read";
    let mut strace = Command::new("strace")
        .args(["-f", "-y", "-s", "64", "-e", calls, "-o"])
        .args([trace.to_str().unwrap(), "-p", &server.pid().to_string()])
        .stderr(std::fs::File::create(&said).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&said).unwrap();
    until("strace to attach", PATIENCE, || said().contains("attached") || strace.try_wait().unwrap().is_some());
    if strace.try_wait().unwrap().is_some() {
        return skip(&format!("strace cannot attach: {}", said().trim()));
    }
    for _ in 0..ACCEPTS {
        assert_eq!(server.post("/v1/sandboxes", &wanted()).status, 202);
    }
    signal(strace.id(), "INT");
    wait(&mut strace, PATIENCE);
    let trace = String::from_utf8_lossy(&std::fs::read(&trace).unwrap()).into_owned();
    let (answered, uncovered) = judge(&trace);
    assert_eq!((answered, uncovered), (ACCEPTS, 0));
}

/// Counts 202s in a trace, and those that no commit of the store covers: one that began after the request was read
/// and was done before the answer was written.
fn judge(trace: &str) -> (usize, usize) {
    let mut syncing = HashMap::new();
    let mut unread = HashMap::new();
    // Since the last request: it was read, then a commit began, then it was done.
    let (mut read, mut synced) = (0, false);
    let (mut answered, mut uncovered) = (0, 0);
    for (number, line) in trace.lines().enumerate() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if call.contains("\"POST /v1/sandboxes ") {
            (read, synced) = (unread.remove(thread).unwrap_or(number), false);
        } else if call.ends_with("<unfinished ...>") && (call.starts_with("recvfrom") || call.starts_with("read")) {
            unread.insert(thread, number);
        } else if call.starts_with("fdatasync") && call.contains("tartarus.db-wal>") {
            if call.ends_with("= 0") {
                synced |= number > read;
            } else {
                syncing.insert(thread, number);
            }
        } else if call.starts_with("<... fdatasync resumed") && call.ends_with("= 0") {
            synced |= syncing.remove(thread).is_some_and(|began| began > read);
        } else if call.contains("\"HTTP/1.1 202 Accepted") {
            answered += 1;
            uncovered += usize::from(!synced);
            synced = false;
        }
    }
    (answered, uncovered)
}

#[test]
fn a_202_without_a_commit_before_it_would_be_seen() {
    let read = "7 recvfrom(9<socket:[1]>, \"POST /v1/sandboxes HTTP/1.1\\r\\n\"..., 8192, 0, NULL, NULL) = 300";
    let sync = "8 fdatasync(5</d/tartarus.db-wal>) = 0";
    let sent = "7 sendto(9<socket:[1]>, \"HTTP/1.1 202 Accepted\\r\\n\"..., 500, 0, NULL, 0) = 500";
    let (begun, done) = ("8 fdatasync(5</d/tartarus.db-wal> <unfinished ...>", "8 <... fdatasync resumed>) = 0");
    let judge = |lines: &[&str]| judge(&lines.join("\n"));
    assert_eq!(judge(&[read, sync, sent, read, begun, done, sent]), (2, 0));
    assert_eq!(judge(&[read, sync, sent, read, sent]), (2, 1));
    assert_eq!(judge(&[sync, read, sent]), (1, 1));
    assert_eq!(judge(&[read, begun, sent, done]), (1, 1));
    assert_eq!(judge(&[begun, read, done, sent]), (1, 1));
}

#[test]
fn whatever_was_answered_with_202_is_there_after_each_death_and_once() {
    const KILLS: usize = 6;
    const CLIENTS: u64 = 3;
    let mut server = Server::start();
    hang_at_boot(&server);
    let (url, key) = (server.url.clone(), server.key());
    let stop = AtomicBool::new(false);
    let accepted: BTreeMap<String, String> = std::thread::scope(|scope| {
        // Each repeats a request under its key until it is answered, then sends the next.
        let client = |client: u64| {
            let (url, key, stop) = (&url, &key, &stop);
            scope.spawn(move || {
                let mut mine = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("{client}-{}", mine.len());
                    match try_post(url, key, &name, &wanted()) {
                        Some((202, body)) => _ = mine.insert(name, body["id"].as_str().unwrap().to_owned()),
                        Some((status, body)) => panic!("{status}: {body}"),
                        None => std::thread::sleep(Duration::from_millis(10)),
                    }
                    // The queue stays at a size that can be listed.
                    std::thread::sleep(Duration::from_millis(60));
                }
                mine
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        let mut random = Random(0x5eed_0000_0000_0202);
        for _ in 0..KILLS {
            std::thread::sleep(Duration::from_millis(200 + random.below(800)));
            server.kill9();
            server.spawn();
        }
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|c| c.join().unwrap()).collect()
    });
    server.kill9();
    server.spawn();
    assert!(accepted.len() > 20, "only {} were accepted", accepted.len());
    let listed = server.json(&["ps", "--all", "--json", "--limit", "1000"]);
    let listed: HashSet<&str> = listed.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert!(listed.len() < 1000, "more than can be listed");
    let ids: HashSet<&str> = accepted.values().map(String::as_str).collect();
    assert_eq!(ids.len(), accepted.len(), "two keys gave one sandbox");
    let lost: Vec<_> = ids.difference(&listed).collect();
    assert!(lost.is_empty(), "answered with 202 and lost: {lost:?}\n{}", server.log());
    // Of each client, one more may be on record whose answer was cut off at the end: none here, all were answered.
    let extra: Vec<_> = listed.difference(&ids).collect();
    assert!(extra.is_empty(), "doubled: {extra:?}\n{}", server.log());
}
