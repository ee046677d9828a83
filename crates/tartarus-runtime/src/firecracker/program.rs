//! The two programs: where they are, and whether they fit together and to this driver.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::driver::RuntimeError;

/// Names the program, where it is not on the path.
const VARIABLE: &str = "TARTARUS_FIRECRACKER";
/// The program.
const PROGRAM: &str = "firecracker";
/// Its jailer is called like it, with this instead.
const JAILER: &str = "jailer";
/// The first version that knows all fields that are sent, and after a restore lets a new connection to the guest live: before,
/// it could be cut with those of the snapshot (Firecracker's changelog of 1.16.0, #5882).
const OLDEST: (u32, u32) = (1, 16);

/// Where the program is: what `TARTARUS_FIRECRACKER` says, else on the path.
pub fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
    found.find(|program| program.is_absolute() && program.is_file())
}

/// The jailer of `program`, which lies beside it, or beside what it is a link to.
///
/// # Errors
/// When there is none.
pub fn jailer(program: &Path) -> Result<PathBuf, RuntimeError> {
    let beside = |program: &Path| {
        let name = program.file_name()?.to_str()?;
        Some(program.with_file_name(name.replacen(PROGRAM, JAILER, 1))).filter(|jailer| *jailer != program)
    };
    let linked = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    let found = [program, &linked].into_iter().filter_map(beside).find(|jailer| jailer.is_file());
    found.and_then(|jailer| jailer.canonicalize().ok()).ok_or_else(|| {
        let program = program.display();
        RuntimeError::Start(format!("there is no jailer beside {program}: put the jailer of the same release there"))
    })
}

/// The build of both, which must be one.
pub(super) async fn version(program: &Path, jailer: &Path) -> Result<String, RuntimeError> {
    let (one, two) = (first_line(program).await?, first_line(jailer).await?);
    fit(&one, &two).map_err(|why| RuntimeError::Start(format!("{} and {}: {why}", program.display(), jailer.display())))
}

/// Holds `Firecracker vX.Y.Z` against `Jailer vX.Y.Z`.
fn fit(firecracker: &str, jailer: &str) -> Result<String, String> {
    let of =
        |said: &str, name: &str| said.strip_prefix(name).map(str::to_owned).ok_or(format!("{said:?} is no {name}"));
    let (one, two) = (of(firecracker, "Firecracker v")?, of(jailer, "Jailer v")?);
    if one != two {
        return Err(format!("the jailer is of version {two}, Firecracker of {one}: install both of one release"));
    }
    let mut numbers = one.split(['.', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST && major == OLDEST.0 => {
            Ok(format!("{firecracker}, {jailer}"))
        }
        (Some(Ok(_)), Some(Ok(_))) => {
            let (major, minor) = OLDEST;
            Err(format!("version {one} is not understood: install one from {major}.{minor} on, before {}", major + 1))
        }
        _ => Err(format!("{one:?} is no version")),
    }
}

async fn first_line(program: &Path) -> Result<String, RuntimeError> {
    let run = tokio::process::Command::new(program).arg("--version").env_clear().kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(10), run)
        .await
        .map_err(|_| RuntimeError::Start(format!("{} --version does not answer", program.display())))?
        .map_err(|e| RuntimeError::io(format!("running {}", program.display()), e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().chars().take(100).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_of_one_version_that_is_understood() {
        assert_eq!(fit("Firecracker v1.16.1", "Jailer v1.16.1").unwrap(), "Firecracker v1.16.1, Jailer v1.16.1");
        assert!(fit("Firecracker v1.17.0-dev", "Jailer v1.17.0-dev").is_ok());
        for (firecracker, jailer, why) in [
            ("Firecracker v1.16.1", "Jailer v1.16.0", "install both of one release"),
            ("Firecracker v1.15.9", "Jailer v1.15.9", "install one from 1.16 on"),
            ("Firecracker v2.0.0", "Jailer v2.0.0", "before 2"),
            ("Firecracker vnew", "Jailer vnew", "no version"),
            ("", "Jailer v1.16.0", "is no Firecracker v"),
            ("Firecracker v1.16.1", "Firecracker v1.16.1", "is no Jailer v"),
        ] {
            let error = fit(firecracker, jailer).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_jailer_lies_beside_the_program_or_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (real, link) = (dir.join("firecracker-v1-x86_64"), dir.join("bin"));
        std::fs::write(&real, "").unwrap();
        std::fs::create_dir(&link).unwrap();
        let link = link.join("firecracker");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let missing = jailer(&link).unwrap_err().to_string();
        assert!(missing.contains("no jailer beside"), "{missing}");
        let beside = dir.join("jailer-v1-x86_64");
        std::fs::write(&beside, "").unwrap();
        assert_eq!(jailer(&link).unwrap(), beside);
        assert!(jailer(&dir.join("vmm")).is_err());
    }
}
