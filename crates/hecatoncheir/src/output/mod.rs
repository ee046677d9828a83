//! A process's output on disk: written once, read by any number of followers, stored within bounds.
//!
//! The stored log keeps the first and the last part of each stream. A follower misses nothing: while one that is
//! connected would fall behind what is stored, the writer waits, the guest is not acknowledged, and the command blocks
//! on its pipe.

mod follow;
mod segments;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use follow::follow;
use segments::StreamWriter;

/// How much of a stream's output is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of the start.
    pub head: u64,
    /// Bytes of the end, at least.
    pub tail: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { head: 1 << 20, tail: 63 << 20 }
    }
}

/// How long output waits for a client that said it would read along and is not connected.
const ATTACH_GRACE: Duration = Duration::from_secs(30);

/// Bytes that a follower may have been given and lost with its connection: it asks for them again.
const IN_FLIGHT: u64 = 16 << 20;

/// How far a log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Extent {
    /// Bytes of standard output and standard error.
    pub(crate) len: [u64; 2],
    /// Nothing will be added.
    pub(crate) closed: bool,
    /// This agent stops; another may go on with the log.
    pub(crate) cut: bool,
}

/// A log that is still written.
pub(crate) struct LiveLog {
    limits: LogLimits,
    extent: watch::Sender<Extent>,
    readers: Mutex<Readers>,
    /// The writer waits for nobody any more.
    released: AtomicBool,
    /// Some reader moved or left.
    moved: tokio::sync::Notify,
}

#[derive(Default)]
struct Readers {
    next: u64,
    positions: HashMap<u64, [u64; 2]>,
    attached: Option<Attached>,
}

/// A client that said it would read along.
struct Attached {
    /// As far as one has read.
    position: [u64; 2],
    /// Since when none is connected.
    absent_since: Option<Instant>,
}

/// A place in the log that the writer must not overtake.
pub(crate) struct Reader {
    log: Arc<LiveLog>,
    id: u64,
}

impl LiveLog {
    /// The log in `dir`, new or taken up again, with its writer.
    pub(crate) fn open(dir: &Path, limits: LogLimits, attach: bool) -> io::Result<(Arc<Self>, LogWriter)> {
        std::fs::create_dir_all(dir)?;
        let streams = [StreamWriter::open(dir, 0, limits)?, StreamWriter::open(dir, 1, limits)?];
        let extent = Extent { len: [streams[0].len(), streams[1].len()], ..Extent::default() };
        let attached = attach.then(|| Attached { position: [0, 0], absent_since: Some(Instant::now()) });
        let log = Arc::new(Self {
            limits,
            extent: watch::Sender::new(extent),
            released: AtomicBool::new(false),
            readers: Mutex::new(Readers { attached, ..Readers::default() }),
            moved: tokio::sync::Notify::new(),
        });
        Ok((log.clone(), LogWriter { log, streams: Some(streams) }))
    }

    fn readers(&self) -> std::sync::MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the stored tail that followers may lag behind.
    fn window(&self) -> u64 {
        self.limits.tail - IN_FLIGHT.min(self.limits.tail / 2)
    }

    /// Waits until nobody would lose bytes when `stream` grows to `len`.
    async fn room(&self, stream: usize, len: u64) {
        if len <= self.limits.head + self.window() {
            return;
        }
        let floor = len - self.window();
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            if self.released.load(Ordering::SeqCst) {
                return;
            }
            let mut until = None;
            {
                let readers = self.readers();
                let waits = readers.positions.values().any(|p| p[stream] < floor);
                if !waits {
                    match &readers.attached {
                        Some(Attached { position, absent_since: Some(since) })
                            if position[stream] < floor && since.elapsed() < ATTACH_GRACE =>
                        {
                            until = Some(*since + ATTACH_GRACE);
                        }
                        _ => return,
                    }
                }
            }
            match until {
                Some(until) => {
                    let _ = tokio::time::timeout_at(until, moved).await;
                }
                None => moved.await,
            }
        }
    }

    /// From now on the writer waits for nobody: its process has ended, and what is still to come fits into what
    /// followers may lag behind.
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
        self.moved.notify_waiters();
    }

    /// A reader that begins at these positions; `u64::MAX` for a stream it does not want.
    pub(crate) fn reader(self: &Arc<Self>, positions: [u64; 2]) -> Reader {
        let mut readers = self.readers();
        readers.next += 1;
        let id = readers.next;
        readers.positions.insert(id, positions);
        if let Some(attached) = &mut readers.attached {
            attached.absent_since = None;
        }
        Reader { log: self.clone(), id }
    }

    /// News of how far it has come.
    pub(crate) fn watch(&self) -> watch::Receiver<Extent> {
        self.extent.subscribe()
    }
}

