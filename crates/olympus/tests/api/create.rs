//! Accepting sandboxes: idempotency, resolution, validation.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Bench, IMAGE, KERNEL, problem};

const PATH: &str = "/v1/sandboxes";

async fn keyed(bench: &Bench, key: &str, body: &Value) -> reqwest::Response {
    bench.request(Method::POST, PATH).header("Idempotency-Key", key).json(body).send().await.unwrap()
}

#[tokio::test]
async fn what_is_accepted_is_resolved_and_queued() {
    let bench = Bench::start().await;
    let body = json!({"template": "python", "command": ["python3", "-c", "1"], "name": "one", "memory_mib": 256,
        "labels": {"team": "a"}, "env": {"B": "request"}});
    let response = bench.send(Method::POST, PATH, Some(body)).await;
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let accepted: Value = response.json().await.unwrap();
    assert_eq!(location, format!("/v1/sandboxes/{}", accepted["id"].as_str().unwrap()));
    for (field, value) in [
        ("state", json!("queued")),
        ("image", json!(IMAGE)),
        ("kernel", json!(KERNEL)),
        ("memory_mib", json!(256)),
        ("cpus", json!(1)),
        ("disk_mib", json!(1024)),
    ] {
        assert_eq!(accepted[field], value, "{field}");
    }
    let short = &accepted["id"].as_str().unwrap()[..10];
    for reference in [location, "/v1/sandboxes/one".to_owned(), format!("/v1/sandboxes/{short}")] {
        let found = bench.get(&reference).await;
        assert_eq!((&found["id"], &found["queue_position"]), (&accepted["id"], &json!(1)));
        assert_eq!(found["phases"][0]["name"], "accepted");
    }
    let attempt = bench.lease().await;
    assert_eq!(attempt.spec.env["A"], "template");
    assert_eq!(attempt.spec.env["B"], "request");
    assert_eq!(attempt.start_deadline.ms_since(attempt.leased_at) / 1000, 59);
}

#[tokio::test]
async fn the_same_key_is_the_same_sandbox_and_the_same_answer() {
    let bench = Bench::start().await;
    let body = json!({"template": "python", "command": ["true"], "env": {"A": "1", "B": "2"}});
    let first = keyed(&bench, "key-1", &body).await.bytes().await.unwrap();
    // It has gone on since; the answer is the stored one.
    bench.lease().await;
    let again = keyed(&bench, "key-1", &body).await;
    assert_eq!(again.status(), 202);
    assert_eq!(again.bytes().await.unwrap(), first);
    // The same request in other words.
    let text = r#"{ "env":{"B":"2","A":"1"}, "stdin":false, "command":["true"], "template":"python" }"#;
    let request = bench.request(Method::POST, PATH).header("Idempotency-Key", "key-1");
    let reworded = request.header("content-type", "application/json; charset=utf-8").body(text).send().await.unwrap();
    assert_eq!(reworded.bytes().await.unwrap(), first);

    let other = json!({"template": "python", "command": ["false"]});
    assert_eq!(problem(keyed(&bench, "key-1", &other).await).await.0, "idempotency_mismatch");
    assert_eq!(bench.get("/v1/sandboxes?ended=true").await.as_array().unwrap().len(), 1);
    assert_eq!(keyed(&bench, "key-2", &other).await.status(), 202);
    for bad in ["", "a b", &"x".repeat(129)] {
        assert_eq!(problem(keyed(&bench, bad, &body).await).await.1.as_deref(), Some("Idempotency-Key"));
    }
}

