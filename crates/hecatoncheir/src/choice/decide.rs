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
    let chosen = |kind, why: String| Ok(Chosen { kind, why, detail: None });
    match (wanted, firecracker, kvm) {
        (Wanted::QemuTcg, ..) => chosen(Kind::QemuTcg, "TCG was asked for".to_owned()),
        (Wanted::Firecracker | Wanted::Auto, Found::Works(ms), _) => {
            chosen(Kind::Firecracker, format!("Firecracker booted the Linux guest in {ms} ms"))
        }
        (Wanted::QemuKvm | Wanted::Auto, _, Found::Works(ms)) => {
            chosen(Kind::QemuKvm, format!("KVM booted the Linux guest in {ms} ms"))
        }
        (Wanted::Firecracker, found, _) => Err(refused("firecracker", found)),
        (Wanted::QemuKvm, _, found) => Err(refused("qemu-kvm", found)),
        (Wanted::Auto, firecracker, Found::Fails(how)) => {
            let why = format!("KVM present, {DID_NOT_BOOT}, TCG chosen");
            let detail = match firecracker {
                Found::Fails(other) => format!("{how}; with Firecracker: {other}"),
                _ => how.clone(),
            };
            Ok(Chosen { kind: Kind::QemuTcg, why, detail: Some(detail) })
        }
        (Wanted::Auto, _, Found::Absent(why)) => chosen(Kind::QemuTcg, format!("no KVM ({why}), TCG chosen")),
    }
}

fn refused(name: &str, found: &Found) -> String {
    match found {
        Found::Fails(how) => format!("{name} was asked for, but {DID_NOT_BOOT}: {how}"),
        Found::Absent(why) => format!("{name} was asked for, and cannot be used: {why}"),
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
        assert_eq!(tcg.detail.unwrap(), "it hung; with Firecracker: it hung");
        let why = decide(Wanted::Firecracker, &absent, &absent).unwrap_err();
        assert_eq!(why, "firecracker was asked for, and cannot be used: no such file");
    }
}
