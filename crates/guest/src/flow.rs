//! One direction of a carried connection: positions, credit and end, for the side that sends and the side that takes.
//! Pure, and the same on host and guest.
//!
//! Positions are counted in bytes from the start of the connection. The sender is never more than [`CARRY_WINDOW`] ahead of
//! what the other side said it took, so a slow reader holds back its own connection and nothing else.

use crate::CARRY_WINDOW;

/// The receiver says so after this many bytes that it took: often enough that the sender need not wait for it.
const STEP: u64 = CARRY_WINDOW as u64 / 4;

/// The other side broke a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Bytes that are not the next ones.
    #[error("a connection goes on at {got}, {known} bytes came before")]
    Gap {
        /// Where the bytes would go.
        got: u64,
        /// How many came before.
        known: u64,
    },
    /// More than the window.
    #[error("a connection overruns its window of {CARRY_WINDOW} bytes")]
    Overrun,
    /// Bytes after the end, or another end.
    #[error("a connection goes on after its end")]
    PastEnd,
    /// It took what was never sent.
    #[error("{got} bytes of a connection are said to be taken, {sent} were sent")]
    Ahead {
        /// What it says.
        got: u64,
        /// What is true.
        sent: u64,
    },
}

/// What is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outgoing {
    sent: u64,
    acked: u64,
    ended: bool,
}

/// What comes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Incoming {
    received: u64,
    taken: u64,
    acked: u64,
    ended: bool,
}

impl Outgoing {
    /// How many bytes may be sent now.
    pub fn room(&self) -> usize {
        if self.ended { 0 } else { CARRY_WINDOW - (self.sent - self.acked) as usize }
    }

    /// Notes that so many bytes are sent, at most [`Outgoing::room`]; gives their position.
    ///
    /// # Panics
    /// When it is more than that; callers bound what they send.
    pub fn send(&mut self, count: usize) -> u64 {
        assert!(count <= self.room(), "{count} bytes in a room of {}", self.room());
        let at = self.sent;
        self.sent += count as u64;
        at
    }

    /// Nothing more follows; gives the position of the end.
    pub fn end(&mut self) -> u64 {
        self.ended = true;
        self.sent
    }

    /// It was said that nothing more follows.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The other side took what is before `offset`. An older word means nothing.
    ///
    /// # Errors
    /// [`Broken::Ahead`].
    pub fn taken(&mut self, offset: u64) -> Result<(), Broken> {
        if offset > self.sent {
            return Err(Broken::Ahead { got: offset, sent: self.sent });
        }
        self.acked = self.acked.max(offset);
        Ok(())
    }

    /// It ended, and everything was taken.
    pub fn is_over(&self) -> bool {
        self.ended && self.acked == self.sent
    }
}

impl Incoming {
    /// So many bytes came, at `offset`.
    ///
    /// # Errors
    /// When they are not the next ones, or more than the window holds.
    pub fn receive(&mut self, offset: u64, count: usize) -> Result<(), Broken> {
        if self.ended {
            return Err(Broken::PastEnd);
        }
        if offset != self.received {
            return Err(Broken::Gap { got: offset, known: self.received });
        }
        if count as u64 > CARRY_WINDOW as u64 - (self.received - self.acked) {
            return Err(Broken::Overrun);
        }
        self.received += count as u64;
        Ok(())
    }

    /// Nothing more follows after `offset`.
    ///
    /// # Errors
    /// When bytes are missing, or it ended before.
    pub fn end(&mut self, offset: u64) -> Result<(), Broken> {
        if self.ended {
            return Err(Broken::PastEnd);
        }
        if offset != self.received {
            return Err(Broken::Gap { got: offset, known: self.received });
        }
        self.ended = true;
        Ok(())
    }

    /// So many bytes were passed on.
    ///
    /// # Panics
    /// When so many did not come.
    pub fn take(&mut self, count: usize) {
        self.taken += count as u64;
        assert!(self.taken <= self.received, "{} of {} bytes were taken", self.taken, self.received);
    }

