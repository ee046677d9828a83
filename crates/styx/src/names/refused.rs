//! Names that a sandbox was refused, for whoever wonders why something does not work, or what was tried.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tartarus_types::Timestamp;
use tartarus_types::net::RefusedName;

/// How many names are kept.
const KEPT: usize = 64;

/// The last names that were refused; a bounded number. A guest decides which, so it is a hint and no audit.
#[derive(Debug, Default)]
pub struct Refused {
    kept: Mutex<VecDeque<RefusedName>>,
    times: AtomicU64,
}

impl Refused {
    /// Remembers that `name` was refused at `now`.
    pub fn add(&self, name: &str, why: &str, now: Timestamp) {
        self.times.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.iter().position(|known| known.name == name && known.why == why);
        let mut entry = known.and_then(|at| kept.remove(at)).unwrap_or_else(|| RefusedName {
            name: name.to_owned(),
            times: 0,
            last_at: now,
            why: why.to_owned(),
        });
        entry.times = entry.times.saturating_add(1);
        entry.last_at = now;
        kept.truncate(KEPT - 1);
        kept.push_front(entry);
    }

    /// All that is remembered, the newest first.
    pub fn list(&self) -> Vec<RefusedName> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// How often a name was refused, also of those that are not remembered any more.
    pub fn times(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }
}
