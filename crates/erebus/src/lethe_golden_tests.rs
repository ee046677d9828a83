//! Layers made from golden ones: overlays judged by the real `qemu-img` and `qemu-io`, and what `shred` leaves.

use std::os::unix::fs::{MetadataExt, symlink};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::*;
use crate::testing::{Small, noise};

/// Runs a QEMU tool: whether it succeeded, and what it said.
fn qemu(program: &str, args: &[&str], file: &Path) -> (bool, String) {
    let output = Command::new(program).args(args).arg(file).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn tools() -> bool {
    let there = ["qemu-img", "qemu-io"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok());
    if !there {
        println!("skipped: qemu-img and qemu-io are not installed (Debian package qemu-utils)");
    }
    there
}

/// A raw layer of 256 MiB with so much data, most of it in one piece.
fn golden(folder: &Path, data: usize) -> PathBuf {
    let path = folder.join(format!("golden-{data}"));
    let file = disk::create(&path, 0o600).unwrap();
    file.set_len(256 << 20).unwrap();
    let content = noise(data);
    file.write_all_at(&content[..data / 2], 0).unwrap();
    file.write_all_at(&content[data / 2..], 200 << 20).unwrap();
    // What a copy costs must not be the writing back of this.
    file.sync_all().unwrap();
    path
}

#[test]
fn little_data_is_copied() {
    let root = tempfile::tempdir().unwrap();
    let (golden, target) = (golden(root.path(), 4 << 20), root.path().join("layer"));
    let made = Layers::from_golden(&golden, &target).unwrap();
    assert_eq!(made.format, LayerFormat::Raw);
    assert_eq!(made.bytes_copied, if made.reflinked { 0 } else { 4 << 20 });
    assert!(fs::read(&golden).unwrap() == fs::read(&target).unwrap());
    let meta = fs::metadata(&target).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert!(made.reflinked || meta.blocks() * 512 <= 5 << 20, "holes stay");
    // Neither sees what is written to the other.
    let before = fs::read(&golden).unwrap();
    OpenOptions::new().write(true).open(&target).unwrap().write_all_at(b"x", 7).unwrap();
    assert!(before == fs::read(&golden).unwrap());
}

#[test]
fn much_data_gets_an_overlay() {
    if !tools() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (golden, target, other) = (golden(root.path(), 5 << 20), root.path().join("layer"), root.path().join("other"));
    let made = Layers::from_golden(&golden, &target).unwrap();
    if made.reflinked {
        return println!("skipped: the disk of the temporary folder has reflink, so there is no overlay");
    }
    assert!(made.format == LayerFormat::Qcow2 && made.bytes_copied < 4096, "{made:?}");
    assert!(fs::metadata(&target).unwrap().blocks() * 512 <= 64 * 1024);
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o600);
    let (fine, said) = qemu("qemu-img", &["check", "-f", "qcow2"], &target);
    assert!(fine && said.contains("No errors"), "{said}");
    let (fine, said) = qemu("qemu-img", &["info", "--output=json", "-f", "qcow2"], &target);
    let info: Value = serde_json::from_str(&said).unwrap();
    assert!(fine);
    assert_eq!(info["virtual-size"], 256 << 20);
    assert_eq!((&info["format"], &info["backing-filename-format"]), (&"qcow2".into(), &"raw".into()));
    assert_eq!(info["backing-filename"], golden.to_str().unwrap());
    assert_eq!((&info["cluster-size"], &info["dirty-flag"]), (&65536.into(), &false.into()));
    let whole = |layer: &Path| {
        let raw = root.path().join("raw");
        let args = ["convert", "-f", "qcow2", "-O", "raw", layer.to_str().unwrap()];
        let (fine, said) = qemu("qemu-img", &args, &raw);
        assert!(fine, "{said}");
        fs::read(raw).unwrap()
    };
    let content = fs::read(&golden).unwrap();
    assert!(whole(&target) == content);

    // Writes stay in their own layer: where the golden one has data, where it has a hole, and at its end.
    Layers::from_golden(&golden, &other).unwrap();
    let writes = ["write -P 0x11 4096 8192", "write -P 0x12 100M 1M", "write -P 0x13 268427264 8192"];
    let args: Vec<&str> = ["-f", "qcow2"].into_iter().chain(writes.iter().flat_map(|w| ["-c", w])).collect();
    let (fine, said) = qemu("qemu-io", &args, &target);
    assert!(fine && !said.contains("error"), "{said}");
    let mut expected = content.clone();
    expected[4096..12288].fill(0x11);
    expected[100 << 20..101 << 20].fill(0x12);
    expected[(256 << 20) - 8192..].fill(0x13);
    assert!(whole(&target) == expected);
    assert!(whole(&other) == content && fs::read(&golden).unwrap() == content);
    let (fine, said) = qemu("qemu-img", &["check", "-f", "qcow2"], &target);
    assert!(fine && said.contains("No errors"), "{said}");
    // The disk is as large as the golden one, and no larger.
    let (_, said) = qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 1 256M 512"], &target);
    assert!(said.contains("Input/output error") || said.contains("I/O"), "{said}");
}

