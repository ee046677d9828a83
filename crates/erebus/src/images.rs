//! Images: a root file system's tar becomes a squashfs file, unpacking nothing.
//!
//! The tar is read, judged and put out again in one plain form, and `sqfstar` makes the file system of it. So no path of
//! the tar ever touches this machine's file system, no owner has to exist here, and an ordinary user gets the same
//! owners and modes as root. What `/dev`, `/proc` and `/sys` hold is left out; the guest mounts its own there.

mod feed;
mod root;
mod tree;

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

use blobs::{BlobStore, Staging};
use tokio::io::AsyncRead;

use crate::ErebusError;
use crate::tarball::{Limits, Tar};
use crate::tool::{Bounds, SQFSTAR, listen, says_full};
use crate::unpack::Input;
use feed::Broken;

/// Most that an image's tar may hold: 64 GiB, a million entries.
const LIMITS: Limits = Limits { entries: 1_000_000, bytes: 64 << 30 };

/// `sqfstar` needs 0.7 KB for each entry beside its caches. The image is no larger than the tar, by a hair.
const BOUNDS: Bounds = Bounds { memory: 4 << 30, file: 64 << 30, cpu: 3600 };

/// An image that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMade {
    /// `sha256:…` of the squashfs file.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
}

/// Makes an image of a tar, plain or packed with gzip, xz or zstd, as it comes. The same tar gives the same digest.
/// Dropping the future ends it and leaves nothing.
///
/// # Errors
/// `BadFile` when the tar is none, damaged, cut off, empty, or holds what an image cannot; `Upload` when reading it
/// fails; `DiskFull`; `MissingTool`.
pub async fn import(blobs: &BlobStore, tar: impl AsyncRead + Unpin + Send) -> Result<ImageMade, ErebusError> {
    let input = Input::open(tar).await?;
    // Declared before the child: dropped after it, so that nobody writes any more when the file goes.
    let staging = blobs.stage().map_err(ErebusError::io("make a file for the image"))?;
    squash(Tar::new(input, LIMITS), &staging).await?;
    let blobs = blobs.clone();
    let blob = tokio::task::spawn_blocking(move || {
        root::own(staging.path())?;
        blobs.commit(staging).map_err(ErebusError::io("store the image"))
    })
    .await
    .map_err(|e| ErebusError::io("store the image")(e.into()))??;
    tracing::info!(digest = blob.digest, size = blob.size, "image made");
    Ok(ImageMade { digest: blob.digest, size: blob.size })
}

async fn squash(mut tar: Tar<impl AsyncRead + Unpin>, staging: &Staging) -> Result<(), ErebusError> {
    let options = "-force -comp lz4 -noI -quiet -no-progress -mkfs-time 0 -root-mode 0755 -processors 2 -mem 256M";
    let mut args: Vec<&OsStr> = options.split(' ').map(OsStr::new).collect();
    args.push(staging.path().as_os_str());
    let mut child = SQFSTAR.spawn(&args, Stdio::null(), Stdio::piped(), BOUNDS)?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let (mut stdin, stderr) = stdin.zip(stderr).expect("both were asked for as pipes");
    let feeding = async {
        let fed = feed::feed(&mut tar, &mut stdin).await;
        drop(stdin);
        if matches!(fed, Err(Broken::Tar(_))) {
            // Nothing that it could still say matters.
            let _ = child.start_kill();
        }
        fed
    };
    let (fed, said) = tokio::join!(feeding, listen(stderr));
    let end = child.wait().await.map_err(ErebusError::io("wait for sqfstar"))?;
    match fed {
        Err(Broken::Tar(error)) => Err(error),
        Ok(()) if end.success() => {
            if !said.is_empty() {
                tracing::warn!(said, "sqfstar had something to say about an image");
            }
            Ok(())
        }
        _ => Err(failure(end, said)),
    }
}

/// What to make of a `sqfstar` that failed at a tar which was in order.
fn failure(end: ExitStatus, said: String) -> ErebusError {
    if says_full(&said) {
        return ErebusError::DiskFull;
    }
    if end.signal() == Some(rustix::process::Signal::XFSZ.as_raw()) {
        return ErebusError::bad(format!("the image would be larger than {} GiB", BOUNDS.file >> 30));
    }
    let said = if said.is_empty() { end.to_string() } else { said };
    ErebusError::Tool { program: "sqfstar", said }
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
