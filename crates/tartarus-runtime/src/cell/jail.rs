//! The walls around Firecracker, of which its own jailer makes the innermost: it changes the root and the user, and makes
//! the nodes of devices. Everything that it leaves open is done here before it is run.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use rustix::thread::{CapabilitySet, set_no_new_privs, set_thread_groups};
use serde::{Deserialize, Serialize};

use super::enter::{alone, bound, join, keep, mount_proc, new_keyring, path, step};
use super::{Group, Groups, Layer, init, tap};

/// What the jailer calls its machine. Each has a folder of jails by itself, so that one name serves all.
const ID: &str = "vm";
/// Descriptors of a Firecracker at most: some dozen for each device and processor, and its connections.
const OPEN_FILES: u32 = 2048;

/// What the jailer takes to do its work, which it gives up with its user:
/// - `SYS_ADMIN`: to change its root;
/// - `MKNOD`: for the nodes of `/dev/kvm`, `/dev/net/tun` and `/dev/urandom`;
/// - `CHOWN`: to make folders, nodes and its copy of the program the hypervisor's;
/// - `DAC_OVERRIDE`: to make nodes in a root that is by then another user's;
/// - `SETUID` and `SETGID`: to become that user.
const JAILERS: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// How one Firecracker is locked up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jail {
    /// The jailer's program.
    pub jailer: PathBuf,
    /// The folder that the jailer puts jails into: this machine's alone, and nobody's but root's.
    pub base: PathBuf,
    /// The root of the jail below it.
    pub root: PathBuf,
    /// A folder of files that are locked, one for each user id in use.
    pub locks: PathBuf,
    /// Where its control group is made.
    pub groups: Groups,
    /// Files of the host that are seen in the root. Firecracker takes names, not descriptors.
    pub shared: Vec<Shared>,
    /// Which of [`Self::LAYERS`] it lacks: none, but in the test that shows what each is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Layer>,
}

/// A file that is seen in a jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Its path on the host.
    pub path: PathBuf,
    /// Its name in the root.
    pub name: String,
    /// It may be written: then it becomes the hypervisor's user's.
    pub write: bool,
}

impl Jail {
    /// What is done around the jailer and by nobody else. Its root and its user are the jailer's work, which also closes descriptors
    /// and gives up groups as we do, and the filter is Firecracker's.
    pub const LAYERS: [Layer; 11] = [
        Layer::Limits,
        Layer::ReadOnly,
        Layer::Processes,
        Layer::ProcessNamespace,
        Layer::Network,
        Layer::Ipc,
        Layer::HostName,
        Layer::ControlGroups,
        Layer::Capabilities,
        Layer::Keyring,
        Layer::NoNewPrivileges,
    ];

    /// Where the jailer puts the root for a program below `base`.
    pub fn root_of(base: &Path, program: &Path) -> PathBuf {
        base.join(program.file_name().unwrap_or_default()).join(ID).join("root")
    }

    /// The jailer's command line for a program and its arguments, and the longest file in bytes that it may make.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub(crate) fn argv(&self, argv: &[String], uid: u32, file_bytes: u64) -> io::Result<Vec<String>> {
        let text = |path: &Path| {
            let text = path.to_str().ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())));
            text.map(str::to_owned)
        };
        let (program, args) = argv.split_first().ok_or_else(|| io::Error::other("launch.json has no program"))?;
        let (jailer, base, uid) = (text(&self.jailer)?, text(&self.base)?, uid.to_string());
        let limits = [format!("no-file={OPEN_FILES}"), format!("fsize={file_bytes}")];
        let own = [
            &jailer,
            "--id",
            ID,
            "--exec-file",
            program,
            "--uid",
            &uid,
            "--gid",
            &uid,
            "--chroot-base-dir",
            &base,
            "--resource-limit",
            &limits[0],
            "--resource-limit",
            &limits[1],
            "--",
        ];
        Ok(own.into_iter().map(str::to_owned).chain(args.iter().cloned()).collect())
    }
}

/// Everything that the way takes, prepared before the fork: after it nothing is allocated.
#[derive(Debug)]
pub(crate) struct Way {
    /// Host's path, path in the jail, may be written.
    shared: Vec<(CString, CString, bool)>,
    dev: CString,
    proc: CString,
    uid: u32,
    /// Of its control group.
    doors: Vec<OwnedFd>,
    /// Its TAP is there already, in the network namespace that it is started in.
    networked: bool,
    without: Vec<Layer>,
}

