//! Memory that nobody can change any more: memfds with all four seals, named by what they hold.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// No writing, no other length, no other seals. `WRITE` also refuses shared writable mappings.
const ALL: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// A digest in hexadecimal digits.
pub(crate) fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reverse of [`hex`].
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    let pairs = text.as_bytes().as_chunks::<2>().0;
    if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

fn name(digest: &[u8; 32]) -> String {
    format!("tartarus-base-{}", hex(digest))
}

/// Memory of `bytes` that can still be written. All of it is allocated here, so that no clone is charged for a page that
/// it happens to read first.
pub(crate) fn unsealed(digest: &[u8; 32], bytes: u64) -> io::Result<File> {
    let memory = File::from(memfd_create(name(digest), MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    fallocate(&memory, FallocateFlags::empty(), 0, bytes)?;
    Ok(memory)
}

/// Seals it for ever.
pub(crate) fn seal(memory: File) -> io::Result<OwnedFd> {
    fcntl_add_seals(&memory, ALL)?;
    Ok(memory.into())
}

/// It has all four seals; only a memfd can have them.
pub(crate) fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(ALL))
}

/// Size in bytes of memory from elsewhere that is sealed and is called by that digest; why not otherwise.
pub(crate) fn identify(fd: &OwnedFd, digest: &[u8; 32]) -> Result<u64, String> {
    if !is_sealed(fd.as_fd()) {
        return Err("it is not sealed memory".to_owned());
    }
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|e| e.to_string())?;
    if target.to_str() != Some(&format!("/memfd:{} (deleted)", name(digest))) {
        return Err(format!("it is {}", target.display()));
    }
    let stat = rustix::fs::fstat(fd).map_err(|e| e.to_string())?;
    u64::try_from(stat.st_size).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn digests_go_to_text_and_back_and_nothing_else_does() {
        let digest = std::array::from_fn(|i| (i * 37) as u8);
        assert_eq!(unhex(&hex(&digest)), Some(digest));
        for bad in ["", "00", &hex(&digest).to_uppercase(), &"+1".repeat(32), &"é".repeat(32), &"0".repeat(65)] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_sealed_memory_of_that_name_is_identified() {
        let (digest, other) = ([1; 32], [2; 32]);
        let open = unsealed(&digest, 8192).unwrap();
        open.write_all_at(b"x", 8191).unwrap();
        assert!(identify(&open.try_clone().unwrap().into(), &digest).unwrap_err().contains("not sealed"));
        let sealed = seal(open.try_clone().unwrap()).unwrap();
        assert_eq!(identify(&sealed, &digest), Ok(8192));
        assert!(identify(&sealed, &other).unwrap_err().contains("memfd:tartarus-base-0101"));
        assert_eq!(open.write_at(b"y", 0).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let file = tempfile::tempfile().unwrap();
        assert!(identify(&file.into(), &digest).is_err());
        let partly = unsealed(&digest, 4096).unwrap();
        fcntl_add_seals(&partly, SealFlags::WRITE | SealFlags::GROW | SealFlags::SEAL).unwrap();
        assert!(identify(&partly.into(), &digest).is_err());
    }
}
