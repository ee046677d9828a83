//! The file that the figures are written to, for programs.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

/// The folder that a file is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Looks, before anything takes long, whether the file can be there.
///
/// # Errors
/// When its folder is missing, or it is something else than a file, which would be replaced.
pub(super) fn check(path: &Path) -> Result<()> {
    let shown = path.display();
    ensure!(parent(path).is_dir(), "--json-file: the folder of {shown} does not exist");
    ensure!(path.file_name().is_some() && (!path.exists() || path.is_file()), "--json-file: {shown} is no file");
    Ok(())
}

/// Writes it so that a reader finds what was there, or all of this; never half of it.
pub(super) fn write(path: &Path, figures: &impl Serialize) -> Result<()> {
    let written = || -> Result<()> {
        // As open as any other file of the user's.
        let open = Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().permissions(open).tempfile_in(parent(path))?;
        file.write_all(serde_json::to_string_pretty(figures)?.as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_replace_a_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        for figures in [[1, 2], [3, 4]] {
            check(&path).unwrap();
            write(&path, &figures).unwrap();
        }
        let read: Vec<u8> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!((read, std::fs::read_dir(dir.path()).unwrap().count()), (vec![3, 4], 1));
        for bad in [dir.path(), Path::new("/dev/null"), &dir.path().join("none/x.json"), Path::new("")] {
            assert!(check(bad).is_err(), "{}", bad.display());
        }
        check(Path::new("x.json")).unwrap();
    }
}
