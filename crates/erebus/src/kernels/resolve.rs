//! Which modules a microVM needs, and in which order they must be loaded.

use std::collections::HashMap;

use super::collect::Collected;
use super::modinfo::Modinfo;
use crate::ErebusError;

/// What machine shape v1 needs: its bus, disks, guest channel and network card, and the file systems of a sandbox.
const NEEDED: [&str; 7] = ["virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "overlay", "squashfs", "ext4"];

/// What a machine with a vsock needs beside: its guest channel is a vsock where the hypervisor has no virtio-serial, as
/// Firecracker. QEMU has, so a package without it makes a kernel all the same.
const VSOCK: &str = "vmw_vsock_virtio_transport";

/// Most modules that are kept, and their bytes in all.
const MAX_KEPT: usize = 64;
const MAX_KEPT_BYTES: usize = 128 << 20;

/// A module that is kept.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
    /// Modules of the same set that must be loaded before.
    after: Vec<String>,
}

impl Module {
    /// Its file's name, in the store and in the guest.
    pub(super) fn file_name(&self) -> String {
        format!("{}.ko", self.name)
    }
}

/// Modules, each set in load order.
#[derive(Debug)]
pub(super) struct Modules {
    /// What every machine loads.
    pub(super) always: Vec<Module>,
    /// What one with a vsock loads after that.
    pub(super) vsock: Vec<Module>,
}

impl Modules {
    /// All of them, in load order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Module> {
        self.always.iter().chain(&self.vsock)
    }
}

/// The modules that are needed and all that those depend on.
///
/// # Errors
/// When one is neither in the tar nor built in, is damaged, or belongs to another kernel.
pub(super) async fn resolve(tar: &mut Collected) -> Result<Modules, ErebusError> {
    let mut found: HashMap<String, Module> = HashMap::new();
    let (mut wanted, mut bytes) = (Vec::new(), 0);
    for name in NEEDED {
        want(tar, name, "a microVM", &mut wanted)?;
    }
    let needed = wanted.clone();
    if tar.has(VSOCK) {
        wanted.push(VSOCK.to_owned());
    } else if !tar.is_builtin(VSOCK) {
        tracing::info!(
            release = tar.release,
            "the kernel has no {VSOCK}: it is for hypervisors with virtio-serial only"
        );
    }
    let first = wanted.clone();
    while let Some(name) = wanted.pop() {
        if found.contains_key(&name) {
            continue;
        }
        let content = tar.module(&name).await?;
        bytes += content.len();
        if found.len() >= MAX_KEPT || bytes > MAX_KEPT_BYTES {
            return Err(ErebusError::bad("the modules that a microVM needs depend on too many others"));
        }
        let Some(info) = Modinfo::parse(&content) else {
            return Err(ErebusError::bad(format!("the module {name} is damaged, or not for x86-64")));
        };
        if let Some(release) = info.release.filter(|release| *release != tar.release) {
            let kernel = &tar.release;
            return Err(ErebusError::bad(format!(
                "the module {name} was built for {release:.80}, the kernel is {kernel}"
            )));
        }
        let mut after = Vec::new();
        for dependency in &info.depends {
            want(tar, dependency, &name, &mut after)?;
        }
        let soft = info.before.iter().flat_map(|name| [name.clone(), generic(name)]);
        after.extend(soft.filter(|name| tar.has(name)));
        wanted.extend(after.iter().cloned());
        found.insert(name.clone(), Module { name, content, after });
    }
    let after = |name: &str| found.get(name).map(|module| module.after.clone()).unwrap_or_default();
    // What comes first is in order by itself, so that the second order begins with all of it.
    let (Some(always), Some(all)) = (order(&needed, after), order(&first, after)) else {
        return Err(ErebusError::bad("modules in the tar depend on each other in a circle"));
    };
    let mut take = |names: &[String]| names.iter().filter_map(|name| found.remove(name)).collect();
    Ok(Modules { always: take(&always), vsock: take(&all) })
}

