//! Puts entries out in GNU form, numeric owners only. Pure.
//!
//! For `sqfstar`, which of version 4.5.1 has these habits: a user name that the host knows wins over the numeric owner,
//! and `../` is cut off the target of a symbolic link that comes in an extended header. So neither is ever written.

use super::{BLOCK, Entry, Kind};

/// What ends a tar.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Zeros after a file of so many bytes.
pub(crate) fn padding(size: u64) -> &'static [u8] {
    &END[..(size.wrapping_neg() % BLOCK as u64) as usize]
}

/// All header blocks of an entry.
pub(crate) fn header(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK);
    let link: &[u8] = match &entry.kind {
        Kind::Symlink(target) | Kind::Hardlink(target) => target,
        _ => b"",
    };
    if !entry.xattrs.is_empty() && !matches!(entry.kind, Kind::Hardlink(_)) {
        let records =
            entry.xattrs.iter().flat_map(|(name, value)| record(&[b"SCHILY.xattr.", &name[..]].concat(), value));
        extension(&mut out, tar::EntryType::XHeader, &records.collect::<Vec<u8>>());
    }
    if entry.path.len() > 100 {
        extension(&mut out, tar::EntryType::GNULongName, &entry.path);
    }
    if link.len() > 100 {
        extension(&mut out, tar::EntryType::GNULongLink, link);
    }
    let mut header = tar::Header::new_gnu();
    let (kind, size) = match entry.kind {
        Kind::File(size) => (tar::EntryType::Regular, size),
        Kind::Dir => (tar::EntryType::Directory, 0),
        Kind::Symlink(_) => (tar::EntryType::Symlink, 0),
        Kind::Hardlink(_) => (tar::EntryType::Link, 0),
        Kind::Char(..) => (tar::EntryType::Char, 0),
        Kind::Block(..) => (tar::EntryType::Block, 0),
        Kind::Fifo => (tar::EntryType::Fifo, 0),
    };
    if let (Kind::Char(major, minor) | Kind::Block(major, minor), Some(gnu)) = (&entry.kind, header.as_gnu_mut()) {
        gnu.set_device_major(*major);
        gnu.set_device_minor(*minor);
    }
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_mtime(entry.mtime.into());
    copy(&mut header.as_old_mut().name, &entry.path);
    copy(&mut header.as_old_mut().linkname, link);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out
}

/// An extension header and its content.
fn extension(out: &mut Vec<u8>, kind: tar::EntryType, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    copy(&mut header.as_old_mut().name, b"extension");
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(content);
    out.extend_from_slice(padding(content.len() as u64));
}

/// As much of `text` as fits; the whole of a longer one is in an extension header.
fn copy(field: &mut [u8; 100], text: &[u8]) {
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text[..n]);
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
pub(super) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}