#[test]
fn an_overlay_of_every_size_is_in_order() {
    if !tools() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let golden = root.path().join("golden");
    let file = disk::create(&golden, 0o600).unwrap();
    for size in [512, 65_536, (512 << 20) - 512, 512 << 20, (512 << 20) + 512, 100 << 30, 4 << 40] {
        file.set_len(size).unwrap();
        let target = root.path().join(size.to_string());
        let layer = disk::create(&target, 0o600).unwrap();
        qcow2::write_overlay(&layer, &golden, size).unwrap();
        let (fine, said) = qemu("qemu-img", &["check", "-f", "qcow2"], &target);
        assert!(fine && said.contains("No errors"), "{size}: {said}");
        let last = format!("write -P 7 {} 512", size - 512);
        let (fine, said) =
            qemu("qemu-io", &["-f", "qcow2", "-c", &last, "-c", &last.replace("write", "read")], &target);
        assert!(fine && !said.contains("failed"), "{size}: {said}");
        let (fine, said) = qemu("qemu-img", &["check", "-f", "qcow2"], &target);
        assert!(fine && said.contains("No errors"), "{size}: {said}");
    }
}

#[test]
fn what_cannot_be_made_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("layer");
    assert!(Layers::from_golden(&root.path().join("none"), &target).is_err());
    assert!(!target.exists());
    let golden = golden(root.path(), 5 << 20);
    fs::write(&target, "mine").unwrap();
    assert!(Layers::from_golden(&golden, &target).is_err());
    assert_eq!(fs::read(&target).unwrap(), b"mine");
    fs::remove_file(&target).unwrap();
    // A size that no disk has, and too much to copy.
    OpenOptions::new().write(true).open(&golden).unwrap().set_len((256 << 20) + 1).unwrap();
    match Layers::from_golden(&golden, &target) {
        Ok(made) => assert!(made.reflinked),
        Err(error) => {
            assert!(error.to_string().contains("whole sectors"), "{error}");
            assert!(!target.exists());
        }
    }
}

#[test]
fn a_full_disk_leaves_no_layer() {
    let Some(small) = Small::mount("size=1m") else {
        return println!("skipped: only root can mount a small file system");
    };
    let root = tempfile::tempdir().unwrap();
    let golden = golden(root.path(), 3 << 20);
    let target = small.path().join("layer");
    let error = Layers::from_golden(&golden, &target).unwrap_err();
    assert!(matches!(error, ErebusError::DiskFull), "{error}");
    assert!(!target.exists());
}

#[test]
fn nothing_is_left_of_what_was_shredded() {
    let root = tempfile::tempdir().unwrap();
    let path = golden(root.path(), 3 << 20);
    let (content, before) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap());
    // The very blocks: also another name of the file sees it.
    let other = root.path().join("other");
    fs::hard_link(&path, &other).unwrap();
    assert_eq!(shred(&path).unwrap(), 3 << 20);
    assert!(content.iter().any(|&b| b != 0) && fs::read(&other).unwrap().iter().all(|&b| b == 0));
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.len(), after.ino()), (before.len(), before.ino()));
    assert!(after.blocks() <= before.blocks() + 64, "holes are not filled");
    let link = root.path().join("link");
    symlink(&path, &link).unwrap();
    for none in [link.as_path(), root.path(), &root.path().join("none")] {
        assert!(shred(none).is_err(), "{}", none.display());
    }
}

