//! Templates, code, pausing and space as scripts see them: what is sent, what is printed, and how it exits.

#![allow(clippy::unwrap_used, reason = "clippy does not see that helpers of tests are tests")]

mod support;

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Server, Shared, exited, lock, script, signal, text, until};

fn asked(script: &Shared) -> Vec<String> {
    lock(script).asked.iter().map(|(what, _)| what.clone()).collect()
}

#[test]
fn a_template_is_followed_until_it_is_ready() {
    let script = script();
    let server = Server::start(&script);
    let args = ["template", "create", "t", "--from", "i", "--warm", "w", "--runner", "python", "--preload", "a,b"];
    let mut child = server.tartarus(&args).stdout(Stdio::piped()).spawn().unwrap();
    until(&script, "the request", |script| !script.asked.is_empty());
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it waits for the snapshot");
    lock(&script).outcome = Some(exited(0));
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "t\n".to_owned()));
    let sent = lock(&script).asked[0].1.clone();
    assert_eq!(sent, json!({"name": "t", "image": "i", "warm": "w", "runner": "python", "preload": ["a", "b"]}));
    // Not waited for.
    lock(&script).outcome = None;
    let output = server.output(&["template", "create", "t", "--from", "i", "--no-snapshot", "--detach", "--json"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["snapshots"][0]["state"], "building");
    assert_eq!(lock(&script).asked[1].1["cold"], true);
}

#[test]
fn what_cannot_be_made_is_told_and_taken_back() {
    for known in [false, true] {
        let script = script();
        let server = Server::start(&script);
        lock(&script).streams = [b"this is why\n".to_vec(), b"and this\n".to_vec()];
        lock(&script).outcome = Some(exited(9));
        // The answer to the request came before the end.
        lock(&script).template_known = known;
        let output = building(&server, &script, &["template", "create", "t", "--from", "i"]);
        let stderr = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{stderr}");
        for part in ["this is why\n", "and this\n", "t for 1 x 512 MiB was not made: --warm exited with 9"] {
            assert!(stderr.contains(part), "{part:?} in {stderr}");
        }
        let expected: &[&str] = if known { &["create"] } else { &["create", "remove"] };
        assert_eq!(asked(&script), expected, "only who made it removes it");
        assert_eq!(stderr.contains("removed again"), !known, "{stderr}");
    }
}

/// Runs it against a maker that has not ended when the template is made, and ends then as the script says.
fn building(server: &Server, script: &Shared, args: &[&str]) -> std::process::Output {
    let outcome = lock(script).outcome.take();
    let child = server.tartarus(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until(script, "the request", |script| !script.asked.is_empty());
    std::thread::sleep(Duration::from_millis(200));
    lock(script).outcome = outcome;
    child.wait_with_output().unwrap()
}

#[test]
fn who_leaves_is_told_that_it_goes_on() {
    let script = script();
    let server = Server::start(&script);
    let mut command = server.tartarus(&["template", "create", "t", "--from", "i"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until(&script, "the request", |script| !script.asked.is_empty());
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, "INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text(&output.stderr).contains("template inspect t"), "{}", text(&output.stderr));
    assert_eq!(asked(&script), ["create"], "nothing is taken back");
}

#[test]
fn a_rebuild_is_followed_too() {
    let script = script();
    let server = Server::start(&script);
    lock(&script).outcome = Some(exited(0));
    assert_eq!(building(&server, &script, &["template", "rebuild", "t"]).status.code(), Some(0));
    lock(&script).asked.clear();
    lock(&script).outcome = Some(exited(1));
    let output = building(&server, &script, &["template", "rebuild", "t"]);
    assert_eq!((output.status.code(), asked(&script)), (Some(1), vec!["rebuild".to_owned()]));
}

#[test]
fn code_comes_from_the_line_a_file_or_standard_input() {
    let script = script();
    let server = Server::start(&script);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from file").unwrap();
    let path = file.path().to_str().unwrap();
    for args in [
        &["run", "t", "--detach", "--code", "from line", "--shred", "--", "x"][..],
        &["run", "t", "--detach", "--code-file", path, "--require-snapshot", "--idle-timeout", "5s"],
        &["run", "t", "--detach", "--code-file", "-", "--no-snapshot"],
    ] {
        let mut command = server.tartarus(args);
        let output = command.stdin(std::fs::File::open(path).unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
    }
    let sent: Vec<Value> = lock(&script).created.iter().map(|(_, body)| body.clone()).collect();
    assert_eq!(
        (&sent[0]["code"], &sent[0]["command"], &sent[0]["shred"]),
        (&json!("from line"), &json!(["x"]), &json!(true))
    );
    assert_eq!((&sent[1]["code"], &sent[1]["require_snapshot"]), (&json!("from file"), &json!(true)));
    assert_eq!((&sent[1]["command"], &sent[1]["idle_timeout_ms"]), (&json!([]), &json!(5000)));
    assert_eq!((&sent[2]["code"], &sent[2]["no_snapshot"]), (&json!("from file"), &json!(true)));
    let output = server.output(&["run", "t", "-i", "--code-file", "-"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("error: code_file: standard input"), "{}", text(&output.stderr));
}

#[test]
fn several_are_paused_and_go_on() {
    let script = script();
    let server = Server::start(&script);
    assert_eq!(server.output(&["pause", "a", "b"]).status.code(), Some(0));
    assert_eq!(server.output(&["resume", "a"]).status.code(), Some(0));
    let asked: Vec<_> =
        lock(&script).asked.iter().map(|(what, id)| format!("{what} {}", id.as_str().unwrap())).collect();
    assert_eq!(asked, ["pause a", "pause b", "resume a"]);
}

#[test]
fn nothing_is_deleted_that_nobody_agreed_to() {
    let script = script();
    let server = Server::start(&script);
    let output = server.output(&["prune"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("error: force: "), "{}", text(&output.stderr));
    assert!(lock(&script).asked.is_empty());
    let output = server.output(&["prune", "--dry-run", "--older-than", "1d"]);
    assert!(text(&output.stdout).contains("WOULD BE DELETED") && text(&output.stdout).contains("5.00 KiB"));
    let output = server.output(&["prune", "-y", "--json"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&printed["dry_run"], &printed["sandboxes"]), (&json!(false), &json!(2)));
    let sent: Vec<Value> = lock(&script).asked.iter().map(|(_, body)| body.clone()).collect();
    assert_eq!(sent, [json!({"dry_run": true, "older_than_ms": 86_400_000}), json!({"dry_run": false})]);
    assert!(text(&server.output(&["df"]).stdout).contains("3.00 MiB with `tartarus prune`"));
}
