//! `run` and `exec` as they are used: streams, standard input, exit codes, signals, and a server that is killed.

mod support;

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use support::{Server, exited, lock, script, signal, text, until};
use tartarus_types::{ErrorCode, Outcome, Reason, Refusal, State};

fn noise(len: usize) -> Vec<u8> {
    // Every byte value, no period that a frame could hide.
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn output_is_the_commands_byte_for_byte_and_so_is_the_exit_code() {
    let script = script();
    {
        let mut script = lock(&script);
        script.streams = [noise(1_000_003), b"\xff\0 no newline at the end".to_vec()];
        script.outcome = Some(exited(42));
        script.cuts = [0, 1, 17, 300_000, 70_001].into();
    }
    let server = Server::start(&script);
    let output = server.output(&["run", "t", "--env", "A=B", "--memory", "1G", "--", "c", "-x"]);
    assert_eq!(output.status.code(), Some(42));
    assert!(output.stdout == lock(&script).streams[0], "{} bytes", output.stdout.len());
    assert_eq!(output.stderr, lock(&script).streams[1]);
    let body = lock(&script).created[0].1.clone();
    assert_eq!(body["command"], serde_json::json!(["c", "-x"]));
    assert_eq!((&body["env"]["A"], &body["memory_mib"]), (&"B".into(), &1024.into()));
    assert_eq!((&body["attach"], &body["stdin"]), (&true.into(), &false.into()));
}

#[test]
fn a_killed_server_loses_and_doubles_nothing() {
    for args in [&["run", "t", "-i", "--", "c"][..], &["exec", "x", "-i", "--", "c"]] {
        let script = script();
        lock(&script).appetite = 10_000;
        lock(&script).streams[0] = noise(500_000);
        // The first connection breaks in the middle of the output, as the server dies.
        lock(&script).cuts = [250_000].into();
        let server = Server::start(&script);
        let mut child = server.tartarus(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            stdout.read_to_end(&mut all).map(|_| all)
        });
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&noise(700_000)).unwrap();
        until(&script, "the first input", |script| script.stdin.len() > 100_000 && script.cuts.is_empty());
        let addr = server.addr;
        drop(server);
        std::thread::sleep(Duration::from_millis(700));
        let _server = Server::start_at(&script, addr);
        drop(stdin);
        until(&script, "the end of the input", |script| script.stdin_eof);
        lock(&script).outcome = Some(exited(3));
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{args:?}: {}", text(&output.stderr));
        let script = lock(&script);
        assert!(script.stdin == noise(700_000), "{args:?}: {} bytes in", script.stdin.len());
        assert!(reader.join().unwrap().unwrap() == script.streams[0], "{args:?}");
    }
}

