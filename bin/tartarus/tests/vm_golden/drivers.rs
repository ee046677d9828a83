//! The main job of a driver, with a Linux guest: booted, kept, restored, paused, taken over, ended.

use crate::harness::{Server, skip};

const SIX: [&str; 4] = ["--", "python3", "-c", "print(6 * 7)"];

fn main_job(mut server: Server, driver: &str) {
    assert_eq!(server.ok(&[&["run", "python", "--no-snapshot"], &SIX[..]].concat()), "42");
    server.ok(&["template", "rebuild", "python"]);
    assert_eq!(server.ok(&[&["run", "python", "--require-snapshot"], &SIX[..]].concat()), "42");
    let id = server.ok(&["create", "python", "--require-snapshot"]);
    let record = server.until(&id, &["running"]);
    assert_eq!(record["driver"], driver, "{record}");
    let exec = |server: &Server, code: &str| server.ok(&["exec", &id, "--", "python3", "-c", code]);
    exec(&server, "open('/kept', 'w').write('here')");
    server.ok(&["pause", &id]);
    server.ok(&["resume", &id]);
    server.kill9();
    server.spawn();
    assert_eq!(exec(&server, "print(open('/kept').read())"), "here");
    let after = server.until(&id, &["running"]);
    assert_eq!(after["hypervisor_pid"], record["hypervisor_pid"], "it was taken over");
    server.ok(&["rm", &id]);
    server.nothing_left();
}

#[test]
fn qemu_does_all_of_it() {
    main_job(Server::start(), "qemu-tcg");
}

#[test]
fn firecracker_does_all_of_it_where_it_boots_a_linux_guest() {
    let server = Server::start_with(&["--driver", "firecracker"]);
    let doctor = server.run(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    if report["driver"] != "firecracker" {
        return skip(&format!("Firecracker boots no Linux guest here: {}", report["why"].as_str().unwrap_or_default()));
    }
    main_job(server, "firecracker");
}
