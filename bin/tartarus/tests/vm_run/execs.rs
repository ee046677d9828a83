//! `create` and `exec`: a sandbox that waits for commands, and what each command is given.

use crate::harness::Server;
use crate::shell::{Running, fed, sandbox, sh, text};

#[test]
fn exec_gives_a_command_its_environment_directory_and_user() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox", "--env", "FROM=create", "--env", "BOTH=create"]);
    let ok = |flags: &[&str], command: &[&str]| server.ok(&[&["exec", &id], flags, &["--"], command].concat());
    let env = ["--env", "BOTH=exec", "--env", "OWN=a b=c"];
    assert_eq!(ok(&env, &["sh", "-c", "echo \"$FROM/$BOTH/$OWN\""]), "create/exec/a b=c");
    assert_eq!(ok(&[], &["sh", "-c", "echo \"$FROM/$BOTH/$OWN\""]), "create/create/", "an exec's own ends with it");
    assert_eq!(ok(&["--workdir", "/home/app"], &["pwd"]), "/home/app");
    assert_eq!(ok(&[], &["pwd"]), "/");

    let who = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n) $HOME";
    let as_user = |user: &str| ok(&["--user", user], &["sh", "-c", who]);
    assert_eq!(as_user("app"), "1000 1000 50 1000 /home/app");
    assert_eq!(as_user("1000"), "1000 1000 50 1000 /home/app");
    assert_eq!(as_user("app:staff"), "1000 50 50 /home/app");
    assert_eq!(as_user("4242:77"), "4242 77 77 /");
    assert_eq!(ok(&[], &["sh", "-c", who]), "0 0 0 /root");
    assert_eq!(ok(&["--user", "app"], &["sh", "-c", "touch /etc/mine 2>/dev/null || echo refused"]), "refused");

    let output = server.run(&["exec", &id, "--", "sh", "-c", "echo out; echo err >&2; exit 6"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".into(), "err\n".into()));
    assert_eq!(output.status.code(), Some(6));
    let output = fed(&server, &["exec", &id, "-i", "--", "wc", "-c"], b"12345");
    assert_eq!(text(&output.stdout).trim(), "5");
    let output = fed(&server, &["exec", &id, "--", "wc", "-c"], b"12345");
    assert_eq!(text(&output.stdout).trim(), "0", "without -i there is no input");
}

#[test]
fn ctrl_c_ends_its_own_exec_and_nothing_else() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    let background = sh(&server, &id, "sleep 1000 >/dev/null 2>&1 & echo $!");
    let script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.2; done";
    let mut other = Running::start(&server, &["exec", &id, "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    assert_eq!(other.line(), "ready");
    let mut exec = Running::start(&server, &["exec", &id, "--", "sh", "-c", script]);
    assert_eq!(exec.line(), "ready");
    exec.signal("INT");
    let output = exec.output();
    assert_eq!((text(&output.stdout), output.status.code()), ("caught\n".into(), Some(7)), "{output:?}");
    sh(&server, &id, &format!("kill -0 {background}"));
    assert!(other.runs(), "the other exec goes on");

    other.signal("INT");
    assert_eq!(other.output().status.code(), Some(130), "what does not trap SIGINT dies of it");
    sh(&server, &id, &format!("kill -0 {background}"));
    assert_eq!(server.json(&["inspect", &id, "--json"])["state"], "running");
}

#[test]
fn a_second_ctrl_c_leaves_the_sandbox_of_an_exec_alone() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    let script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.2; done";
    let mut exec = Running::start(&server, &["exec", &id, "--", "sh", "-c", script]);
    assert_eq!(exec.line(), "ready");
    exec.signal("INT");
    assert_eq!(exec.line(), "caught");
    exec.signal("INT");
    assert_eq!(exec.output().status.code(), Some(130));
    assert_eq!(sh(&server, &id, "echo alive"), "alive");
}
