//! What other processes do in these tests, and what they share with the tests.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketType,
};
use sha2::{Digest, Sha256};
use tartarus_runtime::bases::{Base, BaseError, Bases};

use super::conformance::Subject;
use super::tiny::elf_machine;

/// Size of a base in these tests.
pub(crate) const SIZE: u64 = 64 << 20;
/// What all of them may take.
pub(crate) const BUDGET: u64 = 8 * SIZE;

/// A packed memory by the letter of the format's description, not by the product's code: one page of `content` at
/// the start and at the end.
pub(crate) fn packed(content: u8) -> Vec<u8> {
    let mut file = b"TARTPAGE".to_vec();
    for number in [1_u32, 4096] {
        file.extend_from_slice(&number.to_le_bytes());
    }
    for number in [SIZE, 0, 2, 0, 1, SIZE / 4096 - 1, 1] {
        file.extend_from_slice(&number.to_le_bytes());
    }
    file.extend_from_slice(&[content; 2 * 4096]);
    file
}

pub(crate) fn digest(packed: &[u8]) -> [u8; 32] {
    Sha256::digest(packed).into()
}

/// Gets base `number` from its file, which is written first.
pub(crate) async fn get(bases: &Bases, dir: &Path, number: u8) -> Result<Arc<Base>, BaseError> {
    let packed = packed(number);
    let path = dir.join(format!("packed-{number}"));
    std::fs::write(&path, &packed).unwrap();
    bases.get(&format!("base-{number}"), SIZE, digest(&packed), move || File::open(path)).await
}

pub(crate) fn inode(fd: &OwnedFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

/// Loads eight bases, prints their inodes and is killed.
pub(crate) fn agent(dir: &Path) -> i32 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let bases = Bases::open(dir, super::keeper(), BUDGET).await.unwrap();
        for number in 0..8 {
            println!("{}", inode(&get(&bases, dir, number).await.unwrap()));
        }
        io::stdout().flush().unwrap();
        // SAFETY: a system call on numbers.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
    1
}

/// Boots a Firecracker and is killed.
pub(crate) fn booter(dir: &Path) -> i32 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let driver = super::firecracker().await.unwrap();
        let subject = Subject { driver: &driver, machine: elf_machine };
        let _vm = subject.boot(dir).await;
        // SAFETY: a system call on numbers.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
    1
}

/// Tries everything that would change sealed memory, each in a line `what: error`.
pub(crate) fn intruder(fd: &Path) -> i32 {
    let fd: i32 = fd.to_str().unwrap().parse().unwrap();
    let length = SIZE as usize;
    let error = |failed: bool| if failed { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 };
    let path = std::ffi::CString::new(format!("/proc/self/fd/{fd}")).unwrap();
    let (shared, private) = (libc::MAP_SHARED, libc::MAP_PRIVATE);
    let both = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: system calls on numbers and a string that outlives them; what is mapped is only written where it says so.
    unsafe {
        let map = |fd, protection, flags| libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, 0);
        println!("uid: {}", libc::getuid());
        println!("write: {}", error(libc::pwrite(fd, b"x".as_ptr().cast(), 1, 0) < 0));
        println!("shrink: {}", error(libc::ftruncate(fd, 4096) < 0));
        println!("grow: {}", error(libc::ftruncate(fd, SIZE as i64 + 4096) < 0));
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        println!("punch: {}", error(libc::fallocate(fd, hole, 0, 4096) < 0));
        println!("map: {}", error(map(fd, both, shared) == libc::MAP_FAILED));
        // A shared mapping to read must not become one to write.
        let reading = map(fd, libc::PROT_READ, shared);
        println!("protect: {}", error(reading == libc::MAP_FAILED || libc::mprotect(reading, length, both) < 0));
        println!("seal: {}", error(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE) < 0));
        // Opened anew, as QEMU does: that works, and changes nothing.
        let again = libc::open(path.as_ptr(), libc::O_RDWR);
        println!("open: {}", error(again < 0));
        println!("write again: {}", error(libc::pwrite(again, b"x".as_ptr().cast(), 1, 0) < 0));
        println!("map again: {}", error(map(again, both, shared) == libc::MAP_FAILED));
        let truncating = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_TRUNC);
        println!("truncate: {}", error(truncating < 0));
        // What every clone does.
        let own = map(again, both, private);
        println!("map privately: {}", error(own == libc::MAP_FAILED));
        if own != libc::MAP_FAILED {
            own.cast::<u8>().write_volatile(0xee);
        }
    }
    0
}

/// A raw connection to the keeper in `dir`, which waits.
pub(crate) fn raw(dir: &Path) -> io::Result<OwnedFd> {
    let folder = File::open(dir)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/keeper.sock", folder.as_raw_fd()))?;
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Says something to a keeper; its answer, or nothing when it hangs up.
pub(crate) fn say(socket: &OwnedFd, text: &[u8]) -> String {
    let mut none = SendAncillaryBuffer::default();
    if rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(text)], &mut none, SendFlags::NOSIGNAL).is_err() {
        return String::new();
    }
    let mut bytes = vec![0; 65_536];
    let mut none = RecvAncillaryBuffer::default();
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut none, RecvFlags::empty());
    String::from_utf8_lossy(&bytes[..got.map_or(0, |got| got.bytes)]).into_owned()
}

/// Prints what a keeper says to another user.
pub(crate) fn stranger(dir: &Path) -> i32 {
    // SAFETY: it has no preconditions.
    let uid = unsafe { libc::getuid() };
    let said = raw(dir).map(|socket| say(&socket, b"\"list\""));
    println!("{uid} {said:?}");
    0
}

/// A supervisor whose kernel knows of no filters.
pub(crate) fn without_seccomp(dir: &Path) -> i32 {
    unfilter();
    tartarus_runtime::supervisor::main(dir)
}

/// Prints whether the program `program` could be run by an ordinary user, where the kernel knows of no filters.
pub(crate) fn tries_without_seccomp(program: &Path) -> i32 {
    unfilter();
    println!("{:?}", tartarus_runtime::cell::check_without_cell(program));
    0
}

/// From now on the kernel knows of no filters, as far as this process can tell.
fn unfilter() {
    use seccompiler::{SeccompAction, SeccompFilter, TargetArch, apply_filter};
    let rules = [(libc::SYS_seccomp, Vec::new())].into_iter().collect();
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, unknown, TargetArch::x86_64).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    apply_filter(&program).unwrap();
}
