//! Output of a process, written to our own streams as it comes.

use std::io::{self, Write};
use std::pin::pin;

use bytes::Bytes;
use futures_util::StreamExt;
use tartarus_api::client::{Client, Process};
use tartarus_api::node::OutputEvent;

use super::Spinner;
use crate::terminal::note;

/// What to do where bytes were left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) enum Style {
    /// A live command: say it on standard error, so that the data stays data.
    Live,
    /// A stored log: a line within the log.
    Log,
    /// A stored log that explains a failure: all of it on standard error.
    Told,
}

impl Style {
    /// Where a stream goes here.
    fn stream(self, stream: usize) -> usize {
        match self {
            Self::Live | Self::Log => stream,
            Self::Told => 1,
        }
    }
}

/// Writes what the process puts out until there is no more. Every piece is flushed, so that nothing waits for a full
/// buffer, and the next is read only then: a slow reader slows the command, not our memory.
///
/// # Errors
/// [`tartarus_api::ClientError`], or the `std::io::Error` of our own streams.
pub(in crate::commands) async fn pump(
    client: &Client,
    process: &Process,
    from: [Option<u64>; 2],
    follow: bool,
    style: Style,
    spinner: &Spinner,
) -> anyhow::Result<()> {
    let mut events = pin!(client.output(process, from, follow));
    let mut at_line_start = [true; 2];
    while let Some(event) = events.next().await {
        match event? {
            OutputEvent::Data { stream, bytes, .. } => {
                spinner.clear();
                if let (Some(at_start), Some(last)) = (at_line_start.get_mut(stream), bytes.last()) {
                    *at_start = *last == b'\n';
                }
                write(style.stream(stream), bytes).await?;
            }
            OutputEvent::Gap { stream, length, .. } if style != Style::Live => {
                let at_start = at_line_start.get_mut(stream).is_none_or(|at_start| std::mem::replace(at_start, true));
                write(style.stream(stream), marker(at_start, length).into()).await?;
            }
            OutputEvent::Gap { stream, length, .. } => {
                let name = if stream == 0 { "stdout" } else { "stderr" };
                note(&format!("{length} bytes of {name} were left out here"));
            }
            OutputEvent::End => break,
        }
    }
    Ok(())
}

fn marker(at_line_start: bool, length: u64) -> String {
    let before = if at_line_start { "" } else { "\n" };
    format!("{before}[tartarus: {length} bytes left out here]\n")
}

/// On a thread that may block: a full pipe must not keep us from hearing signals.
async fn write(stream: usize, bytes: Bytes) -> io::Result<()> {
    fn all(mut out: impl Write, bytes: &[u8]) -> io::Result<()> {
        out.write_all(bytes)?;
        out.flush()
    }
    let written = tokio::task::spawn_blocking(move || match stream {
        0 => all(io::stdout().lock(), &bytes),
        _ => all(io::stderr().lock(), &bytes),
    });
    written.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_gap_has_a_line_of_its_own() {
        assert_eq!(super::marker(true, 5), "[tartarus: 5 bytes left out here]\n");
        assert_eq!(super::marker(false, 5), "\n[tartarus: 5 bytes left out here]\n");
    }
}
