//! Files with holes: where their data is, and copies that keep the holes. All of it blocks.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes read or written at once.
pub(crate) const CHUNK: usize = 1 << 20;

/// The parts of the first `length` bytes that are no hole, in order. Moves the file's position.
pub(crate) fn extents(file: &File, length: u64) -> Extents<'_> {
    Extents { file, at: 0, length }
}

/// See [`extents`].
pub(crate) struct Extents<'a> {
    file: &'a File,
    at: u64,
    length: u64,
}

impl Extents<'_> {
    fn find(&mut self) -> io::Result<Option<Range<u64>>> {
        if self.at >= self.length {
            return Ok(None);
        }
        let start = match seek(self.file, SeekFrom::Data(self.at)) {
            // Only a hole is left; or what there was is gone.
            Err(Errno::NXIO) => return Ok(None),
            found => found?,
        };
        let end = match seek(self.file, SeekFrom::Hole(start)) {
            Err(Errno::NXIO) => return Ok(None),
            found => found?.min(self.length),
        };
        self.at = end;
        Ok((start < end).then_some(start..end))
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.find().transpose();
        if !matches!(found, Some(Ok(_))) {
            self.at = self.length;
        }
        found
    }
}

/// Bytes of data, counted no further than just beyond `enough`.
pub(crate) fn data_bytes(file: &File, enough: u64) -> io::Result<u64> {
    let mut sum = 0;
    for extent in extents(file, file.metadata()?.len()) {
        let extent = extent?;
        sum += extent.end - extent.start;
        if sum > enough {
            break;
        }
    }
    Ok(sum)
}

/// Copies what is no hole into a new file, which becomes as long as the source. Returns the bytes copied.
pub(crate) fn copy(source: &File, target: &File) -> io::Result<u64> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let (mut copied, mut chunk) = (0, vec![0; CHUNK]);
    for extent in extents(source, length) {
        let extent = extent?;
        let mut at = extent.start;
        while at < extent.end {
            let most = chunk.len().min((extent.end - at) as usize);
            source.read_exact_at(&mut chunk[..most], at)?;
            target.write_all_at(&chunk[..most], at)?;
            at += most as u64;
        }
        copied += extent.end - extent.start;
    }
    Ok(copied)
}
