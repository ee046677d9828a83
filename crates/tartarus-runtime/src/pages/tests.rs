//! Memory goes through a file and comes out the same, and no file does harm.

use std::os::fd::AsRawFd;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

use super::*;

fn memory(bytes: u64) -> File {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A mapping of this process's own.
struct Mapped(*mut u8, usize);

impl Mapped {
    fn new(pages: usize, file: Option<&File>) -> Self {
        let flags = if file.is_some() { libc::MAP_PRIVATE } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        let fd = file.map_or(-1, AsRawFd::as_raw_fd);
        let length = pages * PAGE;
        // With a page in front and behind that the kernel cannot merge with it.
        // SAFETY: a fresh reservation, and a mapping within it.
        let at = unsafe {
            let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let all = libc::mmap(std::ptr::null_mut(), length + 2 * PAGE, libc::PROT_NONE, nothing, -1, 0);
            assert_ne!(all, libc::MAP_FAILED);
            let inner = all.cast::<u8>().add(PAGE).cast();
            libc::mmap(inner, length, libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_FIXED, fd, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at.cast(), length)
    }

    fn page(&mut self, page: usize) -> &mut [u8] {
        assert!((page + 1) * PAGE <= self.1);
        // SAFETY: within the mapping, and borrowed as this is.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(page * PAGE), PAGE) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the reservation of `new`; nothing borrows from it any more.
        unsafe { libc::munmap(self.0.sub(PAGE).cast(), self.1 + 2 * PAGE) };
    }
}

#[test]
fn what_a_process_wrote_comes_back_and_zeros_take_no_room() {
    let pages = 3001;
    let mut mapped = Mapped::new(pages, None);
    let mut expected = vec![0; pages * PAGE];
    for page in [0, 1, 2, 700, 1500, 1501, 3000] {
        mapped.page(page).fill(page as u8 | 1);
        expected[page * PAGE..][..PAGE].fill(page as u8 | 1);
    }
    // Written, but zero; and only read.
    mapped.page(900).fill(0);
    assert_eq!(mapped.page(901)[7], 0);
    let packed = memory(5);
    let bytes = (pages * PAGE) as u64;
    let table = save(std::process::id(), bytes, packed.try_clone().unwrap()).unwrap();
    let run = |first, count| Run { first, count };
    assert_eq!(table.runs, [run(0, 3), run(700, 1), run(1500, 2), run(3000, 1)]);
    let packed = content(&packed);
    let target = memory(bytes);
    let digest = load_into(&packed[..], &target).unwrap();
    assert_eq!(digest, <[u8; 32]>::from(Sha256::digest(&packed)));
    assert!(content(&target) == expected);
}

#[test]
fn what_a_clone_wrote_includes_zeros_and_is_not_taken_for_a_whole_memory() {
    let pages = 2011;
    let base = memory((pages * PAGE) as u64);
    base.write_all_at(&vec![7; pages * PAGE], 0).unwrap();
    let mut mapped = Mapped::new(pages, Some(&base));
    mapped.page(3).fill(0);
    mapped.page(5)[1] = 9;
    assert_eq!(mapped.page(6)[1], 7);
    let packed = memory(0);
    let bytes = (pages * PAGE) as u64;
    let table = save(std::process::id(), bytes, packed.try_clone().unwrap()).unwrap();
    assert_eq!(table.runs, [Run { first: 3, count: 1 }, Run { first: 5, count: 1 }]);
    let mut from = packed.try_clone().unwrap();
    io::Seek::rewind(&mut from).unwrap();
    assert_eq!(read_table(&from, bytes).unwrap(), table);
    let error = load_into(&content(&packed)[..], &memory(bytes)).unwrap_err();
    assert!(matches!(&error, PagesError::Damaged(why) if why.contains("over a base")), "{error}");
}

#[test]
fn a_memory_that_is_not_there_is_an_error() {
    assert!(save(std::process::id(), 12_345 * PAGE as u64, memory(0)).is_err());
    assert!(save(u32::MAX, 4096, memory(0)).is_err());
}

/// A small packed memory of 16 pages.
fn packed(runs: Vec<Run>) -> Vec<u8> {
    let table = Table { memory_bytes: 16 * PAGE as u64, over_base: false, runs };
    let mut bytes = table.to_bytes();
    for page in 0..table.pages() {
        bytes.extend_from_slice(&[page as u8 + 1; PAGE]);
    }
    bytes
}

fn run(first: u64, count: u64) -> Run {
    Run { first, count }
}

#[test]
fn tables_that_no_writer_makes_are_refused() {
    let size = 16 * PAGE as u64;
    assert!(load_into(&packed(vec![run(0, 16)])[..], &memory(size)).is_ok());
    assert!(load_into(&packed(vec![])[..], &memory(size)).is_ok());
    for bad in [
        vec![run(0, 17)],
        vec![run(16, 1)],
        vec![run(3, 0)],
        vec![run(2, 1), run(0, 1)],
        vec![run(0, 2), run(1, 2)],
        vec![run(0, 2), run(2, 2)],
    ] {
        let bytes = packed(bad.clone());
        assert!(matches!(load_into(&bytes[..], &memory(size)), Err(PagesError::Damaged(_))), "{bad:?}");
    }
    let mut overflows = packed(vec![run(1, 1)]);
    overflows[HEADER + 8..HEADER + 16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(load_into(&overflows[..], &memory(size)), Err(PagesError::Damaged(_))));
    let mut many = packed(vec![]);
    many[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(load_into(&many[..], &memory(size)), Err(PagesError::Damaged(_))));
    // Of another size of memory, or with something behind it.
    assert!(matches!(load_into(&packed(vec![])[..], &memory(size * 2)), Err(PagesError::Damaged(_))));
    let mut longer = packed(vec![run(1, 1)]);
    longer.push(0);
    assert!(matches!(load_into(&longer[..], &memory(size)), Err(PagesError::Damaged(_))));
    let file = memory(0);
    file.write_all_at(&longer, 0).unwrap();
    assert!(matches!(read_table(&file, size), Err(PagesError::Damaged(_))));
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    proptest::collection::vec(any::<bool>(), 16).prop_map(|written| {
        let mut runs: Vec<Run> = Vec::new();
        for (page, _) in written.iter().enumerate().filter(|(_, written)| **written) {
            match runs.last_mut() {
                Some(last) if last.first + last.count == page as u64 => last.count += 1,
                _ => runs.push(run(page as u64, 1)),
            }
        }
        runs
    })
}

proptest! {
    #[test]
    fn a_truncated_file_is_refused(runs in runs(), cut in any::<proptest::sample::Index>()) {
        let bytes = packed(runs);
        let cut = cut.index(bytes.len());
        let target = memory(16 * PAGE as u64);
        prop_assert!(matches!(load_into(&bytes[..cut], &target), Err(PagesError::Damaged(_))));
    }

    #[test]
    fn a_changed_file_is_refused_or_hashes_differently(
        runs in runs(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), 1_u8..), 1..4),
        in_front in any::<bool>(),
    ) {
        let bytes = packed(runs);
        let mut changed = bytes.clone();
        for (at, with) in changes {
            let range = if in_front { bytes.len().min(HEADER + 2 * RUN) } else { bytes.len() };
            changed[at.index(range)] ^= with;
        }
        prop_assume!(changed != bytes);
        let target = memory(16 * PAGE as u64);
        if let Ok(digest) = load_into(&changed[..], &target) {
            prop_assert_ne!(digest, <[u8; 32]>::from(Sha256::digest(&bytes)));
        }
        prop_assert_eq!(target.metadata().unwrap().len(), 16 * PAGE as u64);
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), table in any::<[(u8, u8); 4]>()) {
        let target = memory(16 * PAGE as u64);
        prop_assert!(load_into(&bytes[..], &target).is_err());
        let runs = table.map(|(first, count)| run(u64::from(first % 20), u64::from(count % 20))).to_vec();
        let _ = load_into(&packed(runs)[..], &target);
        prop_assert_eq!(target.metadata().unwrap().len(), 16 * PAGE as u64);
    }
}
