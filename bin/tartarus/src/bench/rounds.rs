//! The run: in every round each row once, in an order that is shuffled anew, so that whatever else the machine does
//! meets all rows alike.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::process::{self, go_on};
use super::progress::Progress;
use super::row::{EXPECTED, Kind, Ran, Row, Run, Work};
use super::stats::{ByRound, Shuffle};
use super::tree;

/// A run may take so long where two run at once; more have to share the machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long what a run left is waited for before the next one.
const SETTLE: Duration = Duration::from_secs(5);
/// The order is the same in every benchmark.
const SEED: u64 = 499_500;

/// How often.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Rounds alone.
    pub(super) rounds: usize,
    /// How many at once, ascending.
    pub(super) at_once: Vec<usize>,
}

impl Plan {
    /// Rounds of so many at once: fewer, since each has more runs.
    fn rounds(&self, at_once: usize) -> usize {
        if at_once == 1 { self.rounds } else { self.rounds.div_ceil(at_once).max(2).min(self.rounds) }
    }

    pub(super) fn most(&self) -> usize {
        self.at_once.iter().copied().max().unwrap_or(1)
    }
}

/// What was measured of one row with so many at once.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Milliseconds of each run that succeeded.
    pub(super) ms: Vec<f64>,
    /// By round: the median of the round's runs, `None` when one failed.
    pub(super) by_round: ByRound,
    /// Milliseconds from a round's start to the end of its last run, over the number of runs.
    pub(super) each: Vec<f64>,
    /// Why runs failed.
    pub(super) failures: Vec<String>,
    /// Phases by name, in the order they were first seen.
    pub(super) phases: Vec<(String, Vec<f64>)>,
    /// Hypervisor drivers that were seen.
    pub(super) drivers: BTreeMap<String, usize>,
}

/// Results by number at once, then by row.
pub(super) type Results = BTreeMap<usize, Vec<Measured>>;

/// Runs all rows once to see whether they work, which is not counted, and then as planned. A baseline that does not work
/// is not run again.
///
/// # Errors
/// When it is interrupted. What fails within a row is the row's.
pub(super) fn run(rows: &mut [Row], plan: &Plan, keep: &[u32], progress: Progress) -> Result<Results> {
    if rows.is_empty() {
        return Ok(Results::new());
    }
    let mut runs = 0;
    process::until("quiet", SETTLE, || {
        let machines = tree::descendants().into_iter().filter(|p| tree::is_hypervisor(&p.name));
        Ok((machines.count() == 0).then_some(()))
    })
    .context("a machine of the preparation is still there")?;
    let idle = tree::descendants().len();
    for row in rows.iter_mut() {
        go_on()?;
        let Ok(work) = &row.work else { continue };
        progress.say(&format!("  first run of {}", row.name));
        let tried = batch(work.as_ref(), row.name, 1, &mut runs).pop().context("nothing was run")?;
        go_on()?;
        settle(idle, keep);
        if let Err(why) = tried.judged
            && row.what != Kind::Ours
        {
            row.work = Err(why);
        }
    }
    let mut results = Results::new();
    let mut shuffle = Shuffle::new(SEED);
    for &at_once in &plan.at_once {
        let mut measured: Vec<Measured> = rows.iter().map(|_| Measured::default()).collect();
        for round in 0..plan.rounds(at_once) {
            progress.say(&format!("  {at_once} at once, round {} of {}", round + 1, plan.rounds(at_once)));
            for index in shuffle.order(rows.len()) {
                let Ok(work) = &rows[index].work else { continue };
                if let Err(error) = work.prepare(at_once) {
                    progress.say(&format!("  {}: {error:#}", rows[index].name));
                }
                let start = Instant::now();
                let tries = batch(work.as_ref(), rows[index].name, at_once, &mut runs);
                go_on()?;
                // Before looking at each: that takes time.
                let longest = tries.iter().map(|tried| tried.ended_at).max().unwrap_or(start) - start;
                measured[index].add(tries, longest);
                settle(idle, keep);
            }
        }
        results.insert(at_once, measured);
    }
    Ok(results)
}

/// Waits until what a run left running has ended: containers are removed and machines put down after the answer.
fn settle(idle: usize, keep: &[u32]) {
    let start = Instant::now();
    while tree::descendants().len() > idle && start.elapsed() < SETTLE {
        std::thread::sleep(Duration::from_millis(5));
    }
    tree::reap(keep);
}

