//! Standing still.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use crate::harness::Server;
use crate::world::{running, sh};

const COUNT: &str = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done";
/// The same without a rest: whenever the machine goes on, it writes.
const WRITE: &str = "i=0; while true; do echo $i; i=$((i+1)); done";

fn lines(server: &Server, id: &str) -> usize {
    server.ok(&["logs", id]).lines().count()
}

#[test]
fn nothing_runs_while_it_stands_still_and_its_timeout_waits() {
    let server = Server::start();
    let id = server.ok(&["run", "--detach", "--timeout", "8s", "busybox", "--", "sh", "-c", COUNT]);
    server.until(&id, &["running"]);
    while lines(&server, &id) < 5 {
        std::thread::sleep(Duration::from_millis(50));
    }
    server.ok(&["pause", &id]);
    server.ok(&["pause", &id]);
    assert_eq!(server.json(&["inspect", &id, "--json"])["state"], "paused");
    std::thread::sleep(Duration::from_millis(500));
    let before = lines(&server, &id);
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(lines(&server, &id), before, "it ran on");
    assert_eq!(server.json(&["inspect", &id, "--json"])["state"], "paused", "its timeout ran on");
    server.ok(&["resume", &id]);
    server.ok(&["resume", &id]);
    assert_eq!(server.json(&["inspect", &id, "--json"])["state"], "running");
    let record = server.until(&id, &["timed_out", "failed", "killed"]);
    assert_eq!(record["outcome"]["reason"], "timeout", "{record}");
    assert!(lines(&server, &id) > before);
    server.nothing_left();
}

#[test]
fn an_exec_waits_for_the_machine_to_go_on() {
    let server = Server::start();
    let id = running(&server, &["busybox"]);
    server.ok(&["pause", &id]);
    let mut exec =
        server.cli(&["exec", &id, "--", "date", "+%s"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(exec.try_wait().unwrap().is_none(), "it ran in a machine that stands still");
    server.ok(&["resume", &id]);
    let output = exec.wait_with_output().unwrap();
    assert!(output.status.success());
    let said: i64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!((now - said).abs() <= 1, "its clock stood still: {said}, now is {now}");
    server.ok(&["rm", &id]);
    server.nothing_left();
}

#[test]
fn it_stands_still_over_the_servers_death_and_can_be_ended() {
    let mut server = Server::start();
    let id = server.ok(&["run", "--detach", "busybox", "--", "sh", "-c", WRITE]);
    server.until(&id, &["running"]);
    while lines(&server, &id) < 1 {
        std::thread::sleep(Duration::from_millis(50));
    }
    server.ok(&["pause", &id]);
    server.kill9();
    server.spawn();
    assert_eq!(server.json(&["inspect", &id, "--json"])["state"], "paused");
    let before = lines(&server, &id);
    // Nothing of this asks its guest, which cannot answer.
    assert_eq!(server.json(&["net", "show", &id, "--json"])["contract"]["mode"], "none");
    // What is stored is shown at once, and more is waited for.
    let mut follower = server.cli(&["logs", "--follow", &id]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut followed = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(followed.next().unwrap().unwrap(), "0");
    // Longer than a lease: it is renewed for what stands still as well.
    std::thread::sleep(Duration::from_secs(35));
    assert_eq!(server.json(&["inspect", &id, "--json"])["state"], "paused");
    assert_eq!(lines(&server, &id), before);
    server.ok(&["resume", &id]);
    let end = Instant::now() + Duration::from_secs(20);
    while lines(&server, &id) <= before {
        assert!(Instant::now() < end, "it does not go on; server:\n{}", server.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let next = followed.nth(before - 1).unwrap().unwrap();
    assert_eq!(next, before.to_string(), "whoever followed while it stood still misses nothing");
    server.ok(&["pause", &id]);
    let begin = Instant::now();
    server.ok(&["kill", &id]);
    server.until(&id, &["killed"]);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(crate::harness::wait(&mut follower, Duration::from_secs(10)).success(), "it hears of the end");
    server.nothing_left();

    let id = running(&server, &["busybox"]);
    assert_eq!(sh(&server, &id, "echo fine"), "fine");
    server.ok(&["rm", &id]);
    server.nothing_left();
}
