//! Images, kernels, templates, the doctor.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Bench, KERNEL, problem};

async fn upload(bench: &Bench, path: &str, body: &'static str) -> Value {
    let chunks = body.as_bytes().chunks(3).map(Ok::<_, std::io::Error>);
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    let response = bench.request(Method::POST, path).header("content-type", "application/x-tar").body(body);
    let response = response.send().await.unwrap();
    assert_eq!(response.status(), 201);
    response.json().await.unwrap()
}

#[tokio::test]
async fn an_images_old_file_goes_when_nothing_uses_it() {
    let bench = Bench::start().await;
    let first = upload(&bench, "/v1/images?name=base", "first tar").await;
    let second = upload(&bench, "/v1/images?name=base", "second tar").await;
    assert_ne!(first["digest"], second["digest"]);
    let files = || bench.node.files.lock().unwrap().iter().cloned().collect::<Vec<_>>();
    assert_eq!(files(), [second["digest"].as_str().unwrap()]);

    // While a template needs it the image stays, and a new one beside it.
    let template = json!({"name": "t", "image": "base"});
    bench.expect(Method::POST, "/v1/templates", Some(template), 201).await;
    let used = bench.send(Method::DELETE, "/v1/images/base", None).await;
    assert_eq!(problem(used).await.0, "in_use");
    let third = upload(&bench, "/v1/images?name=base", "third").await;
    assert_eq!(files().len(), 2);
    assert_eq!(bench.get("/v1/images").await.as_array().unwrap().len(), 2);
    bench.expect(Method::DELETE, "/v1/images/base", None, 204).await;
    assert!(!files().contains(&third["digest"].as_str().unwrap().to_owned()));

    for (path, field) in
        [("/v1/images", "name"), ("/v1/images?name=..%2Fx", "name"), ("/v1/images?name=a&nam=b", "nam")]
    {
        assert_eq!(problem(bench.send(Method::POST, path, None).await).await.1.as_deref(), Some(field));
    }
    let json = bench.send(Method::POST, "/v1/images?name=a", Some(json!({}))).await;
    assert_eq!(problem(json).await.0, "invalid_body");
}

#[tokio::test]
async fn an_upload_that_is_cut_off_makes_nothing() {
    let bench = Bench::start().await;
    let chunks = [Ok("half"), Err(std::io::Error::other("gone"))];
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    assert!(bench.request(Method::POST, "/v1/images?name=cut").body(body).send().await.is_err());
    assert!(bench.node.files.lock().unwrap().is_empty());
    assert_eq!(bench.get("/v1/images").await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_newest_kernel_is_used_and_one_in_use_stays() {
    let bench = Bench::start().await;
    let added = upload(&bench, "/v1/kernels", "kernel").await;
    let digest = added["digest"].as_str().unwrap();
    assert_eq!(bench.get("/v1/kernels").await[0], added);
    assert!(bench.get("/v1/doctor").await["why"].as_str().unwrap().contains(digest));
    let id = bench.create().await;
    assert_eq!(bench.get(&format!("/v1/sandboxes/{id}")).await["kernel"], digest);
    let encoded = digest.replace(':', "%3A");
    assert_eq!(problem(bench.send(Method::DELETE, &format!("/v1/kernels/{encoded}"), None).await).await.0, "in_use");
    bench.expect(Method::DELETE, &format!("/v1/sandboxes/{id}"), None, 204).await;
    bench.expect(Method::DELETE, &format!("/v1/kernels/{encoded}"), None, 204).await;
    assert!(bench.node.files.lock().unwrap().is_empty());
    assert_eq!(bench.get("/v1/kernels").await[0]["digest"], KERNEL);
    assert!(bench.get("/v1/doctor?reprobe=true").await["why"].as_str().unwrap().ends_with("true"));
}

#[tokio::test]
async fn a_template_again_is_the_same_and_another_is_refused() {
    let bench = Bench::start().await;
    let body = json!({"name": "big", "image": "debian", "memory_mib": 1024});
    let made = bench.expect(Method::POST, "/v1/templates", Some(body.clone()), 201).await;
    assert_eq!((&made["cpus"], &made["memory_mib"], &made["disk_mib"]), (&json!(1), &json!(1024), &json!(1024)));
    assert_eq!(bench.expect(Method::POST, "/v1/templates", Some(body), 200).await, made);
    let other = json!({"name": "big", "image": "debian", "memory_mib": 512});
    assert_eq!(problem(bench.send(Method::POST, "/v1/templates", Some(other)).await).await.0, "name_taken");
    assert_eq!(bench.get("/v1/templates/big").await, made);
    for (body, field) in [
        (json!({"name": "a/b", "image": "debian"}), "name"),
        (json!({"name": "a", "image": "nope"}), "image"),
        (json!({"name": "a", "image": "debian", "cpus": 0}), "cpus"),
        (json!({"name": "a", "image": "debian", "disk_mib": 1}), "disk_mib"),
        (json!({"name": "a", "image": "debian", "workdir": "x"}), "workdir"),
        (json!({"name": "a", "image": "debian", "env": {"": "x"}}), "env"),
    ] {
        let found = problem(bench.send(Method::POST, "/v1/templates", Some(body)).await).await;
        assert_eq!(found.1.as_deref(), Some(field));
    }
    bench.expect(Method::DELETE, "/v1/templates/big", None, 204).await;
    assert_eq!(bench.get("/v1/templates").await.as_array().unwrap().len(), 1);
}
