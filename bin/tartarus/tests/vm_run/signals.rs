//! Signals to the command line, and what becomes of the command.

use serde_json::Value;

use crate::harness::Server;
use crate::shell::{Running, text};

/// The one sandbox that has not ended.
fn living(server: &Server) -> Value {
    let all = server.json(&["ps", "--json"]);
    assert_eq!(all.as_array().unwrap().len(), 1, "{all}");
    all[0].clone()
}

#[test]
fn the_first_ctrl_c_is_the_commands() {
    let server = Server::start();
    let script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.2; done";
    let mut run = Running::start(&server, &["run", "busybox", "--name", "it", "--", "sh", "-c", script]);
    assert_eq!(run.line(), "ready");
    run.signal("INT");
    let output = run.output();
    assert_eq!((text(&output.stdout), output.status.code()), ("caught\n".into(), Some(7)), "{output:?}");
    let record = server.json(&["inspect", "it", "--json"]);
    assert_eq!((&record["outcome"]["reason"], &record["exit_status"]), (&"exited".into(), &7.into()), "{record}");
}

#[test]
fn the_second_ctrl_c_ends_the_sandbox() {
    let server = Server::start();
    let script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.2; done";
    let mut run = Running::start(&server, &["run", "busybox", "--", "sh", "-c", script]);
    assert_eq!(run.line(), "ready");
    let id = living(&server)["id"].as_str().unwrap().to_owned();
    run.signal("INT");
    assert_eq!(run.line(), "caught");
    assert!(run.runs(), "one Ctrl-C leaves a command alone that does not want to end");
    run.signal("INT");
    let output = run.output();
    assert_eq!(output.status.code(), Some(130), "{output:?}\n{}", server.log());
    assert_eq!(server.until(&id, &["killed", "failed", "succeeded"])["state"], "killed");
}

#[test]
fn sigterm_to_the_command_line_ends_the_sandbox() {
    let server = Server::start();
    let script = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.2; done";
    let mut run = Running::start(&server, &["run", "busybox", "--", "sh", "-c", script]);
    assert_eq!(run.line(), "ready");
    let id = living(&server)["id"].as_str().unwrap().to_owned();
    run.signal("TERM");
    let output = run.output();
    assert_eq!(output.status.code(), Some(143), "{output:?}\n{}", server.log());
    let record = server.until(&id, &["killed", "failed", "succeeded"]);
    assert_eq!((&record["state"], &record["outcome"]["exit_code"]), (&"killed".into(), &0.into()), "{record}");
    assert!(server.ok(&["logs", &id]).ends_with("asked"), "the command was asked, not shot");
}

#[test]
fn ctrl_c_before_the_start_leaves_nothing_behind() {
    let server = Server::start();
    // Its boot takes seconds.
    let run = Running::start(&server, &["run", "busybox", "--name", "early", "--", "sleep", "1000"]);
    let begun = std::time::Instant::now();
    while !server.run(&["inspect", "early"]).status.success() {
        assert!(begun.elapsed() < crate::harness::PATIENCE);
    }
    run.signal("INT");
    let output = run.output();
    assert_eq!(output.status.code(), Some(130), "{output:?}\n{}", server.log());
    assert_eq!(server.until("early", &["killed", "failed", "succeeded"])["state"], "killed");
    server.nothing_left();
}
