//! What this machine can do, and what would help. Findings only; the one decision is [`crate::choice`]'s.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tartarus_api::doctor::{Check, Status};
use tartarus_runtime::cell::{self, Cell};
use tartarus_runtime::host::Tsc;
use tartarus_runtime::supervisor::Program;
use tartarus_runtime::{firecracker, qemu};

use crate::choice;

/// What to do where there is no QEMU.
const INSTALL: &str = "install QEMU (Debian: apt-get install qemu-system-x86)";

/// How long a try of a cell may take; the first copies some 50 MB.
const CELL: Duration = Duration::from_secs(30);

fn check(name: &str, status: Status, found: impl Into<String>, advice: Option<&str>) -> Check {
    Check { name: name.to_owned(), status, found: found.into(), advice: advice.map(str::to_owned) }
}

/// Every check that needs no kernel.
pub(crate) async fn checks(data: &Path, tsc: Tsc) -> Vec<Check> {
    let mut checks = vec![hypervisor().await, lighter().await, kvm()];
    for (program, package, what) in [
        ("sqfstar", "squashfs-tools", "image import"),
        ("mke2fs", "e2fsprogs", "sandbox disks"),
        ("dpkg-deb", "dpkg", "kernel add"),
    ] {
        checks.push(match find(program) {
            Some(path) => check(program, Status::Ok, path, None),
            None => {
                let advice = format!("install it (Debian: apt-get install {package}); it is needed for {what}");
                check(program, Status::Fail, "not found", Some(&advice))
            }
        });
    }
    checks.push(user());
    checks.push(cell(data.join("cells")).await);
    checks.push(subuid());
    checks.push(clock(tsc));
    checks.push(disk(data));
    checks
}

async fn hypervisor() -> Check {
    let program = qemu::find().unwrap_or_else(|| qemu::PROGRAM.into());
    match qemu::version(&program).await {
        Ok(version) => check("hypervisor", Status::Ok, version, None),
        Err(e) => check("hypervisor", absent(), e.to_string(), Some(INSTALL)),
    }
}

/// How bad it is that QEMU is not there: Firecracker may do alone, and the driver's line says whether it does.
fn absent() -> Status {
    if firecracker::find().is_some() { Status::Warn } else { Status::Fail }
}

async fn lighter() -> Check {
    let name = "firecracker";
    if firecracker::find().is_none() {
        return check(name, Status::Ok, "not there, and not needed", None);
    }
    if !rustix::process::geteuid().is_root() {
        return check(name, Status::Ok, "there, for root alone: its jailer takes root", None);
    }
    // It is not started: nobody supervises anything.
    match choice::open_firecracker(Program(Vec::new())).await {
        Ok(driver) => check(name, Status::Ok, driver.build, None),
        Err(why) => {
            let advice = "Firecracker and the jailer of the same release belong into one folder on the PATH; \
                          until then QEMU is used";
            check(name, Status::Warn, why, Some(advice))
        }
    }
}

fn kvm() -> Check {
    match choice::kvm_opens() {
        Ok(()) => {
            check("kvm", Status::Ok, "/dev/kvm can be opened; whether a guest boots, the driver's line says", None)
        }
        Err(why) => {
            let advice = if Path::new("/dev/kvm").exists() {
                "let this user open it (sudo usermod -aG kvm USER, and log in again); until then guests are translated"
            } else {
                "guests are translated, several times as slow: turn virtualisation on in the firmware, or nested \
                 virtualisation for this virtual machine"
            };
            check("kvm", Status::Warn, why, Some(advice))
        }
    }
}

/// The programs that administrators have on their path, and users often do not.
fn find(program: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(program))
        .find(|p| p.is_file())
        .map(|p| p.display().to_string())
}

fn user() -> Check {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return check("privileges", Status::Ok, "root", None);
    }
    let advice = "without root, sandboxes run, and these do not: a uid of its own for each hypervisor, cgroup limits \
                  and network namespaces";
    check("privileges", Status::Warn, format!("uid {}", uid.as_raw()), Some(advice))
}

