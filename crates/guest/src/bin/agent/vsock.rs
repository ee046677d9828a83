//! Vsock, as much of it as the agent needs: to listen, and to know the host.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, bind, listen as listen_on, socket_with};

/// Hosts that wait at most: after a restore the next one may come before the end of the last one was seen.
const WAITING: i32 = 8;

/// An address: a machine and a port.
struct Address(libc::sockaddr_vm);

// SAFETY: `f` gets a pointer to a whole `sockaddr_vm`, which is what the kernel takes for this family, and it is valid as
// long as `self` is.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f((&raw const self.0).cast(), size_of::<libc::sockaddr_vm>() as SocketAddrLen)
    }
}

/// Listens on a port, whatever number this machine has: a clone may have another one than its snapshot.
pub(crate) fn listen(port: u32) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    bind(&socket, &address(libc::VMADDR_CID_ANY, port))?;
    listen_on(&socket, WAITING)?;
    Ok(socket)
}

/// Whether it is the host that connected. Where the kernel has a loopback for vsock, any program in the guest could.
pub(crate) fn is_host(peer: &SocketAddrAny) -> bool {
    let whole = peer.addr_len() as usize >= size_of::<libc::sockaddr_vm>();
    if peer.address_family() != AddressFamily::VSOCK || !whole {
        return false;
    }
    // SAFETY: the kernel wrote an address of this family, and as many bytes as it has.
    let peer = unsafe { peer.as_ptr().cast::<libc::sockaddr_vm>().read_unaligned() };
    peer.svm_cid == libc::VMADDR_CID_HOST
}

fn address(machine: u32, port: u32) -> Address {
    // SAFETY: all zero bytes are a valid `sockaddr_vm`.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (machine, port);
    Address(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_is_the_host() {
        assert!(is_host(&address(libc::VMADDR_CID_HOST, 5000).as_any()));
        for other in [libc::VMADDR_CID_ANY, libc::VMADDR_CID_HYPERVISOR, libc::VMADDR_CID_LOCAL, 3] {
            assert!(!is_host(&address(other, 5000).as_any()), "{other}");
        }
        let unix = rustix::net::SocketAddrUnix::new("/run/x").unwrap();
        assert!(!is_host(&unix.as_any()));
    }

    #[test]
    fn a_port_is_listened_on_once() {
        let first = match listen(70_000) {
            Ok(first) => first,
            Err(error) => return println!("skipped: this kernel has no vsock: {error}"),
        };
        assert_eq!(listen(70_000).err(), Some(Errno::ADDRINUSE));
        drop(first);
        assert!(listen(70_000).is_ok());
    }
}
