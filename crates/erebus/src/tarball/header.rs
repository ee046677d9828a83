//! One header block. Pure.

use super::BLOCK;

/// Largest major and minor number that a device file can have.
const MAX_MAJOR: i64 = 0xfff;
const MAX_MINOR: i64 = 0xf_ffff;

/// A header block whose checksum fits.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flag: u8,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: u32,
    /// Major and minor number where the fields hold some.
    pub(super) device: Option<(u32, u32)>,
}

impl Header {
    /// `None` when the checksum is wrong or a number is none.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Option<Self> {
        let raw = tar::Header::from_byte_slice(block).as_old();
        let ustar = tar::Header::from_byte_slice(block).as_ustar();
        if !checksum_fits(block, &raw.cksum) {
            return None;
        }
        let mut path = text(&raw.name).to_vec();
        if let Some(prefix) = ustar.map(|u| text(&u.prefix)).filter(|p| !p.is_empty()) {
            path = [prefix, b"/", &path].concat();
        }
        let device = |field: &[u8], most| number(field).filter(|n| (0..=most).contains(n)).map(|n| n as u32);
        // The fields of a GNU header are where those of a ustar header are.
        let (major, minor) = (&block[329..337], &block[337..345]);
        Some(Self {
            flag: raw.linkflag[0],
            path,
            link: text(&raw.linkname).to_vec(),
            size: number(&raw.size)?.try_into().ok()?,
            mode: (number(&raw.mode)? & 0o7777) as u32,
            uid: number(&raw.uid)?.try_into().ok()?,
            gid: number(&raw.gid)?.try_into().ok()?,
            mtime: number(&raw.mtime)?.clamp(0, u32::MAX.into()) as u32,
            device: device(major, MAX_MAJOR).zip(device(minor, MAX_MINOR)),
        })
    }
}

/// Both ways of summing are found: old tars took the bytes for signed.
fn checksum_fits(block: &[u8; BLOCK], field: &[u8]) -> bool {
    let stated = number(field);
    let bytes = || block[..148].iter().chain(b"        ").chain(&block[156..]);
    let unsigned: i64 = bytes().map(|b| i64::from(*b)).sum();
    let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
    stated == Some(unsigned) || stated == Some(signed)
}

/// A field's text, up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A field's number: octal digits, or two's complement when the first bit is set. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let sign: i128 = if first & 0x40 == 0 { 0 } else { -1 };
        let top = sign << 6 | i128::from(first & 0x3f);
        // 12 bytes at most, which 16 hold.
        return rest.iter().fold(top, |n, b| n << 8 | i128::from(*b)).try_into().ok();
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0_i64, |n, b| match b {
        b'0'..=b'7' => n.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers() {
        for (field, n) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77777777)),
            (b"644\0junk", Some(0o644)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"64 4\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"777777777777777777777777", None),
            (b"", None),
        ] {
            assert_eq!(number(field), n, "{field:?}");
        }
    }

    #[test]
    fn a_header_of_the_tar_crate() {
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("{}/{}", "d".repeat(90), "f".repeat(90))).unwrap();
        header.set_size(7);
        header.set_mode(0o100_4755);
        header.set_uid(1000);
        header.set_gid(3_000_000);
        header.set_mtime(1_600_000_000);
        header.set_cksum();
        let parsed = Header::parse(header.as_bytes()).unwrap();
        assert_eq!(parsed.path, format!("{}/{}", "d".repeat(90), "f".repeat(90)).into_bytes());
        assert_eq!((parsed.size, parsed.mode, parsed.uid, parsed.gid), (7, 0o4755, 1000, 3_000_000));
        assert_eq!(parsed.mtime, 1_600_000_000);
    }

    proptest! {
        #[test]
        fn one_changed_byte_is_found(at in 0_usize..BLOCK, to: u8) {
            let mut header = tar::Header::new_gnu();
            header.set_path("etc/passwd").unwrap();
            header.set_size(100);
            header.set_cksum();
            let mut block = *header.as_bytes();
            prop_assume!(block[at] != to);
            block[at] = to;
            // A changed checksum field may still say the same number.
            if let Some(parsed) = Header::parse(&block) {
                prop_assert!((148..156).contains(&at));
                prop_assert_eq!(parsed, Header::parse(header.as_bytes()).unwrap());
            }
        }

        #[test]
        fn anything_is_survived(bytes in prop::collection::vec(any::<u8>(), BLOCK)) {
            let _ = Header::parse(&bytes.try_into().unwrap());
        }
    }
}
