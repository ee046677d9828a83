//! The way into a cell, between fork and exec. Every step is here, in this order, and why; a failure ends the start.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, CWD, FileType, Mode, chownat, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid, getrlimit, set_parent_process_death_signal, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};
use seccompiler::BpfProgram;

use super::{Cell, Group, Layer, filter};

/// Everything that the way takes, prepared before the fork: after it nothing is allocated.
#[derive(Debug)]
pub(crate) struct Way {
    root: CString,
    proc: CString,
    device: Option<Device>,
    uid: u32,
    /// Of its control group.
    doors: Vec<OwnedFd>,
    /// The longest file that it may make.
    file_bytes: Option<u64>,
    without: Vec<Layer>,
}

/// A node that is made in the cell, for its user alone: on the host it may be root's.
#[derive(Debug)]
struct Device {
    /// The folder that it is put into, under a file system of its own.
    folder: CString,
    node: CString,
    /// What is there else.
    null: CString,
    number: rustix::fs::Dev,
}

impl Way {
    pub(super) fn new(cell: &Cell, uid: u32, group: Option<&mut Group>) -> io::Result<Self> {
        let device = match &cell.device {
            None => None,
            Some(device) => {
                let inside = cell.root.join(device.strip_prefix("/").map_err(io::Error::other)?);
                let folder = inside.parent().unwrap_or(&cell.root);
                let number = std::fs::metadata(device)?.rdev();
                let null = path(&folder.join("null"))?;
                Some(Device { folder: path(folder)?, node: path(&inside)?, null, number })
            }
        };
        let file_bytes = group.as_ref().map(|group| group.file_bytes());
        let doors = group.map(Group::doors).unwrap_or_default();
        Ok(Self {
            file_bytes,
            root: path(&cell.root)?,
            proc: path(&cell.root.join("proc"))?,
            device,
            uid,
            doors,
            without: cell.without.clone(),
        })
    }

    /// Goes into the cell. Only for a child between fork and exec: nothing that its parent opened or mapped is changed.
    ///
    /// # Errors
    /// The step that failed is written to standard error.
    pub(super) fn enter(&self) -> io::Result<()> {
        join(&self.doors)?;
        if let Some(bytes) = self.file_bytes {
            // And no core: it has the guest's memory in it.
            step("its longest file", limit(Resource::Fsize, bytes).and_then(|()| limit(Resource::Core, 0)))?;
        }
        alone(|layer| self.has(layer))?;
        self.files()?;
        self.lose_privileges()
    }

    fn has(&self, layer: Layer) -> bool {
        !self.without.contains(&layer)
    }

    fn files(&self) -> io::Result<()> {
        if !self.has(Layer::Files) {
            return Ok(());
        }
        // A mount of its own, so that it can be read-only and be the root.
        step("its file system", mount_bind(&self.root, &self.root))?;
        if let Some(Device { folder, node, null, number }) = &self.device {
            let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
            step("its device", mount(c"tmpfs", folder, c"tmpfs", flags, c"size=16k,mode=755"))?;
            let private = Mode::RUSR | Mode::WUSR;
            step("its device", mknodat(CWD, node, FileType::CharacterDevice, private, *number))?;
            let file = FileType::RegularFile;
            step("its device", mknodat(CWD, null, file, Mode::RUSR | Mode::RGRP | Mode::ROTH, 0))?;
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.uid));
            step("its device", chownat(CWD, node, Some(uid), Some(gid), AtFlags::empty()))?;
        }
        // For `/proc/self/fd`, by which it opens what it was handed. Of processes, and of those only its own.
        mount_proc(&self.proc, if self.has(Layer::Processes) { c"subset=pid,hidepid=2" } else { c"" })?;
        let closed = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        if self.has(Layer::ReadOnly) {
            step("read-only", mount_remount(&self.root, closed, c""))?;
        }
        step("its root", rustix::process::chdir(&self.root))?;
        // The old root lies over the new one then, and is taken away.
        step("its root", rustix::process::pivot_root(c".", c"."))?;
        step("the host's file system", unmount(c".", UnmountFlags::DETACH))?;
        step("its folder", rustix::process::chdir(c"/"))
    }

    fn lose_privileges(&self) -> io::Result<()> {
        if self.has(Layer::Groups) {
            step("groups", set_thread_groups(&[]))?;
        }
        if self.has(Layer::Capabilities) {
            bound(CapabilitySet::empty())?;
        }
        if self.has(Layer::User) {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.uid));
            step("group", set_thread_res_gid(gid, gid, gid))?;
            step("user", set_thread_res_uid(uid, uid, uid))?;
        }
        if self.has(Layer::Keyring) {
            step("keyring", new_keyring())?;
        }
        if self.has(Layer::Capabilities) { keep(CapabilitySet::empty()) } else { Ok(()) }
    }
}

/// A tighter limit of the server's own stays.
fn limit(resource: Resource, to: u64) -> rustix::io::Result<()> {
    let to = getrlimit(resource).maximum.map_or(to, |own| own.min(to));
    setrlimit(resource, Rlimit { current: Some(to), maximum: Some(to) })
}

