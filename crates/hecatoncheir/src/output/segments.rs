//! Segment files of one stream: `stdout.START`, where START is the position of the first byte, in 20 digits. The first
//! segment is the head and stays; of the others the oldest go. The files are the whole truth: nothing else records how
//! long a log is, so there is nothing that a crash could leave inconsistent.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::LogLimits;

const NAMES: [&str; 2] = ["stdout", "stderr"];

/// A stored piece of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Segment {
    pub(super) fn end(self) -> u64 {
        self.start + self.len
    }
}

/// The file of the segment that begins at `start`.
pub(super) fn path(dir: &Path, stream: usize, start: u64) -> PathBuf {
    dir.join(format!("{}.{start:020}", NAMES[stream]))
}

/// The stored segments, in order. A missing folder holds none.
pub(super) fn list(dir: &Path, stream: usize) -> io::Result<Vec<Segment>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let start = name.to_str().and_then(|n| n.strip_prefix(NAMES[stream])?.strip_prefix('.')?.parse().ok());
        // A segment may be trimmed while the folder is read.
        if let (Some(start), Ok(meta)) = (start, entry.metadata()) {
            segments.push(Segment { start, len: meta.len() });
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// Appends to a stream and trims it.
pub(super) struct StreamWriter {
    dir: PathBuf,
    stream: usize,
    limits: LogLimits,
    segments: Vec<Segment>,
    file: Option<File>,
}

impl StreamWriter {
    pub(super) fn open(dir: &Path, stream: usize, limits: LogLimits) -> io::Result<Self> {
        let segments = list(dir, stream)?;
        Ok(Self { dir: dir.to_owned(), stream, limits, segments, file: None })
    }

    pub(super) fn len(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.end())
    }

    /// A tail segment's size: small enough that trimming in whole segments keeps little more than the limit.
    fn segment_size(&self) -> u64 {
        (self.limits.tail / 16).clamp(4096, 4 << 20)
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room_in_last();
            if room == 0 {
                self.roll()?;
                continue;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            let index = self.segments.len() - 1;
            if self.file.is_none() {
                let path = path(&self.dir, self.stream, self.segments[index].start);
                self.file = Some(File::options().append(true).create(true).open(path)?);
            }
            if let Some(file) = &mut self.file {
                file.write_all(part)?;
            }
            self.segments[index].len += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn room_in_last(&self) -> u64 {
        match self.segments.last() {
            None => 0,
            Some(last) if last.start == 0 => self.limits.head.saturating_sub(last.len),
            Some(last) => self.segment_size().saturating_sub(last.len),
        }
    }

    fn roll(&mut self) -> io::Result<()> {
        self.sync()?;
        let start = self.len();
        if start == 0 && !self.segments.is_empty() {
            return Err(io::Error::other("the log's head limit is 0"));
        }
        let path = path(&self.dir, self.stream, start);
        self.file = Some(File::options().append(true).create(true).open(path)?);
        self.segments.push(Segment { start, len: 0 });
        File::open(&self.dir)?.sync_all()?;
        self.trim();
        Ok(())
    }

    /// Removes the oldest segments after the head while what follows them is enough of a tail.
    fn trim(&mut self) {
        let len = self.len();
        while self.segments.len() > 2 && len - self.segments[1].end() >= self.limits.tail {
            let gone = self.segments.remove(1);
            // What cannot be removed now goes with the whole log.
            let _ = std::fs::remove_file(path(&self.dir, self.stream, gone.start));
        }
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }
}
