//! Reads tars that nobody trusts, entry by entry, as they come.
//!
//! Made for uploads: what it keeps in memory is bounded (the `tar` crate reads a long name of any length), every path is
//! a clean relative one, and whatever is damaged, cut off or not understood is refused, since guessing would make an
//! image that differs from its tar. [`mod@write`] puts entries out again in the one form that everybody reads alike.

mod header;
pub(crate) mod path;
mod pax;
pub(crate) mod write;

use header::Header;
use pax::Pax;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use crate::ErebusError;
use crate::error::shown;

/// Bytes of a block; everything in a tar is a multiple of it.
pub(crate) const BLOCK: usize = 512;
/// Longest path, bytes: the kernel's, without its NUL.
pub(crate) const MAX_PATH: usize = 4095;
/// Longest extended header, bytes: room for every attribute that a file may have.
const MAX_PAX: u64 = 1 << 20;
/// Bytes read at once.
const CHUNK: usize = 256 * 1024;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file of so many bytes, to be read with [`Tar::read`].
    File(u64),
    /// A directory.
    Dir,
    /// A symbolic link with its target as it stands.
    Symlink(Vec<u8>),
    /// Another name of an earlier entry, whose clean path this is.
    Hardlink(Vec<u8>),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What it is.
    pub(crate) kind: Kind,
    /// Its clean path: no leading slash, no `.`, no `..`; empty for the root.
    pub(crate) path: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Seconds since the epoch; earlier and later than 32 bits hold are clamped.
    pub(crate) mtime: u32,
    /// Extended attributes.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Most that a tar may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Entries.
    pub(crate) entries: u64,
    /// Bytes in all.
    pub(crate) bytes: u64,
}

/// A tar that is being read.
#[derive(Debug)]
pub(crate) struct Tar<R> {
    input: BufReader<R>,
    limits: Limits,
    entries: u64,
    bytes: u64,
    /// Bytes of the entry's file that were not read yet, and of the padding after it.
    left: u64,
    padding: u64,
}

