//! Where in a package's file system kernel and modules are. Pure.

/// Names that must be looked for in other places of the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// A kernel; its release where the name has one.
    Kernel { release: Option<String> },
    /// A module, with the release of the folder it lies in.
    Module { name: String, release: Option<String> },
    /// The list of modules that are part of the kernel.
    Builtin { release: Option<String> },
}

/// What a file of this clean path is; `None` for all that is of no use.
pub(super) fn role(path: &[u8]) -> Option<Role> {
    let path = std::str::from_utf8(path).ok()?;
    let path = path.strip_prefix("usr/").filter(|rest| rest.starts_with("lib/modules/")).unwrap_or(path);
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    if folder.is_empty() || folder == "boot" {
        let rest = file.strip_prefix("vmlinuz").or_else(|| file.strip_prefix("vmlinux"))?;
        let release = match (folder, rest) {
            ("", "") => None,
            ("boot", rest) => Some(rest.strip_prefix('-')?.to_owned()),
            _ => return None,
        };
        return Some(Role::Kernel { release });
    }
    let release = match folder.strip_prefix("lib/modules/") {
        Some(rest) => Some(rest.split('/').next()?.to_owned()),
        None if folder == "modules" || folder.starts_with("modules/") => None,
        None => return None,
    };
    if file == "modules.builtin" {
        return Some(Role::Builtin { release });
    }
    Some(Role::Module { name: module_name(file)?, release })
}

/// The module in a file such as `virtio_blk.ko` or `virtio-rng.ko.xz`: the kernel takes `-` and `_` for the same.
pub(super) fn module_name(file: &str) -> Option<String> {
    let stem = [".xz", ".zst", ".gz"].iter().find_map(|packed| file.strip_suffix(packed)).unwrap_or(file);
    let name = stem.strip_suffix(".ko")?.replace('-', "_");
    is_module_name(&name).then_some(name)
}

/// A name that is safe in a path and in a list.
pub(super) fn is_module_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Names in `modules.builtin`, a path on each line.
pub(super) fn builtin(list: &str) -> impl Iterator<Item = String> {
    list.lines().filter_map(|line| module_name(line.rsplit('/').next()?.trim()))
}

/// `uname -r` looks like this.
pub(super) fn is_release(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(release: Option<&str>) -> Option<Role> {
        Some(Role::Kernel { release: release.map(Into::into) })
    }

    fn module(name: &str, release: Option<&str>) -> Option<Role> {
        Some(Role::Module { name: name.into(), release: release.map(Into::into) })
    }

    #[test]
    fn roles() {
        for (path, expected) in [
            ("boot/vmlinuz-6.1.0-1-cloud-amd64", kernel(Some("6.1.0-1-cloud-amd64"))),
            ("vmlinuz", kernel(None)),
            ("vmlinux", kernel(None)),
            ("boot/vmlinuz", None),
            ("boot/vmlinuz.old", None),
            ("vmlinuz.old", None),
            ("boot/efi/vmlinuz-6.1", None),
            ("boot/System.map-6.1", None),
            ("lib/modules/6.1/kernel/fs/ext4/ext4.ko", module("ext4", Some("6.1"))),
            ("usr/lib/modules/6.1/kernel/drivers/char/hw_random/virtio-rng.ko.xz", module("virtio_rng", Some("6.1"))),
            ("lib/modules/6.1/x.ko.zst", module("x", Some("6.1"))),
            ("modules/kernel/x.ko.gz", module("x", None)),
            ("modules/x.ko", module("x", None)),
            ("lib/modules/6.1/modules.builtin", Some(Role::Builtin { release: Some("6.1".into()) })),
            ("modules/modules.builtin", Some(Role::Builtin { release: None })),
            ("lib/modules/6.1/modules.order", None),
            ("usr/share/doc/x.ko", None),
            ("modules/a b.ko", None),
            ("modules/.ko", None),
            ("", None),
        ] {
            assert_eq!(role(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn builtin_names() {
        let list = "kernel/fs/ext4/ext4.ko\nkernel/crypto/crc32c-intel.ko\n\nnonsense\n";
        assert_eq!(builtin(list).collect::<Vec<_>>(), ["ext4", "crc32c_intel"]);
    }

    #[test]
    fn releases() {
        for good in ["6.1.0-56-cloud-amd64", "6.18.44+", "5.10~rc1"] {
            assert!(is_release(good), "{good}");
        }
        for bad in ["", "-6", ".", "a b", "6.1/..", "6.1\n", &"6".repeat(65)] {
            assert!(!is_release(bad), "{bad}");
        }
    }
}
