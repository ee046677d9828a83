//! What every route has in common: keys, problems, panics.

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Bench, problem};

/// Every method and path of the description, with parameters filled in.
fn operations() -> Vec<(Method, String)> {
    let api: serde_json::Value = serde_json::from_str(&olympus::openapi_json()).unwrap();
    let mut found = Vec::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        let path = path.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
        let path = path.collect::<Vec<_>>().join("/");
        for method in item.as_object().unwrap().keys() {
            found.push((method.to_ascii_uppercase().parse().unwrap(), path.clone()));
        }
    }
    assert!(found.len() > 25, "{found:?}");
    found
}

#[tokio::test]
async fn nothing_but_health_is_told_without_a_key() {
    let bench = Bench::start().await;
    let unknown = [
        (Method::GET, "/nope".to_owned()),
        (Method::PUT, "/v1/sandboxes".to_owned()),
        (Method::GET, "/".to_owned()),
        (Method::GET, "/healthz/".to_owned()),
        (Method::GET, "//healthz".to_owned()),
    ];
    let other = cerberus::ApiKey::generate().reveal();
    let mut typo = bench.key.clone();
    typo.replace_range(10..11, if &typo[10..11] == "0" { "1" } else { "0" });
    for (method, path) in operations().into_iter().chain(unknown) {
        let send = |header: Option<String>| {
            let request = bench.request_without_key(method.clone(), &path);
            match header {
                Some(header) => request.header("authorization", header),
                None => request,
            }
            .send()
        };
        if ["/healthz", "/readyz"].contains(&path.as_str()) {
            assert_eq!(send(None).await.unwrap().status(), 200, "{path}");
            continue;
        }
        let wrong = [
            None,
            Some("Bearer nonsense".into()),
            Some(format!("Bearer {other}")),
            Some(format!("Bearer {typo}")),
            Some(format!("Basic {}", bench.key)),
            Some(bench.key.clone()),
        ];
        for header in wrong {
            let response = send(header.clone()).await.unwrap();
            assert_eq!(response.status(), 401, "{method} {path} {header:?}");
            assert_eq!(problem(response).await.0, "unauthenticated");
        }
    }
}

#[tokio::test]
async fn a_key_is_asked_for_before_the_body_is_read() {
    let bench = Bench::start().await;
    let mut raw = tokio::net::TcpStream::connect(bench.url.trim_start_matches("http://")).await.unwrap();
    let head = "POST /v1/images?name=a HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\nexpect: 100-continue\r\n\r\n";
    raw.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    raw.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), "HTTP/1.1 401");
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_gets_its_answer() {
    let bench = Bench::start().await;
    let mut raw = tokio::net::TcpStream::connect(bench.url.trim_start_matches("http://")).await.unwrap();
    let (key, size) = (&bench.key, 10 << 20);
    let head = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    );
    raw.write_all(head.as_bytes()).await.unwrap();
    raw.write_all(&vec![b' '; size]).await.unwrap();
    let mut answer = vec![0; 12];
    raw.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), "HTTP/1.1 413");
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    let bench = Bench::start().await;
    for path in ["/", "/nope", "/v1", "/v1/", "/v1/sandboxes/", "/v2/sandboxes", "/v1/sandboxes/a/b"] {
        let response = bench.send(Method::GET, path, None).await;
        assert_eq!(response.status(), 404, "{path}");
        assert_eq!(problem(response).await.0, "no_such_route");
    }
    for (method, path) in
        [(Method::PUT, "/v1/sandboxes"), (Method::POST, "/v1/sandboxes/a/wait"), (Method::POST, "/healthz")]
    {
        let response = bench.send(method, path, None).await;
        assert_eq!(response.status(), 405, "{path}");
        assert_eq!(problem(response).await.0, "method_not_allowed");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_a_problem_on_every_route() {
    let bench = Bench::start().await;
    for (method, path) in operations() {
        if !path.contains("/x") {
            continue;
        }
        let request = bench
            .request(method.clone(), &if path.ends_with("stdin") { format!("{path}?offset=0") } else { path.clone() });
        let request = match path.rsplit('/').next() {
            Some("signal") => request.json(&json!({"signal": "TERM"})),
            Some("net") => request.json(&json!({})),
            Some("execs") => request.json(&json!({"command": ["a"]})),
            _ => request,
        };
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 404, "{method} {path}");
        assert_eq!(problem(response).await.0, "not_found", "{method} {path}");
    }
    for reference in ["%00", "%ff", "..%2F..%2Fetc", "sbx_%25", &"x".repeat(5000)] {
        let response = bench.send(Method::GET, &format!("/v1/sandboxes/{reference}"), None).await;
        assert_eq!(problem(response).await.0, "not_found", "{reference:.20}");
    }
}

#[tokio::test]
async fn parameters_are_checked() {
    let bench = Bench::start().await;
    for (path, field) in [
        ("/v1/sandboxes?limit=0", "limit"),
        ("/v1/sandboxes?limit=1001", "limit"),
        ("/v1/sandboxes?limit=x", "limit"),
        ("/v1/sandboxes?ended=1", "ended"),
        ("/v1/sandboxes?label=a", "label"),
        ("/v1/sandboxes?lable=a", "lable"),
        ("/v1/sandboxes/a/wait?timeout_ms=-1", "timeout_ms"),
        ("/v1/sandboxes/a/output?stdout_from=a", "stdout_from"),
        ("/v1/sandboxes/a/logs?stream=both", "stream"),
        ("/v1/doctor?reprobe=2", "reprobe"),
    ] {
        let found = problem(bench.send(Method::GET, path, None).await).await;
        assert_eq!(found, ("invalid_field".to_owned(), Some(field.to_owned())), "{path}");
    }
}

#[tokio::test]
async fn a_panic_is_an_answer_and_the_server_goes_on() {
    let bench = Bench::start().await;
    let attempt = bench.running().await;
    let path = format!("/v1/sandboxes/{}/signal", attempt.sandbox);
    let response = bench.send(Method::POST, &path, Some(json!({"signal": "64"}))).await;
    assert_eq!(response.status(), 500);
    assert_eq!(problem(response).await.0, "internal");
    bench.expect(Method::POST, &path, Some(json!({"signal": "TERM"})), 204).await;
}
