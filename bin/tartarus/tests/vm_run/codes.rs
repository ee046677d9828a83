//! Exit codes: the command's own, and those that say why there is none.

use std::time::{Duration, Instant};

use crate::harness::Server;
use crate::shell::{sandbox, text};

#[test]
fn run_exits_as_a_shell_would() {
    let server = Server::start();
    for (command, code, told) in [
        (&["sh", "-c", "kill -SEGV $$"][..], 139, "SIGSEGV"),
        (&["/etc/passwd"], 126, "/etc/passwd"),
        (&["no-such-program"], 127, "no-such-program"),
    ] {
        let output = server.run(&[&["run", "busybox", "--"], command].concat());
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{command:?}: {errors}");
        assert!(errors.contains(told), "{command:?}: {errors}");
    }
}

#[test]
fn exec_exits_as_a_shell_would() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    for (flags, command, code, told) in [
        (&[][..], &["true"][..], 0, ""),
        (&[], &["sh", "-c", "exit 255"], 255, ""),
        (&[], &["sh", "-c", "kill -SEGV $$"], 139, "SIGSEGV"),
        (&[], &["sh", "-c", "kill -KILL $$"], 137, "SIGKILL"),
        (&[], &["/etc/passwd"], 126, "/etc/passwd"),
        (&[], &["/etc"], 126, "/etc"),
        (&["--user", "ghost"], &["true"], 126, "ghost"),
        (&["--workdir", "/missing"], &["true"], 126, "/missing"),
        (&[], &["no-such-program"], 127, "no-such-program"),
        (&[], &["/no/such/program"], 127, "/no/such/program"),
    ] {
        let output = server.run(&[&["exec", &id], flags, &["--"], command].concat());
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{flags:?} {command:?}: {errors}");
        assert!(errors.contains(told), "{flags:?} {command:?}: {errors}");
    }
}

#[test]
fn an_unknown_template_is_125_and_named() {
    let server = Server::start();
    let output = server.run(&["run", "no-such-template", "--", "true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(text(&output.stderr).contains("no-such-template"), "{output:?}");
    let all = server.json(&["ps", "--all", "--json"]);
    let rogue = all.as_array().unwrap().iter().find(|sandbox| sandbox["template"] == "no-such-template");
    assert_eq!(rogue, None, "nothing is on record");
}

#[test]
fn a_timeout_is_124_and_counts_from_the_commands_start() {
    let server = Server::start();
    let script = "while :; do echo tick; sleep 0.1; done";
    let output = server.run(&["run", "busybox", "--name", "late", "--timeout", "1s", "--", "sh", "-c", script]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(124), "{errors}\n{}", server.log());
    assert!(errors.contains("timeout"), "{errors}");
    assert!(text(&output.stdout).starts_with("tick\n"), "it had its second: {output:?}");
    let record = server.json(&["inspect", "late", "--json"]);
    assert_eq!((&record["state"], &record["outcome"]["reason"]), (&"timed_out".into(), &"timeout".into()), "{record}");
    // The boot alone takes longer than the timeout, which would leave nothing of it.
    let ran = record["ended_at"].as_i64().unwrap() - record["started_at"].as_i64().unwrap();
    assert!((1_000_000..15_000_000).contains(&ran), "{ran} µs: {record}");
}

#[test]
fn a_start_that_takes_too_long_is_125_and_ends_soon() {
    let server = Server::start();
    let begun = Instant::now();
    let output = server.run(&["run", "busybox", "--name", "never", "--start-timeout", "300ms", "--", "true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}\n{}", server.log());
    assert!(text(&output.stderr).contains("start timeout"), "{output:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let record = server.json(&["inspect", "never", "--json"]);
    assert_eq!(record["outcome"]["reason"], "start_timeout", "{record}");
    server.nothing_left();
}