#[tokio::test]
async fn errors_name_the_field_and_change_nothing() {
    let bench = Bench::start().await;
    let cases = [
        (json!({"template": "nope", "command": ["a"]}), "not_found", Some("template")),
        (json!({"template": "../../etc/passwd", "command": ["a"]}), "not_found", Some("template")),
        (json!({"command": ["a"]}), "invalid_field", Some("template")),
        (json!({"template": "python", "command": []}), "invalid_field", Some("command")),
        (json!({"template": "python", "command": [""]}), "invalid_field", Some("command")),
        (json!({"template": "python", "command": ["a\0b"]}), "invalid_field", Some("command")),
        (json!({"template": "python", "command": "a"}), "invalid_field", Some("command")),
        (json!({"template": "python", "name": "../x"}), "invalid_field", Some("name")),
        (json!({"template": "python", "name": "/etc/passwd"}), "invalid_field", Some("name")),
        (json!({"template": "python", "memory_mib": -512}), "invalid_field", Some("memory_mib")),
        (json!({"template": "python", "memory_mib": 1}), "invalid_field", Some("memory_mib")),
        (json!({"template": "python", "memory_mib": 4_000_000_000u32}), "invalid_field", Some("memory_mib")),
        (json!({"template": "python", "memory_mib": 2000}), "never_fits", Some("memory_mib")),
        (json!({"template": "python", "cpus": 5}), "never_fits", Some("cpus")),
        (json!({"template": "python", "cpus": 0}), "invalid_field", Some("cpus")),
        (json!({"template": "python", "timeout_ms": 0}), "invalid_field", Some("timeout_ms")),
        (json!({"template": "python", "env": {"A=B": ""}}), "invalid_field", Some("env")),
        (json!({"template": "python", "env": {"A": "\0"}}), "invalid_field", Some("env.A")),
        (json!({"template": "python", "env": {"A": "x".repeat(200_000)}}), "invalid_field", Some("env.A")),
        (json!({"template": "python", "labels": {"a b": ""}}), "invalid_field", Some("labels")),
        (json!({"template": "python", "workdir": "tmp"}), "invalid_field", Some("workdir")),
        (json!({"template": "python", "comand": ["a"]}), "invalid_field", Some("comand")),
    ];
    for (body, code, field) in cases {
        let found = problem(bench.send(Method::POST, PATH, Some(body.clone())).await).await;
        assert_eq!(found, (code.to_owned(), field.map(str::to_owned)), "{:.200}", body.to_string());
    }
    assert_eq!(bench.get("/v1/sandboxes?ended=true").await, json!([]));
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_told_apart() {
    let bench = Bench::start().await;
    let post = |kind: &'static str, body: Vec<u8>| {
        bench.request(Method::POST, PATH).header("content-type", kind).body(body).send()
    };
    let json = "application/json";
    for (kind, body) in [
        (json, r#"{"template":"python","comm"#),
        (json, ""),
        (json, "hello"),
        (json, "[]"),
        ("text/plain", r#"{"template":"python"}"#),
    ] {
        assert_eq!(problem(post(kind, body.into()).await.unwrap()).await.0, "invalid_body", "{body}");
    }
    // 10 MB of environment: the answer arrives although the client is still sending.
    let body = json!({"template": "python", "env": {"A": "x".repeat(10 << 20)}}).to_string();
    let response = post(json, body.into()).await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(problem(response).await.0, "too_large");
    assert_eq!(bench.get("/v1/sandboxes?ended=true").await, json!([]));
}

#[tokio::test]
async fn a_name_is_taken_until_its_sandbox_has_ended() {
    let bench = Bench::start().await;
    let body = json!({"template": "python", "name": "web"});
    bench.expect(Method::POST, PATH, Some(body.clone()), 202).await;
    let taken = problem(bench.send(Method::POST, PATH, Some(body.clone())).await).await;
    assert_eq!(taken, ("name_taken".to_owned(), Some("name".to_owned())));
    bench.expect(Method::POST, "/v1/sandboxes/web/kill", None, 202).await;
    bench.expect(Method::POST, PATH, Some(body), 202).await;
}

#[tokio::test]
async fn what_is_not_set_up_is_said() {
    let bench = Bench::bare().await;
    assert_eq!(problem(bench.send(Method::GET, "/readyz", None).await).await.0, "node_unreachable");
    assert_eq!(problem(bench.send(Method::GET, "/v1/doctor", None).await).await.0, "node_unreachable");
    let bench = Bench::start().await;
    bench.expect(Method::DELETE, &format!("/v1/kernels/{KERNEL}"), None, 204).await;
    let body = json!({"template": "python", "command": ["a"]});
    let response = bench.send(Method::POST, PATH, Some(body)).await;
    assert_eq!(problem(response).await.0, "not_ready");
}
