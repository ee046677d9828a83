//! QEMU's control protocol, as far as it is needed: stop, go on, save the state of the devices.
//!
//! QEMU serves one client at a time, so there is a connection per operation, closed after it. A QEMU that a guest has
//! broken out into may answer anything: lines are bounded and every call has a deadline.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::QMP;
use crate::driver::RuntimeError;
use crate::supervisor::connect_in;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the state of the devices may take: it waits for the guest's disks.
const SAVING: Duration = Duration::from_secs(60);
/// Longest line, in bytes.
const MAX_LINE: usize = 1024 * 1024;

/// A connection to QEMU's monitor.
pub(crate) struct Qmp {
    stream: UnixStream,
    unread: Vec<u8>,
    /// Of the last command.
    id: u64,
    dir: PathBuf,
}

/// What QEMU says of its virtual processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunState {
    /// They run, or will by themselves once a state is loaded.
    Running,
    /// Stopped, by `stop`.
    Paused,
    /// Stopped by QEMU, which ends soon or never goes on.
    Broken,
}

impl Qmp {
    /// Connects to the machine in `dir`.
    pub(crate) async fn connect(dir: &Path) -> Result<Self, RuntimeError> {
        let connected = timeout(PATIENCE, connect_in(dir, QMP)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        let stream = match connected {
            Ok(stream) => stream,
            // Only QEMU holds the listening socket.
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                return Err(RuntimeError::Ended);
            }
            Err(e) => return Err(RuntimeError::io(format!("reaching QEMU in {}", dir.display()), e)),
        };
        let mut qmp = Self { stream, unread: Vec::new(), id: 0, dir: dir.to_owned() };
        let greeting = timeout(PATIENCE, qmp.line()).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        let greeting = greeting.map_err(|e| qmp.failed("the greeting", e))?;
        if !serde_json::from_slice::<Value>(&greeting).is_ok_and(|v| v.get("QMP").is_some()) {
            return Err(qmp.failed("the greeting", invalid("it is none")));
        }
        qmp.call("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    pub(crate) async fn stop(&mut self) -> Result<(), RuntimeError> {
        self.call("stop", json!({})).await.map(drop)
    }

    pub(crate) async fn cont(&mut self) -> Result<(), RuntimeError> {
        self.call("cont", json!({})).await.map(drop)
    }

    pub(crate) async fn state(&mut self) -> Result<RunState, RuntimeError> {
        let answer = self.call("query-status", json!({})).await?;
        match (answer.get("running").and_then(Value::as_bool), answer.get("status").and_then(Value::as_str)) {
            (Some(true), _) | (_, Some("inmigrate")) => Ok(RunState::Running),
            (Some(false), Some("paused")) => Ok(RunState::Paused),
            (Some(false), Some(_)) => Ok(RunState::Broken),
            _ => Err(self.failed("query-status", invalid("it has no status"))),
        }
    }

    /// The guest's memory in bytes.
    pub(crate) async fn memory_bytes(&mut self) -> Result<u64, RuntimeError> {
        let answer = self.call("query-memory-size-summary", json!({})).await?;
        let bytes = answer.get("base-memory").and_then(Value::as_u64);
        bytes.ok_or_else(|| self.failed("query-memory-size-summary", invalid("it has no size")))
    }

    /// Writes the state of the devices, without memory, to `state`, which must be open for writing only and empty.
    pub(crate) async fn save_devices(&mut self, state: BorrowedFd<'_>) -> Result<(), RuntimeError> {
        let answer = self.call_with("add-fd", json!({}), Some(state), PATIENCE).await?;
        let set = answer.get("fdset-id").and_then(Value::as_u64);
        let set = set.ok_or_else(|| self.failed("add-fd", invalid("it names no set")))?;
        // `live` on a stopped machine would take the disks away from it.
        let arguments = json!({"filename": format!("/dev/fdset/{set}"), "live": false});
        let saved = self.call_with("xen-save-devices-state", arguments, None, SAVING).await;
        // QEMU would do so itself when the connection closes; asked for, it is done when this returns.
        let removed = self.call("remove-fd", json!({"fdset-id": set})).await;
        saved.and(removed).map(drop)
    }

    async fn call(&mut self, command: &str, arguments: Value) -> Result<Value, RuntimeError> {
        self.call_with(command, arguments, None, PATIENCE).await
    }

    async fn call_with(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> Result<Value, RuntimeError> {
        self.id += 1;
        let mut line = json!({"execute": command, "arguments": arguments, "id": self.id}).to_string();
        line.push('\n');
        let done = async {
            self.send(line.as_bytes(), fd).await?;
            loop {
                if let Some(answer) = judge(&self.line().await?, self.id)? {
                    return Ok(answer);
                }
            }
        };
        let answer = timeout(patience, done).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        answer.map_err(|e| self.failed(command, e))
    }

    async fn send(&mut self, line: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let sent = match fd {
            None => 0,
            // The descriptor goes with the first byte.
            Some(fd) => self.stream.async_io(Interest::WRITABLE, || send_with(self.stream.as_fd(), line, fd)).await?,
        };
        self.stream.write_all(&line[sent..]).await
    }

    async fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.unread[searched..].iter().position(|b| *b == b'\n') {
                let rest = self.unread.split_off(searched + end + 1);
                return Ok(std::mem::replace(&mut self.unread, rest));
            }
            searched = self.unread.len();
            if searched > MAX_LINE {
                return Err(invalid("a line is longer than 1 MiB"));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.unread.extend_from_slice(&bytes[..n]),
            }
        }
    }

