//! `kill`: its signal is the command's, and five seconds later the sandbox ends.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::Server;
use crate::shell::Running;

/// Starts a script and waits until it has said that it is ready.
fn ready(server: &Server, script: &str) -> String {
    let id = server.ok(&["run", "busybox", "--detach", "--", "sh", "-c", script]);
    let mut logs = Running::start(server, &["logs", &id, "--follow"]);
    assert_eq!(logs.line(), "ready");
    id
}

/// Waits as `wait` does; gives its exit code and the record.
fn waited(server: &Server, id: &str) -> (Option<i32>, Value) {
    let code = server.run(&["wait", id]).status.code();
    (code, server.json(&["inspect", id, "--json"]))
}

#[test]
fn a_killed_command_may_end_itself_and_its_exit_code_counts() {
    let server = Server::start();
    let id = ready(&server, "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.2; done");
    server.ok(&["kill", &id]);
    let (code, record) = waited(&server, &id);
    assert_eq!(code, Some(3), "{record}");
    assert_eq!((&record["state"], &record["outcome"]["exit_code"]), (&"killed".into(), &3.into()), "{record}");
    assert_eq!(server.ok(&["logs", &id]), "ready\nbye");
    let again = server.run(&["kill", &id]);
    assert!(!again.status.success(), "{again:?}");
}

#[test]
fn a_command_that_ignores_term_is_ended_after_five_seconds() {
    let server = Server::start();
    let id = ready(&server, "trap '' TERM; echo ready; while :; do sleep 1000; done");
    let begun = Instant::now();
    server.ok(&["kill", &id]);
    let (code, record) = waited(&server, &id);
    let took = begun.elapsed();
    assert_eq!((code, &record["state"]), (Some(137), &"killed".into()), "{record}");
    assert!((Duration::from_millis(4500)..Duration::from_secs(15)).contains(&took), "{took:?}");
}

#[test]
fn kill_after_term_takes_effect_at_once() {
    let server = Server::start();
    let id = ready(&server, "trap '' TERM; echo ready; while :; do sleep 1000; done");
    let begun = Instant::now();
    server.ok(&["kill", &id]);
    server.until(&id, &["terminating"]);
    server.ok(&["kill", "--signal", "KILL", &id]);
    let (code, record) = waited(&server, &id);
    let took = begun.elapsed();
    // The end of the grace would have taken the machine away, and the command could not have told its signal.
    assert_eq!((code, &record["outcome"]["signal"]), (Some(137), &9.into()), "{record}");
    assert!(took < Duration::from_millis(4500), "{took:?}");
}

#[test]
fn another_signal_reaches_the_command_by_its_name_or_number() {
    let server = Server::start();
    for signal in ["USR1", "10"] {
        let id = ready(&server, "trap 'exit 21' USR1; echo ready; while :; do sleep 0.2; done");
        server.ok(&["kill", "--signal", signal, &id]);
        assert_eq!(waited(&server, &id).0, Some(21), "{signal}");
    }
    let output = server.run(&["kill", "--signal", "NOPE", "sb"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && errors.contains("NOPE"), "{errors}");
}
