//! What cannot start says why, and leaves nothing.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use support::conformance::{Subject, deadlines};
use support::firecracker;
use support::tiny::elf_machine;
use tartarus_runtime::firecracker::Firecracker;
use tartarus_runtime::{DiskFormat, Driver, Machine, Restore};

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// Why it does not start; nothing of it runs any more.
async fn refused(driver: &Firecracker, machine: &Machine) -> String {
    let error = driver.boot(machine, deadlines()).await.err().unwrap().to_string();
    nothing_runs(&machine.dir);
    error
}

/// No process has anything to do with this folder, in a moment: a supervisor tells of the end before it is gone.
fn nothing_runs(dir: &Path) {
    let begin = std::time::Instant::now();
    while let Some(line) = running(dir) {
        assert!(begin.elapsed().as_secs() < 10, "{line}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn running(dir: &Path) -> Option<String> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let root = fs::read_link(entry.path().join("root")).unwrap_or_default();
        (line.contains(dir.to_str().unwrap()) || root.starts_with(dir)).then_some(line)
    })
}

#[tokio::test]
async fn a_jailer_that_is_not_there_or_does_not_fit_is_named() {
    let Some(driver) = firecracker().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("firecracker");
    fs::copy(&driver.program, &program).unwrap();
    let open = || async { Firecracker::open(&program, support::supervisor()).await.err().unwrap().to_string() };
    let why = open().await;
    assert!(why.contains("there is no jailer beside") && why.contains("put the jailer of the same release"), "{why}");
    script(&dir.path().join("jailer"), "echo Jailer v1.0.0");
    let why = open().await;
    assert!(why.contains("the jailer is of version 1.0.0, Firecracker of ") && why.contains("install both"), "{why}");
    fs::remove_file(dir.path().join("jailer")).unwrap();
    symlink(&driver.jailer, dir.path().join("jailer")).unwrap();
    Firecracker::open(&program, support::supervisor()).await.unwrap();
    // One that went after it was looked up.
    let gone = Firecracker { jailer: dir.path().join("gone"), ..driver };
    let home = tempfile::tempdir().unwrap();
    let why = refused(&gone, &elf_machine(home.path())).await;
    assert!(why.contains("/gone: No such file"), "{why}");
}

#[tokio::test]
async fn what_it_cannot_boot_is_named_before_anything_starts() {
    let Some(driver) = firecracker().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut machine = elf_machine(dir.path());
    machine.layer.format = DiskFormat::Overlay { over: "/nowhere".into() };
    let why = refused(&driver, &machine).await;
    assert!(why.contains("qcow2 overlay: make a copy instead"), "{why}");
    machine.layer.format = DiskFormat::Raw;
    fs::set_permissions(&machine.base, Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let why = refused(&driver, &machine).await;
    assert!(why.contains("/base: the hypervisor's user cannot read it") && why.contains("chmod a+r"), "{why}");
    fs::remove_file(&machine.kernel).unwrap();
    fs::write(&machine.kernel, "MZ").unwrap();
    let why = refused(&driver, &machine).await;
    assert!(why.contains("is no ELF") && why.contains("uncompressed vmlinux"), "{why}");
    fs::remove_file(&machine.kernel).unwrap();
    let why = refused(&driver, &machine).await;
    assert!(why.contains("reading the kernel") && why.contains("No such file"), "{why}");
}

#[tokio::test]
async fn what_firecracker_refuses_it_says() {
    let Some(driver) = firecracker().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine { cpus: 77, ..elf_machine(dir.path()) };
    let why = refused(&driver, &machine).await;
    assert!(why.contains("exit code") && why.contains("vCPU"), "{why}");
    let first = tempfile::tempdir().unwrap();
    let (memory, _) = Subject { driver: &driver, machine: elf_machine }.snapshot(first.path()).await;
    fs::write(first.path().join("state"), "no state of devices").unwrap();
    let from = Restore { memory, state: fs::File::open(first.path().join("state")).unwrap().into() };
    let machine = elf_machine(dir.path());
    let why = driver.restore(&machine, from, deadlines()).await.err().unwrap().to_string();
    assert!(why.contains("PUT /snapshot/load of Firecracker in ") && why.contains("it answered 400"), "{why}");
    nothing_runs(dir.path());
}

/// A program without a library, of a few instructions.
fn program(path: &Path, code: &[u8]) {
    let mut elf = support::tiny::elf();
    elf[0x1000..].fill(0);
    elf[0x1000..0x1000 + code.len()].copy_from_slice(code);
    fs::write(path, elf).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn one_that_ends_at_once_or_is_silent_is_given_up() {
    let Some(driver) = firecracker().await else { return };
    let (programs, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = |name: &str, code: &[u8]| {
        let path = programs.path().join(name);
        program(&path, code);
        Firecracker { program: path, ..driver.clone() }
    };
    let machine = elf_machine(dir.path());
    // mov eax, 60; mov edi, 7; syscall
    let ends = other("ends", &[0xb8, 60, 0, 0, 0, 0xbf, 7, 0, 0, 0, 0x0f, 0x05]);
    let why = refused(&ends, &machine).await;
    assert!(why.contains("exit code 7"), "{why}");
    // again: mov eax, 34; syscall; jmp again
    let silent = other("silent", &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]);
    let why = refused(&silent, &machine).await;
    assert!(why.contains("Firecracker is not there after 10 s"), "{why}");
}

#[tokio::test]
async fn a_build_that_was_replaced_loads_nothing() {
    let Some(driver) = firecracker().await else { return };
    let (first, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (memory, _) = Subject { driver: &driver, machine: elf_machine }.snapshot(first.path()).await;
    let from = Restore { memory, state: fs::File::open(first.path().join("state")).unwrap().into() };
    let replaced = Firecracker { build: "Firecracker v1.13.0, Jailer v1.13.0".to_owned(), ..driver };
    let machine = elf_machine(dir.path());
    let why = replaced.restore(&machine, from, deadlines()).await.err().unwrap().to_string();
    assert!(why.contains("v1.13.0 was looked up") && why.contains("start the node anew"), "{why}");
    nothing_runs(dir.path());
}
