//! Golden snapshots of templates: who makes them, when, and what goes with a template.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tartarus_api::node::{Assignment, ControlPlane, Node, Report, SnapshotInfo, Verdict};
use tartarus_types::{Shape, SnapshotUse};

use crate::support::{Bench, id, now, problem};

const TEMPLATES: &str = "/v1/templates";

fn wanted() -> Value {
    json!({"name": "warm", "image": "debian", "warm": "touch /w", "runner": "python", "preload": ["json"],
        "shapes": [{"cpus": 2, "memory_mib": 256}], "env": {"A": "b"}})
}

/// The snapshot that an attempt makes, as the node tells of it.
fn made(attempt: &Assignment) -> SnapshotInfo {
    let spec = &attempt.spec;
    SnapshotInfo {
        golden: spec.golden.clone().unwrap(),
        template: spec.template.clone(),
        shape: Shape { cpus: spec.cpus, memory_mib: spec.memory_mib },
        created_at: now(),
        bytes: 1000,
        layer_bytes: 10,
        unusable: None,
        outdated: None,
        loaded: false,
    }
}

/// Takes the next one, lets it begin and end.
async fn make(bench: &Bench, code: i32) -> Assignment {
    let attempt = bench.lease().await;
    assert_eq!(attempt.spec.snapshot, SnapshotUse::Make);
    bench.report(&attempt, Report::Preparing).await;
    bench.report(&attempt, Report::Begin).await;
    if code == 0 {
        bench.node.snapshots.lock().unwrap().push(made(&attempt));
    }
    bench.end(&attempt, code).await;
    attempt
}

async fn states(bench: &Bench, name: &str) -> String {
    let template = bench.get(&format!("{TEMPLATES}/{name}")).await;
    let states = template["snapshots"].as_array().unwrap().iter().map(|s| s["state"].as_str().unwrap().to_owned());
    states.collect::<Vec<_>>().join(" ")
}

async fn nothing_is_queued(bench: &Bench) {
    let leased = bench.olympus.lease(&bench.node_id, Duration::from_millis(300)).await.unwrap();
    assert!(leased.is_none(), "{leased:?}");
}

/// Becomes true while the server works in the background.
async fn soon(what: &str, reached: impl AsyncFn() -> bool) {
    for _ in 0..200 {
        if reached().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what} did not happen within 5 s");
}

async fn restarted(bench: &Bench) {
    bench.olympus.register(bench.node_info(), &[]).await.unwrap();
}

