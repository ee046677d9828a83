//! What a sandbox boots from and writes to: images, its own layer, and a layer that is not what it should be.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::Server;
use crate::shell::{sandbox, sh, text};

#[test]
fn an_image_of_one_static_binary_runs() {
    let server = Server::start();
    let root = server.scratch().join("tiny");
    std::fs::create_dir(&root).unwrap();
    std::fs::copy("/bin/busybox", root.join("busybox")).unwrap();
    let tar = server.scratch().join("tiny.tar");
    let made = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg("busybox").status().unwrap();
    assert!(made.success());
    server.ok(&["image", "import", tar.to_str().unwrap(), "--name", "tiny"]);
    server.ok(&["template", "create", "tiny", "--from", "tiny", "--memory", "128M", "--disk", "256M"]);

    let output = server.run(&["run", "tiny", "--", "/busybox", "echo", "no shell needed"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("no shell needed\n".into(), Some(0)), "{output:?}");
    let id = sandbox(&server, &["tiny"]);
    let ok = |args: &[&str]| server.ok(&[&["exec", &id, "--", "/busybox"], args].concat());
    assert!(ok(&["cat", "/etc/hosts"]).contains("localhost"));
    assert_eq!(ok(&["stat", "-c", "%a", "/tmp"]), "1777");
    assert_eq!(server.ok(&["exec", &id, "--user", "1000:1000", "--", "/busybox", "id", "-u"]), "1000");
    let output = server.run(&["exec", &id, "--", "sh", "-c", "true"]);
    assert_eq!(output.status.code(), Some(127), "{output:?}");
}

#[test]
fn two_sandboxes_share_nothing_that_is_written_or_random() {
    let server = Server::start();
    let (one, two) = (sandbox(&server, &["busybox"]), sandbox(&server, &["busybox"]));
    sh(&server, &one, "echo secret | tee ~/mark /tmp/mark /dev/shm/mark /etc/mark; rm /etc/group");
    assert_eq!(sh(&server, &two, "cat ~/mark /tmp/mark /dev/shm/mark /etc/mark 2>/dev/null; echo none"), "none");
    assert!(sh(&server, &two, "cat /etc/group").contains("staff"), "the image is as it was");
    let each = |script: &str| (sh(&server, &one, script), sh(&server, &two, script));
    for script in [
        "hostname",
        "head -c 32 /dev/urandom | sha256sum",
        "cat /proc/sys/kernel/random/boot_id",
        "cat /proc/sys/kernel/random/uuid",
    ] {
        let (first, second) = each(script);
        assert!(!first.is_empty() && first != second, "{script}: {first}");
    }
}

#[test]
fn writes_are_bounded_by_the_disk_and_the_sandbox_goes_on() {
    let server = Server::start();
    server.ok(&["template", "create", "small", "--from", "busybox", "--memory", "128M", "--disk", "32M"]);
    let id = sandbox(&server, &["small"]);
    for file in ["/big", "/tmp/big"] {
        let script = format!("dd if=/dev/zero of={file} bs=1M count=64 2>&1");
        let output = server.run(&["exec", &id, "--", "sh", "-c", &script]);
        assert_ne!(output.status.code(), Some(0), "64 MiB were written to {file}");
        assert!(text(&output.stdout).contains("No space left"), "{file}: {output:?}");
        let held: u64 = sh(&server, &id, &format!("stat -c %s {file}")).parse().unwrap();
        assert!((8 << 20..32 << 20).contains(&held), "{file} holds {held} bytes");
        sh(&server, &id, &format!("rm {file}; sync"));
    }
    assert_eq!(sh(&server, &id, "echo fits > /fine && cat /fine"), "fits");
    let folder = server.data.join("sandboxes").join(&id);
    let largest = std::fs::read_dir(&folder).unwrap().flatten().map(|e| e.metadata().unwrap().len()).max().unwrap();
    assert_eq!(largest, 32 << 20, "the layer on the host in {}", folder.display());
}

/// The file of a template's base image.
fn base(server: &Server, template: &str) -> PathBuf {
    let template = server.json(&["template", "inspect", template, "--json"]);
    let digest = template["image"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    server.data.join("blobs/sha256").join(digest)
}

#[test]
fn a_layer_that_holds_a_squashfs_is_refused_and_never_taken_for_the_base() {
    let server = Server::start();
    // A golden layer would be taken instead of an empty one.
    server.ok(&[
        "template",
        "create",
        "cold",
        "--from",
        "busybox",
        "--memory",
        "128M",
        "--disk",
        "256M",
        "--no-snapshot",
    ]);
    let empty = server.data.join("layers/256.ext4");
    let size = std::fs::metadata(&empty).unwrap().len();
    let forged = server.data.join("layers/forged");
    std::fs::copy(base(&server, "busybox"), &forged).unwrap();
    std::fs::File::options().write(true).open(&forged).unwrap().set_len(size).unwrap();
    // Replaced, not written to: the seed has the same file.
    std::fs::rename(&forged, &empty).unwrap();

    let output = server.run(&["run", "cold", "--name", "forged", "--", "echo", "booted"]);
    let errors = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(125), String::new()), "{errors}\n{}", server.log());
    // The base was mounted before it: by its flag, though both hold the same.
    assert!(errors.contains("mount the layer disk") && errors.contains("ext4"), "{errors}");
    let record = server.json(&["inspect", "forged", "--json"]);
    assert_eq!((&record["state"], &record["attempts"]), (&"failed".into(), &1.into()), "{record}");
    server.nothing_left();
}
