//! What a sandbox is asked to be, and the limits within which it may ask.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Contract, Refusal};

/// Defaults of every sandbox made from a template, and the image it starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateSpec {
    /// Digest of the base image (`sha256:…` of the squashfs file).
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory of the guest in MiB.
    pub memory_mib: u32,
    /// Largest size of what the sandbox may write, in MiB.
    pub disk_mib: u32,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when absent.
    pub user: Option<String>,
    /// How a guest is made ready before its golden snapshot is taken.
    #[serde(default)]
    pub warm: Warm,
    /// Further sizes that golden snapshots are kept for; the template's own is always one.
    #[serde(default)]
    pub shapes: Vec<Shape>,
    /// No golden snapshots: every sandbox boots cold.
    #[serde(default)]
    pub cold: bool,
    /// What a sandbox may reach when its request does not say; the golden snapshots depend on whether it has a network.
    #[serde(default)]
    pub net: Contract,
}

/// How a guest is made ready: before the golden snapshot, and again after a cold boot, always before the sandbox's own
/// command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warm {
    /// A command for `/bin/sh -c`, which must exit with 0. Processes that it leaves in the background stay.
    #[serde(default)]
    pub command: Option<String>,
    /// A runner that waits for jobs.
    #[serde(default)]
    pub runner: Option<RunnerSpec>,
}

impl Warm {
    /// There is something to do.
    pub fn is_some(&self) -> bool {
        self.command.is_some() || self.runner.is_some()
    }
}

/// A warmed process that takes work without a new interpreter start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunnerSpec {
    /// Which one.
    pub language: Language,
    /// Modules that it has imported already.
    #[serde(default)]
    pub preload: Vec<String>,
}

/// What a runner runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// Python 3: the image's `python3`.
    Python,
}

/// Size of a machine: a golden snapshot fits exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Shape {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory of the guest in MiB.
    pub memory_mib: u32,
}

/// What a sandbox does with golden snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotUse {
    /// Starts from one where one fits, else boots cold.
    #[default]
    Prefer,
    /// Starts from one, or not at all.
    Require,
    /// Boots cold.
    Never,
    /// Boots cold, is made ready, and becomes one: how the server makes them.
    Make,
}

/// Everything a node needs to run one sandbox; resolved when it was accepted and unchanged since.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The template's name when it was accepted.
    pub template: String,
    /// Digest of the base image.
    pub image: String,
    /// Digest of the guest kernel.
    pub kernel: String,
    /// The command; empty for a sandbox that only waits for `exec`.
    pub command: Vec<String>,
    /// Environment of the command.
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    pub workdir: Option<String>,
    /// User in the guest; root when absent.
    pub user: Option<String>,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory of the guest in MiB.
    pub memory_mib: u32,
    /// Largest size of what the sandbox may write, in MiB.
    pub disk_mib: u32,
    /// Wall-clock limit of the command in ms, from its start. For a sandbox without command: its time to live.
    pub timeout_ms: Option<u64>,
    /// From acceptance to the command's start, in ms.
    pub start_timeout_ms: u64,
    /// Ends the sandbox when nothing was asked of it and nothing came out of it for so long, in ms.
    pub idle_timeout_ms: Option<u64>,
    /// The command's standard input stays open for the client; otherwise it is empty.
    pub stdin: bool,
    /// A client reads along: output waits for it rather than being cut out of the stored log.
    pub attach: bool,
    /// Source for the template's runner; `command` are then the arguments that it sees.
    #[serde(default)]
    pub code: Option<String>,
    /// How the guest is made ready; the template's.
    #[serde(default)]
    pub warm: Warm,
    /// Environment, working directory and user of the template: what its runner and warm-up were started with.
    #[serde(default)]
    pub ground: Ground,
    /// Names the golden snapshot of this template, size and kernel: 64 hex digits. Absent when there shall be none.
    #[serde(default)]
    pub golden: Option<String>,
    /// What to do with it.
    #[serde(default)]
    pub snapshot: SnapshotUse,
    /// What the sandbox wrote is overwritten when it ends.
    #[serde(default)]
    pub shred: bool,
    /// What it may reach when it starts.
    #[serde(default)]
    pub net: Contract,
    /// It makes a golden snapshot whose sandboxes have a network by default: before the freeze its card is set up, so that
    /// they find theirs ready.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub card: bool,
}

