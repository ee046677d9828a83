//! runc, crun and gVisor's runsc, each on a bundle of its own for everyone who runs at the same time. The root file system
//! is one, read-only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::process;
use super::programs;
use super::row::{EXPECTED, Kind, PROGRAM, Ran, Row, Run, Work};
use super::scratch::{Scratch, mounts};

/// The rows, by the name that `--only` calls them.
pub(super) const ALL: [&str; 3] = ["runc", "crun", "runsc"];
const UNPACK: Duration = Duration::from_secs(300);
/// Platforms of runsc, the fastest first. With `kvm` it may hang on machines without usable KVM.
const PLATFORMS: [&str; 2] = ["systrap", "ptrace"];
const PROBE: Duration = Duration::from_secs(15);

/// Unpacks the root file system, with its owners.
fn unpack(scratch: &Scratch, tar: &Path) -> Result<PathBuf> {
    let rootfs = scratch.folder("rootfs")?;
    let mut unpack = Command::new("tar");
    unpack.args(["--numeric-owner", "-xpf"]).arg(tar).arg("-C").arg(&rootfs);
    process::run(&mut unpack, UNPACK)?.text().context("cannot unpack the root file system")?;
    Ok(rootfs)
}

/// `runc run`, `crun run` and `runsc run`, for up to `slots` at once.
///
/// # Errors
/// When it is interrupted.
pub(super) fn rows(scratch: &Scratch, tar: &Path, slots: usize) -> Result<Vec<Row>> {
    let rootfs = match scratch.is_roots() && ALL.into_iter().any(|name| programs::find(name).is_some()) {
        true => unpack(scratch, tar).map_err(|error| format!("{error:#}")),
        false => Err("nothing to unpack it for".to_owned()),
    };
    process::go_on()?;
    let row = |name: &'static str, make: &dyn Fn(&Path, &Path) -> Result<Runtime>| {
        let row = Row::new(name, Kind::Baseline, format!("{name} run --bundle …"));
        let Some(program) = programs::find(name) else { return row };
        let row = row.version(programs::version(&program));
        if !scratch.is_roots() {
            return row.needs_root();
        }
        let made = rootfs.clone().map_err(anyhow::Error::msg).and_then(|rootfs| make(&program, &rootfs));
        match made {
            Ok(runtime) => {
                let how = runtime.shown();
                let mut row = row.work(Ok(Box::new(runtime)));
                row.how = how;
                row
            }
            Err(error) => row.work(Err(error)),
        }
    };
    Ok(vec![
        row("runc", &|program, rootfs| Runtime::new(scratch, "runc", program, rootfs, slots)),
        row("crun", &|program, rootfs| {
            let runtime = Runtime::new(scratch, "crun", program, rootfs, slots)?;
            Ok(if has_hybrid_groups() { runtime.without_unified() } else { runtime })
        }),
        row("runsc", &|program, rootfs| Runtime::new(scratch, "runsc", program, rootfs, slots)?.platform()),
    ])
}

/// Where the second version of control groups has a folder beside the first, which crun refuses.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

fn has_hybrid_groups() -> bool {
    mounts().iter().any(|mount| mount.kind == "cgroup2" && mount.at == Path::new(UNIFIED))
}

struct Runtime {
    /// Program and the arguments before `run`.
    words: Vec<String>,
    bundles: Vec<PathBuf>,
}

impl Runtime {
    fn new(scratch: &Scratch, name: &str, program: &Path, rootfs: &Path, slots: usize) -> Result<Self> {
        let state = scratch.folder(&format!("{name}-state"))?;
        let mut bundles = Vec::new();
        for slot in 0..slots {
            let bundle = scratch.folder(&format!("{name}-bundle-{slot}"))?;
            let group = format!("{}/{name}-{slot}", scratch.cgroup());
            let config = bundle.join("config.json");
            fs::write(&config, config_json(rootfs, &group).to_string())
                .with_context(|| format!("cannot write {}", config.display()))?;
            bundles.push(bundle);
        }
        let words = vec![program.display().to_string(), "--root".to_owned(), state.display().to_string()];
        Ok(Self { words, bundles })
    }

    /// In a mount namespace without the folder that crun refuses.
    fn without_unified(mut self) -> Self {
        let script = format!("umount {UNIFIED} && exec \"$@\"");
        let wrap = ["unshare", "-m", "sh", "-c", &script, "sh"].map(str::to_owned);
        self.words.splice(0..0, wrap);
        self
    }

    /// With the fastest platform that works.
    fn platform(mut self) -> Result<Self> {
        self.words.extend(["--ignore-cgroups", "--network=none"].map(str::to_owned));
        let plain = self.words.clone();
        let mut why = String::new();
        for platform in PLATFORMS {
            self.words = plain.clone();
            self.words.push(format!("--platform={platform}"));
            let probe = Run { name: &format!("probe-{platform}"), slot: 0, patience: PROBE };
            match self.run(probe) {
                Ok(ran) if ran.output == EXPECTED => return Ok(self),
                Ok(ran) => why = format!("with {platform} it printed {:?}", ran.output),
                Err(error) => why = format!("{error:#}"),
            }
        }
        bail!("no platform works: {why}")
    }

    fn shown(&self) -> String {
        let skip = self.words.iter().position(|word| word == "--root");
        let flags: Vec<_> = self.words.iter().skip(skip.map_or(0, |at| at + 2)).map(String::as_str).collect();
        let hidden = if self.words[0] == "unshare" { "unshare -m sh -c 'umount …' " } else { "" };
        let program = skip.and_then(|at| self.words.get(at - 1)).and_then(|p| p.rsplit('/').next()).unwrap_or_default();
        let words = [program].into_iter().chain(flags).chain(["run", "--bundle …"]);
        format!("{hidden}{}", words.collect::<Vec<_>>().join(" "))
    }
}

impl Work for Runtime {
    fn run(&self, run: Run<'_>) -> Result<Ran> {
        let bundle = self.bundles.get(run.slot).context("there are not enough bundles")?;
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).args(["run", "--bundle"]).arg(bundle).arg(run.name);
        Ok(Ran { output: process::run(&mut command, run.patience)?.text()?, ms: None })
    }
}

/// What `runc spec` writes, without a terminal.
fn config_json(rootfs: &Path, group: &str) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mount = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    let quiet = ["nosuid", "noexec", "nodev"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["python3", "-c", PROGRAM],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs, "readonly": true},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &quiet),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": group,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces,
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_runs_the_program_without_network_on_a_root_that_is_not_written() {
        let config = config_json(Path::new("/r"), "/g/1");
        assert_eq!(config["process"]["args"], json!(["python3", "-c", PROGRAM]));
        assert_eq!(config["root"], json!({"path": "/r", "readonly": true}));
        assert_eq!(config["linux"]["cgroupsPath"], "/g/1");
        let spaces = config["linux"]["namespaces"].as_array().unwrap();
        assert!(spaces.contains(&json!({"type": "network"})) && spaces.contains(&json!({"type": "pid"})));
    }

    #[test]
    fn a_wrapped_runtime_is_shown_with_its_wrap() {
        let words = ["/usr/bin/crun", "--root", "/s"].map(str::to_owned).to_vec();
        let runtime = Runtime { words, bundles: Vec::new() };
        assert_eq!(runtime.shown(), "crun run --bundle …");
        assert_eq!(runtime.without_unified().shown(), "unshare -m sh -c 'umount …' crun run --bundle …");
    }
}
