//! A request that is repeated is made once.

use serde_json::json;

use crate::harness::Server;

#[test]
fn the_same_key_is_the_same_sandbox_and_another_request_under_it_is_refused() {
    let server = Server::start();
    let run = |command: &str| {
        server.run(&["run", "busybox", "--detach", "--json", "--idempotency-key", "k1", "--", "sh", "-c", command])
    };
    let first = run("echo once");
    let again = run("echo once");
    assert!(first.status.success() && again.status.success());
    assert_eq!(first.stdout, again.stdout, "the stored answer is replayed");
    let other = run("echo twice");
    assert_eq!(other.status.code(), Some(125));
    let answer = server.http(
        "POST",
        "/v1/sandboxes",
        &[("content-type", "application/json"), ("idempotency-key", "k1")],
        json!({ "template": "busybox", "command": ["true"] }).to_string().as_bytes(),
    );
    assert_eq!((answer.status, answer.json()["code"].as_str()), (422, Some("idempotency_mismatch")));
    let sandboxes = server.json(&["ps", "--all", "--json"]);
    assert_eq!(sandboxes.as_array().map(Vec::len), Some(1), "{sandboxes}");
    let id = sandboxes[0]["id"].as_str().unwrap();
    server.until(id, &["succeeded"]);
    // The answer is that of the first time, also when the sandbox has ended and its template is gone.
    server.ok(&["template", "rm", "busybox"]);
    assert_eq!(run("echo once").stdout, first.stdout);
    assert_eq!(server.ok(&["logs", id]), "once");
}

#[test]
fn an_exec_that_is_repeated_runs_once() {
    let server = Server::start();
    let id = server.ok(&["create", "busybox"]);
    server.until(&id, &["running"]);
    let path = format!("/v1/sandboxes/{id}/execs");
    let body = json!({ "command": ["sh", "-c", "echo x >> /tmp/count"] }).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", "e1")];
    let ids: Vec<_> = (0..3)
        .map(|_| {
            let answer = server.http("POST", &path, &headers, body.as_bytes());
            assert_eq!(answer.status, 202, "{}", answer.text());
            answer.json()["id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(ids.iter().all(|i| *i == ids[0]), "{ids:?}");
    let ended = server.http("GET", &format!("{path}/{}?wait_ms=20000", ids[0]), &[], b"").json();
    assert_eq!(ended["exit_status"], 0, "{ended}");
    assert_eq!(server.ok(&["exec", &id, "--", "cat", "/tmp/count"]), "x");
}
