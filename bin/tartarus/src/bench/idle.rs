//! What many idle clones cost, and what they do to the next restore.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::meter::{self, Cost};
use super::process::go_on;
use super::progress::Progress;
use super::row::{EXPECTED, Row, Run};
use super::server::Server;
use super::stats::median;
use super::tree;

/// Memory of each clone.
const MEMORY: &str = "128M";
const MEMORY_BYTES: u64 = 128 << 20;
const NAME: &str = "idle";
/// Restores before, and beside them.
const RESTORES: usize = 7;
/// How long processor time is counted.
const WATCH: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(60);
/// A restore beside them may take so much longer.
const SLOWER: f64 = 1.5;
/// Each may cost so much beyond the hypervisor's own memory, bytes.
const MOST: f64 = (4 << 20) as f64;

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Idle {
    count: usize,
    /// Medians, bytes.
    proportional: f64,
    private: f64,
    guest: f64,
    /// Beside the hypervisor: supervisor and server, of each, bytes.
    beside: f64,
    /// Of one core, each.
    cpu_percent: f64,
    restore_before_ms: f64,
    restore_beside_ms: f64,
    /// What misses its bar.
    pub(super) faults: Vec<String>,
}

/// Makes so many clones, watches them, and restores beside them with `row`.
pub(super) fn run(server: &Server, row: &Row, count: usize, keep: &[u32], progress: Progress) -> Result<Idle> {
    server.template(NAME, MEMORY)?;
    let before = restores(row, "before", keep)?;
    let alone = beside_hypervisors(server);
    let made = make(server, count, progress).and_then(|pids| watch(server, row, &pids, alone, before, keep));
    // Also when it failed: they would slow down whatever follows.
    let names: Vec<String> = (0..count).map(name).collect();
    for names in names.chunks(20) {
        let mut args = vec!["rm"];
        args.extend(names.iter().map(String::as_str));
        if let Err(error) = server.read(&args)
            && made.is_ok()
        {
            return Err(error);
        }
    }
    made
}

fn name(number: usize) -> String {
    format!("idle-{number}")
}

fn make(server: &Server, count: usize, progress: Progress) -> Result<Vec<u32>> {
    let mut api = server.api();
    let mut pids = Vec::new();
    for number in 0..count {
        go_on()?;
        let name = name(number);
        server.read(&["create", NAME, "--name", &name])?;
        let detail = api.running(&name, PATIENCE).with_context(|| format!("clone {} of {count}", number + 1))?;
        pids.push(detail.hypervisor_pid.context("a running sandbox has a hypervisor")?);
    }
    progress.say(&format!("  {count} idle clones"));
    Ok(pids)
}

fn watch(server: &Server, row: &Row, pids: &[u32], alone: u64, before: f64, keep: &[u32]) -> Result<Idle> {
    std::thread::sleep(Duration::from_secs(2));
    let used = || pids.iter().map(|pid| meter::ticks(*pid)).sum::<u64>();
    let (start, first) = (Instant::now(), used());
    while start.elapsed() < WATCH {
        go_on()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let seconds = used().saturating_sub(first) as f64 / 100.0;
    let cpu_percent = 100.0 * seconds / start.elapsed().as_secs_f64() / pids.len() as f64;
    let costs: Vec<Cost> = pids.iter().filter_map(|pid| meter::cost(*pid, MEMORY_BYTES)).collect();
    // One that died cost nothing, and would flatter the others.
    ensure!(
        costs.len() == pids.len(),
        "{} of {} clones died, or cannot be measured",
        pids.len() - costs.len(),
        pids.len()
    );
    let of = |value: fn(&Cost) -> u64| {
        median(&costs.iter().map(|cost| value(cost) as f64).collect::<Vec<_>>()).context("no clone could be measured")
    };
    let beside = beside_hypervisors(server).saturating_sub(alone) as f64 / pids.len() as f64;
    let mut idle = Idle {
        count: pids.len(),
        proportional: of(|cost| cost.proportional)?,
        private: of(|cost| cost.private)?,
        guest: of(|cost| cost.guest)?,
        beside,
        cpu_percent,
        restore_before_ms: before,
        restore_beside_ms: restores(row, "beside", keep)?,
        faults: Vec::new(),
    };
    idle.faults = idle.judge();
    Ok(idle)
}

/// Memory that is not a file's, of the server and what it started but hypervisors, bytes.
fn beside_hypervisors(server: &Server) -> u64 {
    let resident = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let hypervisor = text.lines().next().is_some_and(tree::is_hypervisor);
        if hypervisor { 0 } else { meter::anonymous(&text) }
    };
    tree::family(server.pid()).into_iter().map(resident).sum()
}

fn restores(row: &Row, when: &str, keep: &[u32]) -> Result<f64> {
    let work = row.work.as_ref().map_err(|why| anyhow::anyhow!("{}: {why}", row.name))?;
    let mut took = Vec::new();
    for number in 0..=RESTORES {
        go_on()?;
        let name = format!("idle-{when}-{number}");
        work.prepare(1)?;
        let start = Instant::now();
        let ran = work.run(Run { name: &name, slot: 0, patience: PATIENCE })?;
        took.push(start.elapsed().as_secs_f64() * 1000.0);
        ensure!(ran.output == EXPECTED, "it printed {:?}", ran.output);
        work.check(&name)?;
        std::thread::sleep(Duration::from_millis(300));
        tree::reap(keep);
    }
    // The first one warms up.
    median(&took[1..]).context("no restores")
}

impl Idle {
    fn judge(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let ratio = self.restore_beside_ms / self.restore_before_ms;
        if ratio > SLOWER {
            faults.push(format!("a restore beside them takes {ratio:.2} times as long, {SLOWER} at most"));
        }
        let each = self.guest + self.beside;
        if each > MOST {
            let [each, most] = [each, MOST].map(|bytes| bytes / (1 << 20) as f64);
            faults.push(format!("each costs {each:.1} MiB beyond the hypervisor's own, {most} at most"));
        }
        faults
    }

    /// The table. What misses its bar is told by whoever judges.
    pub(super) fn text(&self) -> String {
        let mib = |bytes: f64| bytes / (1 << 20) as f64;
        let (before, beside) = (self.restore_before_ms, self.restore_beside_ms);
        [
            format!("\n{} idle clones of {MEMORY}; each, at the median", self.count),
            format!(
                "  memory of the hypervisor   {:>8.1} MiB proportional, {:.1} private",
                mib(self.proportional),
                mib(self.private)
            ),
            format!("  guest memory written       {:>8.1} MiB", mib(self.guest)),
            format!("  supervisor and server      {:>8.1} MiB", mib(self.beside)),
            format!("  processor                  {:>8.2} % of a core", self.cpu_percent),
            format!("  restore before / beside    {before:>8.0} / {beside:.0} ms, ratio {:.2}\n", beside / before),
        ]
        .join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_kept_up_to_the_bar_itself() {
        let fine = || Idle {
            count: 100,
            proportional: 40e6,
            private: 38e6,
            guest: 3.0 * (1 << 20) as f64,
            beside: (1 << 20) as f64,
            cpu_percent: 0.4,
            restore_before_ms: 100.0,
            restore_beside_ms: 150.0,
            faults: Vec::new(),
        };
        assert!(fine().judge().is_empty());
        assert_eq!(Idle { restore_beside_ms: 151.0, ..fine() }.judge().len(), 1);
        assert_eq!(Idle { beside: 1.1 * (1 << 20) as f64, ..fine() }.judge().len(), 1);
    }
}
