//! Byte streams to upload: from a reader, from another program, from a tar made here. Each holds a few buffers at
//! most, and ends with an error rather than early.

use std::io::{self, BufWriter, Write};
use std::process::Stdio;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use tartarus_api::node::ByteStream;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;

use super::session::Spinner;

const BUFFER: usize = 256 << 10;

async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    reader.read_buf(&mut buffer).await?;
    Ok(buffer.freeze())
}

/// All that `reader` gives.
pub(super) fn of_reader(reader: impl AsyncRead + Send + Unpin + 'static) -> ByteStream {
    Box::pin(stream::try_unfold(reader, |mut reader| async move {
        let bytes = read(&mut reader).await?;
        Ok((!bytes.is_empty()).then_some((bytes, reader)))
    }))
}

/// Standard output of a program, whose failure is the stream's. Dropping the stream ends the program.
///
/// # Errors
/// When it cannot be started.
pub(super) fn of_child(mut command: Command) -> io::Result<ByteStream> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|cause| io::Error::new(cause.kind(), format!("{name} could not be started: {cause}")))?;
    let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
    let step = |(mut stdout, mut child, name): (ChildStdout, Child, String)| async move {
        let bytes = read(&mut stdout).await?;
        if !bytes.is_empty() {
            return Ok(Some((bytes, (stdout, child, name))));
        }
        match child.wait().await? {
            status if status.success() => Ok(None),
            status => Err(io::Error::other(format!("{name} failed: {status}"))),
        }
    };
    Ok(Box::pin(stream::try_unfold((stdout, child, name), step)))
}

/// What `make` writes, on a thread of its own; its error is the stream's.
pub(super) fn of_writer(make: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> ByteStream {
    let (sender, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(BUFFER, Sender(sender.clone()));
        if let Err(error) = make(&mut out).and_then(|()| out.flush()) {
            // Nobody listens any more when this fails, which is why it failed.
            let _ = sender.blocking_send(Err(error));
        }
    });
    Box::pin(stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }))
}

struct Sender(mpsc::Sender<io::Result<Bytes>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same stream, shown; once it is through, the server is at work, which `then` names.
pub(super) fn counted(stream: ByteStream, spinner: &Spinner, then: &'static str) -> ByteStream {
    let (counting, ending) = (spinner.clone(), spinner.clone());
    let counted = stream.inspect_ok(move |bytes| counting.advance(bytes.len() as u64));
    let end = stream::poll_fn(move |_| {
        ending.say(then);
        std::task::Poll::Ready(None)
    });
    Box::pin(counted.chain(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(stream: ByteStream) -> io::Result<Vec<u8>> {
        stream
            .try_fold(Vec::new(), |mut all, bytes| async move {
                all.extend_from_slice(&bytes);
                Ok(all)
            })
            .await
    }

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_program_that_fails_late_fails_the_stream() {
        assert_eq!(all(of_child(sh("printf abc")).unwrap()).await.unwrap(), b"abc");
        let error = all(of_child(sh("printf abc; exit 2")).unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("sh failed"), "{error}");
    }

    #[tokio::test]
    async fn a_writer_comes_through_whole_or_with_its_error() {
        let long = vec![7_u8; 3 * BUFFER + 1];
        let copy = long.clone();
        assert_eq!(all(of_writer(move |out| out.write_all(&copy))).await.unwrap(), long);
        let error = all(of_writer(|_| Err(io::Error::other("no such file")))).await.unwrap_err();
        assert_eq!(error.to_string(), "no such file");
        assert_eq!(all(of_reader(&b"xyz"[..])).await.unwrap(), b"xyz");
    }
}
