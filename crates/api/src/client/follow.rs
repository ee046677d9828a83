//! Output of a process as one stream, however often the connection below it breaks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Buf;
use futures_util::Stream;
use reqwest::{Method, Response};
use tokio::time::timeout;

use super::error::{Failure, unreachable};
use super::repeat::{Backoff, Repeat};
use super::sandboxes::Process;
use super::{Client, ClientError};
use crate::node::OutputEvent;
use crate::output::Decoder;

/// A server says something every 15 s; one that is silent for longer than this is gone.
const SILENCE: Duration = Duration::from_secs(45);

impl Client {
    /// Output of a process from the given offsets on (`None` leaves a stream out); with `follow` until it has ended,
    /// otherwise what there is. A broken connection is opened again at the byte where it broke: no byte is lost or
    /// doubled. The stream ends after [`OutputEvent::End`] or the first error.
    pub fn output(
        &self,
        process: &Process,
        from: [Option<u64>; 2],
        follow: bool,
    ) -> impl Stream<Item = Result<OutputEvent, ClientError>> + Send + use<> {
        let reader = Reader {
            client: self.clone(),
            process: process.clone(),
            cursor: Cursor(from),
            follow,
            connection: None,
            backoff: Backoff::new(self.patience),
        };
        futures_util::stream::unfold(Some(reader), |reader| async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(OutputEvent::End) => Some((Ok(OutputEvent::End), None)),
                Ok(event) => Some((Ok(event), Some(reader))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

struct Reader {
    client: Client,
    process: Process,
    cursor: Cursor,
    follow: bool,
    connection: Option<Connection>,
    backoff: Backoff,
}

/// A decoder belongs to one body: half a frame of a broken one must not meet the next.
struct Connection {
    response: Response,
    decoder: Decoder,
}

impl Reader {
    async fn next(&mut self) -> Result<OutputEvent, ClientError> {
        loop {
            let failure = match self.step().await {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => continue,
                Err(failure) => failure,
            };
            self.connection = None;
            if !Repeat::Always.allows(&failure, self.client.met.load(Ordering::Relaxed)) {
                return Err(failure.error);
            }
            self.backoff.pause(failure.error).await?;
        }
    }

    /// One event, or nothing yet.
    async fn step(&mut self) -> Result<Option<OutputEvent>, Failure> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let response = self.connect().await?;
                self.connection.insert(Connection { response, decoder: Decoder::default() })
            }
        };
        if let Some(event) = connection.decoder.next_event() {
            let event = event.map_err(ClientError::Refused)?;
            let event = self.cursor.accept(event)?;
            if event.is_some() {
                self.backoff.reset();
            }
            return Ok(event);
        }
        let url = self.client.url();
        let gone = |cause: &str| ClientError::Unreachable { url: url.to_owned(), cause: cause.to_owned() };
        match timeout(SILENCE, connection.response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                self.backoff.alive();
                connection.decoder.push(&chunk);
                Ok(None)
            }
            Ok(Ok(None)) => Err(gone("the connection ended before the output did").into()),
            Ok(Err(cause)) => Err(unreachable(url, &cause)),
            Err(_) => Err(gone("it fell silent").into()),
        }
    }

    async fn connect(&self) -> Result<Response, Failure> {
        let mut url = self.client.process_path(&self.process, "output")?;
        let Cursor([stdout, stderr]) = self.cursor;
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("follow", if self.follow { "true" } else { "false" });
            for (name, from) in [("stdout_from", stdout), ("stderr_from", stderr)] {
                if let Some(from) = from {
                    query.append_pair(name, &from.to_string());
                }
            }
            match (stdout, stderr) {
                (Some(_), None) => _ = query.append_pair("stream", "stdout"),
                (None, Some(_)) => _ = query.append_pair("stream", "stderr"),
                _ => {}
            }
        }
        let opening = self.client.open(self.client.request(Method::GET, &url));
        match timeout(SILENCE, opening).await {
            Ok(result) => result,
            Err(_) => {
                let cause = "it did not answer in time".to_owned();
                Err(ClientError::Unreachable { url: self.client.url().to_owned(), cause }.into())
            }
        }
    }
}

/// The next byte wanted of each stream.
#[derive(Debug, Clone, Copy)]
struct Cursor([Option<u64>; 2]);

impl Cursor {
    /// What of an event is new, and moves on past it.
    ///
    /// # Errors
    /// When bytes between are missing: then the server is wrong, and going on would hide a loss.
    fn accept(&mut self, event: OutputEvent) -> Result<Option<OutputEvent>, ClientError> {
        let (stream, offset, length) = match &event {
            OutputEvent::Data { stream, offset, bytes } => (*stream, *offset, bytes.len() as u64),
            OutputEvent::Gap { stream, offset, length } => (*stream, *offset, *length),
            OutputEvent::End => return Ok(Some(event)),
        };
        let Some(Some(wanted)) = self.0.get_mut(stream) else { return Ok(None) };
        let wrong = || ClientError::Protocol("the server left output out without saying so".to_owned());
        let end = offset.checked_add(length).ok_or_else(wrong)?;
        let known = wanted.checked_sub(offset).ok_or_else(wrong)?;
        if end <= *wanted {
            return Ok(None);
        }
        let offset = std::mem::replace(wanted, end);
        Ok(Some(match event {
            OutputEvent::Data { mut bytes, .. } => {
                // `known` is below the number of bytes, since their end is beyond what was wanted.
                bytes.advance(known as usize);
                OutputEvent::Data { stream, offset, bytes }
            }
            _ => OutputEvent::Gap { stream, offset, length: end - offset },
        }))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn data(offset: u64, text: &'static str) -> OutputEvent {
        OutputEvent::Data { stream: 0, offset, bytes: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn what_is_known_is_cut_off_and_a_hole_is_an_error() {
        let mut cursor = Cursor([Some(3), None]);
        assert_eq!(cursor.accept(data(0, "abc")), Ok(None));
        assert_eq!(cursor.accept(data(1, "bcdef")), Ok(Some(data(3, "def"))));
        assert_eq!(cursor.accept(data(6, "")), Ok(None));
        let gap = |offset, length| OutputEvent::Gap { stream: 0, offset, length };
        assert_eq!(cursor.accept(gap(2, 10)), Ok(Some(gap(6, 6))));
        assert_eq!(cursor.accept(data(12, "x")), Ok(Some(data(12, "x"))));
        assert!(cursor.accept(data(14, "z")).is_err());
        assert!(cursor.accept(gap(13, u64::MAX)).is_err());
        let other = OutputEvent::Data { stream: 1, offset: 0, bytes: Bytes::from_static(b"e") };
        assert_eq!(cursor.accept(other), Ok(None), "a stream that was not asked for");
    }
}
