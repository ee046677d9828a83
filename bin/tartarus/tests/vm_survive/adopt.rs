//! `kill -9` of the server while sandboxes run: the machines go on and are taken over.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{PATIENCE, Server};
use crate::scene::{Client, Random, assert_counted, birth, counting, end_of, hypervisor, started, until};

#[test]
fn a_run_goes_on_over_the_servers_death_and_its_client_misses_nothing() {
    const LINES: usize = 200;
    let mut server = Server::start();
    let command = counting(LINES, 7);
    let run = Client::start(&server, &["run", "--name", "counter", "busybox", "--", "sh", "-c", &command]);
    run.until("line 10\n");
    let follow = Client::start(&server, &["logs", "counter", "--follow"]);
    follow.until("line 20\n");
    let before = server.json(&["inspect", "counter", "--json"]);
    let id = before["id"].as_str().unwrap();
    let pid = hypervisor(&before);
    let born = birth(pid);
    assert!(born.is_some());

    server.kill9();
    // What the command writes meanwhile has nobody to take it.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(birth(pid), born, "the hypervisor did not survive its server");
    server.spawn();
    assert_eq!(hypervisor(&server.json(&["inspect", id, "--json"])), pid);

    let run = run.end();
    assert_eq!(run.code, Some(7), "{}\n{}", run.err, server.log());
    assert_counted(&run.text(), LINES);
    let follow = follow.end();
    assert_eq!(follow.code, Some(0), "{}", follow.err);
    assert_counted(&follow.text(), LINES);
    assert_counted(&server.ok(&["logs", id]), LINES);
    let after = server.json(&["inspect", id, "--json"]);
    assert_eq!((end_of(&after), after["attempts"].as_i64()), (("exited", 7), Some(1)));
    server.nothing_left();
}

#[test]
fn standard_input_and_the_timeout_go_on_over_the_servers_death() {
    const HALF: usize = 1 << 20;
    let mut server = Server::start();
    server.ok(&["create", "busybox", "--name", "box"]);
    let limited =
        Client::start(&server, &["run", "--name", "limited", "--timeout", "12s", "busybox", "--", "sleep", "100"]);
    started(&server, "box");
    let id = started(&server, "limited")["id"].as_str().unwrap().to_owned();

    let data = Random(0x9e37_79b9_7f4a_7c15).bytes(2 * HALF);
    let mut exec = Client::start_with(&server, &["exec", "box", "-i", "--", "cat"], Stdio::piped());
    let mut stdin = exec.stdin();
    let (dead, death) = std::sync::mpsc::sync_channel::<()>(1);
    let feed = data.clone();
    let feeder = std::thread::spawn(move || {
        stdin.write_all(&feed[..HALF]).unwrap();
        death.recv_timeout(PATIENCE).unwrap();
        stdin.write_all(&feed[HALF..]).unwrap();
    });
    until("the first of the echo", PATIENCE, || exec.stdout().len() >= 64 * 1024);
    server.kill9();
    dead.send(()).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    server.spawn();

    feeder.join().unwrap();
    let exec = exec.end();
    assert_eq!(exec.code, Some(0), "{}\n{}", exec.err, server.log());
    assert_eq!(exec.out.len(), data.len());
    assert!(exec.out == data, "bytes were changed, doubled or swapped");

    let limited = limited.end();
    assert_eq!(limited.code, Some(124), "{}\n{}", limited.err, server.log());
    let record = server.json(&["inspect", &id, "--json"]);
    assert_eq!(end_of(&record), ("timeout", 124));
    let ran = record["ended_at"].as_i64().unwrap() - record["started_at"].as_i64().unwrap();
    assert!((11_900_000..20_000_000).contains(&ran), "it ran {ran} us");
    server.ok(&["rm", "box"]);
    server.nothing_left();
}
