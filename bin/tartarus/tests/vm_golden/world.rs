//! What these tests share.

use serde_json::Value;

use crate::harness::Server;

/// Waits until a sandbox runs; gives its id.
pub(crate) fn running(server: &Server, args: &[&str]) -> String {
    let all: Vec<&str> = ["create"].iter().chain(args).copied().collect();
    let id = server.ok(&all);
    server.until(&id, &["running"]);
    id
}

/// Runs a shell line in a sandbox; gives what it printed.
pub(crate) fn sh(server: &Server, id: &str, line: &str) -> String {
    server.ok(&["exec", id, "--", "sh", "-c", line])
}

/// How a sandbox's machine came up: `snapshot`, or why it booted.
pub(crate) fn started_from(record: &Value) -> String {
    match record["start"]["from"].as_str() {
        Some("snapshot") => "snapshot".to_owned(),
        Some("cold_boot") => format!("cold boot: {}", record["start"]["why"].as_str().unwrap_or_default()),
        other => panic!("{other:?} in {record}"),
    }
}

/// The record of the newest sandbox that has ended or runs.
pub(crate) fn newest(server: &Server) -> Value {
    let all = server.json(&["ps", "--all", "--json"]);
    let id = all[0]["id"].as_str().unwrap_or_else(|| panic!("{all}")).to_owned();
    server.json(&["inspect", &id, "--json"])
}

/// A template of the busybox image whose snapshot is ready.
pub(crate) fn template(server: &Server, name: &str, args: &[&str]) {
    sized(server, name, "128M", args);
}

/// The same with so much memory.
pub(crate) fn sized(server: &Server, name: &str, memory: &str, args: &[&str]) {
    let all: Vec<&str> = ["template", "create", name, "--from", "busybox", "--memory", memory, "--disk", "64M"]
        .iter()
        .chain(args)
        .copied()
        .collect();
    server.ok(&all);
}

/// The states of a template's snapshots.
pub(crate) fn states(server: &Server, name: &str) -> Vec<String> {
    let template = server.json(&["template", "inspect", name, "--json"]);
    let all = template["snapshots"].as_array().unwrap_or_else(|| panic!("{template}"));
    all.iter().map(|s| s["state"].as_str().unwrap().to_owned()).collect()
}

/// The folder of the only snapshot of a template.
pub(crate) fn folder(server: &Server, name: &str) -> std::path::PathBuf {
    let template = server.json(&["template", "inspect", name, "--json"]);
    let golden = template["snapshots"][0]["golden"].as_str().unwrap();
    let mut found: Vec<_> =
        std::fs::read_dir(server.data.join("snapshots")).unwrap().flatten().map(|e| e.path()).collect();
    found.retain(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(golden)));
    found.pop().unwrap_or_else(|| panic!("no folder of {golden}"))
}