impl Reader {
    /// It has handed out everything before `position`.
    pub(crate) fn moved(&self, stream: usize, position: u64) {
        let mut readers = self.log.readers();
        if let Some(p) = readers.positions.get_mut(&self.id) {
            p[stream] = position;
        }
        if let Some(attached) = &mut readers.attached {
            attached.position[stream] = attached.position[stream].max(position);
        }
        drop(readers);
        self.log.moved.notify_waiters();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut readers = self.log.readers();
        readers.positions.remove(&self.id);
        if readers.positions.is_empty()
            && let Some(attached) = &mut readers.attached
        {
            attached.absent_since = Some(Instant::now());
        }
        drop(readers);
        self.log.moved.notify_waiters();
    }
}

/// The one writer of a log. Dropping it without closing it cuts followers off: they come again.
pub(crate) struct LogWriter {
    log: Arc<LiveLog>,
    /// Absent only while a write is under way.
    streams: Option<[StreamWriter; 2]>,
}

impl LogWriter {
    /// Nothing will be added: followers see the end.
    pub(crate) fn close(self) {
        self.log.extent.send_modify(|extent| extent.closed = true);
    }

    /// Bytes stored or left out so far.
    pub(crate) fn extent(&self) -> Extent {
        *self.log.extent.borrow()
    }

    /// Appends to both streams, shows it to followers, and returns when it is on disk. Waits for slow followers first,
    /// unless the log was released.
    pub(crate) async fn append(&mut self, bytes: [Vec<u8>; 2]) -> io::Result<()> {
        // A piece larger than the window would wait for followers to read what is not written yet.
        let most = usize::try_from(self.log.window() / 2).unwrap_or(usize::MAX).max(1);
        let [mut out, mut err] = bytes;
        while out.len() > most || err.len() > most {
            let rest = [out.split_off(out.len().min(most)), err.split_off(err.len().min(most))];
            self.append_piece([out, err]).await?;
            [out, err] = rest;
        }
        self.append_piece([out, err]).await
    }

    async fn append_piece(&mut self, bytes: [Vec<u8>; 2]) -> io::Result<()> {
        let extent = self.extent();
        for (stream, bytes) in bytes.iter().enumerate() {
            if !bytes.is_empty() {
                self.log.room(stream, extent.len[stream] + bytes.len() as u64).await;
            }
        }
        let Some(mut streams) = self.streams.take() else {
            return Err(io::Error::other("an earlier write of this log was cut off"));
        };
        let log = self.log.clone();
        let (streams, result) = tokio::task::spawn_blocking(move || {
            let result = write(&mut streams, &bytes, &log);
            (streams, result)
        })
        .await
        .map_err(io::Error::other)?;
        self.streams = Some(streams);
        result
    }
}

fn write(streams: &mut [StreamWriter; 2], bytes: &[Vec<u8>; 2], log: &LiveLog) -> io::Result<()> {
    for (writer, bytes) in streams.iter_mut().zip(bytes) {
        writer.append(bytes)?;
    }
    log.extent.send_modify(|extent| extent.len = [streams[0].len(), streams[1].len()]);
    for (writer, bytes) in streams.iter_mut().zip(bytes) {
        if !bytes.is_empty() {
            writer.sync()?;
        }
    }
    Ok(())
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.log.extent.send_modify(|extent| extent.cut = !extent.closed);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
