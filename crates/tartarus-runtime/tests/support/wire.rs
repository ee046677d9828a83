//! A network of a test: a namespace with a TAP, and nothing that leads anywhere else.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use tartarus_runtime::Network;

/// This side's address; the guest's is the other of its /30.
pub(crate) const HERE: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 253);
/// Where somebody sends everything back.
pub(crate) const ECHO: u16 = 7;

/// A namespace in which somebody answers.
pub(crate) struct Wire {
    pub(crate) network: Network,
    /// The namespace's.
    pub(crate) inode: u64,
}

impl Wire {
    /// Its TAP is left to a hypervisor that opens it by its name, as the node leaves it.
    pub(crate) fn left(&mut self) -> Network {
        let tap = self.network.tap.take().unwrap();
        // SAFETY: the call takes a number.
        assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) }, 0);
        self.network.clone()
    }
}

/// Makes one, its TAP with these flags beside the usual; `None`, said in one line, where that cannot be.
pub(crate) fn wire(flags: libc::c_int) -> Option<Wire> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make networks");
        return None;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: there is no /dev/net/tun");
        return None;
    }
    // A thread of its own, so that the test's stays where it is.
    Some(std::thread::spawn(move || make(flags)).join().unwrap())
}

fn make(flags: libc::c_int) -> Wire {
    // SAFETY: a system call on numbers; only this thread goes elsewhere.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as libc::c_short;
    // SAFETY: it reads and writes an `ifreq` that lives until it returns.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }, 0);
    let address = format!("{HERE}/30");
    for args in [["addr", "add", &address, "dev", "tap0"].as_slice(), &["link", "set", "tap0", "up"]] {
        assert!(std::process::Command::new("busybox").arg("ip").args(args).status().unwrap().success(), "{args:?}");
    }
    let namespace: OwnedFd = File::open("/proc/thread-self/ns/net").unwrap().into();
    let listener = TcpListener::bind((HERE, ECHO)).unwrap();
    std::thread::spawn(move || echo(&listener));
    let inode = rustix::fs::fstat(&namespace).unwrap().st_ino;
    Wire { network: Network { namespace: Arc::new(namespace), tap: Some(Arc::new(tap.into())) }, inode }
}

fn echo(listener: &TcpListener) {
    for stream in listener.incoming() {
        let (Ok(mut stream), mut all) = (stream, Vec::new()) else { return };
        let _ = stream.read_to_end(&mut all).and_then(|_| stream.write_all(&all));
        let _ = stream.shutdown(Shutdown::Write);
    }
}
