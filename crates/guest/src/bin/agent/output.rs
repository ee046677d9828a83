//! One output stream of a process: its pipe and the [`Window`] that it is read into.

use std::os::fd::OwnedFd;

use rustix::io::{Errno, ioctl_fionread, read};

use crate::window::Window;

/// A pipe that the process writes to.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// The bytes kept for the host.
    pub(crate) window: Window,
    /// `None` once nothing more of it belongs to the process's output.
    pipe: Option<OwnedFd>,
    /// The last read did not find the pipe empty, or an edge came since.
    readable: bool,
    /// Set when the process ended: so many bytes of the pipe were still its own.
    left: Option<u64>,
}

impl Output {
    /// Reads from `pipe`, which must not block.
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self { window: Window::default(), pipe: Some(pipe), readable: true, left: None }
    }

    /// The stream of a process that had no pipe yet; what is kept of it stays.
    pub(crate) fn open(&mut self, pipe: OwnedFd) {
        (self.pipe, self.readable) = (Some(pipe), true);
    }

    /// The pipe has news.
    pub(crate) fn wake(&mut self) {
        self.readable = true;
    }

    /// Reads while there is room. Gives whether anything changed; then it may be worth calling again.
    pub(crate) fn fill(&mut self) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        if !self.readable || self.left == Some(0) {
            return false;
        }
        let room = self.window.room(self.left.unwrap_or(u64::MAX));
        if room.is_empty() {
            return false;
        }
        match read(pipe, room) {
            Ok(0) => self.pipe = None,
            Ok(count) => {
                self.window.wrote(count);
                self.left = self.left.map(|left| left.saturating_sub(count as u64));
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.readable = false,
            Err(_) => self.pipe = None,
        }
        true
    }

    /// The process ended. What the pipe holds now is its last output; what a child that outlives it writes later is not,
    /// and must not delay the end.
    pub(crate) fn seal(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        self.left = Some(ioctl_fionread(pipe).unwrap_or(0));
        self.readable = true;
    }

    /// The whole output of the ended process is in the window.
    pub(crate) fn is_whole(&self) -> bool {
        self.pipe.is_none() || self.left == Some(0)
    }

    /// After the end: the pipe, which somebody must go on emptying so that a child that outlives the process is neither
    /// blocked nor killed by a closed pipe.
    pub(crate) fn leftover(&mut self) -> Option<OwnedFd> {
        if self.left == Some(0) { self.pipe.take() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Write, pipe};

    fn output() -> (Output, std::io::PipeWriter) {
        let (reader, writer) = pipe().unwrap();
        let reader = OwnedFd::from(reader);
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        (Output::new(reader), writer)
    }

    #[test]
    fn the_last_line_is_kept_and_a_later_writer_is_not_waited_for() {
        let (mut output, mut writer) = output();
        writer.write_all(b"last line").unwrap();
        output.seal();
        writer.write_all(b"a child that goes on").unwrap();
        while output.fill() {}
        assert!(output.is_whole());
        output.window.attach(0).unwrap();
        assert_eq!(output.window.unsent(99), Some((0, b"last line".as_slice())));
        assert!(output.leftover().is_some(), "the child's pipe stays open");
        assert!(output.is_whole() && output.leftover().is_none());
    }

    #[test]
    fn a_full_window_stops_reading_until_an_ack() {
        let (mut output, mut writer) = output();
        let (mut taken, chunk) = (0, [7; 32 * 1024]);
        while taken < tartarus_guest::OUTPUT_WINDOW {
            writer.write_all(&chunk).unwrap();
            taken += chunk.len();
            output.wake();
            while output.fill() {}
        }
        writer.write_all(b"more").unwrap();
        output.wake();
        assert!(!output.fill());
        output.seal();
        assert!(!output.is_whole());
        output.window.attach(4).unwrap();
        while output.fill() {}
        assert!(output.is_whole());
    }
}
