//! Who a command runs as: resolves `NAME`, `UID`, `NAME:GROUP` or `UID:GID` against the image's `/etc/passwd` and
//! `/etc/group`. Pure: it gets the files' bytes, which the tenant wrote, and skips every line that it cannot read.
//!
//! The rules are those of container runtimes: digits are always an id; a uid without an entry has group 0 and home `/`;
//! supplementary groups come from `/etc/group` unless a group is named.

/// Most supplementary groups that are taken; the kernel's own limit is 65,536.
const MAX_GROUPS: usize = 1024;

/// What a process is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Home directory, an absolute path.
    pub(crate) home: String,
}

/// The user cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    /// No such user.
    #[error("user {0:?} is not in the image's /etc/passwd")]
    NoUser(String),
    /// No such group.
    #[error("group {0:?} is not in the image's /etc/group")]
    NoGroup(String),
    /// Empty, or an id that the kernel reserves.
    #[error("user {0:?} is neither a name nor an id")]
    Malformed(String),
}

/// Resolves `spec`; root when absent.
pub(crate) fn resolve(spec: Option<&str>, passwd: &[u8], group: &[u8]) -> Result<User, UserError> {
    let spec = spec.unwrap_or("0");
    let (name, wanted) = match spec.split_once(':') {
        Some((name, wanted)) => (name, Some(wanted)),
        None => (spec, None),
    };
    if name.is_empty() || wanted == Some("") {
        return Err(UserError::Malformed(spec.to_owned()));
    }
    let id = id(name, spec)?;
    let entry = entries(passwd).find(|fields| match id {
        Some(id) => number(fields.get(2)) == Some(id),
        None => fields.first() == Some(&name),
    });
    let Some(uid) = entry.as_ref().and_then(|fields| number(fields.get(2))).or(id) else {
        return Err(UserError::NoUser(name.to_owned()));
    };
    let gid = match wanted {
        Some(wanted) => named_group(wanted, spec, group)?,
        None => entry.as_ref().and_then(|fields| number(fields.get(3))).unwrap_or(0),
    };
    let groups = match (&entry, wanted) {
        (Some(fields), None) => memberships(fields[0], group),
        _ => Vec::new(),
    };
    let home = entry.as_ref().and_then(|fields| fields.get(5)).filter(|home| home.starts_with('/'));
    let home = home.map_or(if uid == 0 { "/root" } else { "/" }, |home| home);
    Ok(User { uid, gid, groups, home: home.to_owned() })
}

fn named_group(wanted: &str, spec: &str, group: &[u8]) -> Result<u32, UserError> {
    if let Some(id) = id(wanted, spec)? {
        return Ok(id);
    }
    let entry = entries(group).find(|fields| fields.first() == Some(&wanted));
    entry.and_then(|fields| number(fields.get(2))).ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

fn memberships(name: &str, group: &[u8]) -> Vec<u32> {
    entries(group)
        .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name)))
        .filter_map(|fields| number(fields.get(2)))
        .take(MAX_GROUPS)
        .collect()
}

/// An id when it is all digits; the largest one means "unchanged" to the kernel and is none.
fn id(text: &str, spec: &str) -> Result<Option<u32>, UserError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    number(Some(&text)).map(Some).ok_or_else(|| UserError::Malformed(spec.to_owned()))
}

fn number(field: Option<&&str>) -> Option<u32> {
    let digits = field.filter(|field| field.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|id| *id != u32::MAX)
}

fn entries(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    let lines = file.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nbad line\n\xff\xfe:x:1:1::/:\nworker:x:1000:1001:,,,:/home/worker:/bin/sh\nrelative:x:1002:1002::home:\nnoid:x:abc:1::/:\n";
    const GROUP: &[u8] = b"root:x:0:\ndisk:x:6:worker,other\nvideo:x:44:other,worker\nworkers:x:1001:\nbroken\n";

    fn user(spec: &str) -> Result<User, UserError> {
        resolve(Some(spec), PASSWD, GROUP)
    }

    #[test]
    fn names_ids_and_groups() {
        let root = User { uid: 0, gid: 0, groups: vec![], home: "/root".into() };
        assert_eq!(resolve(None, PASSWD, GROUP), Ok(root.clone()));
        assert_eq!(resolve(None, b"", b""), Ok(root), "an image without /etc");
        let worker = User { uid: 1000, gid: 1001, groups: vec![6, 44], home: "/home/worker".into() };
        assert_eq!(user("worker"), Ok(worker.clone()));
        assert_eq!(user("1000"), Ok(worker.clone()));
        assert_eq!(user("worker:disk"), Ok(User { gid: 6, groups: vec![], ..worker.clone() }));
        assert_eq!(user("1000:77"), Ok(User { gid: 77, groups: vec![], ..worker }));
        assert_eq!(user("4242"), Ok(User { uid: 4242, gid: 0, groups: vec![], home: "/".into() }));
        assert_eq!(user("relative").map(|user| user.home), Ok("/".into()));
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(user("nobody"), Err(UserError::NoUser("nobody".into())));
        assert_eq!(user("noid"), Err(UserError::NoUser("noid".into())));
        assert_eq!(user("worker:none"), Err(UserError::NoGroup("none".into())));
        for bad in ["", ":", "worker:", ":disk", "4294967295", "99999999999", "0:4294967295"] {
            assert_eq!(user(bad), Err(UserError::Malformed(bad.into())), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(spec in ".{0,12}", passwd in proptest::collection::vec(any::<u8>(), 0..300), lines in "([a-z0-9]{0,3}:?){0,40}") {
            let _ = resolve(Some(&spec), &passwd, lines.as_bytes());
            let _ = resolve(Some("a"), lines.as_bytes(), &passwd);
        }
    }
}