/// Locks the hypervisor up, and looks whether it runs.
async fn cell(dir: PathBuf) -> Check {
    let Some(program) = qemu::find() else {
        return check("cell", absent(), "there is no QEMU to lock up", Some(INSTALL));
    };
    let tried =
        tokio::task::spawn_blocking(move || match Cell::open(&dir, &program, None).map_err(|e| e.to_string())? {
            None => cell::check_without_cell(&program).map(|()| false),
            Some(cell) => cell.check(&program).map(|()| true),
        });
    let tried = match tokio::time::timeout(CELL, tried).await {
        Ok(tried) => tried.unwrap_or_else(|e| Err(e.to_string())),
        Err(_) => Err(format!("it takes longer than {} s", CELL.as_secs())),
    };
    match tried {
        Ok(true) => {
            check("cell", Status::Ok, "each hypervisor has a user id, files, limits and namespaces of its own", None)
        }
        Ok(false) => {
            let advice = "it runs as this user, who sees the host's files, processes and network, with both filters of system \
                          calls and no new privileges; root can lock it up";
            check("cell", Status::Warn, "not as an ordinary user", Some(advice))
        }
        Err(why) if why.contains(cell::FILTER) => {
            let advice = "no sandbox starts without it: it takes a kernel with CONFIG_SECCOMP_FILTER, and whoever starts the \
                          server must let it be used";
            check("cell", Status::Fail, why, Some(advice))
        }
        Err(why) if !rustix::process::geteuid().is_root() => {
            check("cell", Status::Fail, why, Some("no sandbox starts: QEMU does not run as this user"))
        }
        Err(why) => {
            let advice = "no sandbox starts as root without it: allow the server namespaces and mounts (CAP_SYS_ADMIN), or \
                          start it as an ordinary user";
            check("cell", Status::Fail, why, Some(advice))
        }
    }
}

fn subuid() -> Check {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return check("subuid", Status::Ok, "not needed by root", None);
    }
    let name = user_name(uid.as_raw());
    let has = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().filter_map(|l| l.split(':').next()).any(|who| who == name || who == uid.as_raw().to_string())
    };
    if has("/etc/subuid") && has("/etc/subgid") {
        return check("subuid", Status::Ok, format!("{name} has a range"), None);
    }
    let advice = format!(
        "building root file systems as {name} (mmdebstrap) needs one: sudo usermod --add-subuids 100000-165535 \
         --add-subgids 100000-165535 {name}"
    );
    check("subuid", Status::Warn, format!("{name} has no range in /etc/subuid and /etc/subgid"), Some(&advice))
}

fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut lines = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>());
    let found = lines.find(|f| f.get(2).and_then(|u| u.parse().ok()) == Some(uid));
    found.and_then(|f| f.first().map(|n| (*n).to_owned())).unwrap_or_else(|| uid.to_string())
}

fn clock(tsc: Tsc) -> Check {
    let found = format!("{:.1} MHz", tsc.khz as f64 / 1000.0);
    if tsc.steady {
        check("tsc", Status::Ok, format!("{found}, constant and nonstop"), None)
    } else {
        let advice = "under TCG the clocks of guests drift on this processor";
        check("tsc", Status::Warn, format!("{found}, not constant and nonstop"), Some(advice))
    }
}

fn disk(data: &Path) -> Check {
    match rustix::fs::statvfs(data) {
        Ok(fs) => {
            let free = fs.f_bavail * fs.f_frsize;
            let found = format!("{:.1} GiB free in {}", free as f64 / f64::from(1 << 30), data.display());
            if free < 1 << 30 {
                check("disk", Status::Warn, found, Some("free some space, or move the data folder with --data"))
            } else {
                check("disk", Status::Ok, found, None)
            }
        }
        Err(e) => check("disk", Status::Fail, format!("{}: {e}", data.display()), None),
    }
}
