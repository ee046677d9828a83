//! What takes how much space, what is deleted, and a disk that is nearly full.

use std::time::Duration;

use hades::store::{Catalogue, TemplateRecord};
use olympus::Settings;
use reqwest::Method;
use serde_json::{Value, json};
use tartarus_api::node::NodeUsage;
use tartarus_types::{SandboxId, TemplateSpec};

use crate::support::{Bench, IMAGE, KERNEL, problem, settings};

#[tokio::test]
async fn a_full_disk_takes_no_new_work_and_harms_none() {
    let bench = Bench::start_with(Settings { min_free: u64::MAX, ..settings() }).await;
    for (path, body) in [
        ("/v1/templates", json!({"name": "t", "image": "debian"})),
        ("/v1/sandboxes", json!({"template": "python", "command": ["true"]})),
    ] {
        let found = problem(bench.send(Method::POST, path, Some(body)).await).await;
        assert_eq!(found, ("disk_full".to_owned(), None), "{path}");
    }
    for path in ["/v1/images?name=a", "/v1/kernels"] {
        let response = bench.request(Method::POST, path).body("tar").send().await.unwrap();
        assert_eq!(response.status(), 507, "{path}");
    }
    // Looking and deleting go on.
    assert_eq!(bench.get("/v1/df").await["min_free"], json!(u64::MAX));
    bench.expect(Method::POST, "/v1/prune", Some(json!({})), 200).await;
    bench.get("/v1/templates").await;
}

#[tokio::test]
async fn a_repetition_is_no_new_work() {
    let bench = Bench::start_with(Settings { min_free: u64::MAX, ..settings() }).await;
    let created_at = crate::support::now();
    let python = bench.store.template("python").await.unwrap().unwrap();
    let spec = TemplateSpec { cold: false, ..python.spec };
    bench.store.put_template(TemplateRecord { name: "warm".into(), spec, created_at }).await.unwrap();
    let same = json!({"name": "warm", "image": "debian", "cpus": 1, "memory_mib": 512, "disk_mib": 1024,
        "env": {"A": "template"}});
    let shown = bench.expect(Method::POST, "/v1/templates", Some(same), 200).await;
    assert_eq!(shown["snapshots"][0]["state"], "missing", "no snapshot is made");
}

#[tokio::test]
async fn what_nothing_needs_is_told_and_deleted() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    bench.end(&attempt, 0).await;
    let old = attempt.sandbox;
    let live = bench.create().await;
    *bench.node.usage.lock().unwrap() = NodeUsage {
        images: vec![(IMAGE.to_owned(), 5), ("sha256:left".to_owned(), 50)],
        kernels: vec![(KERNEL.to_owned(), 5)],
        snapshots: vec![("of no template".to_owned(), 500)],
        logs: vec![(old.clone(), 5000), (live.clone(), 7)],
        loaded: 1,
        loaded_limit: 2,
        disk_free: 3,
        disk_size: 4,
        ..NodeUsage::default()
    };
    let usage = bench.get("/v1/df").await;
    assert_eq!(
        usage["images"][0]["used_by"],
        json!(["image debian", "template python", "a sandbox that has not ended"])
    );
    assert_eq!(usage["images"][1]["used_by"], json!([]));
    assert_eq!(usage["logs"], json!({"sandboxes": 2, "bytes": 5007, "reclaimable": 0}), "it ended just now");
    assert_eq!(usage["reclaimable"], 550);
    assert!(usage["database"].as_u64().unwrap() > 0);

    tokio::time::sleep(Duration::from_millis(20)).await;
    let body = |dry_run: bool| Some(json!({"dry_run": dry_run, "older_than_ms": 10}));
    let dry = bench.expect(Method::POST, "/v1/prune", body(true), 200).await;
    assert_eq!((&dry["sandboxes"], &dry["log_bytes"], &dry["bytes"]), (&json!(1), &json!(5000), &json!(5550)));
    assert_eq!(bench.state(&old).await, "succeeded", "nothing was deleted");
    assert!(bench.node.removed_snapshots.lock().unwrap().is_empty());
    let only = json!({"older_than_ms": 10, "logs": false, "images": false});
    let some = bench.expect(Method::POST, "/v1/prune", Some(only), 200).await;
    assert_eq!((&some["sandboxes"], &some["images"], &some["bytes"]), (&json!(0), &json!([]), &json!(500)));

    let mut done = bench.expect(Method::POST, "/v1/prune", body(false), 200).await;
    assert_eq!(done["dry_run"].take(), json!(false));
    for field in ["sandboxes", "log_bytes", "images", "bytes"] {
        assert_eq!(done[field], dry[field], "{field}");
    }
    assert_eq!(bench.send(Method::GET, &format!("/v1/sandboxes/{old}"), None).await.status(), 404);
    assert_eq!(bench.state(&live).await, "queued");
    assert_eq!(*bench.node.forgotten.lock().unwrap(), [old]);
    assert_eq!(bench.node.removed_snapshots.lock().unwrap().len(), 2);
    let typo = bench.send(Method::POST, "/v1/prune", Some(json!({"dryrun": true}))).await;
    assert_eq!(problem(typo).await.1.as_deref(), Some("dryrun"));
}