/// A soft dependency may name what modules provide, such as `crypto-crc32c`; this one provides it on any processor.
/// Nothing in the guest would load it when it is asked for: ext4 as a module could not mount without it.
fn generic(name: &str) -> String {
    format!("{}_generic", name.strip_prefix("crypto_").unwrap_or(name))
}

/// Adds what is in the tar; what is built in needs nothing.
fn want(tar: &Collected, name: &str, by: &str, wanted: &mut Vec<String>) -> Result<(), ErebusError> {
    match (tar.has(name), tar.is_builtin(name)) {
        (true, _) => wanted.push(name.to_owned()),
        (false, true) => {}
        (false, false) => {
            return Err(ErebusError::bad(format!(
                "the module {name}, which {by} needs, is not in the tar, nor does modules.builtin list it"
            )));
        }
    }
    Ok(())
}

/// All of `first` and what they come after, each after all that it comes after; `None` when there is a circle.
fn order(first: &[String], after: impl Fn(&str) -> Vec<String>) -> Option<Vec<String>> {
    enum Step {
        Enter(String),
        Leave(String),
    }
    let (mut order, mut open) = (Vec::new(), Vec::new());
    let mut steps: Vec<Step> = first.iter().rev().cloned().map(Step::Enter).collect();
    while let Some(step) = steps.pop() {
        match step {
            Step::Leave(name) => {
                open.pop();
                order.push(name);
            }
            Step::Enter(name) if order.contains(&name) => {}
            Step::Enter(name) if open.contains(&name) => return None,
            Step::Enter(name) => {
                let before = after(&name);
                open.push(name.clone());
                steps.push(Step::Leave(name));
                steps.extend(before.into_iter().rev().map(Step::Enter));
            }
        }
    }
    Some(order)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after<'a>(edges: &'a [(&'a str, &'a [&'a str])]) -> impl Fn(&str) -> Vec<String> + 'a {
        move |name| {
            edges.iter().filter(|(n, _)| *n == name).flat_map(|(_, b)| b.iter().map(|s| s.to_string())).collect()
        }
    }

    #[test]
    fn dependencies_come_first() {
        let edges: &[(&str, &[&str])] = &[
            ("net", &["failover", "virtio"]),
            ("failover", &["core"]),
            ("virtio", &["ring"]),
            ("blk", &["virtio", "ring"]),
        ];
        let first = ["blk", "net"].map(String::from);
        assert_eq!(order(&first, after(edges)).unwrap(), ["ring", "virtio", "blk", "core", "failover", "net"]);
    }

    #[test]
    fn circles_are_found() {
        let first = ["a".to_owned()];
        assert_eq!(order(&first, after(&[("a", &["b"]), ("b", &["a"])])), None);
        assert_eq!(order(&first, after(&[("a", &["a"])])), None);
    }

    proptest! {
        #[test]
        fn order_holds_or_there_is_a_circle(edges in prop::collection::vec((0_u8..12, 0_u8..12), 0..30)) {
            let before = |name: &str| -> Vec<String> {
                edges.iter().filter(|(a, _)| a.to_string() == name).map(|(_, b)| b.to_string()).collect()
            };
            let first: Vec<String> = (0..12).map(|n: u8| n.to_string()).collect();
            // Without circles: every edge that goes down.
            let acyclic = |name: &str| -> Vec<String> {
                let n: u8 = name.parse().unwrap();
                before(name).into_iter().filter(|b| b.parse::<u8>().unwrap() < n).collect()
            };
            let sorted = order(&first, acyclic).unwrap();
            prop_assert_eq!(sorted.len(), 12);
            if let Some(sorted) = order(&first, before) {
                let place = |n: u8| sorted.iter().position(|s| *s == n.to_string()).unwrap();
                prop_assert!(edges.iter().all(|(a, b)| place(*b) < place(*a)));
            } else {
                prop_assert!(edges.iter().any(|(a, b)| a <= b));
            }
        }
    }
}
