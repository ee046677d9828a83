//! Gives the image's root directory to root.
//!
//! `sqfstar` 4.5.1 makes the root directory on its own, owned by whoever runs it and as old as the run, whatever its
//! options say: in the guest `/` would belong to some user, and no two imports would be alike. With `-noI` the inode and
//! id tables are not compressed, so the few bytes can be set where they lie. The layout is that of squashfs 4.0.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::ErebusError;

/// Bytes of a metadata block, after the two of its header.
const BLOCK: u64 = 8192;
/// In a block's header: it is not compressed.
const PLAIN: u16 = 1 << 15;
/// Types of an inode: directory, extended directory.
const DIRECTORIES: [u16; 2] = [1, 8];

/// Sets owner and group of the root directory to 0, and its time to 0. Blocks.
///
/// # Errors
/// When the file cannot be written, or is not what `sqfstar` makes.
pub(super) fn own(image: &Path) -> Result<(), ErebusError> {
    let file = OpenOptions::new().read(true).write(true).open(image).map_err(ErebusError::io("open the image"))?;
    match patch(&file).map_err(ErebusError::io("set the owner of the image's root"))? {
        Some(()) => Ok(()),
        None => Err(ErebusError::Tool { program: "sqfstar", said: "its output is of an unknown layout".into() }),
    }
}

fn patch(file: &File) -> io::Result<Option<()>> {
    let mut superblock = [0; 96];
    file.read_exact_at(&mut superblock, 0)?;
    let word = |at| u64_at(&superblock, at);
    if &superblock[..4] != b"hsqs" || superblock[28..32] != [4, 0, 0, 0] {
        return Ok(None);
    }
    let ids = u64::from(u16_at(&superblock, 26));
    let (root, id_table, inode_table) = (word(32), word(48), word(64));
    // The table's plain content is one stream; a reference is the start of a block in the file and a place in it.
    let (block, offset) = (root >> 16, root & 0xffff);
    if block % (BLOCK + 2) != 0 || offset >= BLOCK {
        return Ok(None);
    }
    let at = block / (BLOCK + 2) * BLOCK + offset;
    let Some(zero) = find_root_id(file, id_table, ids)? else { return Ok(None) };
    let inode = Table { file, start: inode_table };
    let mut head = [0; 12];
    for (byte, at) in head.iter_mut().zip(at..) {
        let Some(place) = inode.place(at)? else { return Ok(None) };
        file.read_exact_at(std::slice::from_mut(byte), place)?;
    }
    if !DIRECTORIES.contains(&u16_at(&head, 0)) {
        return Ok(None);
    }
    // After type and mode: index of the owner, index of the group, time.
    head[4..6].copy_from_slice(&zero.to_le_bytes());
    head[6..8].copy_from_slice(&zero.to_le_bytes());
    head[8..12].copy_from_slice(&[0; 4]);
    for (byte, at) in head.iter().zip(at..) {
        let Some(place) = inode.place(at)? else { return Ok(None) };
        file.write_all_at(&[*byte], place)?;
    }
    Ok(Some(()))
}

/// Index of id 0 in the table of `ids` ids.
fn find_root_id(file: &File, table: u64, ids: u64) -> io::Result<Option<u16>> {
    let mut start = [0; 8];
    file.read_exact_at(&mut start, table)?;
    let table = Table { file, start: u64::from_le_bytes(start) };
    for index in 0..ids {
        // Four bytes never straddle two blocks.
        let Some(place) = table.place(index * 4)? else { return Ok(None) };
        let mut id = [0; 4];
        file.read_exact_at(&mut id, place)?;
        if id == [0; 4] {
            return Ok(u16::try_from(index).ok());
        }
    }
    Ok(None)
}

/// A table of plain metadata blocks, all but the last of them full.
struct Table<'a> {
    file: &'a File,
    start: u64,
}

impl Table<'_> {
    /// Where in the file the byte `at` of the table's content is; `None` in a compressed block.
    fn place(&self, at: u64) -> io::Result<Option<u64>> {
        let Some(block) = self.start.checked_add(at / BLOCK * (BLOCK + 2)) else { return Ok(None) };
        let mut header = [0; 2];
        self.file.read_exact_at(&mut header, block)?;
        Ok((u16::from_le_bytes(header) & PLAIN != 0).then_some(block + 2 + at % BLOCK))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
