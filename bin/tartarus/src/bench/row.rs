//! What is measured: rows that each run the same program once and give its output.

use std::time::Duration;

use anyhow::Result;

use super::api::Detail;

/// The program. Every row runs it; what it prints is compared with [`EXPECTED`].
pub(super) const PROGRAM: &str = "import numpy; print(int(numpy.arange(1000).sum()))";
/// What it prints.
pub(super) const EXPECTED: &str = "499500\n";

/// Why most rows that have no work have none.
const NOT_INSTALLED: &str = "not installed";
/// Why an ordinary user gets no figures of others: what containers leave behind would not be his to remove.
const NEEDS_ROOT: &str = "needs root";

/// A row of the table.
pub(super) struct Row {
    /// What `--only` calls it.
    pub(super) name: &'static str,
    /// What it is.
    pub(super) what: Kind,
    /// The command line or request, for the reader.
    pub(super) how: String,
    /// Version of the program behind it.
    pub(super) version: String,
    /// How to run it once, or why it cannot be.
    pub(super) work: Result<Box<dyn Work>, String>,
}

/// What a row stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Somebody else's: one failure makes it invalid.
    Baseline,
    /// Tartarus; failures are counted.
    Ours,
    /// The hypervisor without Tartarus.
    Bare,
}

/// One run among others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    /// Unique in this benchmark.
    pub(super) name: &'a str,
    /// Which of those at the same time, from 0.
    pub(super) slot: usize,
    /// How long it may take.
    pub(super) patience: Duration,
}

/// What a run gave.
#[derive(Debug)]
pub(super) struct Ran {
    /// Standard output.
    pub(super) output: String,
    /// Milliseconds, where the row knows better than whoever called it.
    pub(super) ms: Option<f64>,
}

/// How a row is run.
pub(super) trait Work: Sync {
    /// Gets ready, untimed, to be run so often at the same time.
    fn prepare(&self, _at_once: usize) -> Result<()> {
        Ok(())
    }

    /// Runs the program once. This is what is timed.
    fn run(&self, run: Run<'_>) -> Result<Ran>;

    /// Looks, untimed, whether it ran as the row says, and gives what is known of it.
    fn check(&self, _name: &str) -> Result<Option<Detail>> {
        Ok(None)
    }
}

impl Row {
    pub(super) fn new(name: &'static str, what: Kind, how: impl Into<String>) -> Self {
        Self { name, what, how: how.into(), version: String::new(), work: Err(NOT_INSTALLED.to_owned()) }
    }

    /// Its program is there and may be used, whether it works or not.
    pub(super) fn is_measurable(&self) -> bool {
        !matches!(&self.work, Err(why) if [NOT_INSTALLED, NEEDS_ROOT].contains(&why.as_str()))
    }

    /// It is there, and for root alone.
    pub(super) fn needs_root(mut self) -> Self {
        self.work = Err(NEEDS_ROOT.to_owned());
        self
    }

    pub(super) fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// With its work, or why there is none.
    pub(super) fn work(mut self, work: Result<Box<dyn Work>>) -> Self {
        self.work = work.map_err(|error| format!("{error:#}"));
        self
    }
}
