//! The table, the same in JSON, and whether the bars are kept.

use std::collections::BTreeSet;

use serde::Serialize;

use super::bare::BARE;
use super::ours::{PLAIN, RUNNER, RUNNER_API};
use super::rounds::{Measured, Results};
use super::row::{Kind, Row};
use super::stats::{Summary, median, paired_difference, paired_ratio};

/// The row that others are compared with.
pub(super) const DOCKER: &str = "docker";
/// A restore with the runner takes at most so much of `docker run`; and better, so much.
const BAR: f64 = 0.60;
const BAR_STRETCH: f64 = 0.50;
/// Tartarus adds at most so many ms to the bare sequence; and better, so many.
const ADDS_MS: f64 = 20.0;
const ADDS_STRETCH_MS: f64 = 8.0;

/// One line of the table.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) row: &'static str,
    how: String,
    version: String,
    at_once: usize,
    /// Milliseconds of what succeeded.
    pub(super) ms: Option<Summary>,
    /// Milliseconds of the whole batch, over its runs.
    each_ms: Option<f64>,
    /// Of those that ran.
    success_percent: Option<f64>,
    failed: usize,
    /// Median of the ratios to `docker run` in the same round.
    pub(super) ratio_to_docker: Option<f64>,
    /// Ratio of the medians.
    pub(super) ratio_of_medians: Option<f64>,
    /// Why it has no figures, or they do not count.
    pub(super) invalid: Option<String>,
}

/// What a restore spends its time on.
#[derive(Debug, Serialize)]
pub(super) struct Trace {
    row: &'static str,
    at_once: usize,
    phases: Vec<Part>,
}

/// A phase of a start.
#[derive(Debug, Serialize)]
struct Part {
    name: String,
    /// Milliseconds at the median.
    ms: f64,
}

/// What Tartarus adds to the bare sequence, ms: medians of the differences in the same round.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Adds {
    at_once: usize,
    pub(super) by_api: Option<f64>,
    pub(super) by_command_line: Option<f64>,
}

/// A bar, and how it was met.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Bar {
    pub(super) what: &'static str,
    pub(super) most: f64,
    pub(super) stretch: f64,
    pub(super) value: Option<f64>,
}

impl Bar {
    /// `None` when it cannot be judged.
    pub(super) fn kept(&self) -> Option<bool> {
        self.value.map(|value| value <= self.most)
    }
}

/// Everything that was measured, in order.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) lines: Vec<Line>,
    pub(super) traces: Vec<Trace>,
    pub(super) adds: Vec<Adds>,
    pub(super) bars: Vec<Bar>,
    #[serde(skip)]
    pub(super) drivers: BTreeSet<String>,
}

impl Report {
    pub(super) fn new(rows: &[Row], results: &Results) -> Self {
        let (mut lines, mut traces, mut adds) = (Vec::new(), Vec::new(), Vec::new());
        for (&at_once, measured) in results {
            let docker = valid(rows, measured, DOCKER);
            lines.extend(rows.iter().zip(measured).map(|(row, of)| line(row, of, at_once, docker)));
            traces.extend(rows.iter().zip(measured).filter_map(|(row, of)| trace(row, of, at_once)));
            adds.push(added(rows, measured, at_once));
        }
        let alone = lines.iter().find(|line| line.row == RUNNER && line.at_once == 1);
        let mut bars = vec![Bar {
            what: "restore with the runner, of docker run",
            most: BAR,
            stretch: BAR_STRETCH,
            value: alone.and_then(|line| line.ratio_to_docker),
        }];
        // Users do not have the program of that row.
        if rows.iter().any(|row| row.name == BARE) {
            bars.push(Bar {
                what: "Tartarus adds to the bare sequence, ms",
                most: ADDS_MS,
                stretch: ADDS_STRETCH_MS,
                value: adds.iter().find(|adds| adds.at_once == 1).and_then(|adds| adds.by_api),
            });
        }
        let drivers = results.values().flatten().flat_map(|measured| measured.drivers.keys().cloned()).collect();
        Self { lines, traces, adds, bars, drivers }
    }

    /// The tables.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        if self.lines.is_empty() {
            return out;
        }
        let mut at_once = 0;
        for line in &self.lines {
            if line.at_once != at_once {
                at_once = line.at_once;
                out += &format!("\n{at_once} at once, ms\n");
                out += &format!(
                    "{:<21}{:>4}{:>5}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}\n",
                    "", "ok", "fail", "p50", "p90", "p99", "min", "each", "docker", "medians"
                );
            }
            out += &format!("{}\n", line.shown());
        }
        for adds in self.adds.iter().filter(|adds| adds.by_api.is_some() || adds.by_command_line.is_some()) {
            let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
            out += &format!(
                "\n{} at once, Tartarus adds {} by API, {} by command line (median of the differences in a round)\n",
                adds.at_once,
                shown(adds.by_api),
                shown(adds.by_command_line)
            );
        }
        for trace in &self.traces {
            let phases = trace.phases.iter().map(|Part { name, ms }| format!("{name} {ms:.1}"));
            out += &format!("\n{} at once, {}, ms at the median\n", trace.at_once, trace.row);
            out += &format!("  {}\n", phases.collect::<Vec<_>>().join(" | "));
        }
        out += "\nbars (alone)\n";
        for bar in &self.bars {
            let verdict = match bar.kept() {
                Some(true) => "kept",
                Some(false) => "missed",
                None => "not judged",
            };
            let value = bar.value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
            out +=
                &format!("  {:<42}{value:>8}  at most {} (stretch {}): {verdict}\n", bar.what, bar.most, bar.stretch);
        }
        out
    }
}

