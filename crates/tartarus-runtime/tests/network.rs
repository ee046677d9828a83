//! A real Linux guest whose card leads somewhere.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, reason = "tests may")]

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::conformance::{deadlines, end, save, sealed_of};
use support::tiny::machine;
use support::wire::{ECHO, HERE, wire};
use tartarus_runtime::qemu::{Accel, Qemu};
use tartarus_runtime::{Adopted, Driver, Layer, Machine, Network, Restore, Vm};

const LIMIT: Duration = Duration::from_secs(30);
const MIB: u32 = 128;

/// What the guest runs: it says each time whether there is an answer, and the first time sends itself there and back.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for m in virtio_ring virtio virtio_mmio failover net_failover virtio_net; do insmod /$m.ko; done
ip addr add 198.19.255.254/30 dev eth0; ip link set eth0 up || echo FAILED
while :; do
    if ping -c1 -W1 HERE >/dev/null 2>&1; then
        echo PONG
        if [ ! -e /done ]; then
            nc HERE ECHO </bin/busybox >/done
            cmp /done /bin/busybox && echo SAME
        fi
    else
        echo NONE
    fi
    usleep 100000
done
"#;

/// A kernel, and an initramfs of busybox, the card's modules and a script.
fn guest(dir: &Path, tar: &Path) {
    let script = r#"
set -e
mkdir -p "$D/root/bin" "$D/root/proc" "$D/root/sys" "$D/root/dev"
tar -xOf "$TAR" --wildcards './boot/vmlinuz-*' > "$D/vmlinuz"
for m in virtio/virtio virtio/virtio_ring virtio/virtio_mmio net/net_failover net/virtio_net; do
    tar -xOf "$TAR" --wildcards "./lib/modules/*/kernel/drivers/$m.ko" > "$D/root/${m#*/}.ko"
done
tar -xOf "$TAR" --wildcards "./lib/modules/*/kernel/net/core/failover.ko" > "$D/root/failover.ko"
cp /bin/busybox "$D/root/bin/busybox"
echo "$INIT" > "$D/root/init"
chmod 0755 "$D/root/init"
cd "$D/root" && find . | cpio --quiet -o -H newc > "$D/initramfs"
chmod 0444 "$D/initramfs" "$D/vmlinuz"
"#;
    let init = INIT.replace("HERE", &HERE.to_string()).replace("ECHO", &ECHO.to_string());
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]).env("D", dir).env("TAR", tar).env("INIT", init);
    let made = command.output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// Kernel and initramfs in a folder, and machines of them.
struct Guests {
    driver: Qemu,
    files: tempfile::TempDir,
}

impl Guests {
    fn new(cells: &Path) -> Option<Self> {
        let Some(tar) = std::env::var_os("TARTARUS_TEST_KERNEL_TAR").map(PathBuf::from) else {
            eprintln!("skipped: it takes a kernel package (TARTARUS_TEST_KERNEL_TAR)");
            return None;
        };
        let accel = Accel::Tcg { tsc_khz: tartarus_runtime::host::measure_tsc().khz };
        let driver = Qemu { accel, ..support::qemu(cells, true)? };
        let files = tempfile::tempdir().unwrap();
        guest(files.path(), &tar);
        Some(Self { driver, files })
    }

    fn machine(&self, dir: &Path, network: Option<Network>) -> Machine {
        for name in ["base", "layer"] {
            fs::write(dir.join(name), [0; 65_536]).unwrap();
        }
        let file = |name: &str| self.files.path().join(name);
        let (kernel, initramfs, base) = (file("vmlinuz"), file("initramfs"), dir.join("base"));
        let layer = Layer::raw(dir.join("layer"));
        Machine { dir: dir.to_owned(), cpus: 1, memory_mib: MIB, kernel, initramfs, base, layer, network }
    }

    async fn boot(&self, dir: &Path, network: Option<Network>) -> Box<dyn Vm> {
        self.driver.boot(&self.machine(dir, network), deadlines()).await.unwrap()
    }

    /// One from the snapshot in `from`, which runs; the channel is to be kept.
    async fn restore(&self, from: &Path, dir: &Path, network: Option<Network>) -> (Box<dyn Vm>, impl Sized) {
        let memory = sealed_of(&from.join("memory"), u64::from(MIB) << 20);
        let from = Restore { memory, state: File::open(from.join("state")).unwrap().into() };
        let vm = self.driver.restore(&self.machine(dir, network), from, deadlines()).await.unwrap();
        let channel = vm.channel().await.unwrap();
        (vm, channel)
    }
}

