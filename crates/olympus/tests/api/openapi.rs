//! The checked-in description is the one that the code makes.

use std::path::Path;

use reqwest::Method;
use serde_json::Value;

use crate::support::Bench;

#[test]
fn the_checked_in_file_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/v1.json");
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    assert!(checked_in == olympus::openapi_json(), "openapi/v1.json is not current: run `cargo xtask openapi`");
}

#[test]
fn every_operation_describes_its_errors_and_its_key() {
    let api: Value = serde_json::from_str(&olympus::openapi_json()).unwrap();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(api["components"]["securitySchemes"]["api_key"]["scheme"], "bearer");
    assert_eq!(api["security"], serde_json::json!([{"api_key": []}]));
    let mut ids = std::collections::HashSet::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(ids.insert(operation["operationId"].to_string()), "{method} {path}: its id is taken");
            let error = &operation["responses"]["default"]["$ref"];
            assert_eq!(error, "#/components/responses/Problem", "{method} {path}");
            let public =
                operation["security"] == serde_json::json!([{}]) || operation["security"] == serde_json::json!([]);
            assert_eq!(public, ["/healthz", "/readyz"].contains(&path.as_str()), "{method} {path}");
        }
    }
    // Every reference leads somewhere.
    let text = api.to_string();
    for (at, _) in text.match_indices("\"$ref\":\"#") {
        let pointer = text[at + 9..].split('"').next().unwrap();
        assert!(api.pointer(pointer).is_some(), "{pointer}");
    }
}

#[tokio::test]
async fn the_server_hands_it_out() {
    let bench = Bench::bare().await;
    let response = bench.send(Method::GET, "/v1/openapi.json", None).await;
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.text().await.unwrap(), olympus::openapi_json());
}
