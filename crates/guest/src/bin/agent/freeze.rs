//! Freezes the layer for a snapshot, so that its copy is clean by itself, and thaws it in whoever is restored from it.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;

/// `FIFREEZE`, `_IOWR('X', 119, int)`.
const FREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
/// `FITHAW`, `_IOWR('X', 120, int)`.
const THAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

/// The layer's file system, and whether it is frozen.
#[derive(Debug)]
pub(crate) struct Freezer {
    /// A directory of it, opened before the change of root: the union above it cannot be frozen.
    layer: OwnedFd,
    frozen: bool,
}

impl Freezer {
    /// For the file system that `layer` is a directory of.
    pub(crate) fn new(layer: OwnedFd) -> Self {
        Self { layer, frozen: false }
    }

    /// For one that may be frozen.
    #[cfg(test)]
    pub(crate) fn frozen(layer: OwnedFd) -> Self {
        Self { layer, frozen: true }
    }

    /// Writes everything out and freezes; nothing when it is frozen already.
    pub(crate) fn freeze(&mut self) -> Result<(), Errno> {
        if !self.frozen {
            rustix::fs::sync();
            self.ask(FREEZE)?;
            self.frozen = true;
        }
        Ok(())
    }

    /// Thaws what was frozen; gives whether it was.
    pub(crate) fn thaw(&mut self) -> Result<bool, Errno> {
        if !self.frozen {
            return Ok(false);
        }
        match self.ask(THAW) {
            // Root in the guest may have thawed it.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
        self.frozen = false;
        Ok(true)
    }

    fn ask(&self, request: libc::Ioctl) -> Result<(), Errno> {
        // SAFETY: both requests take no memory; the descriptor is open as long as `self` is.
        if unsafe { libc::ioctl(self.layer.as_raw_fd(), request, 0) } < 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        Ok(())
    }
}
