//! Imports of made-up packages, of a real one where `TARTARUS_TEST_KERNEL_TAR` names its tar, and the initramfs.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::image::fake_bzimage;
use super::modinfo::fake_module;
use super::*;
use crate::testing::{Small, noise, packed};

const RELEASE: &str = "6.1.0-9-test";

type Files = BTreeMap<String, Vec<u8>>;

fn module(depends: &str) -> Vec<u8> {
    fake_module(&format!("license=GPL\0depends={depends}\0vermagic={RELEASE} SMP \0"))
}

/// A package's files: every module that is needed, with a dependency here and there, and some that are not.
fn package() -> Files {
    let base = format!("lib/modules/{RELEASE}");
    let mut files = Files::new();
    files.insert(format!("boot/vmlinuz-{RELEASE}"), fake_bzimage(RELEASE));
    files.insert(format!("boot/System.map-{RELEASE}"), b"symbols".to_vec());
    files.insert(
        format!("{base}/modules.builtin"),
        b"kernel/fs/ext4/ext4.ko\nkernel/fs/overlayfs/overlay.ko\n".to_vec(),
    );
    for (path, depends) in [
        ("drivers/virtio/virtio.ko", ""),
        ("drivers/virtio/virtio_ring.ko", ""),
        ("drivers/virtio/virtio_mmio.ko", "virtio,virtio_ring"),
        ("drivers/block/virtio_blk.ko", "virtio,virtio-ring"),
        ("drivers/char/virtio_console.ko", "virtio,virtio_ring"),
        ("drivers/net/virtio_net.ko", "virtio,net_failover"),
        ("drivers/net/net_failover.ko", "failover"),
        ("net/core/failover.ko", ""),
        ("fs/squashfs/squashfs.ko", ""),
        ("drivers/gpu/unneeded.ko", "nowhere_to_be_found"),
    ] {
        files.insert(format!("{base}/kernel/{path}"), module(depends));
    }
    files
}

