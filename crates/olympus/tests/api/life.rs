//! A sandbox's life as clients see it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use hades::store::RunStore;
use reqwest::Method;
use serde_json::json;
use tartarus_api::node::{Action, ControlPlane, Live, Moment, OutputEvent, Progress, Report, Target, Verdict};
use tartarus_api::output::Decoder;
use tartarus_types::Outcome;

use crate::support::{Bench, now, problem};

fn data(stream: usize, offset: u64, text: &'static str) -> OutputEvent {
    OutputEvent::Data { stream, offset, bytes: Bytes::from_static(text.as_bytes()) }
}

fn events(body: &[u8]) -> Vec<OutputEvent> {
    let mut decoder = Decoder::default();
    decoder.push(body);
    std::iter::from_fn(|| decoder.next_event()).map(Result::unwrap).collect()
}

#[tokio::test]
async fn wait_answers_at_the_end_or_when_the_time_is_up() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    let path = format!("/v1/sandboxes/{}/wait", attempt.sandbox);
    assert_eq!(bench.get(&format!("{path}?timeout_ms=50")).await["state"], "running");
    let started = Instant::now();
    let (ended, verdict) = tokio::join!(bench.get(&path), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bench.end(&attempt, 3).await
    });
    assert_eq!(verdict, Verdict::Go);
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!((&ended["state"], &ended["exit_status"]), (&json!("failed"), &json!(3)));
    // The node did not hear the answer and says it again.
    assert_eq!(bench.end(&attempt, 3).await, Verdict::Go);
}

#[tokio::test]
async fn a_kill_reaches_the_node_and_ends_it() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    let path = format!("/v1/sandboxes/{}/kill", attempt.sandbox);
    let bad = bench.send(Method::POST, &path, Some(json!({"signal": "NOPE"}))).await;
    assert_eq!(problem(bad).await.1.as_deref(), Some("signal"));
    let asked = bench.expect(Method::POST, &path, Some(json!({"signal": "INT", "grace_ms": 7})), 202).await;
    assert_eq!(asked["state"], "terminating");
    let held = [(attempt.sandbox.clone(), attempt.token.clone())];
    let directives = bench.olympus.sync(&bench.node_id, &held).await.unwrap();
    assert_eq!(directives.len(), 1);
    assert_eq!(directives[0].action, Action::Kill { signal: 2, grace_ms: 7 });
    bench.end(&attempt, 0).await;
    assert_eq!(problem(bench.send(Method::POST, &path, None).await).await.0, "wrong_state");
}

#[tokio::test]
async fn remove_ends_deletes_and_forgets() {
    let bench = Bench::start().await;
    // One that runs: the answer waits for its end.
    let attempt = bench.running().await;
    let path = format!("/v1/sandboxes/{}", attempt.sandbox);
    let (gone, verdict) = tokio::join!(bench.send(Method::DELETE, &path, None), async {
        while bench.state(&attempt.sandbox).await != "terminating" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bench.end(&attempt, 0).await
    });
    assert_eq!((gone.status().as_u16(), verdict), (204, Verdict::Go));
    assert!(bench.node.forgotten.lock().unwrap().contains(&attempt.sandbox));
    assert_eq!(problem(bench.send(Method::GET, &path, None).await).await.0, "not_found");
    // The node did not hear the answer; nothing is left that could contradict.
    assert_eq!(bench.end(&attempt, 0).await, Verdict::Go);

    // One that is queued, and one that has ended.
    let queued = bench.create().await;
    bench.expect(Method::DELETE, &format!("/v1/sandboxes/{queued}"), None, 204).await;
    let ended = bench.running().await;
    bench.end(&ended, 0).await;
    bench.expect(Method::DELETE, &format!("/v1/sandboxes/{}", ended.sandbox), None, 204).await;
    assert!(bench.node.forgotten.lock().unwrap().contains(&ended.sandbox));
    assert_eq!(bench.get("/v1/sandboxes?ended=true").await, json!([]));
}

#[tokio::test]
async fn lists_are_filtered() {
    let bench = Bench::start().await;
    for (name, team) in [("a", "red"), ("b", "blue"), ("c", "red")] {
        let body = json!({"template": "python", "name": name, "labels": {"team": team, "x/y": "1"}});
        bench.expect(Method::POST, "/v1/sandboxes", Some(body), 202).await;
    }
    let names = |list: serde_json::Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(bench.get("/v1/sandboxes").await), ["c", "b", "a"]);
    assert_eq!(names(bench.get("/v1/sandboxes?label=team%3Dred&label=x/y=1").await), ["c", "a"]);
    assert_eq!(names(bench.get("/v1/sandboxes?label=team=red&limit=1").await), ["c"]);
    bench.expect(Method::POST, "/v1/sandboxes/c/kill", None, 202).await;
    assert_eq!(names(bench.get("/v1/sandboxes").await), ["b", "a"]);
    assert_eq!(names(bench.get("/v1/sandboxes?ended=true").await), ["c", "b", "a"]);
}

