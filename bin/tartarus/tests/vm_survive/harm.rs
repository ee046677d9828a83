//! Hypervisors, supervisors and guests that die: the run ends 125 with the reason, and its neighbours do not notice.

use std::time::{Duration, Instant};

use crate::harness::{Server, signal};
use crate::scene::{Client, end_of, gone, hang_at_boot, hypervisor, process, started};

#[test]
fn a_killed_hypervisor_or_supervisor_ends_its_run_with_125_and_the_reason() {
    let server = Server::start();
    let run = |name: &str| Client::start(&server, &["run", "--name", name, "busybox", "--", "sleep", "1000"]);
    let runs = [run("first"), run("second")];
    for (name, run) in ["first", "second"].into_iter().zip(runs) {
        let record = started(&server, name);
        let id = record["id"].as_str().unwrap();
        let pid = hypervisor(&record);
        let (parent, _) = process(pid).unwrap();
        let supervisor = server.processes().into_iter().find(|p| p.0 == parent);
        assert!(supervisor.is_some_and(|p| p.1.contains("supervise")), "{parent} is no supervisor of this server");
        let killed = Instant::now();
        signal(if name == "first" { pid } else { parent }, "KILL");
        gone(pid, Duration::from_secs(10));
        gone(parent, Duration::from_secs(10));
        let run = run.end();
        assert!(killed.elapsed() < Duration::from_secs(20), "it took {:?}", killed.elapsed());
        assert_eq!(run.code, Some(125), "{}", run.err);
        assert!(run.err.contains("hypervisor died"), "{}", run.err);
        let record = server.json(&["inspect", id, "--json"]);
        assert_eq!(end_of(&record), ("hypervisor_died", 125), "{record}");
        assert!(!record["outcome"]["message"].as_str().unwrap().is_empty());
    }
    server.nothing_left();
}

#[test]
fn a_guest_that_panics_or_powers_off_harms_only_itself() {
    let server = Server::start();
    let neighbour = server.ok(&["create", "busybox", "--name", "neighbour"]);
    let alive = hypervisor(&started(&server, &neighbour));
    // The last word is out before the guest is gone.
    for (last, message) in [("echo c >/proc/sysrq-trigger", "panic"), ("reboot -f", ""), ("poweroff -f", "")] {
        let command = format!("echo before; sleep 1; {last}; sleep 1000");
        let run = server.run(&["run", "--timeout", "20s", "busybox", "--", "sh", "-c", &command]);
        let errors = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(125), "{last}: {errors}\n{}", server.log());
        assert_eq!(String::from_utf8_lossy(&run.stdout), "before\n", "{last}");
        assert!(errors.contains("kernel died") && errors.contains(message), "{last}: {errors}");
    }
    let ended = server.json(&["ps", "--all", "--json"]);
    let ended: Vec<_> = ended.as_array().unwrap().iter().filter(|s| s["state"] != "running").collect();
    assert_eq!(ended.len(), 3);
    assert!(ended.iter().all(|s| end_of(s) == ("guest_died", 125)), "{ended:?}");
    assert_eq!(server.ok(&["exec", &neighbour, "--", "echo", "here"]), "here");
    assert_eq!(hypervisor(&server.json(&["inspect", &neighbour, "--json"])), alive);
    server.ok(&["rm", &neighbour]);
    server.nothing_left();
}

#[test]
fn a_guest_that_hangs_at_boot_ends_at_its_start_timeout() {
    let server = Server::start();
    let neighbour = server.ok(&["create", "busybox"]);
    started(&server, &neighbour);
    let (initramfs, was) = hang_at_boot(&server);
    let begin = Instant::now();
    let run = server.run(&["run", "--start-timeout", "5s", "--no-snapshot", "busybox", "--", "true"]);
    let took = begin.elapsed();
    let errors = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(125), "{errors}\n{}", server.log());
    assert!(errors.contains("start timeout"), "{errors}");
    assert!((5..15).contains(&took.as_secs()), "it took {took:?}");
    assert_eq!(server.ok(&["exec", &neighbour, "--", "echo", "here"]), "here");
    // The next one, with the right initramfs, starts.
    std::fs::remove_file(&initramfs).unwrap();
    std::fs::write(initramfs, was).unwrap();
    assert_eq!(server.ok(&["run", "--no-snapshot", "busybox", "--", "echo", "well"]), "well");
    server.ok(&["rm", &neighbour]);
    server.nothing_left();
}
