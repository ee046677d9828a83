//! The kept part of one output stream: what the host does not have on disk yet, addressed by position in the stream.
//!
//! Used by `output`. Knows no file descriptor and no frame.

use tartarus_guest::OUTPUT_WINDOW;

/// First size of the ring, bytes; it doubles up to [`OUTPUT_WINDOW`], so that a quiet process stays small.
const SMALL: usize = 16 * 1024;

const _: () = assert!(OUTPUT_WINDOW.is_power_of_two() && SMALL.is_power_of_two() && SMALL <= OUTPUT_WINDOW);

/// A position that is not in the window.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("position {asked} is not within the {from} to {to} that are kept")]
pub(crate) struct Outside {
    asked: u64,
    from: u64,
    to: u64,
}

/// Bytes `base..end` of a stream, at most [`OUTPUT_WINDOW`] of them, in a ring whose length is a power of two: the byte
/// at position `p` lies at `p % length`.
#[derive(Debug, Default)]
pub(crate) struct Window {
    ring: Vec<u8>,
    base: u64,
    end: u64,
    /// Next byte to send in this session.
    next: u64,
    /// One past the last byte that was ever sent.
    seen: u64,
    attached: bool,
}

impl Window {
    /// Room for more bytes, contiguous, at most `most`; empty when the window is full. [`Window::wrote`] keeps them.
    pub(crate) fn room(&mut self, most: u64) -> &mut [u8] {
        let held = (self.end - self.base) as usize;
        if held == self.ring.len() && held < OUTPUT_WINDOW {
            self.grow();
        }
        let free = (self.ring.len() - held).min(usize::try_from(most).unwrap_or(usize::MAX));
        if free == 0 {
            return &mut [];
        }
        let at = self.index(self.end);
        let to = self.ring.len().min(at + free);
        &mut self.ring[at..to]
    }

    /// Takes over the first `count` bytes of the last [`Window::room`].
    pub(crate) fn wrote(&mut self, count: usize) {
        self.end += count as u64;
        debug_assert!(self.end - self.base <= self.ring.len() as u64);
    }

    /// The next bytes to send, contiguous, at most `most`, with their position; `None` when nothing is to be sent.
    pub(crate) fn unsent(&self, most: usize) -> Option<(u64, &[u8])> {
        if !self.attached || self.next == self.end {
            return None;
        }
        let at = self.index(self.next);
        let count = ((self.end - self.next) as usize).min(most).min(self.ring.len() - at);
        Some((self.next, &self.ring[at..at + count]))
    }

    /// Notes that `count` bytes of [`Window::unsent`] were sent.
    pub(crate) fn sent(&mut self, count: usize) {
        self.next += count as u64;
        self.seen = self.seen.max(self.next);
    }

    /// Sends from `offset` on; bytes before it are dropped. Gives whether it was attached before.
    pub(crate) fn attach(&mut self, offset: u64) -> Result<bool, Outside> {
        if offset < self.base || offset > self.end {
            return Err(Outside { asked: offset, from: self.base, to: self.end });
        }
        (self.base, self.next) = (offset, offset);
        self.seen = self.seen.max(offset);
        Ok(std::mem::replace(&mut self.attached, true))
    }

    /// Nothing is sent until the next [`Window::attach`].
    pub(crate) fn detach(&mut self) {
        self.attached = false;
    }

    /// Drops bytes before `offset`, which the host has. A late repetition changes nothing.
    pub(crate) fn ack(&mut self, offset: u64) -> Result<(), Outside> {
        if offset > self.seen {
            return Err(Outside { asked: offset, from: self.base, to: self.seen });
        }
        self.base = self.base.max(offset);
        self.next = self.next.max(self.base);
        Ok(())
    }

    /// All of it was sent in this session.
    pub(crate) fn is_sent(&self) -> bool {
        self.attached && self.next == self.end
    }

    /// All of it was sent once, in this session or an earlier one.
    pub(crate) fn is_seen(&self) -> bool {
        self.seen == self.end
    }

