//! Ears on links: they write down every frame that carries a token, whatever else it is.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, recv, socket, sockopt};

use super::record::{Arrival, Record};
use super::space;

/// Which frames are heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frames {
    /// All, as they are on the wire: also those that a filter at the card will drop.
    All,
    /// Those with this payload that a filter at the card let through: as a program of that protocol gets them.
    Of(u16),
}

/// An ear; it is deaf when this is dropped.
pub(super) struct Wire(Arc<AtomicBool>);

impl Drop for Wire {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Listens on all links of a namespace, on a thread of its own, and does so when this returns.
///
/// # Errors
/// When there is no leave to.
pub(super) fn listen(
    namespace: impl AsFd + Send + 'static,
    frames: Frames,
    server: &'static str,
    record: Record,
) -> io::Result<Wire> {
    let stop = Arc::new(AtomicBool::new(false));
    let (ready, wait) = sync_channel(1);
    let stopped = stop.clone();
    std::thread::Builder::new().name(format!("torture {server}")).spawn(move || {
        let opened = space::enter(&namespace).and_then(|()| open(frames));
        drop(namespace);
        let socket = match opened {
            Ok(socket) => socket,
            Err(e) => {
                let _ = ready.send(Err(e));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        let mut buffer = vec![0; 4096];
        while !stopped.load(Ordering::Relaxed) {
            let Ok((n, _)) = recv(&socket, &mut buffer[..], RecvFlags::empty()) else { continue };
            record.write(&buffer[..n], &Arrival { server, protocol: "frame", from: None, to: None });
        }
    })?;
    wait.recv().map_err(|_| io::Error::other("the thread of an ear ended"))??;
    Ok(Wire(stop))
}

fn open(frames: Frames) -> io::Result<std::os::fd::OwnedFd> {
    let number = match frames {
        Frames::All => 3,
        Frames::Of(number) => number,
    };
    let protocol = NonZeroU32::new(u32::from(u16::to_be(number))).map(Protocol::from_raw);
    let socket = socket(AddressFamily::PACKET, SocketType::RAW, protocol)?;
    sockopt::set_socket_recv_buffer_size_force(&socket, 4 << 20)?;
    // So that it sees when it shall end.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_millis(100)))?;
    Ok(socket)
}
