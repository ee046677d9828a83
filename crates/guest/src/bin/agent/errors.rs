//! The error of the boot steps: which one failed, and why.

use rustix::io::Errno;

/// A step that failed, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A system call.
    #[error("could not {0}: {1}")]
    Step(String, Errno),
    /// The disks are not those of the machine shape.
    #[error(
        "expected exactly one read-only disk (the base) and one writable disk (the layer), found {read_only} and \
         {writable}; the machine must have both"
    )]
    Disks {
        /// Disks with the read-only flag.
        read_only: usize,
        /// Disks without.
        writable: usize,
    },
    /// The layer is not as this agent makes it.
    #[error("{0} on the layer disk is not a directory; make the layer anew")]
    Layer(&'static str),
    /// No guest channel.
    #[error(
        "there is no virtio-serial port of the name {0} and no vsock device; give the machine a virtserialport of this \
         name, or a vsock"
    )]
    NoPort(&'static str),
}

/// Says which step a system call belonged to.
pub(crate) trait During<T> {
    /// Names the step, to be read after "could not".
    fn during(self, step: impl FnOnce() -> String) -> Result<T, BootError>;
}

impl<T> During<T> for Result<T, Errno> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, BootError> {
        self.map_err(|error| BootError::Step(step(), error))
    }
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, BootError> {
        self.map_err(|error| BootError::Step(step(), Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }
}