impl Way {
    pub(super) fn new(jail: &Jail, uid: u32, group: Option<&mut Group>, networked: bool) -> io::Result<Self> {
        if let Some(layer) = jail.without.iter().find(|layer| !Jail::LAYERS.contains(layer)) {
            return Err(io::Error::other(format!(
                "{layer:?} is not ours alone around a jailer, and cannot be left out"
            )));
        }
        let mut shared = Vec::new();
        for file in &jail.shared {
            let failed = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", file.path.display()));
            let source = file.path.canonicalize().map_err(failed)?;
            let target = jail.root.join(&file.name);
            File::create_new(&target)?;
            if file.write {
                chown(&source, Some(uid), Some(uid)).map_err(failed)?;
                fs::set_permissions(&source, Permissions::from_mode(0o600)).map_err(failed)?;
            } else {
                readable(&source).map_err(failed)?;
            }
            shared.push((path(&source)?, path(&target)?, file.write));
        }
        let place = |name: &str| path(&jail.root.join(name));
        Ok(Self {
            shared,
            dev: place("dev")?,
            proc: place("proc")?,
            uid,
            doors: group.map(Group::doors).unwrap_or_default(),
            networked,
            without: jail.without.clone(),
        })
    }

    fn has(&self, layer: Layer) -> bool {
        !self.without.contains(&layer)
    }

    /// Goes to where the jailer is run.
    pub(super) fn enter(&self) -> io::Result<()> {
        join(&self.doors)?;
        init::stay_behind()?;
        // Firecracker opens its TAP by name, so it has to be where that is: it can make sockets there, and no capability
        // lets it change a link or rule.
        alone(|layer| self.has(layer) && !(self.networked && layer == Layer::Network))?;
        let tap = if self.networked { tap::give(self.uid) } else { tap::make(self.uid) };
        step("its TAP", tap.map_err(|e| rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO)))?;
        for (host, jail, write) in &self.shared {
            step("its files", mount_bind(host, jail))?;
            let read_only = if *write || !self.has(Layer::ReadOnly) { MountFlags::empty() } else { MountFlags::RDONLY };
            let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | read_only;
            step("its files", mount_remount(jail, flags, c""))?;
        }
        // Of its own, since the machine's folder may be where no devices are allowed.
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        step("its devices", mount(c"tmpfs", &self.dev, c"tmpfs", flags, c"size=16k,mode=755"))?;
        // For `/proc/self/fd`, by which it opens the memory that it was handed.
        mount_proc(&self.proc, if self.has(Layer::Processes) { c"subset=pid,hidepid=2" } else { c"" })?;
        // The jailer does it as well, but says nothing of it.
        step("groups", set_thread_groups(&[]))?;
        if self.has(Layer::Keyring) {
            step("keyring", new_keyring())?;
        }
        if self.has(Layer::Capabilities) {
            bound(JAILERS)?;
            keep(JAILERS)?;
        }
        if self.has(Layer::NoNewPrivileges) { step("no new privileges", set_no_new_privs(true)) } else { Ok(()) }
    }
}

/// Lets the hypervisor's user read a file, of whom nobody knows now who that will be. Where a folder above is closed to all
/// others that lets in nobody who was kept out; elsewhere it is for the file's owner to say.
fn readable(file: &Path) -> io::Result<()> {
    let mode = fs::metadata(file)?.mode();
    if mode & 0o004 != 0 {
        return Ok(());
    }
    let closed = |folder: &Path| fs::metadata(folder).is_ok_and(|folder| folder.mode() & 0o011 == 0);
    if file.ancestors().skip(1).any(closed) {
        return fs::set_permissions(file, Permissions::from_mode(mode | 0o004));
    }
    let why = "the hypervisor's user cannot read it: close its folder to others, or let everybody read it (chmod a+r)";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever adds an argument says why it is there.
    #[test]
    fn the_jailer_is_told_this() {
        let base = PathBuf::from("/d/jail");
        let root = Jail::root_of(&base, Path::new("/p/firecracker-v1"));
        assert_eq!(root, Path::new("/d/jail/firecracker-v1/vm/root"));
        let (jailer, locks) = ("/p/jailer-v1".into(), "/l".into());
        let groups = Groups::default();
        let jail = Jail { jailer, base, root, locks, groups, shared: Vec::new(), without: Vec::new() };
        let argv = ["/p/firecracker-v1", "--api-sock", "/run/api.sock"].map(str::to_owned);
        assert_eq!(
            jail.argv(&argv, 2_100_000_007, 77).unwrap().join(" "),
            "/p/jailer-v1 --id vm --exec-file /p/firecracker-v1 --uid 2100000007 --gid 2100000007 \
             --chroot-base-dir /d/jail --resource-limit no-file=2048 --resource-limit fsize=77 -- --api-sock /run/api.sock"
        );
        assert!(jail.argv(&[], 1, 77).is_err());
    }

    #[test]
    fn a_file_is_opened_to_others_only_where_they_do_not_come() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("base");
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        fs::write(&file, "").unwrap();
        set(&file, 0o400);
        set(dir.path(), 0o755);
        let refused = readable(&file).unwrap_err().to_string();
        assert!(refused.contains("chmod a+r"), "{refused}");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o400);
        // A group may come there.
        set(dir.path(), 0o750);
        assert!(readable(&file).is_err());
        set(dir.path(), 0o700);
        readable(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o404);
        set(dir.path(), 0o755);
        readable(&file).unwrap();
    }
}
