//! Cargo's helpers that are programs of their own: used from the machine, else built once into `target/tools`.

use anyhow::Result;

use crate::sh;

/// A cargo subcommand.
pub(crate) struct Tool {
    /// The crate and the program: `cargo-deny` is run as `cargo deny`.
    name: &'static str,
    /// The version to build.
    version: &'static str,
    /// Versions that are as good start with this: what they read and print is the same.
    accepts: &'static str,
}

/// The test runner: a process per test, so that one that hangs or leaks harms no other.
pub(crate) const NEXTEST: Tool = Tool { name: "cargo-nextest", version: "0.9.143", accepts: "0.9." };
/// The judge of dependencies. Building it takes about two minutes on two cores.
pub(crate) const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", accepts: "0.20." };

impl Tool {
    /// Makes sure that `cargo SUBCOMMAND` works.
    pub(crate) fn ensure(&self) -> Result<()> {
        let subcommand = self.name.trim_start_matches("cargo-");
        let found = sh::output(&mut sh::cargo(&[subcommand, "--version"])).unwrap_or_default();
        if self.is_as_good(&found) {
            return Ok(());
        }
        // Unoptimised: it is built on every fresh machine and runs for seconds.
        let args = ["install", self.name, "--version", self.version, "--locked", "--debug", "--root", sh::TOOLS];
        sh::run(&mut sh::cargo(&args))
    }

    fn is_as_good(&self, printed: &str) -> bool {
        let mut words = printed.split_whitespace();
        words.next() == Some(self.name) && words.next().is_some_and(|version| version.starts_with(self.accepts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_line_of_versions_is_not_used() {
        assert!(DENY.is_as_good("cargo-deny 0.20.7"));
        assert!(NEXTEST.is_as_good("cargo-nextest 0.9.143 (60fa45f63 2026-08-04)\nrelease: 0.9.143"));
        for bad in ["", "cargo-deny 0.19.9", "cargo-deny", "error: no such command: `deny`"] {
            assert!(!DENY.is_as_good(bad), "{bad}");
        }
    }
}
