//! What became of all packets of a node's sandboxes, also of those that are gone: the kernel's counters end with their
//! namespace and begin anew with each contract.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use styx::names::Refused;
use styx::{Space, StyxError};
use tartarus_types::net::{NetCounter, NetTotals};

/// Namespaces that are read at once: each takes a thread for some hundred microseconds.
const AT_ONCE: usize = 8;
/// One whose rules are just being changed may take longer, and is left out: the next who asks finds its packets.
const PATIENCE: Duration = Duration::from_secs(2);

/// Packets and bytes by name.
type Counts = BTreeMap<String, (u64, u64)>;

/// The sums of a node, since this agent started.
#[derive(Default)]
pub(super) struct Totals(Mutex<State>);

#[derive(Default)]
struct State {
    sums: Counts,
    refused_names: u64,
    mended: u64,
    live: Vec<Weak<Metered>>,
}

/// A network as the sums see it.
pub(super) struct Metered {
    pub(super) space: Arc<Space>,
    pub(super) refused: Arc<Refused>,
    /// How often its rules were put back.
    pub(super) mended: AtomicU64,
    totals: Arc<Totals>,
    /// How much of it is in the sums.
    told: tokio::sync::Mutex<Told>,
}

#[derive(Default)]
struct Told {
    counts: Counts,
    refused_names: u64,
    mended: u64,
}

impl Totals {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A network that is added up from now on. Its counters began with its contract, which may have waited for it.
    pub(super) fn meter(self: &Arc<Self>, space: Arc<Space>) -> Arc<Metered> {
        let (refused, mended, told) = (Arc::default(), AtomicU64::new(0), tokio::sync::Mutex::default());
        let metered = Arc::new(Metered { space, refused, mended, totals: self.clone(), told });
        let mut state = self.state();
        state.live.retain(|one| one.strong_count() > 0);
        state.live.push(Arc::downgrade(&metered));
        metered
    }

    /// The sums as they are now.
    pub(super) async fn read(&self) -> NetTotals {
        let live: Vec<Arc<Metered>> = self.state().live.iter().filter_map(Weak::upgrade).collect();
        let networks = live.len() as u64;
        futures_util::stream::iter(live)
            .for_each_concurrent(AT_ONCE, async |one| {
                if tokio::time::timeout(PATIENCE, one.tell()).await.is_err() {
                    tracing::debug!(sandbox_network = one.space.index, "its counters cannot be read in time");
                }
            })
            .await;
        let state = self.state();
        let counter = |(name, (packets, bytes)): (&String, &(u64, u64))| NetCounter {
            name: name.clone(),
            packets: *packets,
            bytes: *bytes,
        };
        let counters = state.sums.iter().map(counter).collect();
        NetTotals { networks, counters, refused_names: state.refused_names, mended: state.mended }
    }
}

impl Metered {
    /// Adds what has happened since the last time.
    pub(super) async fn tell(&self) {
        let mut told = self.told.lock().await;
        self.add(&mut told).await;
    }

    async fn add(&self, told: &mut Told) {
        let read = self.space.tally().await;
        let (refused_names, mended) = (self.refused.times(), self.mended.load(Ordering::Relaxed));
        let mut state = self.totals.state();
        match read.map(by_name) {
            Ok(now) => {
                for (name, (packets, bytes)) in more(&told.counts, &now) {
                    let sum = state.sums.entry(name).or_default();
                    *sum = (sum.0.saturating_add(packets), sum.1.saturating_add(bytes));
                }
                told.counts = now;
            }
            Err(error) => tracing::debug!(sandbox_network = self.space.index, %error, "its counters cannot be read"),
        }
        state.refused_names += refused_names - told.refused_names;
        state.mended += mended - told.mended;
        (told.refused_names, told.mended) = (refused_names, mended);
    }

    /// Adds up before `change`, with which counters begin anew, and counts from there. One that fails may have left them.
    pub(super) async fn across(&self, change: impl Future<Output = Result<(), StyxError>>) -> Result<(), StyxError> {
        let mut told = self.told.lock().await;
        self.add(&mut told).await;
        change.await?;
        told.counts.clear();
        Ok(())
    }
}

/// By name.
fn by_name(counters: Vec<NetCounter>) -> Counts {
    counters.into_iter().map(|NetCounter { name, packets, bytes }| (name, (packets, bytes))).collect()
}

/// How much more `now` is; what is less has begun anew meanwhile.
fn more(before: &Counts, now: &Counts) -> Counts {
    let one = |(name, now): (&String, &(u64, u64))| {
        let before = before.get(name).filter(|before| before.0 <= now.0 && before.1 <= now.1).copied();
        let (packets, bytes) = before.unwrap_or_default();
        (name.clone(), (now.0 - packets, now.1 - bytes))
    };
    now.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_anew_counts_whole() {
        let counts = |counts: &[(&str, u64, u64)]| -> Counts {
            counts.iter().map(|(name, packets, bytes)| ((*name).to_owned(), (*packets, *bytes))).collect()
        };
        let before = counts(&[("allowed", 5, 500), ("never", 9, 900), ("gone", 1, 1)]);
        let now = counts(&[("allowed", 7, 800), ("never", 2, 90), ("new", 1, 60)]);
        assert_eq!(more(&before, &now), counts(&[("allowed", 2, 300), ("never", 2, 90), ("new", 1, 60)]));
        assert_eq!(more(&now, &now), counts(&[("allowed", 0, 0), ("never", 0, 0), ("new", 0, 0)]));
    }
}
