//! The main job: a command in a microVM, its output and its exit code.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::Server;
use crate::shell::{Running, fed, sandbox, text};

#[test]
fn output_goes_to_its_stream_and_the_exit_code_is_the_commands() {
    let server = Server::start();
    let output = server.run(&["run", "busybox", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n", "{output:?}\n{}", server.log());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn output_arrives_while_the_command_still_runs() {
    let server = Server::start();
    let script = "echo one; read answer; sleep 3; echo two $answer; sleep 1; exit 5";
    let mut run = Running::start_with(&server, &["run", "busybox", "-i", "--", "sh", "-c", script], Stdio::piped());
    assert_eq!(run.line(), "one");
    // The command waits for an answer that it has not been given yet.
    let answered = Instant::now();
    let mut stdin = run.stdin();
    stdin.write_all(b"yes\n").unwrap();
    assert_eq!(run.line(), "two yes");
    assert!(answered.elapsed() >= Duration::from_secs(2), "{:?}", answered.elapsed());
    assert!(run.runs(), "the second line came before the end as well");
    let output = run.output();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(5), String::new()));
}

/// A MiB and some, of every byte value, without a period that a chunk could hide and without a last newline.
fn noise() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..(1u32 << 20) + 77).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    bytes.extend((0..=255).rev().map(|byte: u8| byte));
    bytes
}

#[test]
fn every_byte_passes_in_and_out_on_both_streams() {
    let server = Server::start();
    let noise = noise();
    let output = fed(&server, &["run", "busybox", "-i", "--", "tee", "/dev/stderr"], &noise);
    assert_eq!(output.status.code(), Some(0), "{}", server.log());
    assert!(output.stdout == noise, "{} bytes of stdout", output.stdout.len());
    assert!(output.stderr == noise, "{} bytes of stderr", output.stderr.len());
    let id = sandbox(&server, &["busybox"]);
    let output = fed(&server, &["exec", &id, "-i", "--", "cat"], &noise);
    assert!(output.status.code() == Some(0) && output.stdout == noise, "{} bytes of exec", output.stdout.len());
}

#[test]
fn the_last_line_is_never_lost() {
    let server = Server::start();
    // The grandchild holds both pipes for longer than anybody waits.
    let output = server.run(&["run", "busybox", "--", "sh", "-c", "sleep 1000 & printf early; printf late >&2"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("early".into(), "late".into()), "{}", server.log());
    assert_eq!(output.status.code(), Some(0));
    let id = sandbox(&server, &["busybox"]);
    for turn in 0..20 {
        let last = format!("last {turn}");
        let output = server.run(&["exec", &id, "--", "printf", &last]);
        assert_eq!((text(&output.stdout), output.status.code()), (last, Some(0)), "{}", text(&output.stderr));
    }
    let output = server.run(&["exec", &id, "--", "sh", "-c", "sleep 1000 & printf early; exit 9"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("early".into(), Some(9)), "{}", server.log());
}

#[test]
fn input_is_empty_without_i_and_its_end_arrives_with_it() {
    let server = Server::start();
    let output = fed(&server, &["run", "busybox", "--", "cat"], b"not for it\n");
    assert_eq!((text(&output.stdout), output.status.code()), (String::new(), Some(0)));
    let output = fed(&server, &["run", "busybox", "-i", "--", "sh", "-c", "cat; echo end"], b"given");
    assert_eq!((text(&output.stdout), output.status.code()), ("givenend\n".into(), Some(0)));
}