    fn failed(&self, what: &str, cause: io::Error) -> RuntimeError {
        match cause.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                RuntimeError::Ended
            }
            _ => RuntimeError::io(format!("{what} of QEMU in {}", self.dir.display()), cause),
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("QEMU's answer is not understood: {what}"))
}

fn send_with(socket: BorrowedFd<'_>, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(line)], &mut ancillary, flags)?)
}

/// What a line says about the command `id`: its answer, or nothing, when it is an event. An error that QEMU reports is
/// `Other`.
fn judge(line: &[u8], id: u64) -> io::Result<Option<Value>> {
    let mut message: Value = serde_json::from_slice(line).map_err(|_| invalid("a line is not JSON"))?;
    if message.get("event").is_some() {
        return Ok(None);
    }
    let for_this = message.get("id").and_then(Value::as_u64) == Some(id);
    if let Some(error) = message.get("error") {
        // One without id is about a line that QEMU could not read.
        let text = error.get("desc").and_then(Value::as_str).unwrap_or("unknown error");
        return Err(io::Error::other(text.chars().filter(|c| !c.is_control()).take(500).collect::<String>()));
    }
    match message.get_mut("return") {
        Some(answer) if for_this => Ok(Some(answer.take())),
        _ => Err(invalid("a line answers nothing that was asked")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn answers_are_told_from_events_errors_and_nonsense() {
        assert_eq!(judge(br#"{"return": {"a": 1}, "id": 7}"#, 7).unwrap(), Some(json!({"a": 1})));
        assert_eq!(judge(br#"{"event": "STOP", "timestamp": {}}"#, 7).unwrap(), None);
        let error = judge(br#"{"id": 7, "error": {"class": "GenericError", "desc": "no\u001b such"}}"#, 7).unwrap_err();
        assert_eq!(error.to_string(), "no such");
        for bad in [&b"{"[..], b"[]", b"7", br#"{"return": {}, "id": 6}"#, br#"{"return": {}}"#] {
            assert_eq!(judge(bad, 7).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    proptest! {
        #[test]
        fn no_line_is_a_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = judge(&line, 1);
        }
    }

    async fn served(lines: Vec<u8>) -> RuntimeError {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(QMP)).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(&lines).await;
            // Held open: the client must give up by itself.
            std::future::pending::<()>().await;
        });
        let Err(error) = Qmp::connect(dir.path()).await else { panic!("connected") };
        server.abort();
        error
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_or_endless_qemu_is_given_up() {
        let silent = served(Vec::new()).await.to_string();
        assert!(silent.contains("timed out"), "{silent}");
        let endless = served(vec![b'x'; 3 * MAX_LINE]).await.to_string();
        assert!(endless.contains("longer than 1 MiB"), "{endless}");
        let mut events = br#"{"QMP": {}}"#.to_vec();
        events.extend_from_slice(&b"\n{\"event\": \"X\"}".repeat(1000));
        let events = served(events).await.to_string();
        assert!(events.contains("timed out"), "{events}");
    }

    #[tokio::test]
    async fn a_qemu_that_is_gone_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Qmp::connect(dir.path()).await, Err(RuntimeError::Ended)));
        drop(UnixListener::bind(dir.path().join(QMP)).unwrap());
        assert!(matches!(Qmp::connect(dir.path()).await, Err(RuntimeError::Ended)));
    }
}