fn tar_of(files: &Files) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("./{path}"), &content[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

fn store() -> (tempfile::TempDir, KernelStore) {
    let root = tempfile::tempdir().unwrap();
    let store = KernelStore::open(root.path().join("kernels")).unwrap();
    (root, store)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_package_becomes_a_kernel() {
    let (root, store) = store();
    let tar = tar_of(&package());
    let made = store.import(&tar[..]).await.unwrap();
    assert_eq!(made.release, RELEASE);
    let kernel = store.get(&made.digest).unwrap();
    assert_eq!(kernel.release, RELEASE);
    assert_eq!(fs::read(&kernel.vmlinuz).unwrap(), fake_bzimage(RELEASE));
    let manifest = read_manifest(&kernel.dir).unwrap();
    let expected = ["virtio", "virtio_ring", "virtio_mmio", "virtio_blk", "virtio_console", "failover", "net_failover"];
    let expected = expected.iter().chain(&["virtio_net", "squashfs"]).map(|name| format!("{name}.ko"));
    assert_eq!(manifest.modules, expected.collect::<Vec<_>>());
    assert_eq!(names(&kernel.dir), ["manifest.json", "modules", "vmlinuz"]);
    assert_eq!(names(&kernel.dir.join("modules")).len(), 9);
    // Again, packed, and in another order: the same.
    assert_eq!(store.import(&tar[..]).await.unwrap(), made);
    assert_eq!(store.import(&packed("xz", &tar)[..]).await.unwrap(), made);
    let stores = root.path().join("kernels");
    assert_eq!(names(&stores), [kernel.dir.file_name().unwrap().to_str().unwrap(), "staging"]);
    assert!(names(&stores.join("staging")).is_empty());
    let usage = store.usage().unwrap();
    assert!(usage.len() == 1 && usage[0].0 == made.digest && usage[0].1 >= made.size, "{usage:?}");
    assert!(store.remove(&made.digest).unwrap());
    assert!(store.usage().unwrap().is_empty());
    assert!(!store.remove(&made.digest).unwrap());
    assert_eq!(store.get(&made.digest), None);
    assert_eq!(names(&stores), ["staging"]);
}

#[tokio::test]
async fn other_shapes_give_the_same_kernel() {
    let (_root, store) = store();
    let made = store.import(&tar_of(&package())[..]).await.unwrap();
    let moved = |from: &str, to: &str| -> Files {
        package().into_iter().map(|(path, content)| (path.replacen(from, to, 1), content)).collect()
    };
    assert_eq!(store.import(&tar_of(&moved("lib/", "usr/lib/"))[..]).await.unwrap(), made);
    let flat: Files = moved(&format!("lib/modules/{RELEASE}"), "modules")
        .into_iter()
        .map(|(path, content)| (path.replace(&format!("boot/vmlinuz-{RELEASE}"), "vmlinuz"), content))
        .collect();
    assert!(flat.contains_key("vmlinuz"));
    assert_eq!(store.import(&tar_of(&flat)[..]).await.unwrap(), made);
    for (program, ending) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        let files = package().into_iter().map(|(path, content)| match path.strip_suffix(".ko") {
            Some(_) => (format!("{path}.{ending}"), packed(program, &content)),
            None => (path, content),
        });
        assert_eq!(store.import(&tar_of(&files.collect())[..]).await.unwrap(), made, "{program}");
    }
}

/// A package with a vsock transport; what it depends on beside is loaded after what every machine needs.
fn package_with_vsock() -> Files {
    let base = format!("lib/modules/{RELEASE}/kernel/net/vmw_vsock");
    let mut files = package();
    for (name, depends) in [
        ("vsock", ""),
        ("vmw_vsock_virtio_transport_common", "vsock"),
        ("vmw_vsock_virtio_transport", "virtio,vmw_vsock_virtio_transport_common,vsock"),
        ("vsock_loopback", "vmw_vsock_virtio_transport_common"),
    ] {
        files.insert(format!("{base}/{name}.ko"), module(depends));
    }
    files
}

#[tokio::test]
async fn a_vsock_comes_along_where_there_is_one() {
    let (_root, store) = store();
    let plain = store.import(&tar_of(&package())[..]).await.unwrap();
    let made = store.import(&tar_of(&package_with_vsock())[..]).await.unwrap();
    assert_ne!(made.digest, plain.digest);
    let [with, without] = [&made, &plain].map(|made| read_manifest(&store.get(&made.digest).unwrap().dir).unwrap());
    assert_eq!((with.modules, without.vsock.len()), (without.modules, 0));
    let expected = ["vsock.ko", "vmw_vsock_virtio_transport_common.ko", "vmw_vsock_virtio_transport.ko"];
    assert_eq!(with.vsock, expected);
    check_initramfs(&store.initramfs(&made.digest, b"the agent").unwrap(), b"the agent", (9, 3));
    // Half of it is a mistake of whoever made the tar.
    let mut half = package_with_vsock();
    half.retain(|path, _| !path.ends_with("/vsock.ko"));
    let error = store.import(&tar_of(&half)[..]).await.unwrap_err().to_string();
    assert!(error.contains("the module vsock, which vmw_vsock_virtio_transport"), "{error}");
    let builtin = format!("lib/modules/{RELEASE}/modules.builtin");
    let mut files = package();
    files.get_mut(&builtin).unwrap().extend_from_slice(b"kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko\n");
    assert_eq!(store.import(&tar_of(&files)[..]).await.unwrap(), plain, "nothing is to be loaded");
}

#[tokio::test]
async fn a_kernel_of_an_earlier_version_has_no_vsock() {
    let (_root, store) = store();
    let made = store.import(&tar_of(&package())[..]).await.unwrap();
    let manifest = store.get(&made.digest).unwrap().dir.join("manifest.json");
    let text = fs::read_to_string(manifest).unwrap();
    assert!(!text.contains("vsock"), "as it was written before: {text}");
}

#[tokio::test]
async fn an_elf_file_of_what_is_none_is_refused() {
    let (_root, store) = store();
    let made = store.import(&tar_of(&package())[..]).await.unwrap();
    let error = store.elf(&made.digest).await.unwrap_err();
    let words = format!("the kernel {} is no ELF image: ", made.digest);
    assert!(matches!(&error, ErebusError::BadFile(why) if why.starts_with(&words)), "{error}");
    for unknown in [Digest::of(b"").to_string().as_str(), "../../etc"] {
        assert!(matches!(store.elf(unknown).await, Err(ErebusError::NoKernel(_))));
    }
}

#[tokio::test]
async fn soft_dependencies_come_along() {
    let (_root, store) = store();
    let mut files = package();
    files.insert(format!("lib/modules/{RELEASE}/modules.builtin"), b"kernel/fs/overlayfs/overlay.ko\n".to_vec());
    files.insert(format!("lib/modules/{RELEASE}/kernel/fs/ext4.ko"), {
        fake_module(&format!("depends=\0softdep=pre: crypto-crc32c unknown\0vermagic={RELEASE} \0"))
    });
    files.insert(format!("lib/modules/{RELEASE}/kernel/crypto/crc32c_generic.ko"), module(""));
    let made = store.import(&tar_of(&files)[..]).await.unwrap();
    let modules = read_manifest(&store.get(&made.digest).unwrap().dir).unwrap().modules;
    assert!(modules.ends_with(&["crc32c_generic.ko".to_owned(), "ext4.ko".to_owned()]), "{modules:?}");
}

#[tokio::test]
async fn bad_packages_are_refused_and_leave_nothing() {
    let (root, store) = store();
    let change = |change: &dyn Fn(&mut Files)| {
        let mut files = package();
        change(&mut files);
        tar_of(&files)
    };
    let kernel = &format!("boot/vmlinuz-{RELEASE}");
    let base = &format!("lib/modules/{RELEASE}");
    let blk = &format!("{base}/kernel/drivers/block/virtio_blk.ko");
    let whole = tar_of(&package());
    let put = |path: &str, content: Vec<u8>| change(&|files| drop(files.insert(path.to_owned(), content.clone())));
    for (tar, words) in [
        (change(&|files| drop(files.remove(kernel))), "no kernel"),
        (put("vmlinuz", fake_bzimage(RELEASE)), "more than one kernel"),
        (put(kernel, b"#!/bin/sh\n".to_vec()), "neither"),
        (put(kernel, fake_bzimage("6.1.0-10-test")), "do not belong together"),
        (put("lib/modules/5.10/x.ko", module("")), "do not belong together"),
        (put("boot/vmlinuz-a b", vec![]), "odd kernel release"),
        (change(&|files| drop(files.remove(blk))), "module virtio_blk"),
        (change(&|files| drop(files.remove(&format!("{base}/kernel/net/core/failover.ko")))), "module failover"),
        (change(&|files| drop(files.remove(&format!("{base}/modules.builtin")))), "module overlay"),
        (put(blk, module("nowhere")), "module nowhere, which virtio_blk needs"),
        (put(blk, module("virtio_blk")), "circle"),
        (put(blk, b"\x7fELF".to_vec()), "virtio_blk is damaged"),
        (put(blk, fake_module("depends=\0vermagic=5.10 SMP\0")), "built for 5.10"),
        (put(&format!("{base}/updates/virtio_blk.ko.xz"), packed("xz", &module(""))), "several modules virtio_blk"),
        (
            change(&|files| drop(files.insert(blk.clone(), packed("gzip", &module(""))[..30].to_vec()))),
            "virtio_blk cannot be unpacked",
        ),
        (put(blk, packed("xz", &vec![0; 65 << 20])), "larger than 64 MiB"),
        (whole[..whole.len() / 2].to_vec(), "cut off"),
        (b"nonsense".to_vec(), "no tar"),
        (vec![], "empty"),
    ] {
        let error = store.import(&tar[..]).await.unwrap_err();
        assert!(
            matches!(&error, ErebusError::BadFile(detail) if detail.contains(words)),
            "{error} should say {words:?}"
        );
    }
    assert_eq!(names(&root.path().join("kernels")), ["staging"]);
    assert!(names(&root.path().join("kernels/staging")).is_empty());
}

#[tokio::test]
async fn an_initramfs_holds_what_a_guest_starts_with() {
    let (_root, store) = store();
    let made = store.import(&tar_of(&package())[..]).await.unwrap();
    let path = store.initramfs(&made.digest, b"the agent").unwrap();
    check_initramfs(&path, b"the agent", (9, 0));
    let before = fs::metadata(&path).unwrap();
    assert_eq!(store.initramfs(&made.digest, b"the agent").unwrap(), path);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before.modified().unwrap(), "made once");
    let newer = store.initramfs(&made.digest, b"a newer agent").unwrap();
    assert!(newer.exists() && !path.exists(), "the earlier agent's goes");
    let unknown = Digest::of(b"").to_string();
    for bad in [unknown.as_str(), "../../etc", ""] {
        assert!(matches!(store.initramfs(bad, b"x"), Err(ErebusError::NoKernel(_))));
        assert_eq!(store.get(bad), None);
        assert!(!store.remove(bad).unwrap());
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_left_as_it_was() {
    let Some(small) = Small::mount("size=2m") else {
        return println!("skipped: only root can mount a small file system");
    };
    let store = KernelStore::open(small.path()).unwrap();
    let mut files = package();
    files.insert("modules/large.ko".into(), noise(3 << 20));
    let error = store.import(&tar_of(&files)[..]).await.unwrap_err();
    assert!(matches!(error, ErebusError::DiskFull), "{error}");
    assert!(names(&small.path().join("staging")).is_empty());
    let made = store.import(&tar_of(&package())[..]).await.unwrap();
    let error = store.initramfs(&made.digest, &noise(3 << 20)).unwrap_err();
    assert!(matches!(error, ErebusError::DiskFull), "{error}");
    assert!(names(&small.path().join("staging")).is_empty());
    assert!(store.initramfs(&made.digest, b"a small agent").is_ok(), "there is space again");
}

/// Unpacks it with `cpio`, as root also the device. `modules` are those for every machine, and those for a vsock.
fn check_initramfs(path: &Path, agent: &[u8], modules: (usize, usize)) {
    let list = |arguments: &[&str], folder: &Path| {
        let file = fs::File::open(path).unwrap();
        let output = Command::new("cpio").args(arguments).current_dir(folder).stdin(file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let names = list(&["-t", "--quiet"], folder.path());
    let names: Vec<&str> = names.lines().collect();
    for name in ["proc", "sys", "dev", "base", "layer", "root", "modules", "dev/console", "init", "modules/order"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert_eq!(names.iter().filter(|name| name.ends_with(".ko")).count(), modules.0 + modules.1);
    assert_eq!(names.contains(&"modules/vsock"), modules.1 > 0);
    let long = list(&["-tvn", "--quiet"], folder.path());
    let console = long.lines().find(|line| line.ends_with("dev/console")).unwrap();
    assert!(console.starts_with("crw-------") && console.contains("5,   1"), "{console}");
    list(&["-id", "--quiet", "--no-preserve-owner", "init", "modules/*"], folder.path());
    assert_eq!(fs::read(folder.path().join("init")).unwrap(), agent);
    assert_eq!(fs::metadata(folder.path().join("init")).unwrap().permissions().mode() & 0o7777, 0o755);
    let lines = |list: &str| fs::read_to_string(folder.path().join("modules").join(list)).unwrap_or_default();
    let (order, vsock) = (lines("order"), lines("vsock"));
    assert_eq!((order.lines().count(), vsock.lines().count()), modules);
    for module in order.lines().chain(vsock.lines()) {
        let stored = path.parent().unwrap().join("modules").join(module);
        assert_eq!(fs::read(folder.path().join("modules").join(module)).unwrap(), fs::read(stored).unwrap());
    }
}

#[tokio::test]
async fn a_crash_leaves_a_whole_kernel_or_none() {
    let (root, store) = store();
    let made = store.import(&tar_of(&package())[..]).await.unwrap();
    let left = root.path().join("kernels/staging/3/modules");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("half.ko"), "x").unwrap();
    fs::write(root.path().join("kernels/staging/4"), "x").unwrap();
    let store = KernelStore::open(root.path().join("kernels")).unwrap();
    assert!(names(&root.path().join("kernels/staging")).is_empty());
    assert!(store.get(&made.digest).is_some());
}

#[tokio::test]
async fn a_real_package() {
    let Some(tar) = std::env::var_os("TARTARUS_TEST_KERNEL_TAR") else {
        return println!("skipped: TARTARUS_TEST_KERNEL_TAR does not name the tar of a kernel package");
    };
    let (_root, store) = store();
    let made = store.import(tokio::fs::File::open(tar).await.unwrap()).await.unwrap();
    let kernel = store.get(&made.digest).unwrap();
    let manifest = read_manifest(&kernel.dir).unwrap();
    println!("{made:?} {:?}", manifest.modules);
    let place = |name: &str| manifest.modules.iter().position(|file| file == &format!("{name}.ko"));
    let (Some(virtio), Some(blk)) = (place("virtio"), place("virtio_blk")) else {
        panic!("Debian's kernels have these as modules: {manifest:?}")
    };
    assert!(virtio < blk && place("failover") < place("net_failover") && place("net_failover") < place("virtio_net"));
    assert!(made.size > 4 << 20 && made.release.contains('.'));
    let initramfs = store.initramfs(&made.digest, b"the agent").unwrap();
    check_initramfs(&initramfs, b"the agent", (manifest.modules.len(), manifest.vsock.len()));
    assert_eq!(manifest.vsock.last().map(String::as_str), Some("vmw_vsock_virtio_transport.ko"));
    check_elf(&fs::read(store.elf(&made.digest).await.unwrap()).unwrap(), &made.release);
}

/// An executable for x86-64 with something to load and an entry in it, and the words that the kernel begins with.
fn check_elf(elf: &[u8], release: &str) {
    let number =
        |at: usize, bytes: usize| elf[at..at + bytes].iter().rev().fold(0_u64, |sum, b| sum << 8 | u64::from(*b));
    assert_eq!((&elf[..6], number(16, 2), number(18, 2)), (b"\x7fELF\x02\x01".as_slice(), 2, 62));
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    assert_eq!(size, 56);
    let headers = (0..count).map(|n| (table + n * size) as usize).filter(|at| number(*at, 4) == 1);
    let loads: Vec<[u64; 4]> = headers.map(|at| [8, 24, 32, 40].map(|field| number(at + field, 8))).collect();
    // Where in the file, where in memory, how much of each.
    assert!(
        !loads.is_empty()
            && loads.iter().all(|[at, _, bytes, memory]| { at + bytes <= elf.len() as u64 && bytes <= memory })
    );
    let entry = number(24, 8);
    assert!(loads.iter().any(|[_, to, _, memory]| (*to..to + memory).contains(&entry)), "{entry:#x} in {loads:x?}");
    let words = format!("Linux version {release} ");
    assert!(elf.windows(words.len()).any(|window| window == words.as_bytes()));
}

#[tokio::test]
async fn the_future_can_be_sent() {
    let (_root, store) = store();
    let tar = std::io::Cursor::new(tar_of(&package()));
    assert!(tokio::spawn(async move { store.import(tar).await }).await.unwrap().is_ok());
}
