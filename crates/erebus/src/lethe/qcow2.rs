//! Writes an empty qcow2 file over a raw one: as QEMU's `docs/interop/qcow2.txt` describes version 3, and no more of it
//! than an overlay needs. Nothing here reads qcow2.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// One cluster of the first table: each of its 8192 entries stands for a table of 8192 clusters.
const MOST: u64 = (CLUSTER / 8) * (CLUSTER / 8) * CLUSTER;

/// Longest name of a backing file that the format allows, bytes.
const MAX_NAME: usize = 1023;

/// Where things are, in clusters.
const REFCOUNT_TABLE: u64 = 1;
const REFCOUNT_BLOCK: u64 = 2;
const L1_TABLE: u64 = 3;
const CLUSTERS: u64 = 4;

const HEADER_LENGTH: u32 = 104;
const BACKING_FORMAT: u32 = 0xE279_2ACA;

/// Makes of `target`, which is empty, an overlay over the raw file `backing` of `size` bytes. Returns the bytes written.
pub(super) fn write_overlay(target: &File, backing: &Path, size: u64) -> io::Result<u64> {
    let header = header(backing, size)?;
    target.set_len(CLUSTERS * CLUSTER)?;
    target.write_all_at(&header, 0)?;
    target.write_all_at(&(REFCOUNT_BLOCK * CLUSTER).to_be_bytes(), REFCOUNT_TABLE * CLUSTER)?;
    // The four clusters that there are, each used once. The rest is zeros: the first table has nothing yet.
    let refcounts = 1_u16.to_be_bytes().repeat(CLUSTERS as usize);
    target.write_all_at(&refcounts, REFCOUNT_BLOCK * CLUSTER)?;
    Ok((header.len() + 8 + refcounts.len()) as u64)
}

fn header(backing: &Path, size: u64) -> io::Result<Vec<u8>> {
    let refuse = |why: &str| Err(io::Error::new(ErrorKind::InvalidInput, why.to_owned()));
    let name = backing.as_os_str().as_bytes();
    if !backing.is_absolute() {
        return refuse("the path of the golden layer is not absolute");
    }
    if name.len() > MAX_NAME {
        return refuse("the path of the golden layer is longer than 1023 bytes");
    }
    if size == 0 || !size.is_multiple_of(512) || size > MOST {
        return refuse("the golden layer's size is not one of whole sectors up to 4 TiB");
    }
    let entries = size.div_ceil(CLUSTER / 8 * CLUSTER) as u32;
    let extensions: [&[u8]; 4] = [&BACKING_FORMAT.to_be_bytes(), &3_u32.to_be_bytes(), b"raw\0\0\0\0\0", &[0; 8]];
    let extensions = extensions.concat();
    let name_at = u64::from(HEADER_LENGTH) + extensions.len() as u64;
    let header: [&[u8]; 18] = [
        b"QFI\xfb",
        &3_u32.to_be_bytes(),
        &name_at.to_be_bytes(),
        &(name.len() as u32).to_be_bytes(),
        &CLUSTER_BITS.to_be_bytes(),
        &size.to_be_bytes(),
        // No encryption.
        &0_u32.to_be_bytes(),
        &entries.to_be_bytes(),
        &(L1_TABLE * CLUSTER).to_be_bytes(),
        &(REFCOUNT_TABLE * CLUSTER).to_be_bytes(),
        // Clusters of the refcount table.
        &1_u32.to_be_bytes(),
        // No snapshots, and so no table of them.
        &0_u32.to_be_bytes(),
        &0_u64.to_be_bytes(),
        // Features: incompatible, compatible, autoclear.
        &[0; 24],
        // Refcounts have 1 << 4 bits.
        &4_u32.to_be_bytes(),
        &HEADER_LENGTH.to_be_bytes(),
        &extensions,
        name,
    ];
    Ok(header.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_laid_out_as_described() {
        let header = header(Path::new("/a/layer"), 1 << 30).unwrap();
        let number = |at: usize, len: usize| header[at..at + len].iter().fold(0_u64, |n, &b| n << 8 | u64::from(b));
        assert_eq!(&header[..4], b"QFI\xfb");
        assert_eq!((number(4, 4), number(20, 4), number(24, 8)), (3, 16, 1 << 30));
        assert_eq!((number(36, 4), number(40, 8), number(48, 8), number(56, 4)), (2, 3 << 16, 1 << 16, 1));
        assert_eq!((number(96, 4), number(100, 4)), (4, 104));
        let (name_at, len) = (number(8, 8) as usize, number(16, 4) as usize);
        assert_eq!(&header[name_at..], b"/a/layer");
        assert_eq!((len, number(104, 4), number(108, 4)), (8, 0xE279_2ACA, 3));
        assert_eq!(&header[112..128], b"raw\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = |n: usize| format!("/{}", "x".repeat(n - 1));
        assert!(header(Path::new(&long(1023)), 512).is_ok());
        assert!(header(Path::new(&long(1024)), 512).is_err());
        assert!(header(Path::new("layer"), 512).is_err());
        for (size, fits) in [(0, false), (511, false), (512, true), (4 << 40, true), ((4 << 40) + 512, false)] {
            assert_eq!(header(Path::new("/l"), size).is_ok(), fits, "{size}");
        }
    }
}
