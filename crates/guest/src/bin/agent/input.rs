//! The standard input of a process: the pipe to it, and the bytes that it did not read yet.
//!
//! Positions are counted in bytes from the start. A host that came back repeats what was not acknowledged, so what is
//! known already is skipped and only what continues it is taken.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, write};
use tartarus_guest::STDIN_WINDOW;

/// The host broke a rule of standard input.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InputError {
    /// Bytes are missing.
    #[error("standard input goes on at {got}, only {known} bytes came before")]
    Gap {
        /// Where the bytes would go.
        got: u64,
        /// How many came before.
        known: u64,
    },
    /// More than the window.
    #[error("standard input overruns its window of {STDIN_WINDOW} bytes; wait for acknowledgements")]
    Overrun,
    /// Bytes after the end, or another end.
    #[error("standard input ended at {0} before")]
    PastEnd(u64),
}

/// Standard input of one process.
#[derive(Debug, Default)]
pub(crate) struct Input {
    /// `None` when nobody reads: what comes is dropped and acknowledged.
    pipe: Option<OwnedFd>,
    buffer: VecDeque<u8>,
    /// Written to the pipe or dropped.
    taken: u64,
    /// The last acknowledgement that was sent.
    acked: u64,
    /// The host said that it ends here.
    eof: Option<u64>,
    writable: bool,
}

impl Input {
    /// Writes to `pipe`, which must not block.
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Some(pipe), writable: true, ..Self::default() }
    }

    /// The pipe has news.
    pub(crate) fn wake(&mut self) {
        self.writable = true;
    }

    /// Bytes written to the process or dropped.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    fn known(&self) -> u64 {
        self.taken + self.buffer.len() as u64
    }

    /// Takes bytes that begin at `offset`.
    pub(crate) fn push(&mut self, offset: u64, bytes: &[u8]) -> Result<(), InputError> {
        let known = self.known();
        if offset > known {
            return Err(InputError::Gap { got: offset, known });
        }
        let skip = usize::try_from(known - offset).unwrap_or(usize::MAX).min(bytes.len());
        let fresh = &bytes[skip..];
        if let (Some(eof), false) = (self.eof, fresh.is_empty()) {
            return Err(InputError::PastEnd(eof));
        }
        if self.pipe.is_none() {
            self.taken += fresh.len() as u64;
            return Ok(());
        }
        if self.buffer.len() + fresh.len() > STDIN_WINDOW {
            return Err(InputError::Overrun);
        }
        self.buffer.extend(fresh);
        Ok(())
    }

    /// No more follows after `offset`.
    pub(crate) fn end(&mut self, offset: u64) -> Result<(), InputError> {
        let known = self.known();
        if offset > known {
            return Err(InputError::Gap { got: offset, known });
        }
        if offset < known {
            return Err(InputError::PastEnd(offset));
        }
        self.eof = Some(offset);
        Ok(())
    }

    /// Writes what the pipe takes, and closes it after the last byte. Gives whether anything changed.
    pub(crate) fn flush(&mut self) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        if self.buffer.is_empty() {
            if self.eof.is_some() {
                self.pipe = None;
                return true;
            }
            return false;
        }
        if !self.writable {
            return false;
        }
        match write(pipe, self.buffer.as_slices().0) {
            Ok(count) => {
                self.buffer.drain(..count);
                self.taken += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.writable = false,
            // The reader closed it: the process does not want the rest.
            Err(_) => self.close(),
        }
        true
    }

    /// Nobody reads any more: what is left and what comes is dropped, and acknowledged so that the host can go on.
    pub(crate) fn close(&mut self) {
        self.pipe = None;
        self.taken += self.buffer.len() as u64;
        self.buffer = VecDeque::new();
    }

    /// An acknowledgement that is due, once.
    pub(crate) fn ack(&mut self) -> Option<u64> {
        let due = self.taken != self.acked;
        self.acked = self.taken;
        due.then_some(self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, pipe};

    fn input() -> (Input, std::io::PipeReader) {
        let (reader, writer) = pipe().unwrap();
        let writer = OwnedFd::from(writer);
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        (Input::new(writer), reader)
    }

    #[test]
    fn repeated_bytes_are_taken_once_and_gaps_refused() {
        let (mut input, mut reader) = input();
        input.push(0, b"hello").unwrap();
        input.push(3, b"lo wor").unwrap();
        assert_eq!(input.push(10, b"d"), Err(InputError::Gap { got: 10, known: 9 }));
        input.push(9, b"ld").unwrap();
        while input.flush() {}
        assert_eq!((input.ack(), input.ack()), (Some(11), None));
        assert_eq!(input.end(12), Err(InputError::Gap { got: 12, known: 11 }));
        input.end(11).unwrap();
        input.end(11).unwrap();
        assert_eq!(input.push(11, b"x"), Err(InputError::PastEnd(11)));
        input.push(0, b"hello").unwrap();
        while input.flush() {}
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(all, "hello world");
    }

    #[test]
    fn the_window_is_a_bound() {
        let (mut input, _reader) = input();
        input.push(0, &vec![0; STDIN_WINDOW]).unwrap();
        assert_eq!(input.push(STDIN_WINDOW as u64, &[0]), Err(InputError::Overrun));
        while input.flush() {}
        let taken = input.ack().unwrap();
        assert!(taken > 0 && taken < STDIN_WINDOW as u64, "{taken}");
        input.push(STDIN_WINDOW as u64, &vec![0; taken as usize]).unwrap();
    }

    #[test]
    fn a_reader_that_closed_gets_nothing_and_the_host_goes_on() {
        let (mut input, reader) = input();
        drop(reader);
        input.push(0, b"nobody").unwrap();
        while input.flush() {}
        assert_eq!(input.ack(), Some(6));
        input.push(6, b" reads").unwrap();
        assert_eq!(input.ack(), Some(12));
        input.end(12).unwrap();
        assert!(!input.flush());
    }
}
