//! The hypervisors of running sandboxes, seen from outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::harness::{Server, skip};

/// A sandbox's hypervisor, as `/proc` shows it.
fn hypervisor(server: &Server, args: &[&str]) -> (String, PathBuf) {
    let id = server.ok(&[&["create"], args, &["python"]].concat());
    let pid = server.until(&id, &["running"])["hypervisor_pid"].as_u64().unwrap();
    (id, PathBuf::from(format!("/proc/{pid}")))
}

/// The user id of all its threads, which may do nothing and gain nothing.
fn user(proc: &Path) -> String {
    let mut users = Vec::new();
    for thread in std::fs::read_dir(proc.join("task")).unwrap() {
        // One of those for disks ends when it has nothing to do.
        let Ok(text) = std::fs::read_to_string(thread.unwrap().path().join("status")) else { continue };
        let status: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once(":\t")).collect();
        assert_eq!((status["CapEff"], status["CapBnd"]), ("0000000000000000", "0000000000000000"), "{text}");
        assert_eq!((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"), "{text}");
        users.push(status["Uid"].to_owned());
    }
    users.dedup();
    assert_eq!(users.len(), 1, "{users:?}");
    users.remove(0)
}

/// Names of files that are a digest's, or end in one.
fn short(name: &str) -> &str {
    if name.len() == 64 {
        return "image";
    }
    ["memfd:tartarus-base", "initramfs"].into_iter().find(|start| name.starts_with(start)).unwrap_or(name)
}

/// What it has open, by the last part of a file's name or by kind, and how many of each.
fn descriptors(proc: &Path) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for fd in std::fs::read_dir(proc.join("fd")).unwrap() {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap();
        let name = target.to_str().unwrap().trim_start_matches("anon_inode:").trim_end_matches(" (deleted)");
        let name = name.split(":[").next().unwrap().rsplit('/').next().unwrap();
        *found.entry(short(name.trim_matches(['[', ']'])).to_owned()).or_default() += 1;
    }
    found
}

#[test]
fn each_is_a_user_of_its_own_with_nothing_but_what_it_was_handed() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can make cells");
    }
    let server = Server::start();
    let machines = [&[][..], &[], &["--no-snapshot"]].map(|args| hypervisor(&server, args));
    let users: Vec<String> = machines.iter().map(|(_, proc)| user(proc)).collect();
    for (at, user) in users.iter().enumerate() {
        assert!(!user.split('\t').any(|id| id == "0") && !users[..at].contains(user), "{users:?}");
    }
    // The image and the layer over it; two ports and the guest at one of them; its supervisor; three loops.
    let all = [("image", 2), ("layer", 3), ("socket", 3), ("null", 1), ("pipe", 2)];
    let own = [("eventfd", 5), ("eventpoll", 3), ("signalfd", 1)];
    let restored = [("memfd:tartarus-base", 2)];
    let booted = [("vmlinuz", 1), ("initramfs", 1)];
    for ((id, proc), from) in machines.iter().zip([&restored[..], &restored, &booted]) {
        let golden = [&all[..], &own, from].concat().into_iter().map(|(name, count)| (name.to_owned(), count));
        assert_eq!(descriptors(proc), golden.collect(), "{from:?}");
        server.ok(&["rm", id]);
    }
}
