//! What is on record of a sandbox, and the ways to name one.

use serde_json::{Value, json};

use crate::harness::Server;
use crate::shell::{sandbox, sh, text};

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().expect("an array").iter().map(|sandbox| sandbox["id"].as_str().unwrap()).collect()
}

#[test]
fn a_detached_run_is_found_by_id_prefix_and_name_until_it_is_removed() {
    let server = Server::start();
    let script = "echo out; echo err >&2; exit 4";
    let run = ["run", "busybox", "--detach", "--name", "one", "--label", "who=me", "--json", "--", "sh", "-c", script];
    let told = server.ok(&run);
    let accepted: Value = serde_json::from_str(&told).unwrap();
    let id = accepted["id"].as_str().unwrap();
    assert_eq!((&accepted["name"], &accepted["labels"]), (&"one".into(), &json!({"who": "me"})));

    let prefix = &id[..id.len() - 4];
    for reference in [id, prefix, prefix.trim_start_matches("sbx_"), "one"] {
        assert_eq!(server.run(&["wait", reference]).status.code(), Some(4), "{reference}");
        assert_eq!(server.json(&["inspect", reference, "--json"])["id"], id, "{reference}");
    }
    let output = server.run(&["logs", "one"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".into(), "err\n".into()));
    let output = server.run(&["logs", "one", "--stream", "stderr"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), "err\n".into()));
    assert!(!ids(&server.json(&["ps", "--json"])).contains(&id), "it has ended");
    assert_eq!(ids(&server.json(&["ps", "--all", "--label", "who=me", "--json"])), [id]);

    assert!(server.data.join("logs").join(id).exists());
    server.ok(&["rm", "one"]);
    assert!(!server.data.join("logs").join(id).exists(), "its logs are gone");
    for command in ["inspect", "logs", "wait", "rm"] {
        let output = server.run(&[command, id]);
        assert!(!output.status.success() && text(&output.stderr).contains(id), "{command}: {output:?}");
    }
    // As the help of `run` says.
    assert_eq!(told.lines().count(), 1, "one object in one line: {told}");
}

#[test]
fn a_name_is_unique_among_the_living_only() {
    let server = Server::start();
    let first = sandbox(&server, &["busybox", "--name", "only"]);
    let again = server.run(&["create", "busybox", "--name", "only"]);
    let errors = text(&again.stderr);
    assert!(!again.status.success() && errors.contains("only"), "{errors}");
    server.ok(&["kill", "only"]);
    server.until(&first, &["killed"]);
    let created = server.json(&["create", "busybox", "--name", "only", "--json"]);
    let second = created["id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    assert_eq!(server.json(&["inspect", "only", "--json"])["id"], second.as_str(), "the name is the living one's");
    server.ok(&["rm", "only"]);
}

#[test]
fn an_ambiguous_prefix_is_told_as_such() {
    let server = Server::start();
    let mut seen: Vec<String> = ids(&server.json(&["ps", "--all", "--json"])).into_iter().map(str::to_owned).collect();
    // An id's first character after `sbx_` is one of 32; none of these starts in time.
    let shared = loop {
        let body = json!({"template": "busybox", "command": ["true"], "start_timeout_ms": 1});
        let id = server.post("/v1/sandboxes", &body).json()["id"].as_str().unwrap().to_owned();
        let prefix = id[..5].to_owned();
        seen.push(id);
        if seen.iter().filter(|id| id.starts_with(&prefix)).count() == 2 {
            break prefix;
        }
    };
    for command in ["inspect", "kill", "rm", "logs"] {
        let output = server.run(&[command, &shared]);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command} {shared}: {errors}");
        assert!(errors.contains("more than one") && errors.contains(&shared), "{command}: {errors}");
    }
    let output = server.run(&["inspect", "sbx_nothing"]);
    assert!(!output.status.success() && text(&output.stderr).contains("sbx_nothing"), "{output:?}");
    for id in &seen {
        server.until(id, &["failed", "succeeded"]);
    }
}

#[test]
fn inspect_shows_the_machine_and_what_each_phase_took() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    let record = server.json(&["inspect", &id, "--json"]);
    let pid = record["hypervisor_pid"].as_u64().unwrap();
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(program.file_name().unwrap().to_str().unwrap().starts_with("qemu-system"), "{program:?}");
    assert_eq!(record["driver"], "qemu-tcg");
    let guest = record["guest_kernel"].as_str().unwrap();
    assert_eq!(sh(&server, &id, "uname -r"), guest);
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(guest, host.trim(), "the guest has a kernel of its own");

    server.ok(&["kill", &id]);
    let record = server.until(&id, &["killed"]);
    let phases = record["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["accepted", "leased", "disk_ready", "vm_started", "guest_ready", "command_started", "ended"],
        "{record}"
    );
    for pair in phases.windows(2) {
        let (before, at) = (pair[0]["at"].as_i64().unwrap(), pair[1]["at"].as_i64().unwrap());
        let took = pair[1]["took_ms"].as_f64().unwrap();
        assert!(at >= before && ((at - before) as f64 / 1000.0 - took).abs() < 0.01, "{pair:?}");
    }
    // No Linux boots in no time.
    assert!(phases[4]["took_ms"].as_f64().unwrap() > 50.0, "{record}");
    server.nothing_left();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "its hypervisor is gone");
}
