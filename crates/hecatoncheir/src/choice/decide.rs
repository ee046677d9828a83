//! The decision itself: from what was wanted and found, nothing else.

use super::Found;

/// How a probe that failed is told.
const DID_NOT_BOOT: &str = "Linux guest did not boot within 10 s";

/// Which driver the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// The best one that works.
    #[default]
    Auto,
    /// Firecracker, or nothing.
    Firecracker,
    /// QEMU with KVM, or nothing.
    QemuKvm,
    /// QEMU with TCG.
    QemuTcg,
}

/// The drivers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Firecracker,
    QemuKvm,
    QemuTcg,
}

impl Kind {
    /// As it is named everywhere.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::QemuKvm => "qemu-kvm",
            Self::QemuTcg => "qemu-tcg",
        }
    }
}

/// How the driver was chosen, for `doctor` and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// The driver.
    pub kind: Kind,
    /// Why, in a sentence.
    pub why: String,
    /// What happened in probes that failed.
    pub detail: Option<String>,
}

/// Whether this one need be looked for at all.
pub(super) fn considers(wanted: Wanted, kind: Kind) -> bool {
    match wanted {
        Wanted::Auto => true,
        Wanted::Firecracker => kind == Kind::Firecracker,
        Wanted::QemuKvm => kind == Kind::QemuKvm,
        Wanted::QemuTcg => false,
    }
}

/// Firecracker before QEMU, KVM before TCG.
pub(super) fn decide(wanted: Wanted, firecracker: &Found, kvm: &Found) -> Result<Chosen, String> {
    let (kind, why) = match (wanted, firecracker, kvm) {
        (Wanted::QemuTcg, ..) => (Kind::QemuTcg, "TCG was asked for".to_owned()),
        (Wanted::Firecracker | Wanted::Auto, Found::Works(ms), _) => {
            (Kind::Firecracker, format!("Firecracker booted the Linux guest in {ms} ms"))
        }
        (Wanted::QemuKvm | Wanted::Auto, _, Found::Works(ms)) => {
            (Kind::QemuKvm, format!("KVM booted the Linux guest in {ms} ms"))
        }
        (Wanted::Firecracker, found, _) => return Err(refused("firecracker", found)),
        (Wanted::QemuKvm, _, found) => return Err(refused("qemu-kvm", found)),
        (Wanted::Auto, _, Found::Fails(_)) => (Kind::QemuTcg, format!("KVM present, {DID_NOT_BOOT}, TCG chosen")),
        (Wanted::Auto, _, Found::Absent(why) | Found::Untried(why)) => {
            (Kind::QemuTcg, format!("no KVM ({why}), TCG chosen"))
        }
    };
    let passed_over = |name: &str, found: &Found| match found {
        Found::Fails(how) => Some(format!("{name} did not boot the guest: {how}")),
        Found::Untried(why) => Some(format!("{name} could not be tried: {why}")),
        Found::Absent(_) | Found::Works(_) => None,
    };
    let better =
        [(Kind::QemuKvm, passed_over("KVM", kvm)), (Kind::Firecracker, passed_over("Firecracker", firecracker))];
    let told: Vec<String> = better.into_iter().filter(|(other, _)| *other != kind).filter_map(|(_, why)| why).collect();
    Ok(Chosen { kind, why, detail: (!told.is_empty()).then(|| told.join("; ")) })
}

fn refused(name: &str, found: &Found) -> String {
    match found {
        Found::Fails(how) => format!("{name} was asked for, but {DID_NOT_BOOT}: {how}"),
        Found::Absent(why) | Found::Untried(why) => format!("{name} was asked for, and cannot be used: {why}"),
        Found::Works(_) => format!("{name} works"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_decision() {
        let works = Found::Works(900);
        let fails = Found::Fails("it hung".into());
        let absent = Found::Absent("no such file".into());
        let kind = |wanted, firecracker: &Found, kvm: &Found| decide(wanted, firecracker, kvm).map(|c| c.kind).ok();
        use Kind::{Firecracker, QemuKvm, QemuTcg};
        for (wanted, firecracker, kvm, expected) in [
            (Wanted::Auto, &works, &works, Some(Firecracker)),
            (Wanted::Auto, &works, &absent, Some(Firecracker)),
            (Wanted::Auto, &fails, &works, Some(QemuKvm)),
            (Wanted::Auto, &absent, &works, Some(QemuKvm)),
            (Wanted::Auto, &absent, &fails, Some(QemuTcg)),
            (Wanted::Auto, &fails, &fails, Some(QemuTcg)),
            (Wanted::Auto, &absent, &absent, Some(QemuTcg)),
            (Wanted::Firecracker, &works, &absent, Some(Firecracker)),
            (Wanted::Firecracker, &fails, &works, None),
            (Wanted::Firecracker, &absent, &works, None),
            (Wanted::QemuKvm, &works, &works, Some(QemuKvm)),
            (Wanted::QemuKvm, &works, &fails, None),
            (Wanted::QemuKvm, &works, &absent, None),
            (Wanted::QemuTcg, &works, &works, Some(QemuTcg)),
        ] {
            assert_eq!(kind(wanted, firecracker, kvm), expected, "{wanted:?} {firecracker:?} {kvm:?}");
        }
        let tcg = decide(Wanted::Auto, &fails, &fails).unwrap();
        assert_eq!(tcg.why, "KVM present, Linux guest did not boot within 10 s, TCG chosen");
        let detail = "KVM did not boot the guest: it hung; Firecracker did not boot the guest: it hung";
        assert_eq!(tcg.detail.unwrap(), detail);
        let busy = Found::Untried("disk full".into());
        let kvm = decide(Wanted::Auto, &busy, &works).unwrap();
        assert_eq!((kvm.kind, kvm.detail.unwrap().as_str()), (QemuKvm, "Firecracker could not be tried: disk full"));
        assert_eq!(decide(Wanted::Auto, &works, &absent).unwrap().detail, None);
        let why = decide(Wanted::Firecracker, &absent, &absent).unwrap_err();
        assert_eq!(why, "firecracker was asked for, and cannot be used: no such file");
    }
}
