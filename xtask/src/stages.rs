//! `cargo xtask test`: everything CI runs, cheapest first, stopping at the first stage that fails.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::leftovers::Before;
use crate::tools::{DENY, NEXTEST};
use crate::{demo, fixtures, guests, packages, product, sh, skips, tidy};

/// A part of the whole that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// Debian packages and cargo tools
    Packages,
    /// Formatting
    Fmt,
    /// Arrows, sizes, docs, words
    Tidy,
    /// The compiler's and clippy's lints, all denied
    Clippy,
    /// The product, and its API description
    Build,
    /// Kernel and root file systems for guests
    Fixtures,
    /// Unit, property and conformance tests
    Unit,
    /// Tests that boot real microVMs
    Vm,
    /// The README's first command, twice: the second run reuses what the first made
    Demo,
    /// Documentation's own examples and links
    Docs,
    /// Licences, bans and sources of dependencies; CARGO_DENY=skip leaves it out
    Deny,
}

impl Stage {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn run(self, report: &mut Report) -> Result<()> {
        match self {
            Self::Packages => packages::ensure_test().and_then(|()| NEXTEST.ensure()),
            Self::Fmt => sh::run(&mut sh::cargo(&["fmt", "--all", "--check"])),
            Self::Tidy => tidy::run(),
            Self::Clippy => {
                let args = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
                sh::run(&mut sh::cargo(&args))
            }
            Self::Build => product::build().and_then(|()| product::check_openapi()),
            Self::Fixtures => fixtures::ensure(),
            Self::Unit => report.nextest("not (package(tartarus) & kind(test))"),
            Self::Vm => report.vm(),
            Self::Demo => demo_twice(),
            Self::Docs => docs(),
            Self::Deny => deny(),
        }
    }
}

/// What is printed at the end.
#[derive(Default)]
struct Report {
    took: Vec<(Stage, Duration)>,
    guests: Option<guests::Guests>,
    /// Test and why.
    skipped: BTreeSet<(String, String)>,
}

/// Runs the stages in `only`, or all, and prints the minutes of each.
///
/// # Errors
/// The first failure, with how to run its stage alone.
pub(crate) fn run(only: &[Stage]) -> Result<()> {
    let mut report = Report::default();
    let stages = Stage::value_variants().iter().copied().filter(|stage| only.is_empty() || only.contains(stage));
    let mut result = Ok(());
    for stage in stages {
        let name = stage.name();
        println!("\n{}", sh::bold(&format!("stage {name}")));
        let start = Instant::now();
        result = stage.run(&mut report);
        report.took.push((stage, start.elapsed()));
        if result.is_err() {
            result =
                result.with_context(|| format!("stage {name} failed (run it alone: cargo xtask test --only {name})"));
            break;
        }
    }
    report.print()?;
    result
}

impl Report {
    /// One filter over one build of the workspace, so that both test stages share what was compiled. The runner's
    /// summary goes to our own output: CI reads it there. Nothing may be left on the machine afterwards.
    fn nextest(&mut self, filter: &str) -> Result<()> {
        fixtures::ensure()?;
        let absolute = |path: &str| std::path::absolute(path).with_context(|| format!("cannot find {path}"));
        let fixtures = absolute(fixtures::FOLDER)?;
        let args = ["nextest", "run", "--config-file", ".ci/nextest.toml", "--release", "--workspace", "-E", filter];
        let mut command = sh::cargo(&args);
        command.env("TARTARUS_TEST_KERNEL_TAR", fixtures.join("kernel.tar"));
        command.env("TARTARUS_FIXTURES", fixtures);
        command.env("TARTARUS_VM_REPORT", absolute(guests::REPORT)?);
        let before = Before::look();
        let tests = sh::run(&mut command);
        let skipped = skips::of_last_run();
        tests?;
        self.skipped.extend(skipped?);
        before.compare()
    }

    fn vm(&mut self) -> Result<()> {
        guests::start()?;
        let tests = self.nextest("package(tartarus) & kind(test)");
        let guests = guests::finish()?;
        self.skipped.extend(guests.skipped.iter().cloned());
        let enough = guests::floor().and_then(|floor| guests.judge(floor));
        self.guests = Some(guests);
        tests.and(enough)
    }

    fn print(&self) -> Result<()> {
        println!();
        for (test, why) in &self.skipped {
            println!("skipped: {test}: {why}");
        }
        if let Some(guests) = &self.guests {
            println!("guests booted: {} (floor {})", guests.booted, guests::floor()?);
        }
        println!("minutes per stage");
        for (stage, took) in &self.took {
            println!("  {:<9} {}", stage.name(), minutes(*took));
        }
        println!("  {:<9} {}", "all", minutes(self.took.iter().map(|(_, took)| *took).sum()));
        Ok(())
    }
}

fn minutes(took: Duration) -> String {
    format!("{:>5.1}", took.as_secs_f64() / 60.0)
}

/// In a data folder of its own, made anew, so that the first run has everything to do.
fn demo_twice() -> Result<()> {
    let data = Path::new("target/demo-twice");
    if data.exists() {
        std::fs::remove_dir_all(data).with_context(|| format!("cannot remove {}", data.display()))?;
    }
    demo::run(data)?;
    demo::run(data)
}

fn docs() -> Result<()> {
    sh::run(&mut sh::cargo(&["test", "--release", "--workspace", "--doc", "--quiet"]))?;
    let mut doc = sh::cargo(&["doc", "--release", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
    sh::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn deny() -> Result<()> {
    if std::env::var("CARGO_DENY").is_ok_and(|value| value == "skip") {
        println!("skipped: deny: CARGO_DENY=skip");
        return Ok(());
    }
    DENY.ensure()?;
    let args = ["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    sh::run(&mut sh::cargo(&args))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        let names: Vec<_> = Stage::value_variants().iter().map(|stage| stage.name()).collect();
        assert_eq!(
            names,
            ["packages", "fmt", "tidy", "clippy", "build", "fixtures", "unit", "vm", "demo", "docs", "deny"]
        );
    }
}