/// What extension headers said about the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl<R: AsyncRead + Unpin> Tar<R> {
    pub(crate) fn new(input: R, limits: Limits) -> Self {
        let input = BufReader::with_capacity(CHUNK, input);
        Self { input, limits, entries: 0, bytes: 0, left: 0, padding: 0 }
    }

    /// The next entry; what was not read of the one before is skipped. `None` at the end of the tar, which must also be
    /// the end of the input.
    pub(crate) async fn next(&mut self) -> Result<Option<Entry>, ErebusError> {
        self.skip().await?;
        let mut extensions = Extensions::default();
        loop {
            let mut block = [0; BLOCK];
            match self.fill(&mut block).await? {
                BLOCK => {}
                0 if self.bytes == 0 => return Err(ErebusError::bad("the file is empty")),
                _ if self.entries == 0 && self.bytes < BLOCK as u64 => return Err(self.damaged()),
                _ => return Err(self.cut_off()),
            }
            if block == [0; BLOCK] {
                if extensions.path.is_some() || extensions.link.is_some() || extensions.pax.is_some() {
                    return Err(self.damaged());
                }
                self.only_zeros_follow().await?;
                return Ok(None);
            }
            let header = Header::parse(&block).ok_or_else(|| self.damaged())?;
            match header.flag {
                b'L' => extensions.path = Some(self.long_name(&header).await?),
                b'K' => extensions.link = Some(self.long_name(&header).await?),
                b'x' | b'X' => extensions.pax = Some(self.pax(&header).await?),
                b'g' => {
                    if self.pax(&header).await? != Pax::default() {
                        return Err(ErebusError::bad("the tar sets attributes for all of its entries: repack it"));
                    }
                }
                // A volume's label is a name for people.
                b'V' => self.expect(header.size)?,
                _ => return self.entry(&header, extensions).map(Some),
            }
            self.skip().await?;
        }
    }

    /// Reads the entry's file on; 0 at its end.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ErebusError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buffer[..most]).await.map_err(broken)?;
        if n == 0 {
            return Err(self.cut_off());
        }
        self.count(n)?;
        self.left -= n as u64;
        Ok(n)
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, ErebusError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(ErebusError::bad(format!("the tar has more than {} entries", self.limits.entries)));
        }
        let pax = extensions.pax.unwrap_or_default();
        let raw = pax.path.or(extensions.path).unwrap_or_else(|| header.path.clone());
        let path = path::clean(&raw)?;
        if pax.sparse || header.flag == b'S' {
            return Err(ErebusError::bad(format!(
                "{} is stored as a sparse file: repack the tar without --sparse",
                shown(&path)
            )));
        }
        let link = pax.link.or(extensions.link).unwrap_or_else(|| header.link.clone());
        let size = pax.size.unwrap_or(header.size);
        let kind = match header.flag {
            // Before there was a flag for directories, they were files with a slash at the end.
            0 | b'0' if raw.ends_with(b"/") && size == 0 => Kind::Dir,
            0 | b'0' | b'7' if !raw.ends_with(b"/") => Kind::File(size),
            b'1' => Kind::Hardlink(path::clean(&link)?),
            b'2' => Kind::Symlink(path::target(link, &path)?),
            b'3' | b'4' => {
                let (major, minor) = header.device.ok_or_else(|| self.damaged())?;
                if header.flag == b'3' { Kind::Char(major, minor) } else { Kind::Block(major, minor) }
            }
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            flag => {
                let flag = shown(&[flag]);
                return Err(ErebusError::bad(format!(
                    "{} is of the unknown kind {flag}: repack the tar",
                    shown(&path)
                )));
            }
        };
        if let Kind::File(size) = kind {
            self.expect(size)?;
        }
        Ok(Entry {
            kind,
            path,
            mode: header.mode,
            uid: pax.uid.unwrap_or(header.uid),
            gid: pax.gid.unwrap_or(header.gid),
            mtime: pax.mtime.unwrap_or(header.mtime),
            xattrs: pax.xattrs,
        })
    }

    async fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, ErebusError> {
        if header.size > MAX_PATH as u64 + 1 {
            return Err(ErebusError::bad(format!(
                "the tar has a path of {} bytes: {MAX_PATH} is the most",
                header.size
            )));
        }
        let mut name = self.extension(header.size).await?;
        if let Some(end) = name.iter().position(|b| *b == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    async fn pax(&mut self, header: &Header) -> Result<Pax, ErebusError> {
        if header.size > MAX_PAX {
            return Err(ErebusError::bad(format!("the tar has an extended header of {} bytes", header.size)));
        }
        let records = self.extension(header.size).await?;
        Pax::parse(&records).ok_or_else(|| self.damaged())
    }

    /// The whole content of an extension header, whose size was judged before.
    async fn extension(&mut self, size: u64) -> Result<Vec<u8>, ErebusError> {
        self.expect(size)?;
        let mut content = vec![0; size as usize];
        let mut at = 0;
        while at < content.len() {
            at += self.read(&mut content[at..]).await?;
        }
        Ok(content)
    }

    fn expect(&mut self, size: u64) -> Result<(), ErebusError> {
        if size > self.limits.bytes.saturating_sub(self.bytes) {
            return Err(self.too_large());
        }
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    async fn skip(&mut self) -> Result<(), ErebusError> {
        self.left += self.padding;
        self.padding = 0;
        if self.left == 0 {
            return Ok(());
        }
        let mut sink = vec![0; CHUNK];
        while self.read(&mut sink).await? > 0 {}
        Ok(())
    }

    async fn only_zeros_follow(&mut self) -> Result<(), ErebusError> {
        let mut chunk = vec![0; CHUNK];
        loop {
            match self.input.read(&mut chunk).await.map_err(broken)? {
                0 => return Ok(()),
                n if chunk[..n].iter().any(|b| *b != 0) => {
                    return Err(ErebusError::bad("something follows the end of the tar"));
                }
                n => self.count(n)?,
            }
        }
    }

    /// Fills the block, or as much of it as there is.
    async fn fill(&mut self, block: &mut [u8]) -> Result<usize, ErebusError> {
        let mut at = 0;
        while at < block.len() {
            match self.input.read(&mut block[at..]).await.map_err(broken)? {
                0 => break,
                n => at += n,
            }
        }
        self.count(at)?;
        Ok(at)
    }

    fn count(&mut self, n: usize) -> Result<(), ErebusError> {
        self.bytes += n as u64;
        if self.bytes > self.limits.bytes { Err(self.too_large()) } else { Ok(()) }
    }

    fn too_large(&self) -> ErebusError {
        ErebusError::bad(format!("the tar is larger than {} MiB", self.limits.bytes >> 20))
    }

    fn cut_off(&self) -> ErebusError {
        ErebusError::bad(format!("the tar is cut off after {} bytes: send it again", self.bytes))
    }

    fn damaged(&self) -> ErebusError {
        match self.entries {
            0 => ErebusError::bad("the file is no tar"),
            n => ErebusError::bad(format!("the tar is damaged after {n} entries, at byte {}", self.bytes)),
        }
    }
}

/// An error of the input. A decompressor's verdict on its file arrives as `InvalidData`.
fn broken(error: std::io::Error) -> ErebusError {
    match error.kind() {
        std::io::ErrorKind::InvalidData => ErebusError::bad(error.to_string()),
        _ => ErebusError::Upload(error),
    }
}

#[cfg(test)]
#[path = "tarball_tests.rs"]
mod tests;
