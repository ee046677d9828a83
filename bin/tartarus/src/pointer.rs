//! The pointer file: where `tartarus up` says to commands of the same user where it listens and where its key is. It
//! holds no secret itself, and it may be stale: then the server is not there, which is told as such.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pointer {
    /// Where the server listens.
    pub(crate) url: String,
    /// Absolute path of the file with its first API key.
    pub(crate) key_file: PathBuf,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PointerError {
    /// The operating system refused.
    #[error("{path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        cause: std::io::Error,
    },
    /// It holds something else.
    #[error("{path} is damaged ({cause}): delete it, or set TARTARUS_URL", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: serde_json::Error,
    },
}

/// `$XDG_STATE_HOME/tartarus/server.json`, by default below `~/.local/state`; `None` when the user has no home.
pub(crate) fn path(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // The specification says that relative paths are to be ignored.
    let absolute = |name| var(name).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("tartarus/server.json"))
}

/// What the file says; `None` when there is none.
///
/// # Errors
/// When it cannot be read, or holds something else.
pub(crate) fn read(path: &Path) -> Result<Option<Pointer>, PointerError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(cause) => return Err(PointerError::Io { path: path.to_owned(), cause }),
    };
    let pointer = serde_json::from_slice(&text);
    pointer.map(Some).map_err(|cause| PointerError::Damaged { path: path.to_owned(), cause })
}

/// Writes the file, whole or not at all, readable by its owner only. The folder is made when it is missing.
///
/// # Errors
/// When the operating system refuses.
pub(crate) fn write(path: &Path, pointer: &Pointer) -> Result<(), PointerError> {
    let write = || -> std::io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(&serde_json::to_vec(pointer)?)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|cause| PointerError::Io { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_is_read_and_private_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/tartarus/server.json");
        assert_eq!(read(&path).unwrap(), None);
        let pointer = |port| Pointer { url: format!("http://127.0.0.1:{port}"), key_file: "/data/admin.key".into() };
        for port in [1, 2] {
            write(&path, &pointer(port)).unwrap();
            assert_eq!(read(&path).unwrap(), Some(pointer(port)));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::write(&path, "{").unwrap();
        assert!(matches!(read(&path), Err(PointerError::Damaged { .. })));
    }

    #[test]
    fn the_specification_of_xdg_is_kept() {
        let of = |state: Option<&str>, home: Option<&str>| {
            path(|name| match name {
                "XDG_STATE_HOME" => state.map(PathBuf::from),
                _ => home.map(PathBuf::from),
            })
        };
        assert_eq!(of(Some("/s"), Some("/h")), Some("/s/tartarus/server.json".into()));
        for state in [None, Some(""), Some("relative")] {
            assert_eq!(of(state, Some("/h")), Some("/h/.local/state/tartarus/server.json".into()), "{state:?}");
        }
        assert_eq!(of(None, None), None);
    }
}
