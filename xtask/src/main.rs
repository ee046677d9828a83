//! The one door to the workspace: what a contributor, CI and the README run, as `cargo xtask …`.
//!
//! It drives the same programs that a person would type, and shows each. It refuses to know how Tartarus works inside:
//! no product crate is linked, so that it builds in seconds and can say why the product does not build.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod bench;
mod demo;
mod fixtures;
mod guests;
mod leftovers;
mod packages;
mod product;
mod sh;
mod skips;
mod stages;
mod tidy;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, checks, tests and shows Tartarus")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds target/release/tartarus, self-contained
    Build,
    /// Installs what is missing, starts Tartarus and runs a Python program in a real microVM
    Demo {
        /// Where the server of the demo keeps its data
        #[arg(long, default_value = "target/demo")]
        data: PathBuf,
    },
    /// Everything CI runs, in stages
    Test {
        /// Runs this stage alone (repeatable)
        #[arg(long, value_name = "STAGE")]
        only: Vec<stages::Stage>,
    },
    /// Checks what the compiler does not: arrows between crates, sizes, docs, forbidden words
    Tidy,
    /// Lists the Debian packages that demo and test need
    Packages {
        /// Installs what is missing (as root)
        #[arg(long)]
        install: bool,
    },
    /// Writes openapi/v1.json from the types
    Openapi,
    /// Measures the product: builds it, and runs its own benchmark
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {error:#}", sh::bold("error:"));
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    sh::enter_root().context("cannot enter the workspace")?;
    match task {
        Task::Build => product::build(),
        Task::Demo { data } => demo::run(&data),
        Task::Test { only } => stages::run(&only),
        Task::Tidy => tidy::run(),
        Task::Packages { install } => packages::run(install),
        Task::Openapi => product::write_openapi(),
        Task::Bench(bench) => return bench::run(bench),
    }?;
    Ok(ExitCode::SUCCESS)
}
