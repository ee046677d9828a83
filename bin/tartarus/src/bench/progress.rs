//! What the benchmark says while it runs: words on standard error, so that standard output has the figures and nothing else.

use std::io::Write as _;

use crate::terminal::clean;

/// Where progress goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    quiet: bool,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// A line, unless nobody wants any.
    pub(super) fn say(self, text: &str) {
        if !self.quiet {
            // Whoever closed standard error does not want to know.
            let _ = writeln!(std::io::stderr(), "{}", clean(text));
        }
    }
}
