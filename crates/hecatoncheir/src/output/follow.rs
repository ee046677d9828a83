//! Reading a log: stored, or as it is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use tartarus_api::node::{OutputEvent, OutputRequest, OutputStream};
use tartarus_types::{ErrorCode, Refusal};
use tokio::sync::watch;

use super::segments::{self, Segment};
use super::{Extent, LiveLog, Reader};

/// Largest piece handed out at once.
const PIECE: usize = 64 * 1024;

/// The output of the log in `dir`; `live` when it is still written.
pub(crate) fn follow(dir: PathBuf, live: Option<Arc<LiveLog>>, request: OutputRequest) -> OutputStream {
    let want = request.from.map(|from| from.unwrap_or(u64::MAX));
    // Registered before the first look at the files, so that nothing is trimmed in between.
    let reader = live.as_ref().map(|log| log.reader(want));
    let news = live.as_ref().filter(|_| request.follow).map(|log| log.watch());
    let state = State { dir, position: want, reader, news, open: [None, None], turn: 0, done: false };
    Box::pin(stream::unfold(state, |mut state| async move {
        if state.done {
            return None;
        }
        let event = state.next().await.map_err(|e| match e.kind() {
            // The client comes again, from where it is.
            io::ErrorKind::Interrupted => Refusal::new(ErrorCode::NodeUnreachable, e.to_string()),
            _ => Refusal::internal(format!("reading the log: {e}")),
        });
        state.done = !matches!(event, Ok(OutputEvent::Data { .. } | OutputEvent::Gap { .. }));
        Some((event, state))
    }))
}

struct State {
    dir: PathBuf,
    position: [u64; 2],
    reader: Option<Reader>,
    news: Option<watch::Receiver<Extent>>,
    open: [Option<(Segment, Arc<File>)>; 2],
    turn: usize,
    done: bool,
}

impl State {
    async fn next(&mut self) -> io::Result<OutputEvent> {
        loop {
            // Taken before the look at the files: what is written after it is news.
            let extent = self.news.as_mut().map(|news| *news.borrow_and_update());
            for stream in [self.turn, 1 - self.turn] {
                if self.position[stream] == u64::MAX {
                    continue;
                }
                if let Some(reader) = &self.reader {
                    reader.moved(stream, self.position[stream]);
                }
                // Nothing new in a live stream: spare the look at the disk.
                if extent.is_some_and(|e| e.len[stream] <= self.position[stream]) {
                    continue;
                }
                if let Some(event) = self.read(stream).await? {
                    self.turn = 1 - stream;
                    return Ok(event);
                }
            }
            match (&mut self.news, extent) {
                (Some(_), Some(Extent { cut: true, .. })) => {
                    return Err(io::Error::new(io::ErrorKind::Interrupted, "the node agent stops; follow again"));
                }
                (Some(news), Some(Extent { closed: false, .. })) => {
                    if news.changed().await.is_err() {
                        self.news = None; // nobody writes it any more: one more look, then the end
                    }
                }
                _ => return Ok(OutputEvent::End),
            }
        }
    }

    async fn read(&mut self, stream: usize) -> io::Result<Option<OutputEvent>> {
        let (dir, position, open) = (self.dir.clone(), self.position[stream], self.open[stream].take());
        let (open, event) = tokio::task::spawn_blocking(move || read_piece(&dir, stream, position, open))
            .await
            .map_err(io::Error::other)??;
        self.open[stream] = open;
        match &event {
            Some(OutputEvent::Data { bytes, .. }) => self.position[stream] += bytes.len() as u64,
            Some(OutputEvent::Gap { length, .. }) => self.position[stream] += length,
            _ => {}
        }
        Ok(event)
    }
}

type Open = Option<(Segment, Arc<File>)>;

fn read_piece(dir: &Path, stream: usize, position: u64, mut open: Open) -> io::Result<(Open, Option<OutputEvent>)> {
    for _ in 0..3 {
        if let Some((segment, file)) = &open {
            let mut piece = vec![0; PIECE];
            let n = file.read_at(&mut piece, position - segment.start)?;
            if n > 0 {
                piece.truncate(n);
                let event = OutputEvent::Data { stream, offset: position, bytes: Bytes::from(piece) };
                return Ok((open, Some(event)));
            }
        }
        let stored = segments::list(dir, stream)?;
        let here = stored.iter().rev().find(|s| s.start <= position && position < s.end());
        let Some(segment) = here else {
            // Trimmed, or nothing more.
            let gap = stored.iter().find(|s| s.start > position && s.len > 0).map(|s| s.start - position);
            return Ok((None, gap.map(|length| OutputEvent::Gap { stream, offset: position, length })));
        };
        open = match File::open(segments::path(dir, stream, segment.start)) {
            Ok(file) => Some((*segment, Arc::new(file))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None, // trimmed just now
            Err(e) => return Err(e),
        };
    }
    Ok((None, None))
}