/// Waits until the guest says so, and not the other.
async fn says(dir: &Path, word: &str, never: &str) {
    let begin = Instant::now();
    loop {
        let text = fs::read_to_string(dir.join("console.log")).unwrap_or_default();
        assert!(!text.lines().any(|line| line.trim() == never), "{text}");
        if text.lines().any(|line| line.trim() == word) {
            return println!("{word} after {:?}", begin.elapsed());
        }
        assert!(begin.elapsed() < LIMIT, "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn snapshot(vm: &dyn Vm, dir: &Path) {
    vm.pause().await.unwrap();
    save(vm, dir).await.unwrap();
    end(vm).await;
}

#[tokio::test]
async fn a_card_without_a_peer_gets_one_at_a_restore() {
    let [cells, first, with, without] = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let (Some(guests), Some(wire)) = (Guests::new(cells.path()), wire(libc::IFF_VNET_HDR)) else { return };
    let vm = guests.boot(first.path(), None).await;
    assert!(vm.network().is_none());
    says(first.path(), "NONE", "PONG").await;
    snapshot(&*vm, first.path()).await;
    let (vm, _channel) = guests.restore(first.path(), with.path(), Some(wire.network.clone())).await;
    says(with.path(), "PONG", "").await;
    says(with.path(), "SAME", "").await;
    let (other, _other_channel) = guests.restore(first.path(), without.path(), None).await;
    says(without.path(), "NONE", "PONG").await;
    end(&*other).await;
    end(&*vm).await;
}

#[tokio::test]
async fn a_machine_keeps_its_network_for_who_takes_it_over() {
    let [cells, dir, again] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (Some(guests), Some(wire)) = (Guests::new(cells.path()), wire(0)) else { return };
    let vm = guests.boot(dir.path(), Some(wire.network.clone())).await;
    let of = |vm: &dyn Vm| vm.network().map(|fd| rustix::fs::fstat(fd).unwrap().st_ino);
    assert_eq!(of(&*vm), Some(wire.inode));
    // The hypervisor itself is elsewhere.
    let inode = |fd: File| rustix::fs::fstat(fd).unwrap().st_ino;
    let theirs = inode(File::open(format!("/proc/{}/ns/net", vm.pid())).unwrap());
    assert!(theirs != wire.inode && theirs != inode(File::open("/proc/self/ns/net").unwrap()));
    drop(vm);
    let Adopted::Running(vm) = guests.driver.adopt(dir.path()).await.unwrap() else { panic!("not adopted") };
    assert_eq!(of(&*vm), Some(wire.inode));
    says(dir.path(), "PONG", "FAILED").await;
    says(dir.path(), "SAME", "FAILED").await;
    snapshot(&*vm, dir.path()).await;
    let begin = Instant::now();
    while vm.network().is_some() {
        assert!(begin.elapsed() < LIMIT, "its supervisor has ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A snapshot of it fits any peer, also none; with a TAP that has a header of offloads it would fit no other.
    let (vm, _channel) = guests.restore(dir.path(), again.path(), Some(wire.network.clone())).await;
    says(again.path(), "PONG", "FAILED").await;
    end(&*vm).await;
    let bare = tempfile::tempdir().unwrap();
    let (vm, _channel) = guests.restore(dir.path(), bare.path(), None).await;
    says(bare.path(), "NONE", "FAILED").await;
    end(&*vm).await;
}

#[tokio::test]
async fn a_network_without_a_cell_is_refused() {
    let [cells, dir] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (Some(driver), Some(wire)) = (support::qemu(cells.path(), true), wire(0)) else { return };
    let refused = |driver: Qemu, network| {
        let machine = Machine { network: Some(network), ..machine(dir.path()) };
        async move { driver.boot(&machine, deadlines()).await.err().unwrap().to_string() }
    };
    let why = refused(Qemu { cell: None, ..driver.clone() }, wire.network.clone()).await;
    assert!(why.contains("a network takes a cell, and so root"), "{why}");
    let why = refused(driver.clone(), Network { tap: None, ..wire.network.clone() }).await;
    assert!(why.contains("as a descriptor, and there is none"), "{why}");
    let namespace = Arc::new(File::open("/dev/null").unwrap().into());
    let why = refused(driver, Network { namespace, ..wire.network }).await;
    assert!(why.contains("going into its network namespace"), "{why}");
}