    fn index(&self, position: u64) -> usize {
        position as usize & (self.ring.len() - 1)
    }

    fn grow(&mut self) {
        let length = (self.ring.len() * 2).max(SMALL);
        let mut ring = vec![0; length];
        let mut position = self.base;
        while position < self.end {
            let (from, to) = (self.index(position), position as usize & (length - 1));
            // Both rings wrap; the longer one at a multiple of the shorter, so the shorter one's edge bounds the piece.
            let count = ((self.end - position) as usize).min(self.ring.len() - from);
            ring[to..to + count].copy_from_slice(&self.ring[from..from + count]);
            position += count as u64;
        }
        self.ring = ring;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn byte(position: u64) -> u8 {
        (position % 251) as u8
    }

    fn fill(window: &mut Window, most: u64) -> usize {
        let end = window.end;
        let room = window.room(most);
        for (position, slot) in (end..).zip(room.iter_mut()) {
            *slot = byte(position);
        }
        let count = room.len();
        window.wrote(count);
        count
    }

    #[test]
    fn it_is_bounded_and_goes_on_after_an_ack() {
        let mut window = Window::default();
        while fill(&mut window, u64::MAX) > 0 {}
        assert_eq!(window.end, OUTPUT_WINDOW as u64);
        assert_eq!(window.unsent(9), None, "nothing goes out before the host attached");
        assert_eq!(window.attach(0), Ok(false));
        let (at, bytes) = window.unsent(usize::MAX).unwrap();
        assert_eq!((at, bytes.len()), (0, OUTPUT_WINDOW));
        assert!(window.ack(1).is_err(), "what was never sent cannot be acknowledged");
        window.sent(100);
        window.ack(100).unwrap();
        window.ack(5).unwrap();
        assert_eq!(fill(&mut window, u64::MAX), 100);
        assert!(window.attach(99).is_err());
        assert!(window.attach(window.end + 1).is_err());
        assert_eq!(window.attach(101), Ok(true));
        assert_eq!(window.unsent(1), Some((101, [byte(101)].as_slice())));
    }

    #[test]
    fn a_new_session_sends_again_what_was_not_acknowledged() {
        let mut window = Window::default();
        fill(&mut window, 10);
        window.attach(0).unwrap();
        window.sent(10);
        assert!(window.is_sent() && window.is_seen());
        window.detach();
        assert!(!window.is_sent() && window.is_seen());
        window.ack(4).unwrap();
        window.attach(4).unwrap();
        assert_eq!(window.unsent(99).unwrap(), (4, (4..10).map(byte).collect::<Vec<_>>().as_slice()));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Fill(u64),
        Send(usize),
        Ack(u64),
        Reattach(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..90_000u64).prop_map(Step::Fill),
            (1..40_000usize).prop_map(Step::Send),
            (0..90_000u64).prop_map(Step::Ack),
            (0..90_000u64).prop_map(Step::Reattach),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, a host sees every byte at its position, and the window keeps its bound.
        #[test]
        fn every_byte_keeps_its_position(steps in proptest::collection::vec(step(), 1..80)) {
            let mut window = Window::default();
            window.attach(0).unwrap();
            for step in steps {
                match step {
                    Step::Fill(most) => {
                        fill(&mut window, most);
                    }
                    Step::Send(most) => {
                        let Some((at, bytes)) = window.unsent(most) else { continue };
                        prop_assert!(bytes.iter().zip(at..).all(|(b, p)| *b == byte(p)));
                        let count = bytes.len();
                        window.sent(count);
                    }
                    Step::Ack(more) => {
                        let to = window.base + more;
                        prop_assert_eq!(window.ack(to).is_ok(), to <= window.seen);
                    }
                    Step::Reattach(more) => {
                        let to = window.base + more;
                        prop_assert_eq!(window.attach(to).is_ok(), to <= window.end);
                    }
                }
                prop_assert!(window.end - window.base <= OUTPUT_WINDOW as u64);
                prop_assert!(window.base <= window.next && window.next <= window.end);
            }
        }
    }
}
