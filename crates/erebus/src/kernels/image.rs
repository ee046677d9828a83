//! Recognises a kernel by its first bytes. Pure.

use super::layout::is_release;

/// Bytes of the file that [`Image::recognise`] wants to see: a bzImage's version string is in its first 32 KiB.
pub(super) const HEAD: usize = 64 * 1024;

/// What kind of kernel it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Image {
    /// Compressed, for x86. Its own `uname -r`, where it has one that can be read.
    BzImage { release: Option<String> },
    /// An uncompressed ELF file for x86-64.
    Elf,
}

impl Image {
    /// `None` when the file is no kernel that a microVM could start.
    pub(super) fn recognise(head: &[u8]) -> Option<Self> {
        if is_elf(head) {
            return Some(Self::Elf);
        }
        // The boot protocol of x86: a boot sector's flag, then a magic, then the protocol's version.
        let boots =
            u16_at(head, 0x1fe)? == 0xaa55 && head.get(0x202..0x206)? == b"HdrS" && u16_at(head, 0x206)? >= 0x0200;
        boots.then(|| Self::BzImage { release: version(head) })
    }
}

/// The version string, `RELEASE (who@where) #1 …`, lies within the sectors of the set-up code.
fn version(head: &[u8]) -> Option<String> {
    let sectors = match head.get(0x1f1)? {
        0 => 4,
        n => usize::from(*n),
    };
    let start = match u16_at(head, 0x20e)? {
        0 => return None,
        offset => usize::from(offset) + 0x200,
    };
    let end = ((sectors + 1) * 512).min(head.len());
    let text = head.get(start..end)?;
    let release = text.split(|b| matches!(b, 0 | b' ')).next()?;
    std::str::from_utf8(release).ok().filter(|text| is_release(text)).map(Into::into)
}

fn is_elf(head: &[u8]) -> bool {
    // 64 bit, little-endian; an executable or a shared object; for x86-64.
    head.starts_with(b"\x7fELF\x02\x01")
        && matches!(u16_at(head, 16), Some(2 | 3))
        && u16_at(head, 18) == Some(super::modinfo::X86_64)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The smallest thing that is recognised as a bzImage of this release.
#[cfg(test)]
pub(super) fn fake_bzimage(release: &str) -> Vec<u8> {
    let mut image = vec![0; 8192];
    image[0x1f1] = 4;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x20e..0x210].copy_from_slice(&[0x00, 0x04]);
    let version = format!("{release} (nobody@nowhere) #1 SMP\0");
    image[0x600..0x600 + version.len()].copy_from_slice(version.as_bytes());
    image
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bzimage(release: Option<&str>) -> Option<Image> {
        Some(Image::BzImage { release: release.map(Into::into) })
    }

    #[test]
    fn a_bzimage_and_its_release() {
        let mut image = fake_bzimage("6.1.0-56-cloud-amd64");
        assert_eq!(Image::recognise(&image), bzimage(Some("6.1.0-56-cloud-amd64")));
        // Beyond the set-up code there is nothing to read.
        image[0x1f1] = 1;
        assert_eq!(Image::recognise(&image), bzimage(None));
        image[0x1f1] = 0;
        assert_eq!(Image::recognise(&image), bzimage(Some("6.1.0-56-cloud-amd64")));
        image[0x600] = b'/';
        assert_eq!(Image::recognise(&image), bzimage(None));
        image[0x20e..0x210].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(Image::recognise(&image), bzimage(None));
        image[0x202] = b'X';
        assert_eq!(Image::recognise(&image), None);
    }

    #[test]
    fn an_elf_file() {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16] = 2;
        elf[18] = 62;
        assert_eq!(Image::recognise(&elf), Some(Image::Elf));
        elf[18] = 183;
        assert_eq!(Image::recognise(&elf), None);
        assert_eq!(Image::recognise(b"#!/bin/sh\n"), None);
        assert_eq!(Image::recognise(b""), None);
    }

    proptest! {
        #[test]
        fn truncations_and_changes_are_survived(cut in 0_usize..8192, at in 0x1f0_usize..0x640, to: u8) {
            let mut image = fake_bzimage("6.1.0");
            let _ = Image::recognise(&image[..cut]);
            image[at] = to;
            if let Some(Image::BzImage { release: Some(release) }) = Image::recognise(&image) {
                prop_assert!(is_release(&release));
            }
        }

        #[test]
        fn anything_is_survived(bytes: Vec<u8>) {
            let _ = Image::recognise(&bytes);
        }
    }
}
