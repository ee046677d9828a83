//! Guests that run out of memory: it is said so, and the machine around the command goes on.

use crate::harness::Server;
use crate::shell::{sandbox, sh, text};

#[test]
fn a_command_that_eats_all_memory_is_killed_and_the_reason_told() {
    let server = Server::start();
    let output = server.run(&["run", "busybox", "--name", "eater", "--", "tail", "/dev/zero"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(137), "{errors}\n{}", server.log());
    assert!(errors.contains("want of memory") && errors.contains("--memory"), "{errors}");
    let record = server.json(&["inspect", "eater", "--json"]);
    assert_eq!(record["outcome"]["reason"], "out_of_memory", "{record}");
    assert!(record["outcome"]["oom_kills"].as_u64().unwrap() >= 1, "{record}");
}

#[test]
fn a_sandbox_outlives_a_child_that_ate_all_memory() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    let output = server.run(&["exec", &id, "--", "sh", "-c", "tail /dev/zero; echo survived $?"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("survived 137\n".into(), Some(0)), "{output:?}");
    assert!(text(&output.stderr).contains("out of memory"), "{}", text(&output.stderr));
    assert_eq!(sh(&server, &id, "echo alive"), "alive");
}
