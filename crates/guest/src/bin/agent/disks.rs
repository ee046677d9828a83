//! Which disk is which: by the read-only flag that the hypervisor sets, never by order or content. The layer was written
//! by a tenant, who could put anything on it, and the order is the hypervisor's.

use std::fs;

use crate::errors::BootError;
use crate::uevents::Uevents;

/// The two disks of the machine shape, as device paths.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Disks {
    /// The read-only image.
    pub(crate) base: String,
    /// The sandbox's own writable layer.
    pub(crate) layer: String,
}

/// Finds the disks; waits for them when the drivers are not done yet.
pub(crate) fn find(uevents: &Uevents) -> Result<Disks, BootError> {
    match uevents.wait_for(|| assign(&list()).ok()) {
        Some(disks) => Ok(disks),
        None => assign(&list()),
    }
}

/// Every virtio disk and its read-only flag.
fn list() -> Vec<(String, bool)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let flag = |name: String| match fs::read_to_string(format!("/sys/block/{name}/ro")).as_deref().map(str::trim_end) {
        Ok("1") => Some((name, true)),
        Ok("0") => Some((name, false)),
        _ => None,
    };
    entries
        .filter_map(|entry| entry.file_name().into_string().ok().filter(|name| name.starts_with("vd")))
        .filter_map(flag)
        .collect()
}

fn assign(disks: &[(String, bool)]) -> Result<Disks, BootError> {
    let of = |wanted| disks.iter().filter(move |(_, read_only)| *read_only == wanted).map(|(name, _)| name);
    let (base, layer): (Vec<_>, Vec<_>) = (of(true).collect(), of(false).collect());
    match (base.as_slice(), layer.as_slice()) {
        ([base], [layer]) => Ok(Disks { base: format!("/dev/{base}"), layer: format!("/dev/{layer}") }),
        _ => Err(BootError::Disks { read_only: base.len(), writable: layer.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(flags: &[bool]) -> Vec<(String, bool)> {
        "abcdefgh".chars().zip(flags).map(|(letter, flag)| (format!("vd{letter}"), *flag)).collect()
    }

    #[test]
    fn the_flag_decides_whatever_the_order() {
        let found = assign(&disks(&[true, false])).unwrap();
        assert_eq!(found, Disks { base: "/dev/vda".into(), layer: "/dev/vdb".into() });
        let found = assign(&disks(&[false, true])).unwrap();
        assert_eq!(found, Disks { base: "/dev/vdb".into(), layer: "/dev/vda".into() });
    }

    #[test]
    fn anything_but_one_of_each_is_refused_with_the_counts() {
        for flags in [&[][..], &[true], &[false], &[true, true], &[false, false], &[true, false, false]] {
            let error = assign(&disks(flags)).unwrap_err().to_string();
            let ones = flags.iter().filter(|flag| **flag).count();
            assert!(error.contains(&format!("found {ones} and {}", flags.len() - ones)), "{error}");
        }
    }
}