#[tokio::test]
async fn logs_that_stay_are_told_and_logs_of_nobody_go() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    bench.end(&attempt, 0).await;
    let (old, nobody) = (attempt.sandbox, SandboxId::random());
    let logs = vec![(old.clone(), 5000), (nobody.clone(), 300)];
    *bench.node.usage.lock().unwrap() = NodeUsage { logs, ..NodeUsage::default() };
    assert_eq!(bench.get("/v1/df").await["logs"]["reclaimable"], 300);
    let dry = bench.expect(Method::POST, "/v1/prune", Some(json!({"dry_run": true})), 200).await;
    assert_eq!((&dry["sandboxes"], &dry["log_bytes"]), (&json!(0), &json!(300)));
    tokio::time::sleep(Duration::from_millis(20)).await;
    *bench.node.holds.lock().unwrap() = Some(old.clone());
    let done = bench.expect(Method::POST, "/v1/prune", Some(json!({"older_than_ms": 10})), 200).await;
    assert_eq!((&done["sandboxes"], &done["log_bytes"]), (&json!(1), &json!(300)));
    assert!(done["left"][0].as_str().unwrap().starts_with(&format!("logs of {old}: ")), "{done}");
    assert_eq!(*bench.node.forgotten.lock().unwrap(), [nobody]);
}

#[tokio::test]
async fn files_are_left_while_something_is_imported() {
    let bench = Bench::start().await;
    let (go_on, rest) = tokio::sync::oneshot::channel::<()>();
    let body = futures_util::stream::once(async move {
        let _ = rest.await;
        Ok::<_, std::io::Error>("tar")
    });
    let body = reqwest::Body::wrap_stream(body);
    let importing = tokio::spawn(bench.request(Method::POST, "/v1/images?name=new").body(body).send());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let pruned = bench.expect(Method::POST, "/v1/prune", Some(json!({})), 200).await;
    assert!(pruned["left"][0].as_str().unwrap().contains("imported"), "{pruned}");
    go_on.send(()).unwrap();
    assert_eq!(importing.await.unwrap().unwrap().status(), 201);
    let pruned = bench.expect(Method::POST, "/v1/prune", Some(json!({})), 200).await;
    assert_eq!(pruned["left"], Value::Array(vec![]));
}

#[tokio::test]
async fn a_server_forgets_what_is_too_much_when_it_starts() {
    let bench = Bench::start().await;
    for _ in 0..3 {
        let attempt = bench.running().await;
        bench.end(&attempt, 0).await;
    }
    let all = bench.get("/v1/sandboxes?ended=true").await;
    let keeps_one = Settings { retain_count: 1, ..settings() };
    let other = olympus::Olympus::new(bench.store.clone(), None, keeps_one, crate::support::now);
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(std::sync::Arc::new(other).run(stop.clone()));
    for _ in 0..200 {
        if bench.get("/v1/sandboxes?ended=true").await.as_array().unwrap().len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let left = bench.get("/v1/sandboxes?ended=true").await;
    assert_eq!(left, json!([all[0]]), "the newest stays");
    stop.cancel();
    running.await.unwrap();
}
