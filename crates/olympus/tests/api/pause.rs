//! Pausing and resuming, and why a queued sandbox waits.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};
use tartarus_api::node::{Assignment, ControlPlane, Live, Progress, Report, StartedFrom, Verdict};

use crate::support::{Bench, problem};

fn machine(bench: &Bench, attempt: &Assignment) {
    *bench.node.machine.lock().unwrap() = Some((bench.olympus.clone() as Arc<dyn ControlPlane>, attempt.clone()));
}

#[tokio::test]
async fn what_is_paused_goes_on_where_it_was() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    machine(&bench, &attempt);
    let path = |leaf: &str| format!("/v1/sandboxes/{}/{leaf}", attempt.sandbox);
    let started = bench.get(&format!("/v1/sandboxes/{}", attempt.sandbox)).await["started_at"].clone();
    for _ in 0..2 {
        assert_eq!(bench.expect(Method::POST, &path("pause"), None, 200).await["state"], "paused");
    }
    // It is a sandbox that has not ended, and what is sent to it waits there.
    assert_eq!(bench.get("/v1/sandboxes").await[0]["state"], "paused");
    bench.expect(Method::POST, &path("signal"), Some(json!({"signal": "USR1"})), 204).await;
    bench.expect(Method::POST, &path("execs"), Some(json!({"command": ["ls"]})), 202).await;
    // Reports that were overtaken, or are repeated after a restart.
    for report in [Report::Preparing, Report::Begin, Report::Paused] {
        assert_eq!(bench.report(&attempt, report).await, Verdict::Go);
    }
    let held = [(attempt.sandbox.clone(), attempt.token.clone())];
    assert!(bench.olympus.sync(&bench.node_id, &held).await.unwrap().is_empty(), "it keeps its lease");
    for _ in 0..2 {
        let resumed = bench.expect(Method::POST, &path("resume"), None, 200).await;
        assert_eq!((&resumed["state"], &resumed["started_at"]), (&json!("running"), &started));
    }
    bench.expect(Method::POST, &path("pause"), None, 200).await;
    assert_eq!(bench.expect(Method::POST, &path("kill"), None, 202).await["state"], "terminating");
    assert_eq!(problem(bench.send(Method::POST, &path("pause"), None).await).await.0, "wrong_state");
    assert_eq!(bench.report(&attempt, Report::Paused).await, Verdict::Go, "its end comes as a directive");
    assert_eq!(bench.olympus.sync(&bench.node_id, &held).await.unwrap().len(), 1);
    assert_eq!(bench.end(&attempt, 0).await, Verdict::Go);
    for leaf in ["pause", "resume"] {
        assert_eq!(problem(bench.send(Method::POST, &path(leaf), None).await).await.0, "wrong_state");
    }
    assert_eq!(bench.report(&attempt, Report::Resumed).await, Verdict::Abandon);
}

#[tokio::test]
async fn a_command_that_did_not_begin_cannot_be_paused() {
    let bench = Bench::start().await;
    let id = bench.create().await;
    let path = format!("/v1/sandboxes/{id}/pause");
    assert_eq!(problem(bench.send(Method::POST, &path, None).await).await.0, "wrong_state");
    let mut attempt = bench.lease().await;
    attempt.token = tartarus_types::LeaseToken::random();
    for report in [Report::Paused, Report::Resumed] {
        assert_eq!(bench.report(&attempt, report).await, Verdict::Abandon);
    }
}

#[tokio::test]
async fn it_is_told_how_the_machine_came_up() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    let path = format!("/v1/sandboxes/{}", attempt.sandbox);
    assert_eq!(bench.get(&path).await["start"], Value::Null);
    let cold = Progress { start: Some(StartedFrom::ColdBoot { why: "2 cpus, not 1".into() }), ..Progress::default() };
    bench.report(&attempt, Report::Progress(cold)).await;
    assert_eq!(bench.get(&path).await["start"], json!({"from": "cold_boot", "why": "2 cpus, not 1"}));
    let start = Some(StartedFrom::Snapshot { golden: "abc".into() });
    let live = Live { progress: Progress { start, ..Progress::default() }, ..Live::default() };
    *bench.node.live.lock().unwrap() = Some(live);
    assert_eq!(bench.get(&path).await["start"], json!({"from": "snapshot", "golden": "abc"}));
}

#[tokio::test]
async fn it_is_told_why_one_waits() {
    let bench = Bench::start().await;
    let waiting =
        async |id: &tartarus_types::SandboxId| bench.get(&format!("/v1/sandboxes/{id}")).await["waiting"].clone();
    let [first, second, third] = [bench.create().await, bench.create().await, bench.create().await];
    assert_eq!(waiting(&first).await, Value::Null, "the node takes it right now");
    assert_eq!(waiting(&third).await, "2 older ones are in front of it");
    for _ in 0..2 {
        bench.lease().await;
    }
    assert_eq!(waiting(&third).await, "too many sandboxes are starting (2 start slots)");
    assert_eq!(waiting(&second).await, Value::Null, "it does not wait any more");
}