#[tokio::test]
async fn output_is_framed_and_logs_are_plain() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    let gap = OutputEvent::Gap { stream: 0, offset: 2, length: 5 };
    let all = vec![data(0, 0, "ab"), data(1, 0, "err"), gap, data(0, 7, "cd")];
    *bench.node.output.lock().unwrap() = all.clone();
    let path = format!("/v1/sandboxes/{}", attempt.sandbox);
    let response = bench.send(Method::GET, &format!("{path}/output?follow=true"), None).await;
    assert_eq!(response.headers()["content-type"], "application/vnd.tartarus.output.v1");
    let found = events(&response.bytes().await.unwrap());
    assert_eq!(found, [all, vec![OutputEvent::End]].concat());
    let only = bench.send(Method::GET, &format!("{path}/output?stream=stderr"), None).await;
    assert_eq!(events(&only.bytes().await.unwrap()), [data(1, 0, "err"), OutputEvent::End]);
    let logs = bench.send(Method::GET, &format!("{path}/logs"), None).await;
    assert_eq!(logs.text().await.unwrap(), "ab\n[tartarus: 5 bytes left out here]\ncd");
    let logs = bench.send(Method::GET, &format!("{path}/logs?stream=stderr"), None).await;
    assert_eq!(logs.text().await.unwrap(), "err");
}

#[tokio::test]
async fn who_follows_a_queued_sandbox_waits_for_its_output() {
    let bench = Bench::start().await;
    *bench.node.output.lock().unwrap() = vec![data(0, 0, "late")];
    let id = bench.create().await;
    let path = format!("/v1/sandboxes/{id}/output");
    let now = bench.send(Method::GET, &path, None).await;
    assert_eq!(events(&now.bytes().await.unwrap()), [OutputEvent::End]);
    let following = bench.send(Method::GET, &format!("{path}?follow=true"), None).await;
    let attempt = bench.lease().await;
    bench.report(&attempt, Report::Preparing).await;
    let (body, ()) = tokio::join!(following.bytes(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        bench.report(&attempt, Report::Begin).await;
    });
    assert_eq!(events(&body.unwrap()), [data(0, 0, "late"), OutputEvent::End]);

    let never = bench.create().await;
    let following = bench.send(Method::GET, &format!("/v1/sandboxes/{never}/output?follow=true"), None).await;
    bench.expect(Method::POST, &format!("/v1/sandboxes/{never}/kill"), None, 202).await;
    assert_eq!(events(&following.bytes().await.unwrap()), [OutputEvent::End]);
}