/// Joins a control group. Before the namespace, of which the group is to be the root. "0" is the writer itself: in version
/// 1 a thread, which takes no lock of the whole host, as moving a process does for 6 to 15 ms.
pub(super) fn join(doors: &[OwnedFd]) -> io::Result<()> {
    let join = |door: &OwnedFd| rustix::io::write(door, b"0").map(drop);
    step("its control group", doors.iter().try_for_each(join))
}

/// Namespaces of its own, but for that of processes, into which one must be born; of mounts those that it has there alone.
pub(super) fn alone(has: impl Fn(Layer) -> bool) -> io::Result<()> {
    let each = [
        (Layer::Files, UnshareFlags::NEWNS),
        (Layer::Network, UnshareFlags::NEWNET),
        (Layer::Ipc, UnshareFlags::NEWIPC),
        (Layer::HostName, UnshareFlags::NEWUTS),
        (Layer::ControlGroups, UnshareFlags::NEWCGROUP),
    ];
    let flags = each.iter().filter(|(layer, _)| has(*layer)).fold(UnshareFlags::empty(), |all, (_, flag)| all | *flag);
    // SAFETY: it does not touch the table of descriptors, which is what the function is unsafe for.
    step("namespaces", unsafe { unshare_unsafe(flags) })?;
    if has(Layer::HostName) {
        step("its host name", rustix::system::sethostname(b"cell"))?;
    }
    if has(Layer::Files) {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        step("private mounts", mount_change(c"/", private))?;
    }
    Ok(())
}

/// With the usual options: of processes, and of those only its own.
pub(super) fn mount_proc(at: &CStr, options: &CStr) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    step("its processes", mount(c"proc", at, c"proc", flags, options))
}

/// Nothing that is run from here on can have other capabilities.
pub(super) fn bound(capabilities: CapabilitySet) -> io::Result<()> {
    for capability in CapabilitySet::all().difference(capabilities).iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Ok(()) | Err(Errno::INVAL) => {}
            failed => step("capabilities", failed)?,
        }
    }
    Ok(())
}

/// Gives up all other capabilities.
pub(super) fn keep(capabilities: CapabilitySet) -> io::Result<()> {
    step("capabilities", clear_ambient_capability_set())?;
    let (effective, permitted, inheritable) = (capabilities, capabilities, CapabilitySet::empty());
    step("capabilities", set_capabilities(None, CapabilitySets { effective, permitted, inheritable }))
}

/// Keys of whoever started the server would come along: who has a keyring has what is in it, whatever user it is.
pub(super) fn new_keyring() -> rustix::io::Result<()> {
    // SAFETY: a system call that takes no memory but a name, which may be none.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    match rustix::io::Errno::from_io_error(&io::Error::last_os_error()) {
        // A kernel without keys, or a filter by which the hypervisor cannot ask for one either.
        Some(Errno::NOSYS | Errno::PERM) if joined < 0 => Ok(()),
        Some(error) if joined < 0 => Err(error),
        _ => Ok(()),
    }
}

/// The step by which a hypervisor is kept from most system calls.
pub const FILTER: &str = "its filter of system calls";

/// What holds for every hypervisor, in a cell or not.
#[derive(Debug)]
pub(crate) struct LastSteps {
    filter: Option<BpfProgram>,
    no_new_privileges: bool,
}

impl LastSteps {
    pub(crate) fn new(cell: Option<&Cell>, filtered: bool) -> io::Result<Self> {
        let has = |layer| cell.is_none_or(|cell| !cell.without.contains(&layer));
        let filter = (filtered && has(Layer::SystemCalls)).then(filter::program).transpose()?;
        Ok(Self { filter, no_new_privileges: has(Layer::NoNewPrivileges) })
    }

    /// It ends with its supervisor, of which standard output is a pipe to. Only for a child between fork and exec.
    pub(crate) fn end_with_supervisor() -> io::Result<()> {
        // A change of user takes it away, so it comes after that.
        step("its end", set_parent_process_death_signal(Some(Signal::KILL)))?;
        // The supervisor may have died before that: then nobody would ever end this process. From another process namespace
        // it cannot be seen, but its end of the pipe can.
        let stdout = rustix::stdio::stdout();
        let mut pipe = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty())];
        step("its supervisor", poll(&mut pipe, Some(&rustix::time::Timespec::default())))?;
        if pipe[0].revents().contains(PollFlags::ERR) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    /// It gains nothing by running another program, and calls what it needs of the kernel. Comes last: what was done before
    /// could not be done then.
    pub(crate) fn confine(&self) -> io::Result<()> {
        if self.no_new_privileges {
            step("no new privileges", set_no_new_privs(true))?;
        }
        self.filter.as_ref().map_or(Ok(()), |filter| step(FILTER, filter::put_on(filter)))
    }
}

/// Says on standard error which step failed: the number alone is what a parent hears of.
pub(super) fn step<T>(what: &str, done: rustix::io::Result<T>) -> io::Result<T> {
    done.map_err(|error| {
        for part in ["a cell of its own: ", what, "\n"] {
            let _ = rustix::io::write(rustix::stdio::stderr(), part.as_bytes());
        }
        error.into()
    })
}

pub(super) fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
