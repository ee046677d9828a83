//! Bad input gets an error that names the field and the way out, and changes nothing.

use serde_json::{Value, json};

use crate::harness::Server;

/// What of the server's state a refused request must not have changed.
fn state(server: &Server) -> Vec<Value> {
    [
        &["ps", "--all", "--json"][..],
        &["template", "ls", "--json"],
        &["image", "ls", "--json"],
        &["kernel", "ls", "--json"],
    ]
    .map(|args| server.json(args))
    .into()
}

#[test]
fn every_bad_request_names_its_field_and_changes_nothing() {
    let server = Server::start();
    let before = state(&server);
    let sandbox = |extra: Value| {
        let mut body = json!({ "template": "busybox", "command": ["true"] });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let big = "x".repeat(100_000);
    let env: serde_json::Map<String, Value> = (0..15).map(|i| (format!("V{i}"), json!(big))).collect();
    for (body, status, code, field) in [
        (sandbox(json!({ "template": "nope" })), 404, "not_found", "template"),
        (sandbox(json!({ "command": [] })), 400, "invalid_field", "command"),
        (sandbox(json!({ "command": [""] })), 400, "invalid_field", "command"),
        (sandbox(json!({ "command": ["a\u{0}b"] })), 400, "invalid_field", "command"),
        (sandbox(json!({ "memory_mib": 0 })), 400, "invalid_field", "memory_mib"),
        (sandbox(json!({ "memory_mib": 900_000 })), 422, "never_fits", "memory_mib"),
        (sandbox(json!({ "cpus": 0 })), 400, "invalid_field", "cpus"),
        (sandbox(json!({ "timeout_ms": 0 })), 400, "invalid_field", "timeout_ms"),
        (sandbox(json!({ "env": env })), 400, "invalid_field", "env"),
        (sandbox(json!({ "env": { "A=B": "" } })), 400, "invalid_field", "env"),
        (sandbox(json!({ "name": "../../etc/passwd" })), 400, "invalid_field", "name"),
        (sandbox(json!({ "workdir": "relative" })), 400, "invalid_field", "workdir"),
        (sandbox(json!({ "labels": { "k": "x".repeat(300) } })), 400, "invalid_field", "labels.k"),
    ] {
        let answer = server.post("/v1/sandboxes", &body);
        let problem = answer.json();
        let shown: String = body.to_string().chars().take(120).collect();
        assert_eq!(answer.status, status, "{shown}: {problem}");
        assert_eq!(
            (problem["code"].as_str(), problem["field"].as_str()),
            (Some(code), Some(field)),
            "{shown}: {problem}"
        );
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{shown}");
    }
    let raw = |body: &[u8]| server.http("POST", "/v1/sandboxes", &[("content-type", "application/json")], body);
    let cut = raw(br#"{"template": "busybox", "comm"#);
    assert_eq!((cut.status, cut.json()["code"].as_str()), (400, Some("invalid_body")), "{}", cut.text());
    let negative = raw(br#"{"template": "busybox", "command": ["true"], "memory_mib": -1}"#);
    assert_eq!((negative.status, negative.json()["field"].as_str()), (400, Some("memory_mib")), "{}", negative.text());
    let unknown = raw(br#"{"template": "busybox", "comand": ["true"]}"#);
    assert!(unknown.status == 400 && unknown.text().contains("comand"), "{}", unknown.text());
    let huge = raw(format!(r#"{{"template":"busybox","env":{{"A":"{}"}}}}"#, "x".repeat(10 << 20)).as_bytes());
    assert_eq!((huge.status, huge.json()["code"].as_str()), (413, Some("too_large")), "{}", huge.text());
    assert_eq!(state(&server), before);
}

#[test]
fn the_cli_says_what_is_wrong_and_exits_125() {
    let server = Server::start();
    for (args, words) in [
        (&["run", "nope", "--", "true"][..], "nope"),
        (&["run", "busybox"], "command"),
        (&["run", "busybox", "--", ""], "command"),
        (&["run", "busybox", "--memory", "-1", "--", "true"], "memory: \"-1\" is not a size"),
        (&["run", "busybox", "--memory", "900G", "--", "true"], "memory"),
        (&["run", "busybox", "--name", "a/b", "--", "true"], "name"),
        (&["exec", "nope", "--", "true"], "nope"),
    ] {
        let output = server.run(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{args:?}: {errors}");
        assert!(errors.contains(words), "{args:?}: {errors}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    let ps = server.json(&["ps", "--all", "--json"]);
    assert_eq!(ps.as_array().map(Vec::len), Some(0), "{ps}");
}

#[test]
fn bad_images_and_kernels_are_refused_and_leave_nothing() {
    let server = Server::start();
    let before = state(&server);
    let garbage = server.scratch().join("garbage.tar");
    std::fs::write(&garbage, vec![0x5a; 100_000]).unwrap();
    let fixture = std::fs::read(crate::harness::fixtures().join("busybox.tar")).unwrap();
    let cut = server.scratch().join("cut.tar");
    std::fs::write(&cut, &fixture[..fixture.len() / 2]).unwrap();
    for file in [&garbage, &cut] {
        let output = server.run(&["image", "import", file.to_str().unwrap(), "--name", "bad"]);
        assert!(!output.status.success(), "{file:?} was taken for an image");
        let kernel = server.http(
            "POST",
            "/v1/kernels",
            &[("content-type", "application/octet-stream")],
            &std::fs::read(file).unwrap(),
        );
        assert_eq!((kernel.status, kernel.json()["code"].as_str()), (422, Some("bad_file")), "{}", kernel.text());
    }
    let missing = server.run(&["image", "import", "/nonexistent.tar", "--name", "bad"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nonexistent.tar"));
    let path = server.run(&["image", "import", cut.to_str().unwrap(), "--name", "../bad"]);
    assert!(String::from_utf8_lossy(&path.stderr).contains("name"), "{path:?}");
    assert_eq!(state(&server), before);
    let staging: Vec<_> = std::fs::read_dir(server.data.join("blobs/staging")).unwrap().collect();
    assert!(staging.is_empty(), "{staging:?}");
}

#[test]
fn what_is_in_use_cannot_be_removed() {
    let server = Server::start();
    let refused = |args: &[&str], words: &str| {
        let output = server.run(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(words), "{args:?}: {errors}");
    };
    refused(&["image", "rm", "busybox"], "busybox");
    let kernel = server.json(&["kernel", "ls", "--json"])[0]["digest"].as_str().unwrap().to_owned();
    let id = server.ok(&["create", "busybox"]);
    refused(&["kernel", "rm", &kernel], "in use");
    server.ok(&["rm", &id]);
    server.ok(&["template", "rm", "busybox"]);
    server.ok(&["image", "rm", "busybox"]);
    refused(&["run", "busybox", "--", "true"], "busybox");
}