#[tokio::test]
async fn shutdown_ends_streams_without_end_frame() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    *bench.node.output.lock().unwrap() = vec![data(0, 0, "first")];
    *bench.node.endless.lock().unwrap() = true;
    let path = format!("/v1/sandboxes/{}/output?follow=true", attempt.sandbox);
    let mut following = bench.send(Method::GET, &path, None).await.bytes_stream();
    let first = following.next().await.unwrap().unwrap();
    assert_eq!(events(&first), [data(0, 0, "first")]);
    let started = Instant::now();
    bench.shutdown.cancel();
    assert!(following.next().await.is_none());
    let Bench { server, .. } = bench;
    server.await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn signals_and_input_reach_the_process() {
    let bench = Bench::start().await;
    let queued = bench.create().await;
    let term = Some(json!({"signal": "TERM"}));
    let early = bench.send(Method::POST, &format!("/v1/sandboxes/{queued}/signal"), term.clone()).await;
    assert_eq!(problem(early).await.0, "wrong_state");
    bench.expect(Method::DELETE, &format!("/v1/sandboxes/{queued}"), None, 204).await;

    let attempt = bench.running().await;
    let path = format!("/v1/sandboxes/{}", attempt.sandbox);
    bench.expect(Method::POST, &format!("{path}/signal"), term, 204).await;
    assert_eq!(*bench.node.signals.lock().unwrap(), [(Target::Main, 15)]);
    let feed = |query: &'static str, bytes: Vec<u8>| {
        let request = bench.request(Method::POST, &format!("{path}/stdin?{query}"));
        request.header("content-type", "application/octet-stream").body(bytes).send()
    };
    assert_eq!(feed("offset=0", b"abc".to_vec()).await.unwrap().text().await.unwrap(), r#"{"taken":3}"#);
    assert_eq!(feed("offset=1&eof=true", b"bcd".to_vec()).await.unwrap().text().await.unwrap(), r#"{"taken":4}"#);
    assert_eq!(*bench.node.stdin.lock().unwrap(), b"abcd");
    assert_eq!(problem(feed("eof=true", vec![]).await.unwrap()).await.1.as_deref(), Some("offset"));
    assert_eq!(problem(feed("offset=4", vec![0; (1 << 20) + 1]).await.unwrap()).await.0, "too_large");
    let json = bench.send(Method::POST, &format!("{path}/stdin?offset=4"), Some(json!({}))).await;
    assert_eq!(problem(json).await.0, "invalid_body");
    bench.end(&attempt, 0).await;
    assert_eq!(problem(feed("offset=4", vec![1]).await.unwrap()).await.0, "wrong_state");
}

#[tokio::test]
async fn input_waits_for_the_start() {
    let bench = Bench::start().await;
    let id = bench.create().await;
    let request = bench.request(Method::POST, &format!("/v1/sandboxes/{id}/stdin?offset=0&eof=true")).body("x");
    let (fed, ()) = tokio::join!(request.send(), async {
        let attempt = bench.lease().await;
        bench.report(&attempt, Report::Preparing).await;
        bench.report(&attempt, Report::Begin).await;
    });
    assert_eq!(fed.unwrap().status(), 200);
}

#[tokio::test]
async fn an_exec_is_one_command_per_key() {
    let bench = Bench::start().await;
    let queued = bench.create().await;
    let body = json!({"command": ["ls"], "env": {"A": "1"}});
    let early = bench.send(Method::POST, &format!("/v1/sandboxes/{queued}/execs"), Some(body.clone())).await;
    assert_eq!(problem(early).await.0, "wrong_state");
    bench.expect(Method::DELETE, &format!("/v1/sandboxes/{queued}"), None, 204).await;

    let attempt = bench.running().await;
    let path = format!("/v1/sandboxes/{}/execs", attempt.sandbox);
    let keyed =
        |body: serde_json::Value| bench.request(Method::POST, &path).header("Idempotency-Key", "k").json(&body).send();
    let first: serde_json::Value = keyed(body.clone()).await.unwrap().json().await.unwrap();
    assert_eq!(keyed(body.clone()).await.unwrap().json::<serde_json::Value>().await.unwrap(), first);
    assert_eq!(problem(keyed(json!({"command": ["rm"]})).await.unwrap()).await.0, "idempotency_mismatch");
    let other = bench.expect(Method::POST, &path, Some(body), 202).await;
    assert_ne!(other["id"], first["id"]);
    assert_eq!(bench.node.execs.lock().unwrap().len(), 2);
    let found = bench.get(&format!("{path}/{}", first["id"].as_str().unwrap())).await;
    assert_eq!(found, first);
    for (body, field) in [
        (json!({"command": []}), "command"),
        (json!({"command": ["a\0"]}), "command"),
        (json!({"command": ["a"], "workdir": "b"}), "workdir"),
    ] {
        assert_eq!(problem(bench.send(Method::POST, &path, Some(body)).await).await.1.as_deref(), Some(field));
    }
}

#[tokio::test]
async fn inspect_shows_what_only_the_node_knows() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    let progress = |kernel: &str| Progress {
        moments: vec![Moment { phase: "leased".into(), at: now() }],
        driver: Some("qemu-tcg".into()),
        guest_kernel: Some(kernel.into()),
        start: None,
    };
    *bench.node.live.lock().unwrap() = Some(Live { hypervisor_pid: Some(77), progress: progress("live") });
    let path = format!("/v1/sandboxes/{}", attempt.sandbox);
    let found = bench.get(&path).await;
    assert_eq!((&found["hypervisor_pid"], &found["guest_kernel"]), (&json!(77), &json!("live")));
    *bench.node.live.lock().unwrap() = None;
    bench.report(&attempt, Report::Progress(progress("reported"))).await;
    assert_eq!(bench.get(&path).await["guest_kernel"], "reported");
    let outcome = Outcome::because(tartarus_types::Reason::HypervisorDied, "it died");
    bench.report(&attempt, Report::Ended { outcome, progress: progress("final") }).await;
    let found = bench.get(&path).await;
    assert_eq!((&found["guest_kernel"], &found["hypervisor_pid"]), (&json!("final"), &json!(null)));
    assert_eq!((&found["exit_status"], &found["phases"][1]["name"]), (&json!(125), &json!("leased")));
    assert!(bench.store.get(&attempt.sandbox).await.unwrap().is_some());
}
