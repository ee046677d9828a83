//! Limits hold while the server is dead: each machine's supervisor ends it.

use std::time::Duration;

use serde_json::json;

use crate::harness::Server;
use crate::scene::{birth, end_of, gone, hypervisor, started};

#[test]
fn a_timeout_holds_while_the_server_is_dead() {
    ends_without_server("timeout_ms", 4_000, "timeout");
}

#[test]
fn an_idle_limit_holds_while_the_server_is_dead() {
    ends_without_server("idle_timeout_ms", 4_000, "idle");
}

fn ends_without_server(limit: &str, ms: u64, reason: &str) {
    let mut server = Server::start();
    let wanted = json!({ "template": "busybox", "command": ["sleep", "1000"], limit: ms });
    let answer = server.post("/v1/sandboxes", &wanted);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let pid = hypervisor(&started(&server, &id));
    server.kill9();
    assert!(birth(pid).is_some(), "the machine died with its server");
    gone(pid, Duration::from_secs(12));
    server.spawn();
    let record = server.until(&id, &["timed_out", "failed", "lost", "killed", "succeeded"]);
    assert_eq!((record["state"].as_str(), end_of(&record)), (Some("timed_out"), (reason, 124)), "{record}");
    server.nothing_left();
}