#[test]
fn shredding_an_overlay_spares_the_golden_layer() {
    if !tools() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (golden, target) = (golden(root.path(), 5 << 20), root.path().join("layer"));
    let content = fs::read(&golden).unwrap();
    if Layers::from_golden(&golden, &target).unwrap().format == LayerFormat::Qcow2 {
        let (fine, said) = qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 0x5a 10M 2M"], &target);
        assert!(fine, "{said}");
        assert!(fs::read(&target).unwrap().windows(4096).any(|bytes| bytes == [0x5a; 4096]));
    }
    assert!(shred(&target).unwrap() >= 2 << 20);
    assert!(fs::read(&target).unwrap().iter().all(|&b| b == 0));
    assert!(fs::read(&golden).unwrap() == content);
}

#[test]
fn a_copy_is_raw_however_much_there_is() {
    if !tools() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (golden, target) = (golden(root.path(), 5 << 20), root.path().join("layer"));
    let made = Layers::copy_of_golden(&golden, &target).unwrap();
    assert!(made.format == LayerFormat::Raw && (made.reflinked || made.bytes_copied >= 5 << 20), "{made:?}");
    assert!(fs::read(&golden).unwrap() == fs::read(&target).unwrap());
    assert!(Layers::copy_of_golden(&golden, &target).is_err(), "it is there already");
}

/// A file system with reflink, where one can be made: XFS in a file.
#[test]
fn a_reflink_copies_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (image, mount) = (root.path().join("xfs"), root.path().join("mount"));
    fs::create_dir(&mount).unwrap();
    fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
    let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    if !ran(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image).env("PATH", path)) {
        return println!("skipped: mkfs.xfs is not installed, so there is no disk with reflink");
    }
    if !ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount)) {
        return println!("skipped: only root can mount a file");
    }
    let judged = std::panic::catch_unwind(|| {
        let (golden, target) = (golden(&mount, 16 << 20), mount.join("layer"));
        let made = Layers::from_golden(&golden, &target).unwrap();
        assert_eq!(made, LayerMade { format: LayerFormat::Raw, bytes_copied: 0, reflinked: true });
        let content = fs::read(&golden).unwrap();
        let copy = disk::create(&mount.join("copy"), 0o600).unwrap();
        assert_eq!(copy_layer(&golden, &copy).unwrap(), 0);
        assert!(fs::read(mount.join("copy")).unwrap() == content);
        shred(&target).unwrap();
        assert!(fs::read(&target).unwrap().iter().all(|&b| b == 0));
        assert!(fs::read(&golden).unwrap() == content, "shared blocks are not the layer's to overwrite");
    });
    assert!(ran(Command::new("umount").arg(&mount)));
    judged.unwrap();
}

#[test]
fn a_golden_layer_costs_little() {
    let root = tempfile::tempdir().unwrap();
    let mut slowest = Duration::ZERO;
    for mib in [1, 4, 16, 64] {
        let golden = golden(root.path(), mib << 20);
        let timed = |make: &dyn Fn(&Path)| {
            let mut times: Vec<Duration> = (0..15)
                .map(|n| {
                    let target = root.path().join(format!("{mib}-{n}"));
                    let start = Instant::now();
                    make(&target);
                    let took = start.elapsed();
                    fs::remove_file(target).unwrap();
                    took
                })
                .collect();
            times.sort();
            times[7]
        };
        let made = timed(&|target| assert!(Layers::from_golden(&golden, target).is_ok()));
        let copied = timed(&|target| assert!(copy_layer(&golden, &disk::create(target, 0o600).unwrap()).is_ok()));
        println!("a golden layer with {mib} MiB of data: median {made:?}, all of it copied {copied:?}");
        slowest = slowest.max(made);
    }
    assert!(slowest < Duration::from_millis(25), "{slowest:?}");
}
