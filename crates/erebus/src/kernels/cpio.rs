//! Writes `newc` archives, the format in which a kernel takes its first root file system.

use std::io::{self, Write};

/// Kinds of an entry, as part of its mode.
pub(super) const FILE: u32 = 0o100_000;
pub(super) const DIR: u32 = 0o040_000;
pub(super) const CHAR: u32 = 0o020_000;

/// An archive in the making. Everything in it is root's, and of the beginning of time.
pub(super) struct Cpio<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Cpio<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Adds an entry. `mode` holds kind and permissions, `device` major and minor number of a device file.
    pub(super) fn add(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let size =
            u32::try_from(content.len()).map_err(|_| io::Error::other("a file is too large for an initramfs"))?;
        let links = if mode & DIR == DIR { 2 } else { 1 };
        self.entry(path, [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1], content)
    }

    /// Ends the archive and gives the writer back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], b"")?;
        Ok(self.out)
    }

    /// Fields: inode, mode, uid, gid, links, mtime, size, device's major and minor, major and minor that it stands for.
    fn entry(&mut self, path: &str, fields: [u32; 11], content: &[u8]) -> io::Result<()> {
        // The length of the name counts its NUL; the last field is a checksum that this variant does not have.
        let name = path.len() + 1;
        write!(self.out, "070701")?;
        for field in fields.into_iter().chain([name as u32, 0]) {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(&[0; 4][..1 + padding(110 + name)])?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; 4][..padding(content.len())])
    }
}

/// Zeros up to the next multiple of 4.
fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}
