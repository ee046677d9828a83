//! The packed memory file: the pages of a machine's memory that it wrote, and nothing else.
//!
//! All numbers are little-endian.
//!
//! ```text
//! offset  size
//!      0     8  "TARTPAGE"
//!      8     4  version: 1
//!     12     4  page size: 4096
//!     16     8  size of the memory in bytes, a multiple of the page size
//!     24     4  0: what is not listed is zero; 1: it is what the machine's own base has
//!     28     4  0
//!     32     8  number of runs
//!     40  16*n  runs: first page, number of pages (at least 1); ascending, with a gap between one and the next
//!            …  the pages of the runs, in order, and then the end of the file
//! ```
//!
//! There is one file for a memory: a reader refuses everything that a writer would not have written.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

mod save;

pub use save::save;

/// Bytes of a page.
pub const PAGE: usize = 4096;
const MAGIC: [u8; 8] = *b"TARTPAGE";
const VERSION: u32 = 1;
const HEADER: usize = 40;
const RUN: usize = 16;
/// Bytes that are copied at a time.
const CHUNK: usize = 256 * PAGE;

/// Pages one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first, from the memory's start.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// What a packed memory file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Size of the memory in bytes.
    pub memory_bytes: u64,
    /// Pages that are not listed are those of the machine's base, not zero: the file alone is not the memory.
    pub over_base: bool,
    /// The pages, ascending.
    pub runs: Vec<Run>,
}

/// Why a packed memory file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// It is not one, or not whole.
    #[error("{0}")]
    Damaged(String),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn damaged<T>(why: impl Into<String>) -> Result<T, PagesError> {
    Err(PagesError::Damaged(why.into()))
}

impl Table {
    /// How many pages it lists.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// The length of its file in bytes.
    pub fn file_bytes(&self) -> u64 {
        (HEADER + self.runs.len() * RUN) as u64 + self.pages() * PAGE as u64
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.runs.len() * RUN);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(PAGE as u32).to_le_bytes());
        bytes.extend_from_slice(&self.memory_bytes.to_le_bytes());
        bytes.extend_from_slice(&u32::from(self.over_base).to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        bytes.extend_from_slice(&(self.runs.len() as u64).to_le_bytes());
        for run in &self.runs {
            bytes.extend_from_slice(&run.first.to_le_bytes());
            bytes.extend_from_slice(&run.count.to_le_bytes());
        }
        bytes
    }

    /// Reads header and table. Takes no more memory than the table of a memory of `memory_bytes`, whatever is read.
    fn read(reader: &mut impl Read, memory_bytes: u64) -> Result<Self, PagesError> {
        let header = exactly::<HEADER>(reader)?;
        let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if header[..8] != MAGIC {
            return damaged("it is not a packed memory file");
        }
        if u32_at(8) != VERSION {
            return damaged(format!("its version is {}, known is {VERSION}", u32_at(8)));
        }
        if u32_at(12) != PAGE as u32 {
            return damaged(format!("its pages have {} bytes, not {PAGE}", u32_at(12)));
        }
        let (size, _) = pair(&header[16..]);
        if size != memory_bytes || size % PAGE as u64 != 0 {
            return damaged(format!("its memory has {size} bytes, expected are {memory_bytes}"));
        }
        if u32_at(24) > 1 || u32_at(28) != 0 {
            return damaged("its header has unknown fields");
        }
        let (_, count) = pair(&header[24..]);
        let pages = size / PAGE as u64;
        let mut runs: Vec<Run> = Vec::new();
        // Exclusive; the next run begins behind it.
        let mut end = None;
        let mut left = count;
        let mut block = [0; 1024 * RUN];
        while left > 0 {
            let block = &mut block[..left.min(1024) as usize * RUN];
            fill(reader, block)?;
            left -= (block.len() / RUN) as u64;
            for entry in block.chunks_exact(RUN) {
                let (first, count) = pair(entry);
                let last = first.checked_add(count);
                // Each run takes a page, so what is kept here is bounded by the memory.
                let fits = count > 0 && last.is_some_and(|last| last <= pages) && end.is_none_or(|end| first > end);
                if !fits {
                    return damaged(format!("its table lists {count} pages from {first} after {end:?} of {pages}"));
                }
                end = last;
                runs.push(Run { first, count });
            }
        }
        Ok(Self { memory_bytes, over_base: u32_at(24) == 1, runs })
    }
}

/// Two numbers at the start of at least 16 bytes.
fn pair(bytes: &[u8]) -> (u64, u64) {
    let number = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    (number(0), number(8))
}

fn exactly<const N: usize>(reader: &mut impl Read) -> Result<[u8; N], PagesError> {
    let mut bytes = [0; N];
    fill(reader, &mut bytes)?;
    Ok(bytes)
}

fn fill(reader: &mut impl Read, bytes: &mut [u8]) -> Result<(), PagesError> {
    reader.read_exact(bytes).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => PagesError::Damaged("it is truncated".to_owned()),
        _ => PagesError::Io(e),
    })
}

/// Reads header and table of a file that holds a memory of `memory_bytes`, and holds its length against them. Where the
/// file's position is left is not defined.
///
/// # Errors
/// When it is not what a writer would have written.
pub fn read_table(file: &File, memory_bytes: u64) -> Result<Table, PagesError> {
    let table = Table::read(&mut io::BufReader::new(file), memory_bytes)?;
    let length = file.metadata()?.len();
    if length != table.file_bytes() {
        return damaged(format!("it has {length} bytes, not {}", table.file_bytes()));
    }
    Ok(table)
}

/// Unpacks a memory into `target`, which has the memory's size and reads as zero, and gives the SHA-256 of all that was
/// read. What was unpacked is worth nothing until the caller knows that hash.
///
/// # Errors
/// When the structure is not what a writer would have written, or it is over a base. Then `target` holds garbage.
pub fn load_into(reader: impl Read, target: &File) -> Result<[u8; 32], PagesError> {
    let mut reader = Hashing { reader, hash: Sha256::new() };
    let table = Table::read(&mut reader, target.metadata()?.len())?;
    if table.over_base {
        return damaged("it holds what changed over a base, not a whole memory");
    }
    let mut buffer = vec![0; CHUNK];
    for run in &table.runs {
        let (mut at, mut left) = (run.first * PAGE as u64, run.count * PAGE as u64);
        while left > 0 {
            let part = &mut buffer[..left.min(CHUNK as u64) as usize];
            fill(&mut reader, part)?;
            target.write_all_at(part, at)?;
            at += part.len() as u64;
            left -= part.len() as u64;
        }
    }
    match reader.read(&mut [0])? {
        0 => Ok(reader.hash.finalize().into()),
        _ => damaged("something follows its end"),
    }
}

struct Hashing<R> {
    reader: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
