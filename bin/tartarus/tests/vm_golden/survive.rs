//! `kill -9` while snapshots are made and used.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use crate::harness::{Server, signal};
use crate::world::{newest, running, sh, sized, started_from, states, template};

/// Memfds of loaded snapshots over these processes: the inodes by name, which holds the content's digest.
fn loaded(pids: &[u32]) -> BTreeMap<String, BTreeSet<u64>> {
    let mut found: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for pid in pids {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let Some(name) = target.to_str().and_then(|t| t.strip_prefix("/memfd:tartarus-base")) else { continue };
            let inode = std::fs::metadata(entry.path()).map(|m| m.ino());
            found.entry(name.to_owned()).or_default().extend(inode);
        }
    }
    found
}

#[test]
fn a_server_killed_while_it_makes_a_snapshot_makes_it_again_or_whole() {
    let mut server = Server::start();
    for wait in [500, 1500, 2500, 3000, 3300, 3600, 4000] {
        let name = format!("t{wait}");
        server.ok(&[
            "template",
            "create",
            &name,
            "--from",
            "busybox",
            "--memory",
            "128M",
            "--disk",
            "64M",
            "--warm",
            "echo w > /w",
            "--detach",
        ]);
        std::thread::sleep(Duration::from_millis(wait));
        server.kill9();
        server.spawn();
        let end = Instant::now() + Duration::from_secs(90);
        while states(&server, &name) != ["ready"] {
            assert!(Instant::now() < end, "{name}: {:?}; server:\n{}", states(&server, &name), server.log());
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(server.ok(&["run", &name, "--", "cat", "/w"]), "w");
        assert_eq!(started_from(&newest(&server)), "snapshot", "{name}");
        server.ok(&["template", "rm", &name]);
    }
    server.nothing_left();
}

#[test]
fn a_hypervisor_killed_while_it_is_warmed_up_leaves_no_snapshot() {
    let server = Server::start();
    server.ok(&[
        "template", "create", "slow", "--from", "busybox", "--memory", "128M", "--disk", "64M", "--warm", "sleep 30",
        "--detach",
    ]);
    let end = Instant::now() + Duration::from_secs(60);
    let builder = loop {
        let all = server.json(&["ps", "--json"]);
        let found =
            all.as_array().unwrap().iter().find(|s| s["template"] == "slow" && s["state"] == "running").cloned();
        if let Some(found) = found {
            break found["id"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < end, "{all}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let pid = server.json(&["inspect", &builder, "--json"])["hypervisor_pid"].as_u64().unwrap();
    signal(pid as u32, "KILL");
    server.until(&builder, &["failed", "lost"]);
    assert_eq!(states(&server, "slow"), ["failed"]);
    let left: Vec<_> = std::fs::read_dir(server.data.join("snapshots")).unwrap().flatten().map(|e| e.path()).collect();
    let slow =
        |p: &std::path::PathBuf| std::fs::read_to_string(p.join("manifest.json")).is_ok_and(|m| m.contains("\"slow\""));
    assert!(!left.iter().any(slow), "{left:?}");
    server.nothing_left();
}

/// Whenever the server is killed on the way from the request to the command: it runs in the end, and once.
#[test]
fn a_server_killed_while_it_restores_runs_the_command_once() {
    let mut server = Server::start();
    template(&server, "t", &["--warm", "echo w > /w"]);
    let mut steps = BTreeSet::new();
    for wait in [0, 10, 20, 30, 50, 70, 90, 120, 160, 220, 300, 400] {
        server.nothing_left();
        let id = server.ok(&["run", "--detach", "t", "--", "sh", "-c", "cat /w; sleep 0.3"]);
        std::thread::sleep(Duration::from_millis(wait));
        server.kill9();
        // What it had come to: no process, a supervisor, a hypervisor as well; a command that was let begin.
        let home = server.data.join("sandboxes").join(&id);
        steps.insert((server.processes().len(), home.join("begun").exists()));
        server.spawn();
        let record = server.until(&id, &["succeeded", "failed", "lost", "timed_out", "killed"]);
        assert_eq!(record["state"], "succeeded", "killed after {wait} ms: {record}\n{}", server.log());
        assert_eq!(server.ok(&["logs", &id]), "w", "killed after {wait} ms: {record}");
        let phases = record["phases"].as_array().unwrap();
        assert_eq!(phases.iter().filter(|phase| phase["name"] == "command_started").count(), 1, "{record}");
    }
    assert!(steps.len() > 1, "it was killed at one step only: {steps:?}");
    server.nothing_left();
}

/// A hypervisor or a supervisor that is killed while it loads the snapshot costs one attempt.
#[test]
fn a_machine_killed_while_it_restores_is_started_again() {
    let server = Server::start();
    for of in ["qemu-system", " supervise "] {
        // A kill that came too late, when the command had begun, counts as the hypervisor's end: that is another test's.
        let hit = (0..8).any(|round| {
            let name = format!("t{}{round}", of.len());
            template(&server, &name, &["--warm", "echo w > /w"]);
            server.nothing_left();
            let mut run = server.cli(&["run", &name, "--", "cat", "/w"]);
            let run = run.stdout(std::process::Stdio::piped()).spawn().unwrap();
            let end = Instant::now() + Duration::from_secs(20);
            let pid = loop {
                assert!(Instant::now() < end, "no process of it was seen");
                if let Some((pid, _)) = server.processes().into_iter().find(|(_, command)| command.contains(of)) {
                    break pid;
                }
            };
            signal(pid, "KILL");
            let output = run.wait_with_output().unwrap();
            let record = newest(&server);
            if record["attempts"] != 2 {
                return false;
            }
            assert!(output.status.success() && output.stdout == b"w\n", "{name}: {record}");
            assert!(started_from(&record).starts_with("cold boot"), "it is not tried again at once: {record}");
            true
        });
        assert!(hit, "no kill of {of} came in time");
    }
    server.nothing_left();
}

/// Clones that were there before and clones that come after share one copy, and nothing is lost with the server.
#[test]
fn clones_and_their_shared_memory_survive_the_server() {
    let mut server = Server::start();
    for i in 0..8 {
        sized(&server, &format!("m{i}"), "512M", &["--warm", &format!("echo {i} > /number")]);
    }
    let before: Vec<String> = (0..8).map(|i| running(&server, &[&format!("m{i}")])).collect();
    let keeper = server.keeper().unwrap_or_else(|| panic!("no keeper; server:\n{}", server.log()));
    server.kill9();
    assert_eq!(server.keeper(), Some(keeper), "the keeper died with the server");
    server.spawn();
    let after: Vec<String> = (0..8).map(|i| running(&server, &[&format!("m{i}")])).collect();
    for (i, (old, new)) in before.iter().zip(&after).enumerate() {
        assert_eq!(sh(&server, old, "cat /number"), i.to_string());
        assert_eq!(sh(&server, new, "cat /number"), i.to_string());
    }
    let mut pids: Vec<u32> = server.processes().into_iter().map(|(pid, _)| pid).collect();
    pids.extend([server.pid(), keeper]);
    let loaded = loaded(&pids);
    // Those of the seed's templates may be among them.
    assert!(loaded.len() >= 8 && loaded.values().all(|inodes| inodes.len() == 1), "{loaded:?}");
    before.iter().chain(&after).for_each(|id| drop(server.ok(&["rm", id])));
    server.nothing_left();
}

#[test]
fn a_keeper_that_dies_is_replaced() {
    let mut server = Server::start();
    template(&server, "kept", &[]);
    server.ok(&["run", "kept", "--", "true"]);
    signal(server.keeper().expect("a keeper"), "KILL");
    server.ok(&["run", "kept", "--", "true"]);
    server.kill9();
    server.spawn();
    server.ok(&["run", "kept", "--", "true"]);
    assert_eq!(started_from(&newest(&server)), "snapshot");
    server.nothing_left();
}

/// What a clone of the time before maps stays loaded while others come and go, and is never loaded a second time.
#[test]
fn an_adopted_clone_keeps_its_memory_loaded() {
    let mut server = Server::start_with(&["--snapshot-memory", "300M"]);
    template(&server, "first", &["--warm", "echo first > /w"]);
    let old = running(&server, &["first"]);
    server.kill9();
    server.spawn();
    for name in ["second", "third"] {
        template(&server, name, &["--warm", &format!("echo {name} > /w")]);
        assert_eq!(server.ok(&["run", "--require-snapshot", name, "--", "cat", "/w"]), name);
    }
    let new = running(&server, &["first", "--require-snapshot"]);
    let mut pids: Vec<u32> = server.processes().into_iter().map(|(pid, _)| pid).collect();
    pids.extend([server.pid(), server.keeper().expect("a keeper")]);
    let loaded = loaded(&pids);
    assert!(loaded.values().all(|inodes| inodes.len() == 1), "loaded twice: {loaded:?}");
    for id in [&old, &new] {
        assert_eq!(sh(&server, id, "cat /w"), "first");
        server.ok(&["rm", id]);
    }
    server.nothing_left();
}
