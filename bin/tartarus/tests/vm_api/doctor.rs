//! What `doctor` says is what was found out by trying.

use std::time::{Duration, Instant};

use crate::harness::{Server, add_kernel, fixtures, skip};

fn check<'a>(report: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == name)
        .unwrap_or_else(|| panic!("no {name}: {report}"))
}

#[test]
fn without_a_kernel_the_driver_is_unknown_and_a_run_says_what_to_do() {
    let server = Server::empty(&["--driver", "auto"]);
    let report = server.json(&["doctor", "--json"]);
    assert_eq!(report["driver"], "unknown", "{report}");
    assert_eq!(check(&report, "hypervisor")["status"], "ok");
    let busybox = fixtures().join("busybox.tar");
    server.ok(&["image", "import", busybox.to_str().unwrap(), "--name", "busybox"]);
    server.ok(&["template", "create", "busybox", "--from", "busybox"]);
    let output = server.run(&["run", "busybox", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tartarus kernel add"), "{output:?}");
}

/// Whatever this machine is, the probe decides within its limit and its decision runs a guest. Where KVM is there and
/// does not run a Linux guest (PVM), the words are those of the issue.
#[test]
fn the_driver_is_chosen_by_booting_the_kernel_and_remembered() {
    let mut server = Server::empty(&["--driver", "auto"]);
    add_kernel(&server, &fixtures());
    let begin = Instant::now();
    let report = server.json(&["doctor", "--json"]);
    let probe = begin.elapsed();
    assert!(probe < Duration::from_secs(20), "the probe took {probe:?}");
    let (driver, why) = (report["driver"].as_str().unwrap().to_owned(), report["why"].as_str().unwrap().to_owned());
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        assert!(driver == "qemu-tcg" && why.contains("no KVM"), "{why}");
        skip("what a probe finds on KVM: there is no /dev/kvm that can be opened");
    } else if driver == "qemu-tcg" {
        assert_eq!(why, "KVM present, Linux guest did not boot within 10 s, TCG chosen");
    }
    // The same answer again, without another probe, also after a restart.
    server.stop();
    server.spawn();
    let begin = Instant::now();
    let again = server.json(&["doctor", "--json"]);
    assert_eq!((again["driver"].as_str(), again["why"].as_str()), (Some(driver.as_str()), Some(why.as_str())));
    assert!(begin.elapsed() < Duration::from_secs(5), "it probed again");
    let busybox = fixtures().join("busybox.tar");
    server.ok(&["image", "import", busybox.to_str().unwrap(), "--name", "busybox"]);
    server.ok(&["template", "create", "busybox", "--from", "busybox", "--memory", "128M"]);
    let id = server.ok(&["run", "busybox", "--detach", "--", "true"]);
    let record = server.until(&id, &["succeeded", "failed"]);
    assert_eq!((record["state"].as_str(), record["driver"].as_str()), (Some("succeeded"), Some(driver.as_str())));
}

/// Programs that do no more than tell their versions: what is looked at before either is used.
#[test]
fn a_firecracker_that_does_not_fit_is_named_and_starts_nothing() {
    if !rustix::process::geteuid().is_root() {
        return skip("Firecracker is not looked at: its jailer takes root");
    }
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return skip("Firecracker is not looked at: there is no /dev/kvm that can be opened");
    }
    let dir = tempfile::tempdir().unwrap();
    let program = |name: &str, says: &str| {
        let (path, new) = (dir.path().join(name), dir.path().join("new"));
        std::fs::write(&new, format!("#!/bin/sh\necho {says}\n")).unwrap();
        std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(new, &path).unwrap();
        path
    };
    let server =
        Server::start_with_firecracker(&["--driver", "firecracker"], &program("firecracker", "Firecracker v1.16.1"));
    let refused = |why: &str| {
        let doctor = server.run(&["doctor", "--json"]);
        assert_eq!(doctor.status.code(), Some(1), "no driver at all: {doctor:?}");
        let report = serde_json::from_slice(&doctor.stdout).unwrap();
        let line = check(&report, "firecracker");
        assert_eq!(line["status"], "warn", "{line}");
        assert!(line["found"].as_str().unwrap().contains(why), "{line}");
        assert!(line["advice"].as_str().unwrap().contains("jailer of the same release"), "{line}");
        let run = server.run(&["run", "python", "--", "true"]);
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(125), "{said}");
        assert!(said.contains(why), "{said}");
        server.nothing_left();
    };
    refused("there is no jailer beside");
    program("jailer", "Jailer v1.16.0");
    refused("install both of one release");
    program("firecracker", "Firecracker v1.15.9");
    program("jailer", "Jailer v1.15.9");
    refused("install one from 1.16 on");
}
