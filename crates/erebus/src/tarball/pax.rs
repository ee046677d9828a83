//! Extended headers of POSIX tars: records `LENGTH KEY=VALUE\n`. Pure.

/// What an extended header said, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<u32>,
    /// The file is stored as pieces with holes between them.
    pub(super) sparse: bool,
    /// Attributes that an image keeps. Others mean something on the host only, or something to the overlay.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    /// `None` when the records are damaged or a value is not what its key asks for.
    pub(super) fn parse(mut records: &[u8]) -> Option<Self> {
        let mut pax = Self::default();
        while !records.is_empty() {
            let digits = records.iter().position(|b| *b == b' ')?;
            let length: usize = decimal(&records[..digits])?.try_into().ok()?;
            let record = records.get(digits + 1..length)?.strip_suffix(b"\n")?;
            records = &records[length..];
            let equals = record.iter().position(|b| *b == b'=')?;
            pax.take(&record[..equals], &record[equals + 1..])?;
        }
        Some(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(name(value)?),
            b"linkpath" => self.link = Some(name(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?.try_into().ok()?),
            b"gid" => self.gid = Some(decimal(value)?.try_into().ok()?),
            b"mtime" => self.mtime = Some(seconds(value)?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                let Some(xattr) = key.strip_prefix(b"SCHILY.xattr.") else { return Some(()) };
                if (xattr.starts_with(b"user.") || xattr.starts_with(b"security.")) && !xattr.contains(&0) {
                    self.xattrs.retain(|(name, _)| name != xattr);
                    self.xattrs.push((xattr.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

fn name(value: &[u8]) -> Option<Vec<u8>> {
    (!value.contains(&0)).then(|| value.to_vec())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |n, b| match b {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// Whole seconds of a time such as `1600000000.25` or `-1.5`, clamped to 32 bits.
fn seconds(value: &[u8]) -> Option<u32> {
    let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let mut parts = value.splitn(2, |b| *b == b'.');
    let whole = decimal(parts.next()?)?;
    if !parts.next().unwrap_or_default().iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(if negative { 0 } else { u32::try_from(whole).unwrap_or(u32::MAX) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::write::record;
    use super::*;

    #[test]
    fn what_matters_is_taken() {
        let mut records = Vec::new();
        for (key, value) in [
            ("path", "a/ü"),
            ("linkpath", "../x"),
            ("size", "8589934592"),
            ("uid", "4000000000"),
            ("mtime", "1600000000.123456789"),
            ("atime", "whatever"),
            ("SCHILY.xattr.security.capability", "\u{1}=\n\u{0}"),
            ("SCHILY.xattr.trusted.overlay.opaque", "y"),
            ("comment", "hello"),
        ] {
            records.extend(record(key.as_bytes(), value.as_bytes()));
        }
        let pax = Pax::parse(&records).unwrap();
        assert_eq!(pax.path.as_deref(), Some("a/ü".as_bytes()));
        assert_eq!(pax.link.as_deref(), Some(&b"../x"[..]));
        assert_eq!((pax.size, pax.uid, pax.gid), (Some(1 << 33), Some(4_000_000_000), None));
        assert_eq!(pax.mtime, Some(1_600_000_000));
        assert_eq!(pax.xattrs, [(b"security.capability".to_vec(), b"\x01=\n\0".to_vec())]);
        assert!(!pax.sparse);
        assert!(Pax::parse(&record(b"GNU.sparse.major", b"1")).unwrap().sparse);
    }

    #[test]
    fn damaged_records_are_refused() {
        for bad in [
            &b"11 path=abc"[..],
            b"99 path=abc\n",
            b"5 path=abc\n",
            b"0 path=abc\n",
            b" path=abc\n",
            b"x path=abc\n",
            b"99999999999999999999 path=abc\n",
            b"10 pathabc\n",
            b"10 size=1x\n",
            b"9 size=-1\n",
            b"14 path=a\0b123\n",
            b"19 uid=99999999999\n",
            b"12 mtime=1.x\n",
        ] {
            assert_eq!(Pax::parse(bad), None, "{:?}", String::from_utf8_lossy(bad));
        }
        assert_eq!(Pax::parse(b"13 mtime=-1.5\n").unwrap_or_default().mtime, None, "the length is wrong on purpose");
        assert_eq!(Pax::parse(&record(b"mtime", b"-1.5")).unwrap().mtime, Some(0));
    }

    proptest! {
        #[test]
        fn anything_is_survived(bytes: Vec<u8>) {
            let _ = Pax::parse(&bytes);
        }

        #[test]
        fn a_cut_record_is_refused(value in "[a-z]{1,200}", cut in 0.0..1.0_f64) {
            let whole = record(b"path", value.as_bytes());
            let cut = 1 + ((whole.len() - 2) as f64 * cut) as usize;
            prop_assert_eq!(Pax::parse(&whole[..cut]), None);
        }
    }
}
