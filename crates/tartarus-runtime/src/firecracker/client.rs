//! A client for Firecracker's API: HTTP/1.1 as far as its server speaks it, one request for each connection.
//!
//! A Firecracker that a guest has broken out into may answer anything: what is read is bounded, what is not understood is
//! an error, and every request has a deadline.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::api::{Fault, Request};
use super::jail;
use crate::driver::RuntimeError;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a snapshot may take: it is written and synced before it is answered.
const SNAPSHOT: Duration = Duration::from_secs(120);
/// Longest head of an answer, in bytes, and longest body.
const MAX_HEAD: usize = 16 * 1024;
const MAX_BODY: usize = 64 * 1024;

/// Speaks to the Firecracker in one jail.
pub(super) struct Client {
    root: PathBuf,
    /// One after the other: its server refuses more than ten connections.
    turn: Mutex<()>,
}

impl Client {
    /// For the jail at `root`.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), turn: Mutex::new(()) }
    }

    /// Asks for something that has no answer but that it was done.
    pub(super) async fn tell(&self, request: &Request) -> Result<(), RuntimeError> {
        self.send(request).await.map(drop)
    }

    /// Asks for what `request` is answered with.
    pub(super) async fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, RuntimeError> {
        let body = self.send(request).await?;
        serde_json::from_slice(&body).map_err(|_| failed(&self.root, request, invalid("its body")))
    }

    async fn send(&self, request: &Request) -> Result<Vec<u8>, RuntimeError> {
        let _turn = self.turn.lock().await;
        let patience = match request {
            Request::SnapshotCreate { .. } | Request::SnapshotLoad { .. } => SNAPSHOT,
            _ => PATIENCE,
        };
        let exchange = async { exchange(jail::connect(&self.root, jail::API).await?, request).await };
        let answer = timeout(patience, exchange).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        let (status, body) = answer.map_err(|e| failed(&self.root, request, e))?;
        match status {
            200..300 => Ok(body),
            _ => Err(failed(&self.root, request, io::Error::other(fault(status, &body)))),
        }
    }
}

fn failed(root: &Path, request: &Request, cause: io::Error) -> RuntimeError {
    let (method, path) = request.line();
    match cause.kind() {
        // Only Firecracker holds the listening socket, and it answers what it has read.
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => RuntimeError::Ended,
        _ => RuntimeError::io(format!("{method} {path} of Firecracker in {}", root.display()), cause),
    }
}

/// What it says of a request that it refuses.
fn fault(status: u16, body: &[u8]) -> String {
    let message = serde_json::from_slice::<Fault>(body).map(|fault| fault.fault_message).unwrap_or_default();
    let message: String = message.chars().filter(|c| !c.is_control()).take(500).collect();
    format!("it answered {status}: {message}")
}

async fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<(u16, Vec<u8>)> {
    stream.write_all(&to_bytes(request)?).await?;
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break parse(&bytes[..end + 2])?;
        }
        if bytes.len() > MAX_HEAD {
            return Err(invalid("a head of more than 16 KiB"));
        }
        read_some(&mut stream, &mut bytes).await?;
    };
    while bytes.len() < head.length + head.body {
        read_some(&mut stream, &mut bytes).await?;
    }
    if bytes.len() > head.length + head.body {
        return Err(invalid("something after its end"));
    }
    Ok((head.status, bytes.split_off(head.length)))
}

fn to_bytes(request: &Request) -> io::Result<Vec<u8>> {
    let (method, path) = request.line();
    let body = request.body()?.map(|body| body.to_string()).unwrap_or_default();
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if !body.is_empty() {
        text += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    Ok((text + "\r\n" + &body).into_bytes())
}

async fn read_some(stream: &mut UnixStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut part = [0; 4096];
    match stream.read(&mut part).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => {
            bytes.extend_from_slice(&part[..n]);
            Ok(())
        }
    }
}

/// What the head of an answer says.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Its own length with the empty line, and the body's.
    length: usize,
    body: usize,
}

/// Reads a head up to, and without, its empty line.
fn parse(head: &[u8]) -> io::Result<Head> {
    let text = std::str::from_utf8(head).map_err(|_| invalid("its head"))?;
    let mut lines = text.split_terminator("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    // A reason may follow.
    let status = status.and_then(|line| line.split(' ').next()).filter(|status| status.len() == 3);
    let status = status.and_then(decimal).ok_or_else(|| invalid("its status"))?;
    let mut body = None;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a header"))?;
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(invalid("a body in parts"));
        }
        if name.eq_ignore_ascii_case("content-length") {
            let length = decimal(value.trim()).filter(|length| *length <= MAX_BODY);
            let length = length.ok_or_else(|| invalid("the length of its body"))?;
            if body.replace(length).is_some() {
                return Err(invalid("two lengths"));
            }
        }
    }
    let status = u16::try_from(status).map_err(|_| invalid("its status"))?;
    Ok(Head { status, length: head.len() + 2, body: body.unwrap_or(0) })
}

/// Digits and nothing else.
fn decimal(text: &str) -> Option<usize> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("Firecracker's answer is not understood: {what}"))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
