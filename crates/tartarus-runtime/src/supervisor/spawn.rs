//! From `launch.json` to a hypervisor that runs: what it is handed, where it is locked up, and which process it is.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Given, Hypervisor, Launch};
use crate::cell::{self, Entry, Group, LastSteps, Layer};

/// Inherited descriptors are kept from here on, above all that the hypervisor finds its own under.
const ASIDE: RawFd = 200;
/// How much sooner than others the kernel ends a hypervisor when memory is short, of 1000.
const OOM_SCORE: &[u8] = b"500";

/// User ids that are tried: of each before the last, what an earlier owner left does not die.
const IDS: usize = 4;

/// A user id for the hypervisor and the control group of that id, where it gets them.
pub(super) fn claim(launch: &Launch) -> io::Result<(Option<cell::Uid>, Option<Group>)> {
    let (locks, groups) = match (&launch.hypervisor, &launch.cell) {
        (Hypervisor::Firecracker(jail), _) => (&jail.locks, &jail.groups),
        (Hypervisor::Qemu, Some(cell)) => (&cell.locks, &cell.groups),
        (Hypervisor::Qemu, None) => return Ok((None, None)),
    };
    let groups = Some(groups).filter(|_| launch.has(Layer::Limits));
    // Kept until one is found, so that the next is another.
    let mut taken = Vec::new();
    loop {
        let uid = cell::take(locks)?;
        match groups.zip(launch.limits.as_ref()).map(|(groups, limits)| groups.make(uid.number, limits)).transpose() {
            Ok(group) => return Ok((Some(uid), group)),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && taken.len() + 1 < IDS => taken.push(uid),
            Err(e) => return Err(e),
        }
    }
}

/// The way to where it is locked up.
pub(super) fn entry(launch: &Launch, uid: Option<&cell::Uid>, group: Option<&mut Group>) -> io::Result<Entry> {
    let last = LastSteps::new(launch.cell.as_ref(), launch.filtered)?;
    match (&launch.hypervisor, &launch.cell, uid) {
        (Hypervisor::Firecracker(jail), _, Some(uid)) => {
            Entry::into_jail(jail, uid.number, group, launch.network.is_some())
        }
        (Hypervisor::Qemu, Some(cell), Some(uid)) => Entry::into_cell(cell, uid.number, group, last),
        _ => Ok(Entry::Nowhere(last)),
    }
}

/// Moves inherited descriptors out of the way: the agent may have had one under the very number that another one, or a
/// socket, is to get.
pub(super) fn take(fds: &[(RawFd, RawFd)]) -> io::Result<Vec<(OwnedFd, RawFd)>> {
    let mut moved = Vec::new();
    for (from, to) in fds {
        if *from < 3 || !(*to == 0 || (3..ASIDE).contains(to)) {
            return Err(io::Error::other(format!("launch.json passes descriptor {from} on as {to}")));
        }
        // SAFETY: duplicating a number is harmless; one that is not open fails.
        let fd = unsafe { libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, ASIDE) };
        if fd < 0 {
            let cause = io::Error::last_os_error();
            return Err(io::Error::new(cause.kind(), format!("inherited descriptor {from}: {cause}")));
        }
        // SAFETY: it was just made, and nothing else knows it.
        moved.push((unsafe { OwnedFd::from_raw_fd(fd) }, *to));
    }
    let originals: BTreeSet<RawFd> = fds.iter().map(|(from, _)| *from).collect();
    for fd in originals {
        // SAFETY: it was passed to this process for this purpose; nothing here has opened or uses it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(moved)
}

/// Goes into the network namespace that was inherited under this number, and keeps nothing else of it.
pub(super) fn enter_network(number: RawFd) -> io::Result<()> {
    if number < 3 {
        return Err(io::Error::other(format!("launch.json passes the network on as descriptor {number}")));
    }
    // SAFETY: it was passed to this process for this purpose; nothing here has opened or uses it.
    let namespace = unsafe { OwnedFd::from_raw_fd(number) };
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("going into its network namespace: {e}")))
}

/// Opens a file for the hypervisor.
pub(super) fn open(file: &Given) -> io::Result<(OwnedFd, RawFd)> {
    let opened = File::options().read(true).write(file.write).open(&file.path);
    let opened = opened.map_err(|e| io::Error::new(e.kind(), format!("opening {}: {e}", file.path.display())))?;
    Ok((opened.into(), file.at))
}

/// Starts it. What this gives is the process that ends with it: itself, or the first one of its namespace.
pub(super) fn spawn(
    launch: &Launch,
    fds: Vec<(RawFd, RawFd)>,
    (entry, uid): (Entry, Option<&cell::Uid>),
    reader: RawFd,
    output: io::PipeWriter,
) -> io::Result<Child> {
    let argv = match (&launch.hypervisor, uid) {
        (Hypervisor::Firecracker(jail), Some(uid)) => {
            let file_bytes = launch.limits.as_ref().map_or(u64::MAX, |limits| limits.file_bytes);
            &jail.argv(&launch.argv, uid.number, file_bytes)?
        }
        _ => &launch.argv,
    };
    let (program, args) = argv.split_first().ok_or_else(|| io::Error::other("launch.json has no program"))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(launch.env.iter().cloned())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    // SAFETY: the closure only makes system calls; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            // What uses a host's memory up is some guest: it ends before whoever must clean up. Where this may not be said
            // the kernel goes by size alone.
            let score = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            if let Ok(score) = score {
                let _ = rustix::io::write(score, OOM_SCORE);
            }
            // Else this process itself would read what it writes.
            libc::close(reader);
            for (from, to) in &fds {
                // dup2 clears close-on-exec. The targets are standard input, or above every descriptor that this process
                // opened (see `qemu`), and below every inherited one.
                if libc::dup2(*from, *to) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            entry.enter()
        });
    }
    command.spawn().map_err(|e| io::Error::new(e.kind(), format!("{program}: {e}")))
}

/// The hypervisor's own process where `child` only stands for it; `None` when it has ended already.
pub(super) fn hypervisor(launch: &Launch, child: u32) -> Option<u32> {
    match launch.hypervisor {
        Hypervisor::Qemu => Some(child),
        Hypervisor::Firecracker(_) => match fs::read_to_string(format!("/proc/{child}/task/{child}/children")) {
            Ok(children) => children.split_whitespace().next()?.parse().ok(),
            // A kernel that does not list them.
            Err(_) => all_processes().find(|pid| parent(*pid) == Some(child)),
        },
    }
}

fn all_processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The second field after a name that may hold anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_its_parent() {
        let parent_of_this = std::os::unix::process::parent_id();
        assert_eq!(parent(std::process::id()), Some(parent_of_this));
        assert!(all_processes().any(|pid| pid == std::process::id()));
    }
}
