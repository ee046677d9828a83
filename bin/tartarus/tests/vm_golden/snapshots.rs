//! Making golden snapshots and starting from them.

use std::process::Command;

use crate::harness::Server;
use crate::world::{folder, newest, sh, started_from, states, template};

#[test]
fn a_template_is_ready_when_it_is_made_and_runs_start_from_it() {
    let server = Server::start();
    template(&server, "fast", &[]);
    assert_eq!(states(&server, "fast"), ["ready"]);
    assert_eq!(server.ok(&["run", "fast", "--", "echo", "hello"]), "hello");
    let record = newest(&server);
    assert_eq!(started_from(&record), "snapshot");
    let phases: Vec<&str> = record["phases"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    for phase in ["accepted", "leased", "disk_ready", "vm_started", "guest_ready", "command_started", "ended"] {
        assert!(phases.contains(&phase), "{phase} is not among {phases:?}");
    }
    server.ok(&["run", "--no-snapshot", "fast", "--", "true"]);
    assert!(started_from(&newest(&server)).starts_with("cold boot"), "{}", newest(&server));
    server.nothing_left();
}

/// A file that the warm-up wrote is there after a restore and after a cold boot, and the layer is clean by itself.
#[test]
fn what_the_warm_up_wrote_is_there_and_its_disk_is_clean() {
    let server = Server::start();
    let warm = "echo warm > /root.txt; mkdir -p /d/e; i=0; while [ $i -lt 200 ]; do echo $i > /d/e/$i; i=$((i+1)); done; rm /d/e/1*";
    template(&server, "warm", &["--warm", warm]);
    let look = "cat /root.txt; ls /d/e | wc -l";
    for args in [&["run", "warm"][..], &["run", "--no-snapshot", "warm"]] {
        let all: Vec<&str> = args.iter().chain(&["--", "sh", "-c", look]).copied().collect();
        let said = server.ok(&all);
        assert_eq!(said.lines().next(), Some("warm"), "{args:?}: {said}");
        let files: u32 = said.lines().nth(1).unwrap().trim().parse().unwrap();
        assert_eq!(files, 89, "{args:?}");
    }
    let layer = folder(&server, "warm").join("layer");
    let fsck = Command::new("e2fsck").args(["-f", "-n", layer.to_str().unwrap()]).output().unwrap();
    assert!(
        fsck.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&fsck.stdout),
        String::from_utf8_lossy(&fsck.stderr)
    );
    server.nothing_left();
}