#[test]
fn input_waits_for_the_start() {
    let script = script();
    lock(&script).state = State::Preparing;
    let server = Server::start(&script);
    let mut child = server.tartarus(&["run", "t", "-i", "--", "c"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"early").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(lock(&script).stdin.is_empty());
    lock(&script).state = State::Running;
    until(&script, "the input", |script| script.stdin_eof && script.stdin == b"early");
    lock(&script).outcome = Some(exited(0));
    assert!(child.wait().unwrap().success());
}

#[test]
fn exec_waits_for_a_sandbox_that_starts_and_not_for_one_that_ended() {
    let script = script();
    lock(&script).state = State::Preparing;
    let server = Server::start(&script);
    let child = server.tartarus(&["exec", "x", "--", "c"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    lock(&script).state = State::Running;
    until(&script, "the command's start", |script| script.execs.len() == 1);
    lock(&script).outcome = Some(exited(4));
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(4));
    lock(&script).state = State::Killed;
    let output = server.output(&["exec", "x", "--", "c"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("does not run"), "{}", text(&output.stderr));
}

#[test]
fn why_it_ended_is_said_unless_it_ended_by_itself() {
    for (outcome, code, word) in [
        (exited(7), 7, ""),
        (Outcome::because(Reason::Timeout, "30s"), 124, "timeout"),
        (Outcome::because(Reason::StartFailed, "no disk"), 125, "no disk"),
        (Outcome::because(Reason::HypervisorDied, "signal 9"), 125, "hypervisor"),
        (Outcome::because(Reason::CommandNotFound, ""), 127, "not found"),
        (Outcome { signal: Some(11), exit_code: None, ..Outcome::because(Reason::Signalled, "") }, 139, "SIGSEGV"),
    ] {
        let script = script();
        lock(&script).outcome = Some(outcome);
        let server = Server::start(&script);
        let id = lock(&script).id.to_string();
        for args in [&["run", "t", "--", "c"][..], &["exec", &id, "--", "c"]] {
            let output = server.output(args);
            assert_eq!(output.status.code(), Some(code), "{args:?}");
            let stderr = text(&output.stderr);
            match word {
                "" => assert_eq!(stderr, ""),
                word => assert!(stderr.starts_with("tartarus: ") && stderr.contains(word), "{stderr}"),
            }
        }
        assert_eq!(server.output(&["wait", &id]).status.code(), Some(code));
    }
}

#[test]
fn a_refusal_is_125_and_names_what_is_wrong() {
    let script = script();
    let missing = Refusal { field: Some("template".to_owned()), ..Refusal::not_found("template", "pyhton") };
    lock(&script).refusal = Some(missing);
    let server = Server::start(&script);
    let output = server.output(&["run", "pyhton", "--", "c"]);
    assert_eq!(output.status.code(), Some(125));
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("tartarus: error: template: ") && stderr.contains("pyhton"), "{stderr}");
    assert!(stderr.contains("tartarus template ls"), "{stderr}");
    lock(&script).refusal = Some(Refusal::new(ErrorCode::NotReady, "there is no guest kernel"));
    assert!(text(&server.output(&["run", "t", "--", "c"]).stderr).contains("no guest kernel"));
}

#[test]
fn json_is_one_object() {
    let script = script();
    lock(&script).outcome = Some(exited(0));
    lock(&script).streams[0] = b"out\n".to_vec();
    let server = Server::start(&script);
    let output = server.output(&["run", "t", "--json", "--", "c"]);
    assert_eq!(output.stdout, b"out\n");
    let object: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(object["exit_status"], 0);
    for args in [&["run", "t", "--detach", "--json", "--", "c"][..], &["create", "t", "--json"]] {
        let object: serde_json::Value = serde_json::from_slice(&server.output(args).stdout).unwrap();
        assert_eq!(object["id"], lock(&script).id.as_str());
    }
    assert_eq!(lock(&script).created[1].1["attach"], false);
    assert!(lock(&script).created[2].1.get("command").is_none());
}

#[test]
fn the_first_interrupt_is_the_commands_and_the_second_is_ours() {
    for exec in [false, true] {
        let script = script();
        let server = Server::start(&script);
        let args = if exec { &["exec", "x", "--", "c"][..] } else { &["run", "t", "--", "c"] };
        let child = server.tartarus(args).spawn().unwrap();
        until(&script, "the start", |script| script.connections == 1);
        signal(&child, "INT");
        until(&script, "SIGINT", |script| script.signals == ["INT"]);
        assert!(lock(&script).kills.is_empty());
        signal(&child, "INT");
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
        let script = lock(&script);
        if exec {
            assert_eq!((&script.signals[..], script.kills.len()), (&["INT".to_owned(), "KILL".to_owned()][..], 0));
        } else {
            assert_eq!(script.kills, [serde_json::json!({ "signal": "KILL", "grace_ms": 0 })]);
        }
    }
}

#[test]
fn a_command_that_handles_the_interrupt_keeps_its_exit_code() {
    let script = script();
    let server = Server::start(&script);
    let child = server.tartarus(&["run", "t", "--", "c"]).spawn().unwrap();
    until(&script, "the start", |script| script.connections == 1);
    signal(&child, "INT");
    until(&script, "SIGINT", |script| script.signals == ["INT"]);
    lock(&script).outcome = Some(exited(5));
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(5));
}

#[test]
fn an_interrupt_before_the_start_ends_the_sandbox() {
    let script = script();
    lock(&script).state = State::Queued;
    let server = Server::start(&script);
    let child = server.tartarus(&["run", "t", "--", "c"]).spawn().unwrap();
    until(&script, "the start", |script| script.connections == 1);
    signal(&child, "INT");
    // Not 137, which the kill's own outcome would be.
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(lock(&script).kills.len(), 1);
    assert!(lock(&script).signals.is_empty());
}

#[test]
fn being_told_to_go_takes_the_sandbox_along() {
    let script = script();
    let server = Server::start(&script);
    let child = server.tartarus(&["run", "t", "--", "c"]).spawn().unwrap();
    until(&script, "the start", |script| script.connections == 1);
    signal(&child, "TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
    assert_eq!(lock(&script).kills, [serde_json::json!({ "signal": "TERM" })]);
}

#[test]
fn a_reader_that_leaves_ends_the_sandbox() {
    let script = script();
    lock(&script).streams[0] = noise(3_000_000);
    lock(&script).cuts = [1_000_000; 3].into();
    let server = Server::start(&script);
    let mut child = server.tartarus(&["run", "t", "--", "c"]).spawn().unwrap();
    let mut few = [0; 10];
    child.stdout.as_mut().unwrap().read_exact(&mut few).unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    assert_eq!(lock(&script).kills.len(), 1);
}

#[test]
fn logs_are_split_as_they_were() {
    let script = script();
    lock(&script).streams = [b"out".to_vec(), b"err".to_vec()];
    lock(&script).outcome = Some(exited(9));
    let server = Server::start(&script);
    for (args, out, err) in [
        (&["logs", "x"][..], "out", "err"),
        (&["logs", "x", "--follow"], "out", "err"),
        (&["logs", "x", "--stream", "stdout"], "out", ""),
        (&["logs", "x", "--stream", "stderr"], "", "err"),
    ] {
        let output = server.output(args);
        assert_eq!(
            (output.status.code(), text(&output.stdout), text(&output.stderr)),
            (Some(0), out.into(), err.into())
        );
    }
}
