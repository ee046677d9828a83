//! What waits to be sent to one guest. Putting something in never waits; carried connections ask for room before.

use std::sync::{Mutex, PoisonError};

use tartarus_guest::frame::{self, Header};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// Bytes waiting to be sent at most.
pub(crate) const OUTBOX: usize = 16 << 20;
/// Of these, bytes of carried connections: little, so that a signal or a start does not wait behind much of what clients
/// send, and a guest that stands still does not fill the outbox with it.
const CARRIED: usize = 256 << 10;
/// A dial's room, beside it for the cut that may follow: so that clients who come and go are held back as well.
pub(crate) const DIAL: usize = 128;

/// Bytes for a guest.
pub(crate) struct Outbox {
    tag: u32,
    queue: Mutex<Queue>,
    filled: Notify,
    /// Bytes that carried connections may put in; who waits gets them in turn.
    room: Semaphore,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Room to be given back when they are written.
    carried: usize,
}

impl Outbox {
    /// For frames of the session with this tag.
    pub(crate) fn new(tag: u32) -> Self {
        Self { tag, queue: Mutex::default(), filled: Notify::new(), room: Semaphore::new(CARRIED) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Encodes something with the session's tag. False when the guest has not read for so long that the machine should be
    /// given up.
    pub(crate) fn put(&self, encode: impl FnOnce(u32, &mut Vec<u8>)) -> bool {
        let mut queue = self.lock();
        encode(self.tag, &mut queue.bytes);
        let fine = queue.bytes.len() <= OUTBOX;
        drop(queue);
        self.filled.notify_one();
        fine
    }

    /// The same for one frame.
    pub(crate) fn frame(&self, header: Header, payload: &[u8]) -> bool {
        self.put(|tag, out| frame::encode(tag, header, payload, out))
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Waits for room for so many bytes of carried connections, [`frame::MAX_PAYLOAD`] at most; `None` when the line is cut.
    pub(crate) async fn room(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        self.room.acquire_many(u32::try_from(bytes).unwrap_or(u32::MAX)).await.ok()
    }

    /// No carried connection gets room any more.
    pub(crate) fn close(&self) {
        self.room.close();
    }

    /// Puts in a frame that there is room for.
    pub(crate) fn carried(&self, room: SemaphorePermit<'_>, header: Header, payload: &[u8]) {
        let mut queue = self.lock();
        queue.carried += room.num_permits();
        room.forget();
        frame::encode(self.tag, header, payload, &mut queue.bytes);
        drop(queue);
        self.filled.notify_one();
    }

    /// Writes everything that comes until the line is cut.
    pub(crate) async fn write_all(&self, mut write: impl AsyncWrite + Unpin) {
        loop {
            let Queue { bytes, carried } = std::mem::take(&mut *self.lock());
            if bytes.is_empty() {
                self.filled.notified().await;
            } else if write.write_all(&bytes).await.is_err() {
                // The reader sees the end as well, and tells.
                return self.room.close();
            }
            self.room.add_permits(carried);
        }
    }
}
