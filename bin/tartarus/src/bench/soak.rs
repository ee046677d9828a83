//! Leaks: many sandboxes one after another, and what is left of them.

use anyhow::Result;
use serde::Serialize;

use super::meter::Moment;
use super::process::go_on;
use super::progress::Progress;
use super::row::{EXPECTED, Row, Run};
use super::server::Server;
use super::tree;

/// Runs before the first look: caches fill with the first ones.
const WARM: usize = 5;
/// Memory may differ by so much, bytes.
const SLACK: i64 = 10 << 20;
/// After the last run, what is being put down gets so long.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(2);
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Both looks.
#[derive(Debug, Serialize)]
pub(super) struct Soak {
    row: &'static str,
    count: usize,
    failed: usize,
    before: Moment,
    after: Moment,
    /// What is too much.
    pub(super) faults: Vec<String>,
}

/// Runs a row so often and compares.
pub(super) fn run(server: &Server, row: &Row, count: usize, keep: &[u32], progress: Progress) -> Result<Soak> {
    let work = row.work.as_ref().map_err(|why| anyhow::anyhow!("{} cannot be soaked: {why}", row.name))?;
    let mut failed = Vec::new();
    let mut one = |name: String| -> Result<()> {
        go_on()?;
        work.prepare(1)?;
        match work.run(Run { name: &name, slot: 0, patience: PATIENCE }) {
            Ok(ran) if ran.output == EXPECTED => {}
            Ok(ran) => failed.push(format!("it printed {:?}", ran.output)),
            Err(error) => failed.push(format!("{error:#}")),
        }
        tree::reap(keep);
        Ok(())
    };
    let look = || {
        std::thread::sleep(SETTLE);
        tree::reap(keep);
        Moment::look(server.pid(), server.data())
    };
    (0..WARM).try_for_each(|n| one(format!("soak-warm-{n}")))?;
    let before = look();
    progress.say(&format!("  {count} runs of {}, one after another", row.name));
    (0..count).try_for_each(|n| one(format!("soak-{n}")))?;
    let after = look();
    let mut faults = judge(&before, &after);
    faults.extend(failed.first().map(|why| format!("{} runs failed, the first: {why}", failed.len())));
    Ok(Soak { row: row.name, count, failed: failed.len(), before, after, faults })
}

/// What has grown too much. Free memory of the whole machine is shown and not judged: others move it as well.
fn judge(before: &Moment, after: &Moment) -> Vec<String> {
    let mib = |bytes: i64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    let mut faults = Vec::new();
    let mut limit = |name: &str, grown: i64, most: i64, shown: String| {
        if grown > most {
            faults.push(format!("{name} grew by {shown}"));
        }
    };
    let memory = after.resident - before.resident + (after.shared - before.shared).max(0);
    limit("memory", memory, SLACK, mib(memory));
    let counts = [
        ("descriptors", after.descriptors - before.descriptors),
        ("processes", after.processes - before.processes),
        ("mounts", after.mounts - before.mounts),
    ];
    for (name, grown) in counts {
        limit(name, grown, 0, grown.to_string());
    }
    let disk = after.disk - before.disk;
    limit("the disk, records and logs aside,", disk, 0, mib(disk));
    faults
}

impl Soak {
    /// The table. What is too much is told by whoever judges.
    pub(super) fn text(&self) -> String {
        let mut out = format!("\n{} runs of {} one after another, {} failed\n", self.count, self.row, self.failed);
        out += &format!("{:<28}{:>12}{:>12}{:>12}\n", "", "before", "after", "difference");
        let (b, a) = (&self.before, &self.after);
        let mib = [
            ("resident, MiB", b.resident, a.resident),
            ("memfds, MiB", b.shared, a.shared),
            ("available (machine), MiB", b.available, a.available),
            ("disk, MiB", b.disk, a.disk),
        ];
        for (name, before, after) in mib {
            let [before, after] = [before, after].map(|bytes| bytes as f64 / (1 << 20) as f64);
            out += &format!("{name:<28}{before:>12.1}{after:>12.1}{:>12.1}\n", after - before);
        }
        for (name, before, after) in [
            ("descriptors", b.descriptors, a.descriptors),
            ("processes", b.processes, a.processes),
            ("mounts", b.mounts, a.mounts),
        ] {
            out += &format!("{name:<28}{before:>12}{after:>12}{:>12}\n", after - before);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_grew_too_much_is_a_fault() {
        let before = Moment {
            resident: 50 << 20,
            shared: 512 << 20,
            available: 9 << 30,
            descriptors: 40,
            processes: 2,
            mounts: 30,
            disk: 1 << 30,
        };
        let fine = Moment { resident: 59 << 20, available: 1 << 30, descriptors: 39, ..before };
        assert!(judge(&before, &fine).is_empty());
        let mut leak = fine;
        leak.shared += 2 << 20;
        assert_eq!(judge(&before, &leak).len(), 1, "both kinds of memory count together");
        for spoil in [
            |m: &mut Moment| m.descriptors = 41,
            |m: &mut Moment| m.processes += 1,
            |m: &mut Moment| m.mounts += 1,
            |m: &mut Moment| m.disk += 4096,
        ] {
            let mut after = before;
            spoil(&mut after);
            assert_eq!(judge(&before, &after).len(), 1, "{after:?}");
        }
    }
}
