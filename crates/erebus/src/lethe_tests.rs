//! Layers made with the real `mke2fs`, judged by `fsck.ext4`, `dumpe2fs` and `debugfs`.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use super::*;
use crate::disk_usage;
use crate::testing::Small;

fn layers() -> (tempfile::TempDir, Layers) {
    let root = tempfile::tempdir().unwrap();
    let layers = Layers::open(root.path().join("layers")).unwrap();
    (root, layers)
}

/// What an e2fsprogs program prints; they are in a folder that is not in everybody's `PATH`.
fn tool(program: &str, arguments: &[&str], file: &Path) -> (bool, String) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program).args(arguments).arg(file).env("PATH", path).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_layer_is_an_empty_file_system() {
    let (root, layers) = layers();
    for size in [16, 64, 1024, 100 * 1024] {
        let target = root.path().join(format!("layer-{size}"));
        let made = layers.make(size, &target).unwrap();
        let meta = fs::metadata(&target).unwrap();
        assert_eq!(meta.len(), u64::from(size) << 20);
        assert_eq!(meta.mode() & 0o7777, 0o600);
        assert!(made.reflinked || (made.bytes_copied > 0 && made.bytes_copied <= 16 << 20), "{size}: {made:?}");
        let (clean, said) = tool("fsck.ext4", &["-fn"], &target);
        assert!(clean, "{size}: {said}");
        let (_, info) = tool("dumpe2fs", &[], &target);
        assert!(info.contains("tartarus") && info.contains(ID), "{info}");
        let features = info.lines().find(|line| line.contains("features:")).unwrap();
        assert!(!features.contains("has_journal") && features.contains("extent"), "{features}");
        // Every group: else a thread of the guest's kernel writes all inode tables.
        let groups: Vec<&str> =
            info.lines().filter(|line| line.starts_with("Group ") && line.contains("(Blocks")).collect();
        assert!(!groups.is_empty() && groups.iter().all(|group| group.contains("ITABLE_ZEROED")), "{groups:?}");
        let (_, list) = tool("debugfs", &["-R", "ls -p /"], &target);
        let names: Vec<&str> = list.lines().filter_map(|line| line.split('/').nth(5)).collect();
        assert_eq!(names, [".", "..", "lost+found"], "{list}");
    }
}

#[test]
fn layers_share_nothing() {
    let (root, layers) = layers();
    let (first, second) = (root.path().join("a"), root.path().join("b"));
    layers.make(16, &first).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&first).unwrap();
    file.write_all_at(&[0xff; 1 << 20], 0).unwrap();
    layers.make(16, &second).unwrap();
    assert!(tool("fsck.ext4", &["-fn"], &second).0);
    assert!(!tool("fsck.ext4", &["-fn"], &first).0);
}

#[test]
fn what_is_there_stays() {
    let (root, layers) = layers();
    let target = root.path().join("mine");
    fs::write(&target, "mine").unwrap();
    assert!(layers.make(16, &target).is_err());
    assert_eq!(fs::read(&target).unwrap(), b"mine");
    std::os::unix::fs::symlink(root.path().join("elsewhere"), root.path().join("link")).unwrap();
    assert!(layers.make(16, &root.path().join("link")).is_err());
    assert!(!root.path().join("elsewhere").exists());
}

#[test]
fn an_impossible_size_leaves_nothing() {
    let (root, layers) = layers();
    let target = root.path().join("none");
    assert!(layers.make(0, &target).is_err());
    assert!(!target.exists());
    let left = |folder: &str| fs::read_dir(root.path().join(folder)).unwrap().count();
    assert_eq!((left("layers"), left("layers/staging")), (1, 0));
}

#[test]
fn a_full_disk_is_told_and_left_as_it_was() {
    let Some(small) = Small::mount("size=300k") else {
        return println!("skipped: only root can mount a small file system");
    };
    let (root, layers) = layers();
    let target = small.path().join("layer");
    let error = layers.make(1024, &target).unwrap_err();
    assert!(matches!(error, ErebusError::DiskFull), "{error}");
    assert!(!target.exists());
    let cramped = Layers::open(small.path().join("layers")).unwrap();
    let error = cramped.make(1024, &root.path().join("layer")).unwrap_err();
    assert!(matches!(error, ErebusError::DiskFull), "{error}");
    assert_eq!(fs::read_dir(small.path().join("layers")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(small.path().join("layers/staging")).unwrap().count(), 0);
    assert!(cramped.make(16, &root.path().join("layer")).is_ok(), "there is space again");
}

#[test]
fn a_copy_is_quick() {
    let (root, layers) = layers();
    let before = disk_usage(&layers.root).unwrap();
    layers.make(1024, &root.path().join("first")).unwrap();
    let kept = disk_usage(&layers.root).unwrap() - before;
    assert!((100_000..64 << 20).contains(&kept), "an empty layer of 1 GiB takes {kept}");
    let mut times: Vec<Duration> = (0..21)
        .map(|n| {
            let start = Instant::now();
            layers.make(1024, &root.path().join(n.to_string())).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("a layer of 1 GiB: median {:?}, worst {:?}", times[10], times[20]);
    assert!(times[10] < Duration::from_millis(5), "{times:?}");
}

#[test]
fn copying_keeps_data_and_holes() {
    let root = tempfile::tempdir().unwrap();
    let source = disk::create(&root.path().join("source"), 0o600).unwrap();
    source.set_len(64 << 20).unwrap();
    let pieces = [(0_u64, 1_u8), (5 << 20, 2), ((64 << 20) - 4096, 3)];
    for (at, byte) in pieces {
        source.write_all_at(&[byte; 4096], at).unwrap();
    }
    let target = disk::create(&root.path().join("target"), 0o600).unwrap();
    let copied = sparse::copy(&source, &target).unwrap();
    assert!((3 * 4096..=3 << 20).contains(&copied), "{copied}");
    assert!(fs::read(root.path().join("source")).unwrap() == fs::read(root.path().join("target")).unwrap());
    assert!(target.metadata().unwrap().blocks() * 512 <= 4 << 20);
    let hole = disk::create(&root.path().join("hole"), 0o600).unwrap();
    hole.set_len(1 << 30).unwrap();
    let target = disk::create(&root.path().join("hole-2"), 0o600).unwrap();
    assert_eq!(sparse::copy(&hole, &target).unwrap(), 0);
    assert_eq!(target.metadata().unwrap().len(), 1 << 30);
}
