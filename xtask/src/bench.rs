//! `cargo xtask bench start`: builds the product, makes what its guests are made of, and becomes `tartarus bench start` with
//! that, and with the bare hypervisor beside it, which users do not have.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::fixtures::{self, Age};
use crate::{product, sh};

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// How fast a sandbox starts, beside docker, podman, runc, crun, runsc and the bare hypervisor
    Start(Start),
}

#[derive(Args)]
pub(crate) struct Start {
    /// A folder with `tartarus` and `examples/bare_restore`; otherwise they are built. It comes first
    #[arg(long, value_name = "DIR")]
    prebuilt: Option<PathBuf>,
    /// Options of `tartarus bench start`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    options: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// When something could not be made. Otherwise it does not return.
pub(crate) fn run(bench: Bench) -> Result<ExitCode> {
    let Bench::Start(start) = bench;
    let programs = start.prebuilt.map_or_else(build, Ok)?;
    let mut command = Command::new(std::path::absolute(programs.join("tartarus"))?);
    command.args(["bench", "start"]);
    if !gives(&start.options, &["--image"]) {
        command.arg("--image").arg(fixtures::ensure_python(Age::Any)?);
    }
    if !gives(&start.options, &["--data", "--kernel", "--vmlinuz", "--kernel-tar"]) {
        command.arg("--kernel-tar").arg(fixtures::ensure_kernel(Age::Any)?);
    }
    command.arg("--bare-restore").arg(programs.join("examples/bare_restore")).args(&start.options);
    // Beside the figures, which may be JSON.
    eprintln!("$ {}", sh::line(&command));
    // It becomes the product: signals, streams and exit code are its own.
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run `{}`", sh::line(&command)))
}

fn build() -> Result<PathBuf> {
    product::build()?;
    let example = ["build", "--release", "--package", "tartarus-runtime", "--example", "bare_restore"];
    sh::run(&mut sh::cargo(&example))?;
    let folder = Path::new(product::BINARY).parent().context("the binary is in a folder")?;
    Ok(folder.to_owned())
}

/// One of these flags is among the options.
fn gives(options: &[String], flags: &[&str]) -> bool {
    let name = |option: &String| option.split('=').next().map(str::to_owned).unwrap_or_default();
    options.iter().map(name).any(|name| flags.iter().any(|flag| *flag == name))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(subcommand)]
        bench: Bench,
    }

    fn start(words: &[&str]) -> Start {
        let Bench::Start(start) = Cli::parse_from(["x", "start"].iter().chain(words)).bench;
        start
    }

    #[test]
    fn options_are_passed_on_as_they_are() {
        let plain = start(&["--quick", "--only", "docker", "--prebuilt", "x"]);
        assert_eq!((plain.prebuilt, plain.options.join(" ").as_str()), (None, "--quick --only docker --prebuilt x"));
        let prebuilt = start(&["--prebuilt", "x", "--json"]);
        assert_eq!((prebuilt.prebuilt, prebuilt.options), (Some("x".into()), vec!["--json".to_owned()]));
    }

    #[test]
    fn what_was_given_is_not_given_again() {
        let options = start(&["--image=x", "--driver", "qemu-tcg"]).options;
        assert!(gives(&options, &["--image"]) && !gives(&options, &["--kernel", "--data"]));
    }
}