impl SandboxSpec {
    /// It has a command of its own, or code.
    pub fn has_command(&self) -> bool {
        !self.command.is_empty() || self.code.is_some()
    }
}

/// What a template's own processes are started with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ground {
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    pub workdir: Option<String>,
    /// User; root when absent.
    pub user: Option<String>,
}

/// Bounds on what may be asked for. Every field of a request is checked against them before anything is stored.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Virtual processors of one sandbox.
    pub max_cpus: u32,
    /// Least memory a guest kernel boots in, MiB.
    pub min_memory_mib: u32,
    /// Most memory of one sandbox, MiB.
    pub max_memory_mib: u32,
    /// Least disk, MiB.
    pub min_disk_mib: u32,
    /// Most disk, MiB.
    pub max_disk_mib: u32,
    /// Command and environment together, bytes. Below Linux's own limit for `execve`.
    pub max_exec_bytes: usize,
    /// Longest time any limit may name, ms (one year).
    pub max_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_cpus: 64,
            min_memory_mib: 64,
            max_memory_mib: 1 << 20,
            min_disk_mib: 16,
            max_disk_mib: 1 << 20,
            max_exec_bytes: 1 << 20,
            max_ms: 366 * 24 * 3600 * 1000,
        }
    }
}

/// Longest single argument or environment entry: Linux's `MAX_ARG_STRLEN` (32 pages) less its NUL.
pub const MAX_ARG: usize = 131_071;

/// A name for a sandbox, image or template: starts with a letter or digit, then letters, digits, `.`, `_`, `-`; at
/// most 63 characters. It can therefore never be a path or an option.
///
/// # Errors
/// Names `field` when it is anything else.
pub fn check_name(field: &str, name: &str) -> Result<(), Refusal> {
    let ok = (1..=63).contains(&name.len())
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if ok {
        Ok(())
    } else {
        Err(Refusal::field(field, "a name is 1 to 63 of a-z A-Z 0-9 . _ - and starts with a letter or digit"))
    }
}

/// Labels: keys are names (also with `/`), values up to 256 bytes, 64 at most.
///
/// # Errors
/// Names the offending label.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if labels.len() > 64 {
        return Err(Refusal::field("labels", "at most 64 labels"));
    }
    for (key, value) in labels {
        if check_name("labels", &key.replace('/', "-")).is_err() {
            return Err(Refusal::field("labels", "a label's key is 1 to 63 of a-z A-Z 0-9 . _ - /"));
        }
        if value.len() > 256 || value.contains('\0') {
            return Err(Refusal::field(&format!("labels.{key}"), "a label's value has at most 256 bytes and no NUL"));
        }
    }
    Ok(())
}

impl Limits {
    /// Checks cpus, memory and disk.
    ///
    /// # Errors
    /// Names the first field that is out of range, and the range.
    pub fn check_size(&self, cpus: u32, memory_mib: u32, disk_mib: u32) -> Result<(), Refusal> {
        range("cpus", cpus.into(), 1, self.max_cpus.into(), "")?;
        range("memory_mib", memory_mib.into(), self.min_memory_mib.into(), self.max_memory_mib.into(), " MiB")?;
        range("disk_mib", disk_mib.into(), self.min_disk_mib.into(), self.max_disk_mib.into(), " MiB")
    }

    /// Checks a time limit in ms.
    ///
    /// # Errors
    /// When it is 0 or longer than a year.
    pub fn check_ms(&self, field: &str, ms: u64) -> Result<(), Refusal> {
        range(field, ms, 1, self.max_ms, " ms")
    }

