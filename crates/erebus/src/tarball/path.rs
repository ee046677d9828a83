//! Paths of a tar made clean. Pure.

use super::MAX_PATH;
use crate::ErebusError;
use crate::error::shown;

/// Longest name between two slashes, bytes.
const MAX_NAME: usize = 255;

/// The path without leading slashes, `.` and doubled or trailing slashes; empty for the root.
///
/// # Errors
/// When it goes up with `..`, or is longer than a kernel takes.
pub(super) fn clean(raw: &[u8]) -> Result<Vec<u8>, ErebusError> {
    let names: Vec<&[u8]> = raw.split(|b| *b == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) {
        return Err(ErebusError::bad(format!("the path {} in the tar goes up with \"..\"", shown(raw))));
    }
    let path = names.join(&b'/');
    if path.len() > MAX_PATH || names.iter().any(|name| name.len() > MAX_NAME) {
        return Err(ErebusError::bad(format!("the path {} in the tar is too long", shown(raw))));
    }
    Ok(path)
}

/// A symbolic link's target: kept as it stands, since it is resolved in the guest and nowhere else.
pub(super) fn target(link: Vec<u8>, path: &[u8]) -> Result<Vec<u8>, ErebusError> {
    match link.len() {
        1..=MAX_PATH => Ok(link),
        n => Err(ErebusError::bad(format!("the target of the link {} has {n} bytes", shown(path)))),
    }
}

/// The path of the directory that holds this one; `None` for what is in the root.
pub(crate) fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|b| *b == b'/').map(|slash| &path[..slash])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn clean_paths() {
        for (raw, path) in
            [("./", ""), ("/", ""), ("./a//b/./c/", "a/b/c"), ("/etc/passwd", "etc/passwd"), ("..a/b..", "..a/b..")]
        {
            assert_eq!(clean(raw.as_bytes()).unwrap(), path.as_bytes(), "{raw}");
        }
        for bad in ["..", "../a", "a/../b", "a/..", "./../x", "/.."] {
            assert!(clean(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(clean(&[b'x'; 256]).is_err());
        assert!(clean(&b"x/".repeat(2100)).is_err());
        assert_eq!(parent(b"a/b/c"), Some(&b"a/b"[..]));
        assert_eq!(parent(b"a"), None);
    }

    proptest! {
        #[test]
        fn a_clean_path_stays_inside(raw: Vec<u8>) {
            if let Ok(path) = clean(&raw) {
                prop_assert!(!path.starts_with(b"/") && !path.ends_with(b"/"));
                prop_assert!(path.is_empty() || path.split(|b| *b == b'/').all(|n| !matches!(n, b"" | b"." | b"..")));
                prop_assert_eq!(clean(&path).unwrap(), path);
            }
        }
    }
}
