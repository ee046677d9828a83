//! One process in a guest, as the node keeps it: its output on its way to disk, its input on its way to the guest.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tartarus_api::node::Target;
use tartarus_guest::{End, Header, Kind, OUTPUT_WINDOW, STDIN_WINDOW, Start, frame};
use tartarus_types::{ErrorCode, Outcome, Reason, Refusal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::link::GuestLink;
use crate::output::{LiveLog, LogWriter};

/// Bytes of standard input that wait for the guest at most.
const STDIN_QUEUE: u64 = 2 << 20;

/// What recorders tell the sandbox's task.
#[derive(Debug)]
pub(crate) enum Note {
    /// Output up to here is on disk.
    Recorded { process: u32, len: [u64; 2] },
    /// All output is on disk, or it could not be written.
    Done { process: u32, result: io::Result<()> },
}

/// A process in the guest.
pub(crate) struct Process {
    pub(crate) number: u32,
    pub(crate) target: Target,
    pub(crate) start: Start,
    pub(crate) log: Arc<LiveLog>,
    pub(crate) stdin: Stdin,
    /// The guest's word that it ended.
    pub(crate) end: Option<End>,
    /// All its output is on disk.
    pub(crate) recorded: bool,
    /// Set once, when both are so.
    pub(crate) outcome: watch::Sender<Option<Outcome>>,
    inbox: Arc<Inbox>,
    _recorder: AbortOnDropHandle<()>,
}

/// Output that came and is not on disk yet; bounded by the guest protocol's window.
#[derive(Default)]
struct Inbox {
    state: Mutex<Arrived>,
    news: Notify,
}

#[derive(Default)]
struct Arrived {
    bytes: [Vec<u8>; 2],
    next: [u64; 2],
    finished: bool,
}

impl Process {
    /// A process whose output goes on where `writer`'s log ends.
    pub(crate) fn new(
        number: u32,
        target: Target,
        start: Start,
        (log, writer): (Arc<LiveLog>, LogWriter),
        notes: mpsc::Sender<Note>,
    ) -> Self {
        let inbox = Arc::new(Inbox::default());
        inbox.lock().next = writer.extent().len;
        let recorder = tokio::spawn(record(number, inbox.clone(), writer, notes));
        Self {
            number,
            target,
            start,
            log,
            stdin: Stdin::default(),
            end: None,
            recorded: false,
            outcome: watch::Sender::new(None),
            inbox,
            _recorder: AbortOnDropHandle::new(recorder),
        }
    }

    /// Positions up to which output arrived.
    pub(crate) fn arrived(&self) -> [u64; 2] {
        self.inbox.lock().next
    }

    /// Takes output. False when the guest breaks the rules: a gap, or more than its window.
    pub(crate) fn output(&self, stream: usize, offset: u64, bytes: &[u8]) -> bool {
        let mut arrived = self.inbox.lock();
        if arrived.finished || offset != arrived.next[stream] || arrived.bytes[stream].len() > 2 * OUTPUT_WINDOW {
            return false;
        }
        arrived.bytes[stream].extend_from_slice(bytes);
        arrived.next[stream] += bytes.len() as u64;
        drop(arrived);
        self.inbox.news.notify_one();
        true
    }

    /// No more output will come.
    pub(crate) fn finish(&self) {
        self.inbox.lock().finished = true;
        self.inbox.news.notify_one();
        self.log.release();
    }

    /// Asks the guest for everything from here on: after the start, and in every new session.
    pub(crate) fn attach(&self, link: &GuestLink) -> bool {
        let next = self.arrived();
        (0..2).all(|stream| link.attach(self.number, stream, next[stream]))
    }
}

impl Inbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, Arrived> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn record(process: u32, inbox: Arc<Inbox>, mut writer: LogWriter, notes: mpsc::Sender<Note>) {
    let result = loop {
        let (bytes, finished) = {
            let mut arrived = inbox.lock();
            (std::mem::take(&mut arrived.bytes), arrived.finished)
        };
        if bytes.iter().any(|b| !b.is_empty()) {
            if let Err(e) = writer.append(bytes).await {
                break Err(e);
            }
            if notes.send(Note::Recorded { process, len: writer.extent().len }).await.is_err() {
                return;
            }
        } else if finished {
            break Ok(());
        } else {
            inbox.news.notified().await;
        }
    };
    writer.close();
    let _ = notes.send(Note::Done { process, result }).await;
}

/// Standard input on its way to the guest. Kept until the guest has taken it, so that a new session can repeat it.
#[derive(Default)]
pub(crate) struct Stdin {
    /// Bytes from `taken` on.
    bytes: VecDeque<u8>,
    taken: u64,
    sent: u64,
    eof: bool,
    eof_sent: bool,
    waiting: Vec<(u64, oneshot::Sender<Result<u64, Refusal>>)>,
}

impl Stdin {
    fn accepted(&self) -> u64 {
        self.taken + self.bytes.len() as u64
    }

    /// Takes a chunk at `offset`; `reply` hears when the guest has taken all of it.
    pub(crate) fn give(&mut self, offset: u64, bytes: &Bytes, eof: bool, reply: oneshot::Sender<Result<u64, Refusal>>) {
        let accepted = self.accepted();
        let end = offset.saturating_add(bytes.len() as u64);
        let refusal = if offset > accepted {
            Some(Refusal::field("offset", format!("{offset} leaves a gap: {accepted} bytes were taken so far")))
        } else if self.eof && end > accepted {
            Some(Refusal::field("offset", "standard input was closed before"))
        } else if end.saturating_sub(self.taken) > STDIN_QUEUE {
            Some(Refusal::new(ErrorCode::Busy, "the command does not read its standard input; wait and try again"))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let _ = reply.send(Err(refusal));
            return;
        }
        let skip = usize::try_from(accepted - offset).unwrap_or(usize::MAX).min(bytes.len());
        self.bytes.extend(&bytes[skip..]);
        self.eof |= eof && end == self.accepted();
        self.waiting.push((end, reply));
    }

    /// Sends what the guest has room for, and answers those whose bytes it took.
    pub(crate) fn pump(&mut self, process: u32, link: &GuestLink) -> bool {
        while self.sent < self.accepted() && self.sent - self.taken < STDIN_WINDOW as u64 {
            let from = usize::try_from(self.sent - self.taken).unwrap_or(usize::MAX);
            let room = (STDIN_WINDOW - from).min(frame::MAX_PAYLOAD);
            let chunk: Vec<u8> = self.bytes.iter().skip(from).take(room).copied().collect();
            let header = Header { kind: Kind::Stdin, stream: 0, process, offset: self.sent };
            self.sent += chunk.len() as u64;
            if !link.frame(header, &chunk) {
                return false;
            }
        }
        if self.eof && !self.eof_sent && self.sent == self.accepted() {
            self.eof_sent = true;
            let header = Header { kind: Kind::StdinEof, stream: 0, process, offset: self.sent };
            if !link.frame(header, &[]) {
                return false;
            }
        }
        let taken = self.taken;
        for (_, reply) in self.waiting.extract_if(.., |(until, _)| *until <= taken) {
            let _ = reply.send(Ok(taken));
        }
        true
    }

    /// The guest has taken everything before `taken`. False when it claims more than it was sent.
    pub(crate) fn taken(&mut self, taken: u64) -> bool {
        if taken > self.sent {
            return false;
        }
        let done = usize::try_from(taken.saturating_sub(self.taken)).unwrap_or(usize::MAX);
        self.bytes.drain(..done.min(self.bytes.len()));
        self.taken = self.taken.max(taken);
        true
    }

    /// A new session: what the guest had not taken by then is sent again.
    pub(crate) fn resume(&mut self, taken: u64) {
        // A guest may claim anything; what it claims is only held against it.
        let taken = taken.min(1 << 62);
        if taken >= self.taken {
            self.sent = self.sent.max(taken);
            self.taken(taken);
            self.taken = taken;
        }
        self.sent = self.taken;
        self.eof_sent = false;
    }

    /// The process is gone: what is left goes nowhere, as with a closed pipe.
    pub(crate) fn close(&mut self) {
        self.bytes.clear();
        for (until, reply) in self.waiting.drain(..) {
            let _ = reply.send(Ok(until));
        }
    }
}

/// The outcome of a process by its own doing.
pub(crate) fn outcome_of(end: &End) -> Outcome {
    let outcome =
        |reason, exit_code, signal, message, oom_kills| Outcome { reason, exit_code, signal, message, oom_kills };
    match end {
        End::Exited { code, oom_kills } => outcome(Reason::Exited, Some(*code), None, None, *oom_kills),
        End::Signalled { signal: 9, oom_kills } if *oom_kills > 0 => {
            let message = "the guest ran out of memory: give it more with --memory".to_owned();
            outcome(Reason::OutOfMemory, None, Some(9), Some(message), *oom_kills)
        }
        End::Signalled { signal, oom_kills } => outcome(Reason::Signalled, None, Some(*signal), None, *oom_kills),
        End::NotFound { message } => Outcome::because(Reason::CommandNotFound, printable(message)),
        End::NotExecutable { message } => Outcome::because(Reason::CommandNotExecutable, printable(message)),
    }
}

/// A guest's own words, bounded and fit to be printed.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}