impl Line {
    fn shown(&self) -> String {
        let Some(ms) = self.ms else {
            return format!("{:<21}{}", self.row, self.invalid.as_deref().unwrap_or("not run"));
        };
        let ratio = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let each = self.each_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
        let invalid = self.invalid.as_ref().map_or(String::new(), |why| format!("\n  {why}"));
        format!(
            "{:<21}{:>4}{:>5}{:>9.0}{:>9.0}{:>9.0}{:>9.0}{each:>9}{:>8}{:>8}{invalid}",
            self.row,
            ms.count,
            self.failed,
            ms.p50,
            ms.p90,
            ms.p99,
            ms.min,
            ratio(self.ratio_to_docker),
            ratio(self.ratio_of_medians)
        )
    }
}

/// The figures of a row, when they count.
fn valid<'a>(rows: &[Row], measured: &'a [Measured], name: &str) -> Option<&'a Measured> {
    let (row, of) = rows.iter().zip(measured).find(|(row, _)| row.name == name)?;
    invalid(row, of).is_none().then_some(of)
}

/// Why the figures of a row do not count. Failures of ours are counted instead.
fn invalid(row: &Row, of: &Measured) -> Option<String> {
    if let Err(why) = &row.work {
        return Some(why.clone());
    }
    let first = of.failures.first()?;
    (row.what != Kind::Ours).then(|| format!("invalid: {} failed, the first: {first}", of.failures.len()))
}

fn line(row: &Row, of: &Measured, at_once: usize, docker: Option<&Measured>) -> Line {
    let ran = of.ms.len() + of.failures.len();
    let invalid = invalid(row, of);
    // What does not count is compared with nothing.
    let docker = docker.filter(|_| invalid.is_none());
    let medians = docker.and_then(|docker| Some((median(&of.ms)?, median(&docker.ms)?)));
    let failure = of.failures.first().map(|why| format!("{} failed, the first: {why}", of.failures.len()));
    Line {
        row: row.name,
        how: row.how.clone(),
        version: row.version.clone(),
        at_once,
        ms: Summary::of(&of.ms),
        each_ms: median(&of.each),
        success_percent: (ran > 0).then(|| 100.0 * of.ms.len() as f64 / ran as f64),
        failed: of.failures.len(),
        ratio_to_docker: docker.and_then(|docker| paired_ratio(&of.by_round, &docker.by_round)),
        ratio_of_medians: medians.filter(|(_, docker)| *docker > 0.0).map(|(of, docker)| of / docker),
        invalid: invalid.or(failure),
    }
}

fn trace(row: &Row, of: &Measured, at_once: usize) -> Option<Trace> {
    let restores = [RUNNER, RUNNER_API, PLAIN];
    if !restores.contains(&row.name) || of.phases.is_empty() {
        return None;
    }
    let phases = of.phases.iter().filter_map(|(name, ms)| Some(Part { name: name.clone(), ms: median(ms)? })).collect();
    Some(Trace { row: row.name, at_once, phases })
}

fn added(rows: &[Row], measured: &[Measured], at_once: usize) -> Adds {
    let adds = |name| {
        let (of, bare) = (valid(rows, measured, name)?, valid(rows, measured, BARE)?);
        paired_difference(&of.by_round, &bare.by_round)
    };
    Adds { at_once, by_api: adds(RUNNER_API), by_command_line: adds(RUNNER) }
}

/// Bars that are missed or cannot be judged.
pub(super) fn missed(report: &Report) -> Vec<String> {
    let missed = report.bars.iter().filter_map(|bar| match bar.kept() {
        Some(true) => None,
        Some(false) => Some(format!("{}: {:.2}, at most {}", bar.what, bar.value.unwrap_or_default(), bar.most)),
        None => Some(format!("{}: not measured", bar.what)),
    });
    missed.collect()
}

/// Failures of ours.
pub(super) fn failed(report: &Report, rows: &[Row]) -> Vec<String> {
    let ours = |line: &&Line| rows.iter().any(|row| row.name == line.row && row.what == Kind::Ours);
    let failed = report.lines.iter().filter(ours).filter(|line| line.failed > 0);
    failed.map(|line| format!("{} at once, {}: {} failed", line.at_once, line.row, line.failed)).collect()
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
