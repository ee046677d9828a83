//! The port over unix sockets: the same calls and the same ends as with vsock, which no test machine can connect.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// The path of a socket, removed in the end.
pub(crate) struct Socket(pub(crate) PathBuf);

impl Socket {
    pub(crate) fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("port-{name}-{}", std::process::id())))
    }

    pub(crate) fn listener(&self) -> OwnedFd {
        let listener = UnixListener::bind(&self.0).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener.into()
    }

    fn host(&self) -> UnixStream {
        UnixStream::connect(&self.0).unwrap()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// As if every edge came.
fn news(port: &mut Port) {
    port.wake();
    port.accept(|_| Ok(()));
}

fn heard(port: &mut Port) -> Result<Vec<u8>, Heard> {
    let mut buffer = [0; 64];
    match port.read(&mut buffer) {
        Heard::Bytes(count) => Ok(buffer[..count].to_vec()),
        other => Err(other),
    }
}

#[test]
fn one_host_has_the_word_and_the_next_one_waits() {
    let socket = Socket::new("turns");
    let mut port = Port::listening(socket.listener(), |_| true);
    assert_eq!((port.write(b"nobody"), heard(&mut port)), (0, Err(Heard::Nothing)));
    let (mut first, mut second) = (socket.host(), socket.host());
    first.write_all(b"one").unwrap();
    second.write_all(b"two").unwrap();
    news(&mut port);
    assert_eq!(heard(&mut port), Ok(b"one".to_vec()));
    assert_eq!(port.write(b"answer"), 6);
    let mut answer = [0; 6];
    first.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    for _ in 0..2 {
        assert_eq!(heard(&mut port), Err(Heard::Nothing), "the second one waits");
        news(&mut port);
    }
    first.write_all(b"last words").unwrap();
    drop(first);
    news(&mut port);
    assert_eq!(port.write(b"to nobody"), 9, "thrown away");
    assert_eq!(heard(&mut port), Ok(b"last words".to_vec()));
    assert_eq!(heard(&mut port), Err(Heard::HungUp));
    assert_eq!((port.write(b"nobody"), heard(&mut port)), (0, Err(Heard::Nothing)));
    // No edge tells of it: it connected long ago.
    port.accept(|_| Ok(()));
    assert_eq!(heard(&mut port), Ok(b"two".to_vec()));
    assert_eq!(port.write(b"answer"), 6);
    drop(second);
    news(&mut port);
    assert_eq!(heard(&mut port), Err(Heard::HungUp), "an end without words, and unread bytes: a reset");
}

#[test]
fn a_full_line_waits_for_news() {
    let socket = Socket::new("full");
    let mut port = Port::listening(socket.listener(), |_| true);
    let mut host = socket.host();
    news(&mut port);
    let mut sent = 0;
    loop {
        match port.write(&[7; 4096]) {
            0 => break,
            count => sent += count,
        }
    }
    let mut all = vec![0; sent];
    host.read_exact(&mut all).unwrap();
    assert_eq!(port.write(b"x"), 0, "not before the edge");
    news(&mut port);
    assert_eq!(port.write(b"x"), 1);
    assert!(sent > 4096 && all.iter().all(|byte| *byte == 7));
}

#[test]
fn who_is_not_the_host_or_cannot_be_watched_is_sent_away() {
    let socket = Socket::new("strangers");
    let mut port = Port::listening(socket.listener(), |_| false);
    let mut stranger = socket.host();
    news(&mut port);
    assert_eq!((heard(&mut port), stranger.read(&mut [0; 9]).unwrap()), (Err(Heard::Nothing), 0));
    let mut port = Port::listening(
        {
            std::fs::remove_file(&socket.0).unwrap();
            socket.listener()
        },
        |_| true,
    );
    let mut unseen = socket.host();
    port.accept(|_| Err(Errno::NOSPC));
    assert_eq!((heard(&mut port), unseen.read(&mut [0; 9]).unwrap()), (Err(Heard::Nothing), 0));
}

#[test]
fn a_serial_port_never_hangs_up() {
    let (host, line) = UnixStream::pair().unwrap();
    line.set_nonblocking(true).unwrap();
    let mut port = Port::serial(line.into());
    drop(host);
    assert_eq!(heard(&mut port), Err(Heard::Nothing));
    news(&mut port);
    assert_eq!((port.write(b"nobody"), heard(&mut port)), (0, Err(Heard::Nothing)));
}
