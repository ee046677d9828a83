//! Threads that enter a network namespace for one task and end, so that no thread of the runtime ever changes its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::StyxError;

/// A namespace, open.
pub(crate) type Namespace = Arc<OwnedFd>;

/// The namespace of the calling thread.
pub(crate) fn own() -> Result<Namespace, StyxError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(c"/proc/thread-self/ns/net", flags, Mode::empty());
    opened.map(Arc::new).map_err(StyxError::system("open this thread's network namespace"))
}

/// Runs `task` on a thread of its own within `namespace`. It goes on to its end where the caller stops waiting.
pub(crate) async fn within<T, F>(namespace: Namespace, task: F) -> Result<T, StyxError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StyxError> + Send + 'static,
{
    on_thread(move || {
        enter(&namespace)?;
        drop(namespace);
        task()
    })
    .await
}

/// Runs `task` on a thread of its own.
pub(crate) async fn on_thread<T, F>(task: F) -> Result<T, StyxError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StyxError> + Send + 'static,
{
    let (answer, answered) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("styx".to_owned())
        .spawn(move || drop(answer.send(task())))
        .map_err(StyxError::system("start a thread"))?;
    answered.await.map_err(|_| StyxError::Thread)?
}

/// Moves the calling thread, which must be one of [`on_thread`], into `namespace`.
pub(crate) fn enter(namespace: impl AsFd) -> Result<(), StyxError> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(StyxError::system("enter a network namespace"))
}

/// Moves the calling thread, which must be one of [`on_thread`], into a fresh namespace.
pub(crate) fn unshare() -> Result<Namespace, StyxError> {
    // SAFETY: only the network namespace changes, and only of this thread; no descriptor or memory is unshared.
    let done = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    done.map_err(|error| match error {
        rustix::io::Errno::PERM => StyxError::NotRoot,
        other => StyxError::system::<io::Error>("make a network namespace")(other.into()),
    })?;
    own()
}
