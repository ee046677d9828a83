//! What a module says of itself, in the section `.modinfo` of its ELF file. Pure.

use super::layout::is_module_name;

/// ELF's number for x86-64.
pub(super) const X86_64: u16 = 62;
/// Longest section that is read, bytes.
const MAX_SECTION: usize = 1 << 20;
/// Most modules that one may depend on.
const MAX_DEPENDS: usize = 64;

/// What matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Modinfo {
    /// Modules that must be loaded before.
    pub(super) depends: Vec<String>,
    /// Modules that had better be loaded before, where they exist.
    pub(super) before: Vec<String>,
    /// `uname -r` of the kernel that it was built for.
    pub(super) release: Option<String>,
}

impl Modinfo {
    /// `None` when the file is no module for x86-64, or is damaged.
    pub(super) fn parse(elf: &[u8]) -> Option<Self> {
        let section = find_section(elf, b".modinfo")?;
        let mut info = Self::default();
        for pair in section.split(|b| *b == 0) {
            let Some(equals) = pair.iter().position(|b| *b == b'=') else { continue };
            let value = || std::str::from_utf8(&pair[equals + 1..]).ok();
            match &pair[..equals] {
                b"depends" => info.depends.extend(names(value()?.split(','))?),
                b"softdep" => {
                    // `pre: a b post: c`
                    let rest = value()?.split("pre:").nth(1).unwrap_or_default();
                    let before = rest.split("post:").next().unwrap_or_default();
                    info.before.extend(names(before.split_whitespace())?);
                }
                b"vermagic" => info.release = value()?.split(' ').next().map(Into::into),
                _ => {}
            }
            if info.depends.len() + info.before.len() > MAX_DEPENDS {
                return None;
            }
        }
        Some(info)
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> Option<Vec<String>> {
    let names = names.filter(|name| !name.is_empty()).map(|name| name.replace('-', "_"));
    names.map(|name| is_module_name(&name).then_some(name)).collect()
}

fn find_section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    // 64 bit, little-endian, relocatable, for x86-64.
    if !elf.starts_with(b"\x7fELF\x02\x01") || number(elf, 16, 2)? != 1 || number(elf, 18, 2)? != usize::from(X86_64) {
        return None;
    }
    let (table, size) = (number(elf, 0x28, 8)?, number(elf, 0x3a, 2)?);
    let (count, names) = (number(elf, 0x3c, 2)?, number(elf, 0x3e, 2)?);
    if size != 64 || names >= count {
        return None;
    }
    let header = |index: usize| slice(elf, table.checked_add(index * size)?, size);
    let content = |header: &[u8]| slice(elf, number(header, 0x18, 8)?, number(header, 0x20, 8)?);
    let texts = content(header(names)?)?;
    for index in 0..count {
        let header = header(index)?;
        let text = texts.get(number(header, 0, 4)?..)?;
        if text.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)) {
            return content(header).filter(|section| section.len() <= MAX_SECTION);
        }
    }
    None
}

fn slice(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?)
}

/// The little-endian number of `len` bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    let number = slice(bytes, at, len)?.iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    number.try_into().ok()
}

/// The smallest ELF file with this `.modinfo`.
#[cfg(test)]
pub(super) fn fake_module(info: &str) -> Vec<u8> {
    const NAMES: &[u8] = b"\0.modinfo\0.names\0";
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (elf[16], elf[18]) = (1, 62);
    let info_at = elf.len();
    elf.extend_from_slice(info.as_bytes());
    let names_at = elf.len();
    elf.extend_from_slice(NAMES);
    let table = elf.len() as u64;
    for (name, at, len) in [(0, 0, 0), (1_u32, info_at, info.len()), (10, names_at, NAMES.len())] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
        elf.extend_from_slice(&header);
    }
    elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    (elf[0x3a], elf[0x3c], elf[0x3e]) = (64, 3, 2);
    elf
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_matters_is_taken() {
        let module = fake_module(
            "license=GPL\0\0depends=net-failover,virtio\0softdep=pre: crc32c foo post: bar\0retpoline=Y\0\
             vermagic=6.1.0-1 SMP preempt mod_unload \0alias=x\0",
        );
        let info = Modinfo::parse(&module).unwrap();
        assert_eq!(info.depends, ["net_failover", "virtio"]);
        assert_eq!(info.before, ["crc32c", "foo"]);
        assert_eq!(info.release.as_deref(), Some("6.1.0-1"));
        let none = Modinfo::parse(&fake_module("depends=\0softdep=post: x\0")).unwrap();
        assert_eq!(none, Modinfo::default());
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert_eq!(Modinfo::parse(b""), None);
        assert_eq!(Modinfo::parse(&fake_module("depends=../../etc/passwd\0")), None);
        assert_eq!(Modinfo::parse(&fake_module(&format!("depends={}\0", "a,".repeat(MAX_DEPENDS + 1)))), None);
        let mut module = fake_module("depends=x\0");
        module[18] = 183;
        assert_eq!(Modinfo::parse(&module), None);
    }

    proptest! {
        #[test]
        fn every_truncation_is_refused(cut in 0.0..1.0_f64) {
            let module = fake_module("depends=virtio\0");
            let cut = (module.len() as f64 * cut) as usize;
            prop_assert_eq!(Modinfo::parse(&module[..cut]), None);
        }

        #[test]
        fn changes_are_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut module = fake_module("depends=virtio,virtio_ring\0vermagic=6.1 SMP\0");
            for (at, to) in changes {
                let at = at.index(module.len());
                module[at] = to;
            }
            if let Some(info) = Modinfo::parse(&module) {
                prop_assert!(info.depends.iter().all(|name| is_module_name(name)));
            }
        }

        #[test]
        fn anything_is_survived(bytes: Vec<u8>) {
            let _ = Modinfo::parse(&bytes);
        }
    }
}
