//! SIGTERM: sandboxes end, and nothing is left; with `--leave-running` they are left alone.

use std::time::{Duration, Instant};

use crate::harness::Server;
use crate::scene::{Client, assert_counted, birth, counting, end_of, hypervisor, nonces, started};

#[test]
fn a_stopped_server_gives_commands_their_time_and_leaves_nothing() {
    const POLITE: &str = "trap 'echo asked; sleep 1; echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    const DEAF: &str = "trap '' TERM; echo ready; while :; do sleep 1; done";
    let mut server = Server::start();
    let polite = Client::start(&server, &["run", "--name", "polite", "busybox", "--", "sh", "-c", POLITE]);
    let deaf = server.ok(&["run", "--detach", "--name", "deaf", "busybox", "--", "sh", "-c", DEAF]);
    polite.until("ready\n");
    let follow = Client::start(&server, &["logs", &deaf, "--follow"]);
    follow.until("ready\n");
    let id = server.json(&["inspect", "polite", "--json"])["id"].as_str().unwrap().to_owned();
    drop(follow);

    let asked = Instant::now();
    server.stop();
    let took = asked.elapsed();
    assert!((4..20).contains(&took.as_secs()), "the deaf one has 5 s: the stop took {took:?}");
    server.nothing_left();

    server.spawn();
    let record = server.json(&["inspect", &id, "--json"]);
    assert_eq!(end_of(&record), ("shutdown", 5), "{record}");
    assert_eq!(server.ok(&["logs", &id]), "ready\nasked\nbye");
    let record = server.json(&["inspect", &deaf, "--json"]);
    assert_eq!((end_of(&record), record["state"].as_str()), (("shutdown", 137), Some("killed")), "{record}");
    let polite = polite.end();
    assert_eq!((polite.code, polite.text().as_str()), (Some(5), "ready\nasked\nbye\n"), "{}", polite.err);
    server.nothing_left();
}

/// What systemd does to a unit with `KillMode=process`: SIGTERM to the main process alone, then a new start.
#[test]
fn a_service_restart_with_leave_running_leaves_machines_alone() {
    const LINES: usize = 200;
    let mut server = Server::start_with(&["--leave-running"]);
    let command = counting(LINES, 3);
    let run = Client::start(&server, &["run", "--name", "counter", "busybox", "--", "sh", "-c", &command]);
    run.until("line 10\n");
    let record = started(&server, "counter");
    let (id, pid) = (record["id"].as_str().unwrap(), hypervisor(&record));
    let born = birth(pid);
    assert!(born.is_some());

    server.stop();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(birth(pid), born, "the hypervisor did not outlive the stop");
    server.spawn();
    assert_eq!(hypervisor(&server.json(&["inspect", id, "--json"])), pid);
    let run = run.end();
    assert_eq!(run.code, Some(3), "{}\n{}", run.err, server.log());
    assert_counted(&run.text(), LINES);
    let log = server.ok(&["logs", id]);
    assert_eq!(nonces(&log), 1);
    assert_counted(&log, LINES);
    server.nothing_left();
}