#[test]
fn a_warm_up_that_fails_leaves_no_template_and_says_what_it_said() {
    let server = Server::start();
    let output = server.run(&["template", "create", "bad", "--from", "busybox", "--warm", "echo this is why; exit 9"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("this is why"), "{errors}");
    assert!(!server.run(&["template", "inspect", "bad"]).status.success(), "the template is still there");
    let entries = |dir: &str| std::fs::read_dir(server.data.join(dir)).unwrap().count();
    // Those of the seed's two templates, and nothing half-made.
    assert_eq!((entries("snapshots"), entries("snapshots/staging")), (3, 0));
    server.nothing_left();
}

#[test]
fn what_does_not_fit_boots_cold_and_says_why_or_is_refused() {
    let server = Server::start();
    template(&server, "sized", &["--shape", "1x192M"]);
    assert_eq!(states(&server, "sized"), ["ready", "ready"]);
    server.ok(&["run", "--memory", "192M", "sized", "--", "true"]);
    assert_eq!(started_from(&newest(&server)), "snapshot");
    server.ok(&["run", "--memory", "160M", "sized", "--", "true"]);
    let from = started_from(&newest(&server));
    assert!(from.starts_with("cold boot") && from.contains("160 MiB") && from.contains("192 MiB"), "{from}");
    let output = server.run(&["run", "--memory", "160M", "--require-snapshot", "sized", "--", "true"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{errors}");
    assert!(errors.contains("snapshot"), "{errors}");
    server.nothing_left();
}

/// Two builds of the hypervisor: both are named, nothing is restored, and after a rebuild everything is as before.
#[test]
fn a_snapshot_of_another_hypervisor_is_named_and_made_again() {
    let mut server = Server::start();
    template(&server, "old", &[]);
    server.stop();
    let manifest = folder_of_only(&server);
    let text = std::fs::read_to_string(&manifest).unwrap();
    let other = text.replace("QEMU emulator version", "QEMU emulator of another time, version");
    assert_ne!(text, other, "{text}");
    std::fs::write(&manifest, other).unwrap();
    server.spawn();
    // What is unusable is made again in the background; until then runs say why they boot.
    server.ok(&["run", "old", "--", "true"]);
    let from = started_from(&newest_of(&server, "old"));
    let rebuilt = from == "snapshot";
    assert!(rebuilt || (from.contains("another time") && from.contains("here is")), "{from}");
    server.ok(&["template", "rebuild", "old"]);
    assert_eq!(states(&server, "old"), ["ready"]);
    server.ok(&["run", "old", "--", "true"]);
    assert_eq!(started_from(&newest_of(&server, "old")), "snapshot");
    server.nothing_left();
}

fn folder_of_only(server: &Server) -> std::path::PathBuf {
    let root = server.data.join("snapshots");
    let mut found: Vec<_> =
        std::fs::read_dir(&root).unwrap().flatten().map(|e| e.path().join("manifest.json")).collect();
    found.retain(|p| std::fs::read_to_string(p).is_ok_and(|text| text.contains("\"old\"")));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn newest_of(server: &Server, template: &str) -> serde_json::Value {
    let all = server.json(&["ps", "--all", "--json"]);
    let own = |s: &&serde_json::Value| s["template"] == template && s["command"] != serde_json::json!([]);
    let id = all.as_array().unwrap().iter().find(own).unwrap_or_else(|| panic!("{all}"))["id"].as_str().unwrap();
    server.json(&["inspect", id, "--json"])
}

#[test]
fn a_template_goes_while_sandboxes_of_it_run_and_takes_its_snapshot_along() {
    let server = Server::start();
    template(&server, "gone", &[]);
    let folder = folder(&server, "gone");
    let id = crate::world::running(&server, &["gone"]);
    server.ok(&["template", "rm", "gone"]);
    assert_eq!(sh(&server, &id, "echo still here; echo x > /file; cat /file"), "still here\nx");
    assert!(!folder.exists(), "its snapshot is still there");
    server.ok(&["rm", &id]);
    server.nothing_left();
}

/// Two that are restored from one snapshot at the same moment, the first after the server started.
#[test]
fn two_restores_at_once_share_the_snapshot() {
    let mut server = Server::start();
    template(&server, "both", &["--warm", "echo both > /w"]);
    server.stop();
    server.spawn();
    let start = || server.cli(&["run", "both", "--", "sh", "-c", "cat /w; cat /proc/sys/kernel/random/uuid"]);
    let runs = [start(), start(), start()].map(|mut c| c.stdout(std::process::Stdio::piped()).spawn().unwrap());
    let said: Vec<String> =
        runs.map(|run| String::from_utf8(run.wait_with_output().unwrap().stdout).unwrap()).into_iter().collect();
    for (i, text) in said.iter().enumerate() {
        assert!(text.starts_with("both\n"), "{text:?}");
        assert!(!said[..i].contains(text), "two clones are the same: {text}");
    }
    let all = server.json(&["ps", "--all", "--json"]);
    for record in all.as_array().unwrap().iter().filter(|s| s["template"] == "both").take(3) {
        let record = server.json(&["inspect", record["id"].as_str().unwrap(), "--json"]);
        assert_eq!(started_from(&record), "snapshot", "{record}");
    }
    server.nothing_left();
}

/// A sandbox sees nothing of what its template becomes later.
#[test]
fn a_running_clone_is_untouched_by_a_rebuild() {
    let server = Server::start();
    template(&server, "anew", &["--warm", "cat /proc/sys/kernel/random/uuid > /made"]);
    let id = crate::world::running(&server, &["anew"]);
    let before = sh(&server, &id, "cat /made");
    server.ok(&["template", "rebuild", "anew"]);
    assert_ne!(server.ok(&["run", "anew", "--", "cat", "/made"]), before, "it was not made anew");
    sh(&server, &id, "echo 3 > /proc/sys/vm/drop_caches; true");
    assert_eq!(sh(&server, &id, "cat /made; echo mine > /x; cat /x"), format!("{before}\nmine"));
    server.ok(&["rm", &id]);
    server.nothing_left();
}
