//! The attack suite that users have, in short: that it finds nothing here, and that it would.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it is skipped")]

#[path = "../harness/mod.rs"]
mod harness;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use harness::{BINARY, count_guests, fixtures, signal, skip, wait};

/// The suite with the fixture's kernel, TCG forced. `None` where it cannot be run, which is said.
fn suite(args: &[&str]) -> Option<Command> {
    if !rustix::process::geteuid().is_root() {
        skip("the attack suite needs root");
        return None;
    }
    let kernel = fixtures().join("kernel.tar");
    let mut command = Command::new(BINARY);
    command.args(["torture", "net", "--driver", "qemu-tcg", "--json", "--kernel-tar"]).arg(kernel).args(args);
    command.stdin(Stdio::null());
    Some(command)
}

/// Runs it to its end.
fn outcome(test: &str, mut command: Command) -> (Option<i32>, Value) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    eprintln!("{said}");
    let matrix: Value = serde_json::from_slice(&stdout).unwrap_or_else(|e| panic!("{status}, no JSON ({e}): {said}"));
    count_guests(test, matrix["guests"].as_u64().and_then(|n| n.try_into().ok()).unwrap_or(0));
    (status.code(), matrix)
}

fn attempt<'a>(matrix: &'a Value, name: &str) -> &'a Value {
    let all = matrix["attempts"].as_array().unwrap();
    all.iter().find(|row| row["attempt"] == name).unwrap_or_else(|| panic!("no {name} in {matrix}"))
}

#[test]
fn a_sample_of_the_attacks_fails_as_it_must() {
    let Some(command) = suite(&["--quick"]) else { return };
    let (code, matrix) = outcome("a_sample_of_the_attacks_fails_as_it_must", command);
    assert_eq!((code, matrix["ok"].as_bool()), (Some(0), Some(true)), "{:#}", matrix["failures"]);
    for path in ["cold", "restore", "resume", "restart", "update"] {
        for name in ["listed-tcp", "other-address"] {
            assert_eq!(attempt(&matrix, name)["paths"][path]["result"], "ok", "{name} on {path}");
        }
    }
    let all = matrix["attempts"].as_array().unwrap();
    let tried = all.iter().filter(|row| row["paths"]["restore"]["result"] == "ok").count();
    assert!(tried >= 60, "{tried} attempts on the restore path");
    for name in ["other-port", "metadata", "host-published"] {
        assert_eq!(attempt(&matrix, name)["control"]["result"], "ok", "{name}");
    }
}

#[test]
fn a_rule_that_is_missing_is_found_and_named() {
    let Some(command) = suite(&["--only", "other-port", "--path", "restore", "--plant", "ports"]) else { return };
    let (code, matrix) = outcome("a_rule_that_is_missing_is_found_and_named", command);
    assert_eq!(code, Some(1), "{matrix:#}");
    let line = matrix["failures"][0].as_str().unwrap();
    let begin = "other-port on path restore under the contract `narrow` is forbidden and succeeded: arrived: ";
    assert!(line.starts_with(begin), "{line}");
}

#[test]
fn whoever_ends_the_suite_ends_all_of_it() {
    let Some(mut command) = suite(&["--only", "listed-tcp", "--path", "cold", "--no-controls"]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut child = command.env("TMPDIR", dir.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The inner half names the folder, and so do the server that it starts, and what stands beside guests.
    let belongs = |word: &str| {
        let mark = dir.path().to_str().unwrap().to_owned();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
        lines.filter(|line| line.contains(&mark) && line.contains(word)).count()
    };
    let end = Instant::now() + Duration::from_secs(60);
    while belongs(" supervise ") == 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(belongs(" up ") > 0 && belongs(" supervise ") > 0, "no guest ever came up");
    signal(child.id(), "INT");
    let status = wait(&mut child, Duration::from_secs(30));
    assert_eq!(status.code(), Some(130));
    assert_eq!(belongs(""), 0, "processes are left");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn no_server_of_a_machine_leaves_a_rule_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(BINARY);
    command.args(["up", "--listen", "127.0.0.1:0", "--torture-without", "ports", "--data"]).arg(dir.path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--torture-without ports takes protection away"), "{said}");
}