#[tokio::test]
async fn a_template_is_made_ready_by_sandboxes() {
    let bench = Bench::start().await;
    let template = bench.expect(Method::POST, TEMPLATES, Some(wanted()), 201).await;
    assert_eq!(template["warm"], json!({"command": "touch /w", "runner": {"language": "python", "preload": ["json"]}}));
    let snapshots = template["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 2, "its own size and another");
    assert_eq!(snapshots[0]["shape"], json!({"cpus": 1, "memory_mib": 512}));
    assert!(snapshots.iter().all(|snapshot| snapshot["state"] == "building"), "{snapshots:?}");
    // The same again makes no second ones.
    bench.expect(Method::POST, TEMPLATES, Some(wanted()), 200).await;
    assert_eq!(bench.get("/v1/sandboxes").await.as_array().unwrap().len(), 2);

    let first = make(&bench, 0).await;
    assert_eq!(first.sandbox, id(&json!({"id": snapshots[0]["sandbox"]})));
    assert_eq!(first.spec.golden.as_deref(), snapshots[0]["golden"].as_str());
    assert_eq!((first.spec.command.len(), first.spec.timeout_ms), (0, Some(600_000)));
    assert_eq!((first.spec.ground.env["A"].as_str(), first.spec.warm.command.as_deref()), ("b", Some("touch /w")));
    let label = bench.get(&format!("/v1/sandboxes/{}", first.sandbox)).await["labels"].clone();
    assert_eq!(label, json!({"tartarus.dev/snapshot-of": "warm"}));
    assert_eq!(states(&bench, "warm").await, "ready building");
    let second = make(&bench, 3).await;
    let template = bench.get("/v1/templates/warm").await;
    let failed = &template["snapshots"][1];
    assert_eq!((&failed["state"], &failed["sandbox"]), (&json!("failed"), &json!(second.sandbox)));
    assert!(failed["why"].as_str().unwrap().contains(second.sandbox.as_str()));
    assert_eq!(template["snapshots"][0]["bytes"], 1000);
    let doctor = bench.get("/v1/doctor").await;
    let check = doctor["checks"].as_array().unwrap().last().unwrap();
    assert_eq!((&check["status"], &check["found"]), (&json!("warn"), &json!("1 ready, 1 failed")));

    // Asked for again, what failed is tried again, and only that.
    bench.expect(Method::POST, TEMPLATES, Some(wanted()), 200).await;
    assert_eq!(states(&bench, "warm").await, "ready building");
    make(&bench, 0).await;
    assert_eq!(states(&bench, "warm").await, "ready ready");
    let rebuilt = bench.expect(Method::POST, "/v1/templates/warm/rebuild", None, 202).await;
    assert!(rebuilt["snapshots"].as_array().unwrap().iter().all(|s| s["state"] == "building"), "{rebuilt}");
}

#[tokio::test]
async fn a_sandbox_names_the_snapshot_that_it_starts_from() {
    let bench = Bench::start().await;
    bench.expect(Method::POST, TEMPLATES, Some(wanted()), 201).await;
    let body = |more: Value| {
        let mut body = json!({"template": "warm", "code": "print(1)", "shred": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let post = async |more| bench.send(Method::POST, "/v1/sandboxes", Some(body(more))).await;
    let early = problem(post(json!({"require_snapshot": true})).await).await;
    assert_eq!(early, ("snapshot_required".to_owned(), Some("require_snapshot".to_owned())));
    let maker = make(&bench, 0).await;
    make(&bench, 0).await;
    assert_eq!(post(json!({"require_snapshot": true})).await.status(), 202);
    let attempt = bench.lease().await;
    assert_eq!((attempt.spec.golden, attempt.spec.snapshot), (maker.spec.golden, SnapshotUse::Require));
    assert_eq!((attempt.spec.code.as_deref(), attempt.spec.shred), (Some("print(1)"), true));
    let shown = bench.get(&format!("/v1/sandboxes/{}", attempt.sandbox)).await;
    assert_eq!((&shown["has_code"], shown.get("code")), (&json!(true), None));
    bench.node.snapshots.lock().unwrap()[0].unusable = Some("qemu 1, now 2".into());
    let refused = post(json!({"require_snapshot": true})).await;
    assert_eq!(problem(refused).await.0, "snapshot_required");
    assert_eq!(problem(post(json!({"require_snapshot": true, "memory_mib": 100})).await).await.0, "snapshot_required");
    let python = json!({"template": "python", "code": "print(1)"});
    let no_runner = problem(bench.send(Method::POST, "/v1/sandboxes", Some(python)).await).await;
    assert_eq!(no_runner, ("invalid_field".to_owned(), Some("code".to_owned())));
}

#[tokio::test]
async fn what_is_missing_is_made_by_itself_once() {
    let bench = Bench::start().await;
    bench.expect(Method::POST, TEMPLATES, Some(wanted()), 201).await;
    make(&bench, 0).await;
    make(&bench, 0).await;
    restarted(&bench).await;
    nothing_is_queued(&bench).await;
    // Another kernel, other snapshots.
    let tar = bench.request(Method::POST, "/v1/kernels").body("kernel").send().await.unwrap();
    assert_eq!(tar.status(), 201);
    let old: Vec<_> = bench.node.snapshots.lock().unwrap().iter().map(|info| info.golden.clone()).collect();
    let attempt = make(&bench, 1).await;
    assert!(!old.contains(attempt.spec.golden.as_ref().unwrap()));
    make(&bench, 1).await;
    for _ in 0..2 {
        restarted(&bench).await;
        nothing_is_queued(&bench).await;
    }
    assert_eq!(states(&bench, "warm").await, "failed failed");
    // Of another build of the hypervisor, as the node says when it starts.
    bench.expect(Method::POST, "/v1/templates/warm/rebuild", None, 202).await;
    make(&bench, 0).await;
    make(&bench, 0).await;
    assert_eq!(states(&bench, "warm").await, "ready ready");
}

#[tokio::test]
async fn what_the_node_cannot_use_any_more_is_made_anew() {
    let bench = Bench::start().await;
    bench.expect(Method::POST, TEMPLATES, Some(wanted()), 201).await;
    let first = make(&bench, 0).await;
    make(&bench, 0).await;
    nothing_is_queued(&bench).await;
    bench.node.snapshots.lock().unwrap()[0].unusable = Some("qemu 7.2, now 8.2".into());
    assert_eq!(states(&bench, "warm").await, "unusable ready");
    restarted(&bench).await;
    let again = bench.lease().await;
    assert_eq!(again.spec.golden, first.spec.golden);
    nothing_is_queued(&bench).await;
}

/// The server was killed while a snapshot was made: what made it ends only under the next server, which tries again, and
/// does not try what fails under itself for ever.
#[tokio::test]
async fn what_an_earlier_server_began_is_tried_again_once() {
    let bench = Bench::start().await;
    let mut template = wanted();
    template["shapes"] = json!([]);
    bench.expect(Method::POST, TEMPLATES, Some(template), 201).await;
    let under_way = bench.lease().await;
    bench.report(&under_way, Report::Preparing).await;
    bench.report(&under_way, Report::Begin).await;
    let next = bench.successor().await;
    let held = [(under_way.sandbox.clone(), under_way.token.clone())];
    next.register(bench.node_info(), &held).await.unwrap();
    let lease = async || next.lease(&bench.node_id, Duration::from_millis(400)).await.unwrap();
    assert!(lease().await.is_none(), "it is under way");
    let end = async |attempt: &Assignment| {
        let outcome = tartarus_types::Outcome::because(tartarus_types::Reason::HypervisorDied, "signal 9");
        let report = Report::Ended { outcome, progress: Default::default() };
        next.report(&attempt.sandbox, &attempt.token, report).await.unwrap();
    };
    end(&under_way).await;
    let again = lease().await.expect("it is tried again");
    assert_eq!(again.spec.golden, under_way.spec.golden);
    end(&again).await;
    assert!(lease().await.is_none(), "once");
    next.register(bench.node_info(), &[]).await.unwrap();
    assert!(lease().await.is_none(), "also when the node starts again");
}

#[tokio::test]
async fn what_never_began_is_tried_a_few_times_more() {
    let bench = Bench::start().await;
    let mut template = wanted();
    template["shapes"] = json!([]);
    bench.expect(Method::POST, TEMPLATES, Some(template), 201).await;
    for _ in 0..4 {
        let attempt = bench.lease().await;
        bench.report(&attempt, Report::GiveBack { why: "no room".into(), retry: false }).await;
        assert_eq!(states(&bench, "warm").await, "failed", "not at once");
    }
    let leased = bench.olympus.lease(&bench.node_id, Duration::from_millis(1500)).await.unwrap();
    assert!(leased.is_none(), "{leased:?}");
}

#[tokio::test]
async fn a_node_that_does_not_answer_holds_nothing_up() {
    let bench = Bench::start().await;
    *bench.node.deaf.lock().unwrap() = true;
    let made = bench.expect(Method::POST, TEMPLATES, Some(wanted()), 201).await;
    assert!(made["snapshots"][0]["why"].as_str().unwrap().contains("cannot be asked"), "{made}");
    nothing_is_queued(&bench).await;
    let rebuild = bench.send(Method::POST, "/v1/templates/warm/rebuild", None).await;
    assert_eq!(problem(rebuild).await.0, "node_unreachable");
    // A removal does not wait for it either.
    bench.expect(Method::DELETE, "/v1/templates/warm", None, 204).await;
    assert_eq!(bench.send(Method::GET, "/v1/templates/warm", None).await.status(), 404);
}

#[tokio::test]
async fn what_goes_with_a_template_is_its_own() {
    let bench = Bench::start().await;
    let twin = {
        let mut twin = wanted();
        twin["name"] = json!("twin");
        twin["shapes"] = json!([]);
        twin
    };
    bench.expect(Method::POST, TEMPLATES, Some(wanted()), 201).await;
    let own = make(&bench, 0).await;
    // The twin's only size is shared: nothing is to be made.
    let made = bench.expect(Method::POST, TEMPLATES, Some(twin), 201).await;
    assert_eq!(made["snapshots"][0]["state"], "ready");
    let maker = bench.lease().await;
    bench.report(&maker, Report::Preparing).await;
    let removing = tokio::spawn({
        let request = bench.request(Method::DELETE, "/v1/templates/warm");
        async move { request.send().await.unwrap().status() }
    });
    soon("the end of the maker", async || bench.state(&maker.sandbox).await == "terminating").await;
    // It was too fast: the snapshot is there, and goes.
    bench.node.snapshots.lock().unwrap().push(self::made(&maker));
    assert_eq!(bench.report(&maker, Report::Begin).await, Verdict::Abandon);
    assert_eq!(removing.await.unwrap(), 204);
    assert_eq!(*bench.node.removed_snapshots.lock().unwrap(), [maker.spec.golden.clone().unwrap()]);
    assert_eq!(states(&bench, "twin").await, "ready");
    bench.expect(Method::DELETE, "/v1/templates/twin", None, 204).await;
    let left = bench.node.snapshots().await.unwrap();
    assert!(left.iter().all(|info| info.golden == own.spec.golden.clone().unwrap()), "{left:?}");
}

#[tokio::test]
async fn whoever_takes_a_template_back_takes_no_other_of_its_name() {
    let bench = Bench::start().await;
    let ours = bench.expect(Method::POST, TEMPLATES, Some(wanted()), 201).await;
    bench.expect(Method::DELETE, "/v1/templates/warm", None, 204).await;
    let theirs = bench.expect(Method::POST, TEMPLATES, Some(wanted()), 201).await;
    let of = |template: &Value| format!("/v1/templates/warm?created_at={}", template["created_at"]);
    let refused = problem(bench.send(Method::DELETE, &of(&ours), None).await).await;
    assert_eq!(refused, ("name_taken".to_owned(), Some("name".to_owned())));
    bench.get("/v1/templates/warm").await;
    bench.expect(Method::DELETE, &of(&theirs), None, 204).await;
    assert_eq!(problem(bench.send(Method::DELETE, &of(&theirs), None).await).await.0, "not_found");
}

#[tokio::test]
async fn without_a_kernel_there_is_nothing_to_make() {
    let bench = Bench::start().await;
    bench.expect(Method::DELETE, "/v1/kernels/6.1.0-test", None, 204).await;
    let made = bench.expect(Method::POST, TEMPLATES, Some(wanted()), 201).await;
    assert_eq!((&made["snapshots"][0]["state"], &made["snapshots"][0]["golden"]), (&json!("missing"), &Value::Null));
    let rebuild = bench.send(Method::POST, "/v1/templates/warm/rebuild", None).await;
    assert_eq!(problem(rebuild).await.0, "not_ready");
    let cold = bench.send(Method::POST, "/v1/templates/python/rebuild", None).await;
    assert_eq!(problem(cold).await.0, "wrong_state");
}
