//! What a server finds at its start: a newer store, another server, and what an earlier one left behind.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::harness::{BINARY, Server, output, signal};
use crate::scene::{end_of, gone, hypervisor, started};

/// Another `up` on the same folder, which should refuse.
fn another_up(server: &Server) -> Output {
    let mut command = Command::new(BINARY);
    command.args(["up", "--listen", "127.0.0.1:0", "--driver", "qemu-tcg", "--data"]).arg(&server.data);
    command.env("HOME", server.scratch()).env_remove("XDG_STATE_HOME").stdin(Stdio::null());
    output(command)
}

fn sql(database: &Path, statement: &str) -> String {
    let program = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
                   print(c.execute(sys.argv[2]).fetchone())\n\
                   c.execute('PRAGMA wal_checkpoint(TRUNCATE)'); c.close()";
    let mut command = Command::new("python3");
    command.args(["-c", program]).arg(database).arg(statement);
    let output = output(command);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_stays_as_it_is() {
    let mut server = Server::empty(&[]);
    server.stop();
    let database = server.data.join("tartarus.db");
    let version = sql(&database, "PRAGMA user_version");
    sql(&database, "PRAGMA user_version = 4321");
    let before = std::fs::read(&database).unwrap();

    let refused = another_up(&server);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    assert!(errors.contains("newer") && errors.contains("4321"), "{errors}");
    assert!(std::fs::read(&database).unwrap() == before, "the refused store was changed");

    sql(&database, &format!("PRAGMA user_version = {}", version.trim_matches(['(', ')', ','])));
    server.spawn();
    assert_eq!(server.json(&["ps", "--json"]), serde_json::json!([]));
}

#[test]
fn a_second_server_on_the_same_folder_is_refused() {
    let server = Server::empty(&[]);
    let refused = another_up(&server);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    assert!(errors.contains("another tartarus uses"), "{errors}");
    assert_eq!(server.json(&["ps", "--json"]), serde_json::json!([]), "the first one goes on");
}

#[test]
fn what_ended_or_was_left_while_the_server_was_dead_is_reported_and_removed() {
    let mut server = Server::start();
    let dies = server.ok(&["run", "--detach", "busybox", "--", "sh", "-c", "echo before; sleep 1000"]);
    let panic = "echo before; sleep 4; echo c >/proc/sysrq-trigger";
    let panics = server.ok(&["run", "--detach", "busybox", "--", "sh", "-c", panic]);
    let pids = [&dies, &panics].map(|id| hypervisor(&started(&server, id)));
    server.kill9();
    signal(pids[0], "KILL");
    for pid in pids {
        gone(pid, Duration::from_secs(60));
    }
    let sandboxes = server.data.join("sandboxes");
    // As of a server that was killed before it had written the assignment; and what is nobody's.
    let (prefix, rest) = dies.split_once('_').unwrap();
    let half = sandboxes.join(format!("{prefix}_{}", rest.chars().rev().collect::<String>()));
    for dir in [&half, &sandboxes.join("nobodys")] {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("layer.img"), b"x").unwrap();
    }
    server.spawn();
    let record = server.until(&dies, &["failed", "lost", "killed"]);
    assert_eq!(end_of(&record), ("hypervisor_died", 125), "{record}");
    let record = server.until(&panics, &["failed", "lost", "killed"]);
    assert_eq!(end_of(&record), ("guest_died", 125), "{record}");
    assert!(record["outcome"]["message"].as_str().unwrap().contains("panic"), "{record}");
    server.nothing_left();
}
