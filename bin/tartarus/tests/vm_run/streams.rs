//! The main job: a command in a microVM, its output and its exit code.

use crate::harness::Server;

#[test]
fn output_goes_to_its_stream_and_the_exit_code_is_the_commands() {
    let server = Server::start();
    let output = server.run(&["run", "busybox", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n", "{output:?}\n{}", server.log());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    assert_eq!(output.status.code(), Some(3));
}
