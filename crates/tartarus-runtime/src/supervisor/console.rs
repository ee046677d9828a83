//! The console log: hostile bytes, kept within bounds. The first and the last part of it are kept.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes kept of the start, and again of the end.
const PART: u64 = 256 * 1024;
/// Bytes of the end that are looked at for the exit record.
const TAIL: usize = 4096;

/// Bytes of the end in which a kernel's last line is looked for.
const HALTED_WITHIN: usize = 256;

/// Writes `console.log`: the first 256 KiB, then a ring of 256 KiB in `console.tail`, cut in halves.
pub(super) struct Console {
    head: File,
    tail: File,
    written: u64,
    recent: Vec<u8>,
}

impl Console {
    pub(super) fn create(dir: &Path) -> io::Result<Self> {
        let head = File::create(dir.join(super::CONSOLE))?;
        let tail = File::options().create(true).truncate(true).read(true).write(true).open(dir.join("console.tail"))?;
        Ok(Self { head, tail, written: 0, recent: Vec::new() })
    }

    /// Adds bytes. A full disk loses console output, never the machine.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.recent.extend_from_slice(bytes);
        if self.recent.len() > 2 * TAIL {
            self.recent.drain(..self.recent.len() - TAIL);
        }
        let room = usize::try_from(PART.saturating_sub(self.written)).unwrap_or(0).min(bytes.len());
        let (first, rest) = bytes.split_at(room);
        let _ = self.head.write_all(first);
        if !rest.is_empty() {
            let _ = self.push_tail(rest);
        }
        self.written += bytes.len() as u64;
    }

    fn push_tail(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.tail.stream_position()? + bytes.len() as u64 > PART {
            let mut keep = Vec::new();
            let from = self.tail.stream_position()?.saturating_sub(PART / 2);
            self.tail.seek(SeekFrom::Start(from))?;
            (&mut self.tail).take(PART / 2).read_to_end(&mut keep)?;
            self.tail.set_len(0)?;
            self.tail.rewind()?;
            self.tail.write_all(&keep)?;
        }
        self.tail.write_all(bytes)
    }

    /// The guest's kernel has powered off or halted: it says so last, and a machine without a power switch goes on. A
    /// guest may lie about itself; then it ends itself.
    pub(super) fn halted(&self) -> bool {
        let from = self.recent.len().saturating_sub(HALTED_WITHIN);
        let text = String::from_utf8_lossy(&self.recent[from..]);
        ["reboot: Power down", "reboot: System halted"].iter().any(|last| text.contains(last))
    }

    /// The last lines in printable form, and whether they tell of a kernel panic.
    pub(super) fn summary(&self) -> (String, bool) {
        let from = self.recent.len().saturating_sub(TAIL);
        let text = String::from_utf8_lossy(&self.recent[from..]);
        let panicked = text.contains("Kernel panic");
        let clean: String = text.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
        // What QEMU says while it waits for this node is nobody's news.
        let news = |line: &&str| !line.trim().is_empty() && !line.contains("QEMU waiting for connection on: ");
        let lines: Vec<&str> = clean.lines().filter(news).collect();
        (lines[lines.len().saturating_sub(12)..].join("\n"), panicked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_bounded_and_start_and_end_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut console = Console::create(dir.path()).unwrap();
        console.push(b"the start\n");
        for _ in 0..5000 {
            console.push(&[b'x'; 1000]);
        }
        console.push(b"\n\x1b[31mKernel panic - not syncing\nthe end\n");
        let size = |name| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size("console.log") <= PART && size("console.tail") <= PART);
        let tail = std::fs::read(dir.path().join("console.tail")).unwrap();
        assert!(tail.ends_with(b"the end\n"));
        assert!(!console.halted());
        console.push(b"[    3.1] reboot: System halted\r\n");
        assert!(console.halted());
        console.push(&[b'\n'; 300]);
        console.push(b"Kernel panic - not syncing\nthe end\nqemu: QEMU waiting for connection on: disconnected:x\n");
        let (text, panicked) = console.summary();
        assert!(panicked && text.ends_with("the end") && !text.contains('\x1b'), "{text}");
    }
}