/// One run and what became of it.
struct Tried {
    ms: f64,
    ended_at: Instant,
    judged: Result<Option<super::api::Detail>, String>,
}

/// Runs a row so often at the same time.
fn batch(work: &dyn Work, row: &str, at_once: usize, runs: &mut usize) -> Vec<Tried> {
    let names: Vec<String> = (0..at_once).map(|slot| format!("bench-{}-{row}", *runs + slot)).collect();
    *runs += at_once;
    let patience = PATIENCE * u32::try_from(at_once.div_ceil(2)).unwrap_or(1);
    let one = |slot: usize| {
        let run = Run { name: &names[slot], slot, patience };
        let start = Instant::now();
        let ran = work.run(run);
        let took = start.elapsed();
        (ran, took.as_secs_f64() * 1000.0, start + took)
    };
    let ran: Vec<_> = if at_once == 1 {
        vec![one(0)]
    } else {
        let barrier = Barrier::new(at_once);
        let gated = |slot| {
            barrier.wait();
            one(slot)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once).map(|slot| scope.spawn(move || gated(slot))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        })
    };
    let judge = |(slot, (ran, ms, ended_at)): (usize, (Result<Ran>, f64, Instant))| {
        let ms = ran.as_ref().ok().and_then(|ran| ran.ms).unwrap_or(ms);
        let judged = ran.and_then(compare).and_then(|()| work.check(&names[slot]));
        Tried { ms, ended_at, judged: judged.map_err(|error| format!("{error:#}")) }
    };
    ran.into_iter().enumerate().map(judge).collect()
}

fn compare(ran: Ran) -> Result<()> {
    if ran.output != EXPECTED {
        let shown: String = ran.output.chars().take(100).collect();
        bail!("it printed {shown:?} instead of {EXPECTED:?}");
    }
    Ok(())
}

impl Measured {
    fn add(&mut self, tries: Vec<Tried>, longest: Duration) {
        let count = tries.len();
        let mut fine = Vec::new();
        for tried in tries {
            match tried.judged {
                Ok(detail) => {
                    fine.push(tried.ms);
                    if let Some(detail) = detail {
                        self.learn(detail);
                    }
                }
                Err(why) => self.failures.push(why),
            }
        }
        self.ms.extend(&fine);
        let whole = fine.len() == count;
        self.by_round.push(whole.then(|| super::stats::median(&fine)).flatten());
        if whole {
            self.each.push(longest.as_secs_f64() * 1000.0 / count as f64);
        }
    }

    fn learn(&mut self, detail: super::api::Detail) {
        for phase in detail.phases {
            match self.phases.iter_mut().find(|(name, _)| *name == phase.name) {
                Some((_, values)) => values.push(phase.took_ms),
                None => self.phases.push((phase.name, vec![phase.took_ms])),
            }
        }
        *self.drivers.entry(detail.driver.unwrap_or_else(|| "unknown".to_owned())).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prints what it should but in the slot that it is told.
    struct Wrong(Option<usize>);

    impl Work for Wrong {
        fn run(&self, run: Run<'_>) -> Result<Ran> {
            let output = if self.0 == Some(run.slot) { "500\n" } else { EXPECTED };
            Ok(Ran { output: output.to_owned(), ms: Some(7.0) })
        }
    }

    fn measured(work: &Wrong, at_once: usize) -> Measured {
        let mut measured = Measured::default();
        measured.add(batch(work, "x", at_once, &mut 0), Duration::from_millis(10));
        measured
    }

    #[test]
    fn a_wrong_answer_is_a_failure_and_spoils_its_round() {
        let fine = measured(&Wrong(None), 4);
        assert_eq!((fine.ms.as_slice(), fine.by_round.as_slice()), (&[7.0; 4][..], &[Some(7.0)][..]));
        assert_eq!((fine.each.as_slice(), fine.failures.len()), (&[2.5][..], 0));
        let wrong = measured(&Wrong(Some(2)), 4);
        assert_eq!((wrong.ms.len(), wrong.by_round.as_slice()), (3, &[None][..]));
        assert!(wrong.failures[0].contains("500") && wrong.each.is_empty());
    }

    #[test]
    fn more_at_once_are_fewer_rounds() {
        let plan = Plan { rounds: 15, at_once: vec![1, 2, 8, 16] };
        assert_eq!([1, 2, 8, 16].map(|at_once| plan.rounds(at_once)), [15, 8, 2, 2]);
        assert_eq!((plan.most(), Plan { rounds: 1, at_once: vec![2] }.rounds(2)), (16, 1));
    }
}