    /// Checks argv, environment, working directory and user of a command.
    ///
    /// # Errors
    /// Names the field: an empty program, a NUL, or more than `execve` takes.
    pub fn check_command(
        &self,
        command: &[String],
        env: &BTreeMap<String, String>,
        workdir: Option<&str>,
        user: Option<&str>,
    ) -> Result<(), Refusal> {
        if command.first().is_some_and(|program| program.is_empty()) {
            return Err(Refusal::field("command", "the program's name is empty"));
        }
        if command.iter().any(|arg| arg.contains('\0')) {
            return Err(Refusal::field("command", "an argument holds a NUL, which no program can be given"));
        }
        if command.iter().any(|arg| arg.len() > MAX_ARG) {
            return Err(Refusal::field("command", format!("an argument is longer than {MAX_ARG} bytes")));
        }
        self.check_env(env)?;
        let total = |n: usize| n + 9; // the string's NUL and its pointer
        let size: usize = command.iter().map(|a| total(a.len())).sum::<usize>()
            + env.iter().map(|(k, v)| total(k.len() + 1 + v.len())).sum::<usize>();
        if size > self.max_exec_bytes {
            let max = self.max_exec_bytes;
            return Err(Refusal::field(
                "command",
                format!("command and environment have {size} bytes of {max} at most"),
            ));
        }
        if let Some(dir) = workdir
            && (!dir.starts_with('/') || dir.contains('\0') || dir.len() > 4095)
        {
            return Err(Refusal::field("workdir", "an absolute path of at most 4095 bytes without NUL"));
        }
        if let Some(user) = user
            && (user.is_empty() || user.len() > 64 || user.chars().any(|c| c.is_control() || c == '/'))
        {
            return Err(Refusal::field("user", "NAME, UID, NAME:GROUP or UID:GID"));
        }
        Ok(())
    }

    /// Checks an environment.
    ///
    /// # Errors
    /// Names the variable: a bad name, a NUL, or too long.
    pub fn check_env(&self, env: &BTreeMap<String, String>) -> Result<(), Refusal> {
        let mut size = 0;
        for (key, value) in env {
            let shown: String = key.chars().filter(|c| !c.is_control()).take(60).collect();
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(Refusal::field("env", format!("{shown:?} is no name of a variable")));
            }
            if value.contains('\0') {
                return Err(Refusal::field(&format!("env.{shown}"), "holds a NUL"));
            }
            if key.len() + value.len() + 1 > MAX_ARG {
                return Err(Refusal::field(&format!("env.{shown}"), format!("is longer than {MAX_ARG} bytes")));
            }
            size += key.len() + value.len() + 2;
        }
        if size > self.max_exec_bytes {
            return Err(Refusal::field("env", format!("has {size} bytes of {} at most", self.max_exec_bytes)));
        }
        Ok(())
    }
}

pub(crate) fn range(field: &str, value: u64, min: u64, max: u64, unit: &str) -> Result<(), Refusal> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Refusal::field(field, format!("{value}{unit} is out of range: {min} to {max}{unit}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn names_are_never_paths_or_options() {
        for good in ["a", "python", "python3.11", "A_b-c.d", &"x".repeat(63)] {
            check_name("name", good).unwrap();
        }
        for bad in ["", ".", "..", "../x", "a/b", "-rf", "a b", "a\0", "ä", &"x".repeat(64)] {
            assert_eq!(check_name("name", bad).unwrap_err().field.as_deref(), Some("name"), "{bad:?}");
        }
    }

    #[test]
    fn the_field_to_blame_is_named() {
        let limits = Limits::default();
        let blame = |r: Result<(), Refusal>| r.unwrap_err().field.unwrap();
        let none = env(&[]);
        let argv = |s: &str| vec![s.to_owned()];
        assert_eq!(blame(limits.check_size(0, 512, 64)), "cpus");
        assert_eq!(blame(limits.check_size(1, 1, 64)), "memory_mib");
        assert_eq!(blame(limits.check_size(1, u32::MAX, 64)), "memory_mib");
        assert_eq!(blame(limits.check_size(1, 512, 1)), "disk_mib");
        assert_eq!(blame(limits.check_command(&argv("a\0b"), &none, None, None)), "command");
        assert_eq!(blame(limits.check_command(&argv(""), &none, None, None)), "command");
        assert_eq!(blame(limits.check_command(&argv(&"x".repeat(MAX_ARG + 1)), &none, None, None)), "command");
        assert_eq!(blame(limits.check_command(&argv("a"), &env(&[("A=B", "")]), None, None)), "env");
        assert_eq!(blame(limits.check_command(&argv("a"), &env(&[("A", "\0")]), None, None)), "env.A");
        assert_eq!(blame(limits.check_command(&argv("a"), &none, Some("relative"), None)), "workdir");
        assert_eq!(blame(limits.check_command(&argv("a"), &none, None, Some("a/b"))), "user");
        let big: BTreeMap<_, _> = (0..100).map(|i| (format!("V{i}"), "x".repeat(100_000))).collect();
        assert_eq!(blame(limits.check_env(&big)), "env");
    }
}
