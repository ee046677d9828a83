//! Waiting without sleeping, for a little while: a processor that never slept need not be woken.
//!
//! Where each instruction is translated when it first runs, the way of a fresh clone's kernel out of its idle loop, to
//! the agent and back again costs more than the whole greeting. So the agent waits awake for the snapshot, and goes on so
//! in each clone; and again between its answer and the first start.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// Between two looks: so many hints that nothing is to be done, some ten microseconds in all.
const PAUSES: usize = 32;

/// Until when the agent stays awake. By the monotonic clock, which stands still in a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Alert(Option<Instant>);

impl Alert {
    /// Stays awake for so long.
    pub(crate) fn stay(&mut self, time: Duration) {
        self.0 = Instant::now().checked_add(time);
    }

    /// Need not be awake any more.
    pub(crate) fn rest(&mut self) {
        self.0 = None;
    }

    /// Lets a moment pass. False, at once, when the agent may sleep.
    pub(crate) fn pause(&mut self) -> bool {
        let awake = self.0.is_some_and(|until| Instant::now() < until);
        if awake {
            (0..PAUSES).for_each(|_| spin_loop());
        } else {
            self.0 = None;
        }
        awake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_awake_until_its_time_is_over_or_it_may_rest() {
        let mut alert = Alert::default();
        assert!(!alert.pause());
        alert.stay(Duration::from_secs(3600));
        assert!(alert.pause() && alert.pause());
        alert.rest();
        assert!(!alert.pause());
        alert.stay(Duration::from_millis(2));
        let began = Instant::now();
        while alert.pause() {}
        assert!((2..2000).contains(&began.elapsed().as_millis()));
    }
}
