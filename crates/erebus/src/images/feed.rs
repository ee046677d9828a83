//! From the tar that came to the tar that `sqfstar` reads.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::tree::Tree;
use crate::ErebusError;
use crate::tarball::{Entry, Kind, Tar, write};

/// Bytes passed on at once.
const CHUNK: usize = 256 * 1024;

/// Which end broke.
#[derive(Debug)]
pub(super) enum Broken {
    /// The tar.
    Tar(ErebusError),
    /// The reader of what is written: its exit status says why.
    Sink,
}

impl From<ErebusError> for Broken {
    fn from(error: ErebusError) -> Self {
        Self::Tar(error)
    }
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Sink
    }
}

/// Passes on all that belongs into an image.
pub(super) async fn feed(
    tar: &mut Tar<impl AsyncRead + Unpin>,
    sink: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Broken> {
    let (mut tree, mut chunk) = (Tree::default(), vec![0; CHUNK]);
    for path in Tree::MOUNT_POINTS {
        sink.write_all(&write::header(&directory(path.to_vec()))).await?;
    }
    while let Some(entry) = tar.next().await? {
        if !tree.admit(&entry)? {
            continue;
        }
        sink.write_all(&write::header(&entry)).await?;
        let Kind::File(size) = entry.kind else { continue };
        loop {
            match tar.read(&mut chunk).await? {
                0 => break,
                n => sink.write_all(&chunk[..n]).await?,
            }
        }
        sink.write_all(write::padding(size)).await?;
    }
    for path in tree.finish()? {
        sink.write_all(&write::header(&directory(path))).await?;
    }
    sink.write_all(&write::END).await?;
    sink.flush().await?;
    Ok(())
}

/// A directory that the tar did not describe.
fn directory(path: Vec<u8>) -> Entry {
    Entry { kind: Kind::Dir, path, mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }
}
