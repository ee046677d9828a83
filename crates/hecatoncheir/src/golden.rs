//! Golden snapshots as this node uses them: which one fits, and why one does not. Pure.

use serde::{Deserialize, Serialize};
use tartarus_runtime::Fingerprint;
use tartarus_types::{SandboxSpec, Shape, SnapshotUse};

/// What is on record of a golden snapshot beside its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// The template's name when it was made.
    pub(crate) template: String,
    /// Digest of the guest kernel.
    pub(crate) kernel: String,
    /// Size of the machine.
    pub(crate) shape: Shape,
    /// What it is bound to.
    pub(crate) fingerprint: Fingerprint,
    /// Digest of the guest agent in it.
    pub(crate) agent: String,
    /// Version of the guest protocol that it speaks.
    pub(crate) protocol: u32,
}

impl About {
    /// Why it cannot be restored on a host whose driver is `here`.
    pub(crate) fn unusable(&self, here: &Fingerprint) -> Option<String> {
        let (oldest, own) = (tartarus_guest::OLDEST, self.protocol);
        let old =
            || format!("the agent in it speaks version {own} of the guest protocol, this program {oldest} and later");
        self.fingerprint.mismatch(here).or_else(|| (own < oldest).then(old))
    }

    /// Why it should be made again although it can be used.
    pub(crate) fn outdated(&self, agent: &str) -> Option<String> {
        (self.agent != agent).then(|| "it holds the guest agent of another version of Tartarus".to_owned())
    }
}

/// Whether a sandbox may look for a snapshot at all; why not.
pub(crate) fn wanted(spec: &SandboxSpec) -> Result<&str, String> {
    match (spec.snapshot, &spec.golden) {
        (SnapshotUse::Never, _) => Err("no snapshot was wanted".to_owned()),
        (SnapshotUse::Make, _) => Err("it makes the snapshot".to_owned()),
        (SnapshotUse::Prefer | SnapshotUse::Require, None) => Err("the template has no snapshots".to_owned()),
        (SnapshotUse::Prefer | SnapshotUse::Require, Some(golden)) => Ok(golden),
    }
}

/// Why there is no snapshot for this sandbox, in the words of its template and size. `others` are the sizes that there
/// are snapshots for.
pub(crate) fn missing(spec: &SandboxSpec, others: &[Shape]) -> String {
    let size = |cpus, mib| format!("{cpus} cpu{} and {mib} MiB", if cpus == 1 { "" } else { "s" });
    let own = size(spec.cpus, spec.memory_mib);
    if others.is_empty() {
        return format!("the template {} has no snapshot with {own} yet", spec.template);
    }
    let others: Vec<String> = others.iter().map(|s| size(s.cpus, s.memory_mib)).collect();
    format!("the template {} has no snapshot with {own}, only with {}", spec.template, others.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint() -> Fingerprint {
        Fingerprint {
            driver: "qemu-tcg".into(),
            build: "QEMU 7.2.1".into(),
            shape: "1".into(),
            cpu: "max".into(),
            tsc_khz: Some(2_000_000),
        }
    }

    #[test]
    fn a_mismatch_names_both() {
        let about = About {
            template: "py".into(),
            kernel: "k".into(),
            shape: Shape { cpus: 1, memory_mib: 512 },
            fingerprint: fingerprint(),
            agent: "a".into(),
            protocol: tartarus_guest::VERSION,
        };
        let ancient = About { protocol: 0, ..about.clone() };
        assert!(ancient.unusable(&fingerprint()).is_some());
        assert_eq!(about.unusable(&fingerprint()), None);
        let newer = Fingerprint { build: "QEMU 8.2".into(), ..fingerprint() };
        let why = about.unusable(&newer).unwrap();
        assert!(why.contains("QEMU 7.2.1") && why.contains("QEMU 8.2"), "{why}");
        for (khz, fits) in [(2_000_400, true), (2_000_401, false), (1_999_600, true), (1_999_599, false)] {
            let here = Fingerprint { tsc_khz: Some(khz), ..fingerprint() };
            assert_eq!(about.unusable(&here).is_none(), fits, "{khz}");
        }
        assert_eq!(about.outdated("a"), None);
        assert!(about.outdated("b").is_some());
    }
}
