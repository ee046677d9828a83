//! What can go wrong with a file, and whose fault it is.

use std::io;

use tartarus_types::{ErrorCode, Refusal};

/// Why an image, kernel or disk was not made.
#[derive(Debug, thiserror::Error)]
pub enum ErebusError {
    /// The file that was sent is not what it should be.
    #[error("{0}")]
    BadFile(String),
    /// The bytes stopped coming.
    #[error("the upload broke off: {0}")]
    Upload(#[source] io::Error),
    /// There is no space left.
    #[error("the disk is full: free some space and try again")]
    DiskFull,
    /// A program that is needed is not installed.
    #[error("{program} is not installed: install the Debian package {package}")]
    MissingTool {
        /// Its file name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// There is no kernel of this digest.
    #[error("there is no kernel {0:?}")]
    NoKernel(String),
    /// A golden snapshot is damaged, or made by a newer Tartarus. A cold boot works without it.
    #[error("the golden snapshot {golden} cannot be used: {why}")]
    Unusable {
        /// Its name.
        golden: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file could not be read or written.
    #[error("could not {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program failed in a way that is not the file's fault.
    #[error("{program} failed: {said}")]
    Tool {
        /// Its file name.
        program: &'static str,
        /// What it said, or how it ended.
        said: String,
    },
}

impl ErebusError {
    /// The error of something that was tried, for `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Io { what: what.into(), source },
        }
    }

    pub(crate) fn bad(detail: impl Into<String>) -> Self {
        Self::BadFile(detail.into())
    }
}

impl From<ErebusError> for Refusal {
    fn from(error: ErebusError) -> Self {
        let code = match &error {
            ErebusError::BadFile(_) | ErebusError::Upload(_) => ErrorCode::BadFile,
            ErebusError::DiskFull => ErrorCode::DiskFull,
            ErebusError::MissingTool { .. } | ErebusError::Unusable { .. } => ErrorCode::NotReady,
            ErebusError::NoKernel(_) => ErrorCode::NotFound,
            ErebusError::Io { .. } | ErebusError::Tool { .. } => ErrorCode::Internal,
        };
        Refusal::new(code, error.to_string())
    }
}

/// Bytes of an upload as text that is safe to show: printable, and not long.
pub(crate) fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 120;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MOST)]);
    let cut = text.chars().count() > MOST || bytes.len() > 4 * MOST;
    format!("{:?}{}", text.chars().take(MOST).collect::<String>(), if cut { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        let refusal = |e: ErebusError| Refusal::from(e).code;
        let full = io::Error::from(rustix::io::Errno::NOSPC);
        let quota = io::Error::from(rustix::io::Errno::DQUOT);
        let other = io::Error::from(rustix::io::Errno::IO);
        assert_eq!(refusal(ErebusError::io("write")(full)), ErrorCode::DiskFull);
        assert_eq!(refusal(ErebusError::io("write")(quota)), ErrorCode::DiskFull);
        assert_eq!(refusal(ErebusError::io("write")(other)), ErrorCode::Internal);
        let tool = ErebusError::MissingTool { program: "sqfstar", package: "squashfs-tools" };
        assert!(tool.to_string().contains("squashfs-tools"));
        assert_eq!(refusal(tool), ErrorCode::NotReady);
    }

    #[test]
    fn shown_text_is_short_and_printable() {
        assert_eq!(shown(b"usr/bin"), "\"usr/bin\"");
        assert_eq!(shown(b"a\x1b[31m\n"), "\"a\\u{1b}[31m\\n\"");
        assert!(shown(&[b'x'; 100_000]).chars().count() < 130);
    }
}
