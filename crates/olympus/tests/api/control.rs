//! The node's side: leases without polling, and verdicts on every kind of report.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tartarus_api::node::{Action, ControlPlane, Progress, Report, Verdict};
use tartarus_types::LeaseToken;

use crate::support::Bench;

fn give_back(retry: bool) -> Report {
    Report::GiveBack { why: "no disk".into(), retry }
}

#[tokio::test]
async fn a_lease_waits_for_work_and_not_longer() {
    let bench = Bench::start().await;
    let started = Instant::now();
    assert!(bench.olympus.lease(&bench.node_id, Duration::from_millis(100)).await.unwrap().is_none());
    assert!(started.elapsed() >= Duration::from_millis(100));
    let kicks = bench.node.kicks.load(Ordering::SeqCst);
    let (attempt, id) = tokio::join!(bench.lease(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        bench.create().await
    });
    assert_eq!(attempt.sandbox, id);
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(bench.node.kicks.load(Ordering::SeqCst) > kicks);
}

#[tokio::test]
async fn what_is_given_back_is_tried_again_until_it_is_not() {
    let bench = Bench::start().await;
    let id = bench.create().await;
    for _ in 0..2 {
        let attempt = bench.lease().await;
        bench.report(&attempt, Report::Preparing).await;
        assert_eq!(bench.report(&attempt, give_back(true)).await, Verdict::Go);
        // Repeated: it is nobody's now, or another attempt's.
        assert_eq!(bench.report(&attempt, give_back(true)).await, Verdict::Abandon);
        assert_eq!(bench.report(&attempt, Report::Begin).await, Verdict::Abandon);
    }
    let attempt = bench.lease().await;
    assert_eq!(bench.report(&attempt, give_back(true)).await, Verdict::Go);
    let found = bench.get(&format!("/v1/sandboxes/{id}")).await;
    assert_eq!((&found["state"], &found["outcome"]["reason"]), (&json!("failed"), &json!("start_failed")));
    assert_eq!(found["failures"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn reports_may_be_repeated() {
    let bench = Bench::start().await;
    bench.create().await;
    let attempt = bench.lease().await;
    for _ in 0..2 {
        assert_eq!(bench.report(&attempt, Report::Preparing).await, Verdict::Go);
    }
    for _ in 0..2 {
        assert_eq!(bench.report(&attempt, Report::Begin).await, Verdict::Go);
        assert_eq!(bench.report(&attempt, Report::Preparing).await, Verdict::Go);
    }
    for _ in 0..2 {
        assert_eq!(bench.end(&attempt, 0).await, Verdict::Go);
    }
    assert_eq!(bench.report(&attempt, Report::Begin).await, Verdict::Abandon);
    assert_eq!(bench.report(&attempt, Report::Progress(Progress::default())).await, Verdict::Abandon);
}

#[tokio::test]
async fn a_kill_before_the_command_began_ends_it_at_once() {
    for begun in [Report::Preparing, Report::Begin] {
        let bench = Bench::start().await;
        let id = bench.create().await;
        let attempt = bench.lease().await;
        if begun == Report::Begin {
            bench.report(&attempt, Report::Preparing).await;
        }
        bench.expect(Method::POST, &format!("/v1/sandboxes/{id}/kill"), None, 202).await;
        assert_eq!(bench.state(&id).await, "terminating");
        assert_eq!(bench.report(&attempt, begun).await, Verdict::Abandon);
        assert_eq!(bench.state(&id).await, "killed");
        // The node took the directive for an end of its own and reports that too.
        assert_eq!(bench.end(&attempt, 0).await, Verdict::Go);
        assert_eq!(bench.state(&id).await, "killed");
    }
}

#[tokio::test]
async fn a_node_that_lost_the_go_and_gives_back_ends_it() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    assert_eq!(bench.report(&attempt, give_back(true)).await, Verdict::Go);
    let found = bench.get(&format!("/v1/sandboxes/{}", attempt.sandbox)).await;
    assert_eq!((&found["state"], &found["outcome"]["reason"]), (&json!("failed"), &json!("start_failed")));
}

#[tokio::test]
async fn another_attempts_token_counts_for_nothing() {
    let bench = Bench::start().await;
    let mut attempt = bench.running().await;
    let held = (attempt.sandbox.clone(), attempt.token.clone());
    attempt.token = LeaseToken::random();
    let stale = (attempt.sandbox.clone(), attempt.token.clone());
    for report in [Report::Preparing, Report::Begin, Report::Progress(Progress::default()), give_back(true)] {
        assert_eq!(bench.report(&attempt, report).await, Verdict::Abandon);
    }
    assert_eq!(bench.end(&attempt, 0).await, Verdict::Abandon);
    assert_eq!(bench.state(&attempt.sandbox).await, "running");
    let directives = bench.olympus.sync(&bench.node_id, &[held.clone(), stale.clone()]).await.unwrap();
    assert_eq!(directives.len(), 1);
    assert_eq!((&directives[0].token, &directives[0].action), (&stale.1, &Action::Abandon));
}

#[tokio::test]
async fn what_waits_too_long_for_its_start_fails() {
    let bench = Bench::start().await;
    let body = json!({"template": "python", "command": ["a"], "start_timeout_ms": 100});
    let accepted = bench.expect(Method::POST, "/v1/sandboxes", Some(body), 202).await;
    let path = format!("/v1/sandboxes/{}/wait?timeout_ms=5000", accepted["id"].as_str().unwrap());
    let ended = bench.get(&path).await;
    assert_eq!((&ended["exit_status"], &ended["outcome"]["reason"]), (&json!(125), &json!("start_timeout")));
}
