//! The ends of a sandbox without a command: kill, rm, its time to live, nobody using it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::Server;
use crate::shell::{sandbox, sh, text};

#[test]
fn kill_ends_a_sandbox_and_exec_says_so() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    server.ok(&["kill", &id]);
    let record = server.until(&id, &["killed"]);
    assert_eq!(record["outcome"]["reason"], "killed", "{record}");
    assert_eq!(server.run(&["wait", &id]).status.code(), Some(137));
    let output = server.run(&["exec", &id, "--", "true"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{errors}");
    assert!(errors.contains("killed") && errors.contains(&id), "{errors}");
    server.nothing_left();
}

#[test]
fn rm_ends_a_sandbox_and_forgets_it() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    sh(&server, &id, "echo something");
    server.ok(&["rm", &id]);
    assert!(!server.run(&["inspect", &id]).status.success());
    assert!(!server.data.join("logs").join(&id).exists(), "its logs are gone");
    let output = server.run(&["exec", &id, "--", "true"]);
    assert!(output.status.code() == Some(125) && text(&output.stderr).contains(&id), "{output:?}");
    server.nothing_left();
}

#[test]
fn a_time_to_live_ends_a_sandbox() {
    let server = Server::start();
    let id = server.ok(&["create", "busybox", "--ttl", "2s"]);
    let record = server.until(&id, &["timed_out", "killed", "failed"]);
    assert_eq!((&record["state"], &record["outcome"]["reason"]), (&"timed_out".into(), &"ttl".into()), "{record}");
    let lived = record["ended_at"].as_i64().unwrap() - record["started_at"].as_i64().unwrap();
    assert!((2_000_000..15_000_000).contains(&lived), "{lived} µs: {record}");
    assert_eq!(server.run(&["wait", &id]).status.code(), Some(124));
    server.nothing_left();
}

#[test]
fn an_idle_sandbox_ends_and_use_postpones_it() {
    let server = Server::start();
    let answer = server.post("/v1/sandboxes", &json!({"template": "busybox", "idle_timeout_ms": 6000}));
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    server.until(&id, &["running"]);
    let begun = Instant::now();
    let mut used = Instant::now();
    while begun.elapsed() < Duration::from_secs(9) {
        used = Instant::now();
        sh(&server, &id, "true");
        std::thread::sleep(Duration::from_secs(3));
    }
    let record = server.until(&id, &["timed_out", "killed", "failed"]);
    assert_eq!((&record["state"], &record["outcome"]["reason"]), (&"timed_out".into(), &"idle".into()), "{record}");
    assert!(used.elapsed() >= Duration::from_secs(6), "{:?} after its last use", used.elapsed());
    server.nothing_left();
}
