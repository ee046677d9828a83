//! Standard input of a process, in chunks that may each be sent again.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Method;
use tartarus_types::ErrorCode;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::repeat::Repeat;
use super::sandboxes::{Process, may_run};
use super::{Client, ClientError};
use crate::v1::StdinTaken;

/// Largest chunk, bytes.
const CHUNK: usize = 256 << 10;
/// Pauses before a chunk is offered again to a process that had no room, or has not started.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

impl Client {
    /// Sends one chunk of standard input, whose first byte has position `offset`, and says what was taken in all.
    /// Answers when the process has room for it, however long that takes.
    ///
    /// # Errors
    /// [`ClientError`]; `wrong_state` unless the process runs.
    pub async fn stdin(&self, process: &Process, offset: u64, bytes: Bytes, eof: bool) -> Result<u64, ClientError> {
        let mut url = self.process_path(process, "stdin")?;
        url.query_pairs_mut()
            .append_pair("offset", &offset.to_string())
            .append_pair("eof", if eof { "true" } else { "false" });
        let make = || {
            let request = self.request(Method::POST, &url).header("content-type", "application/octet-stream");
            request.body(bytes.clone())
        };
        let taken: StdinTaken = self.json(Repeat::Always, make).await?;
        Ok(taken.taken)
    }

    /// Sends all of `input` to a process, as it comes, and then its end. A process that has ended, or that never will
    /// start, takes no more, which is no error.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Protocol`] when `input` cannot be read, after its end was sent.
    pub async fn feed(&self, process: &Process, mut input: impl AsyncRead + Unpin) -> Result<(), ClientError> {
        let mut buffer = BytesMut::new();
        let mut offset = 0;
        loop {
            buffer.reserve(CHUNK);
            let read = (&mut input).take(CHUNK as u64).read_buf(&mut buffer).await;
            let chunk = buffer.split().freeze();
            let eof = chunk.is_empty();
            let length = chunk.len() as u64;
            if !self.offer(process, offset, chunk, eof).await? {
                return Ok(());
            }
            read.map_err(|cause| ClientError::Protocol(format!("standard input could not be read: {cause}")))?;
            if eof {
                return Ok(());
            }
            offset += length;
        }
    }

    /// Offers a chunk until all of it is taken; false when nothing will be.
    async fn offer(&self, process: &Process, offset: u64, chunk: Bytes, eof: bool) -> Result<bool, ClientError> {
        let complete = offset + chunk.len() as u64;
        let mut taken = offset;
        let mut pause = FIRST_PAUSE;
        loop {
            // `taken` is at most `complete`, or the loop has ended.
            let rest = chunk.slice((taken - offset) as usize..);
            match self.stdin(process, taken, rest, eof).await {
                Ok(now) if now >= complete => return Ok(true),
                Ok(now) if now > taken => {
                    taken = now;
                    pause = FIRST_PAUSE;
                    continue;
                }
                Ok(_) => {}
                // A command may take its time: only a server that is gone ends our patience.
                Err(error) if error.code() == Some(ErrorCode::Busy) => {}
                Err(error) if error.code() == Some(ErrorCode::WrongState) => {
                    if !self.may_take(process).await? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A process that takes no input now may yet: it has not started, or did between the two questions.
    async fn may_take(&self, process: &Process) -> Result<bool, ClientError> {
        if process.exec.is_some() {
            return Ok(false);
        }
        Ok(may_run(self.inspect(&process.sandbox).await?.sandbox.state))
    }
}
