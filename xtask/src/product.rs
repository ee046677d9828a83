//! The product as it is delivered: one self-contained binary, and the API description generated from it.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// The one binary.
pub(crate) const BINARY: &str = "target/release/tartarus";
/// The checked-in API description.
pub(crate) const OPENAPI: &str = "openapi/v1.json";

/// Builds [`BINARY`] and says where it is and how large.
pub(crate) fn build() -> Result<()> {
    sh::run(&mut sh::cargo(&["build", "--release", "--package", "tartarus"]))?;
    let size = std::fs::metadata(BINARY).with_context(|| format!("{BINARY} was not built"))?.len();
    println!("{BINARY} ({:.1} MiB), self-contained: the guest agent is inside", size as f64 / (1 << 20) as f64);
    Ok(())
}

/// Builds the product and writes [`OPENAPI`] from its types.
pub(crate) fn write_openapi() -> Result<()> {
    build()?;
    let text = openapi()?;
    std::fs::create_dir_all("openapi").context("cannot make openapi/")?;
    sh::write_whole(Path::new(OPENAPI), text.as_bytes())?;
    println!("{OPENAPI} written");
    Ok(())
}

/// Holds [`OPENAPI`] against what the built binary prints.
///
/// # Errors
/// When they differ, with what to do.
pub(crate) fn check_openapi() -> Result<()> {
    let checked_in = std::fs::read_to_string(OPENAPI).with_context(|| format!("cannot read {OPENAPI}"))?;
    compare(&checked_in, &openapi()?)
}

fn compare(checked_in: &str, printed: &str) -> Result<()> {
    if checked_in != printed {
        bail!("{OPENAPI} is not what the types say: run `cargo xtask openapi`");
    }
    Ok(())
}

fn openapi() -> Result<String> {
    sh::output(&mut sh::command(&[BINARY, "openapi"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_description_is_refused() {
        compare("{}\n", "{}\n").unwrap();
        assert!(compare("{}\n", "{ }\n").unwrap_err().to_string().contains("cargo xtask openapi"));
    }
}
