//! A full disk: nothing is accepted that could not be kept, and it works again when there is room.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::{Server, skip};

/// A small file system over a folder, until this is dropped.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(over: &Path, size: &str) -> Option<Self> {
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(over).output();
        mount.is_ok_and(|o| o.status.success()).then(|| Self(over.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left processes in it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Writes until not a byte more fits.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    file.sync_all().unwrap();
}

#[test]
fn a_full_disk_is_answered_with_507_and_changes_nothing() {
    // The low-water mark would refuse long before the store meets the end of the disk, which is what is wanted here.
    let mut server = Server::start_with(&["--min-free", "0"]);
    server.stop();
    let real = server.scratch().join("real");
    std::fs::rename(&server.data, &real).unwrap();
    std::fs::create_dir(&server.data).unwrap();
    let Some(mount) = Mount::tmpfs(&server.data, "48M") else {
        std::fs::remove_dir(&server.data).unwrap();
        std::fs::rename(&real, &server.data).unwrap();
        return skip("a tmpfs cannot be mounted here");
    };
    for entry in std::fs::read_dir(&real).unwrap().flatten() {
        let (name, target) = (entry.file_name(), server.data.join(entry.file_name()));
        if ["blobs", "cells", "kernels", "snapshots"].iter().any(|big| name == *big) {
            std::os::unix::fs::symlink(entry.path(), target).unwrap();
        } else {
            let copied = Command::new("cp").arg("-a").arg(entry.path()).arg(target).status().unwrap();
            assert!(copied.success());
        }
    }
    server.spawn();
    assert_eq!(server.ok(&["run", "busybox", "--", "echo", "room"]), "room");
    let count = |server: &Server| server.json(&["ps", "--all", "--json", "--limit", "1000"]).as_array().unwrap().len();
    let before = count(&server);

    let ballast = server.data.join("ballast");
    fill(&ballast);
    // Something of it may still fit into what the store has reserved before.
    let big = "x".repeat(100_000);
    let wanted = json!({ "template": "busybox", "command": ["true"], "env": { "A": big, "B": big, "C": big } });
    let mut accepted = 0;
    let refused = loop {
        let answer = server.post("/v1/sandboxes", &wanted);
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 50, "a full disk takes everything");
    };
    assert_eq!((refused.status, refused.json()["code"].as_str()), (507, Some("disk_full")), "{}", refused.text());
    assert_eq!(count(&server), before + accepted, "a refused sandbox is on record");

    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(server.ok(&["run", "busybox", "--", "echo", "again"]), "again");
    assert_eq!(count(&server), before + accepted + 1);
    server.stop();
    server.nothing_left();
    drop(mount);
}