    /// What is to be said of that, once, when it is due: after many bytes, and after the last.
    pub fn due(&mut self) -> Option<u64> {
        let due = self.taken - self.acked >= STEP || (self.is_over() && self.taken != self.acked);
        due.then(|| {
            self.acked = self.taken;
            self.taken
        })
    }

    /// It ended, and everything was passed on.
    pub fn is_over(&self) -> bool {
        self.ended && self.taken == self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_window_is_a_bound_on_both_sides() {
        let (mut out, mut into) = (Outgoing::default(), Incoming::default());
        assert_eq!(out.room(), CARRY_WINDOW);
        assert_eq!(out.send(CARRY_WINDOW), 0);
        assert_eq!((out.room(), into.receive(0, CARRY_WINDOW)), (0, Ok(())));
        assert_eq!(into.receive(CARRY_WINDOW as u64, 1), Err(Broken::Overrun));
        into.take(STEP as usize - 1);
        assert_eq!(into.due(), None);
        into.take(1);
        assert_eq!((into.due(), into.due()), (Some(STEP), None));
        assert_eq!(out.taken(STEP), Ok(()));
        assert_eq!(out.room(), STEP as usize);
        assert_eq!(out.taken(CARRY_WINDOW as u64 + 1), Err(Broken::Ahead { got: 131_073, sent: 131_072 }));
        assert_eq!((out.taken(0), out.room()), (Ok(()), STEP as usize), "an older word");
    }

    #[test]
    fn an_end_is_the_end() {
        let mut into = Incoming::default();
        into.receive(0, 5).unwrap();
        assert_eq!(into.receive(4, 1), Err(Broken::Gap { got: 4, known: 5 }));
        assert_eq!(into.end(6), Err(Broken::Gap { got: 6, known: 5 }));
        into.end(5).unwrap();
        assert_eq!((into.end(5), into.receive(5, 0)), (Err(Broken::PastEnd), Err(Broken::PastEnd)));
        assert!(!into.is_over());
        into.take(5);
        assert_eq!((into.is_over(), into.due(), into.due()), (true, Some(5), None), "the last word, once");
        let mut out = Outgoing::default();
        out.send(5);
        assert_eq!((out.end(), out.room(), out.is_over()), (5, 0, false));
        out.taken(5).unwrap();
        assert!(out.is_over());
    }

    proptest! {
        /// Whatever the sender sends and whenever the receiver takes: nobody breaks a rule, and nobody waits for ever.
        #[test]
        fn both_sides_agree(steps in proptest::collection::vec((0..CARRY_WINDOW * 2, 0..CARRY_WINDOW * 2), 1..60)) {
            let (mut out, mut into) = (Outgoing::default(), Incoming::default());
            let (mut held, mut total) = (0, 0);
            for (send, take) in steps {
                let count = send.min(out.room());
                prop_assert_eq!(into.receive(out.send(count), count), Ok(()));
                (held, total) = (held + count, total + count);
                prop_assert!(held <= CARRY_WINDOW);
                let count = take.min(held);
                into.take(count);
                held -= count;
                if let Some(taken) = into.due() {
                    prop_assert_eq!(out.taken(taken), Ok(()));
                }
                prop_assert!(out.room() > 0 || held > 0);
            }
            prop_assert_eq!(into.end(out.end()), Ok(()));
            into.take(held);
            if let Some(taken) = into.due() {
                prop_assert_eq!(out.taken(taken), Ok(()));
            }
            prop_assert_eq!((out.is_over(), into.is_over()), (true, true));
        }

        #[test]
        fn any_word_is_taken_or_refused(words in proptest::collection::vec((any::<u64>(), 0..CARRY_WINDOW, 0..3_u8), 0..50)) {
            let (mut out, mut into) = (Outgoing::default(), Incoming::default());
            for (offset, count, what) in words {
                let _ = out.send(count.min(out.room()));
                let _ = match what {
                    0 => into.receive(offset % 4, count),
                    1 => into.end(offset),
                    _ => out.taken(offset),
                };
            }
        }
    }
}
