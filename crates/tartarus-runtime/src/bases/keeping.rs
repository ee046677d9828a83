//! The line to the keeper: one task speaks to it, starts another when it is gone, and gives that one everything again.
//!
//! Nothing here fails: without a keeper bases work as well, they only do not outlive the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::{Key, Shelf, State};
use crate::keeper::{Connection, Connector};
use crate::sealed;

/// Questions that wait for their turn; whoever has one more waits.
const QUEUE: usize = 64;
/// A keeper that does not come up, or dies at once, is not tried again sooner; each time in a row doubles it.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const LONGEST: Duration = Duration::from_secs(60);

/// The pause after a keeper that lasted for so long; not at all, if it did not come up.
fn pause_after(pause: Duration, lasted: Duration) -> Duration {
    if lasted >= pause { PAUSE } else { (pause * 2).min(LONGEST) }
}

/// Something to be done by the keeper. The sender of the answer is dropped when it cannot be done.
enum Job {
    Get(Key, oneshot::Sender<Option<OwnedFd>>),
    Put(Key, Arc<OwnedFd>, oneshot::Sender<()>),
    Drop(Vec<Key>, oneshot::Sender<()>),
    Quit(oneshot::Sender<()>),
    Leave(oneshot::Sender<()>),
}

/// Speaks to the keeper. The task behind it ends with the last of its clones.
#[derive(Clone)]
pub(super) struct Keeping {
    jobs: mpsc::Sender<Job>,
}

impl Keeping {
    /// Connects, and puts everything on the shelf that the keeper holds and that is what it is called.
    pub(super) async fn start(connector: Connector, shelf: Arc<Shelf>) -> Self {
        let mut task = Task { connector, shelf, connection: None, tried: None, pause: PAUSE, adopted: false };
        task.renew().await;
        let (jobs, queue) = mpsc::channel(QUEUE);
        tokio::spawn(task.run(queue));
        Self { jobs }
    }

    pub(super) async fn get(&self, key: &Key) -> Option<OwnedFd> {
        let (answer, wait) = oneshot::channel();
        self.jobs.send(Job::Get(key.clone(), answer)).await.ok()?;
        wait.await.ok().flatten()
    }

    pub(super) async fn put(&self, key: &Key, memory: Arc<OwnedFd>) {
        let (answer, wait) = oneshot::channel();
        if self.jobs.send(Job::Put(key.clone(), memory, answer)).await.is_ok() {
            let _ = wait.await;
        }
    }

    pub(super) async fn drop(&self, keys: Vec<Key>) {
        let (answer, wait) = oneshot::channel();
        if !keys.is_empty() && self.jobs.send(Job::Drop(keys, answer)).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// Ends this line and leaves the keeper as it is.
    pub(super) async fn leave(&self) {
        let (answer, wait) = oneshot::channel();
        if self.jobs.send(Job::Leave(answer)).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// Ends the keeper, and with it this line.
    pub(super) async fn quit(&self) {
        let (answer, wait) = oneshot::channel();
        if self.jobs.send(Job::Quit(answer)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

struct Task {
    connector: Connector,
    shelf: Arc<Shelf>,
    connection: Option<Connection>,
    /// When it was last tried to reach one.
    tried: Option<Instant>,
    /// How long after that the next try is.
    pause: Duration,
    /// What an earlier agent's keeper held is on the shelf.
    adopted: bool,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let ended = self.shelf.ended.clone();
        loop {
            let job = match &self.connection {
                Some(connection) => tokio::select! {
                    job = queue.recv() => job,
                    () = connection.lost() => {
                        tracing::warn!("the keeper is gone, starting another");
                        self.lost();
                        self.renew().await;
                        continue;
                    }
                    () = ended.notified() => {
                        let swept = self.sweep().await;
                        self.done(swept);
                        continue;
                    }
                },
                None => tokio::select! {
                    job = queue.recv() => job,
                    () = sleep(self.to_wait()) => {
                        self.renew().await;
                        continue;
                    }
                },
            };
            let Some(job) = job else { return };
            if let Job::Leave(done) = job {
                let _ = done.send(());
                return;
            }
            if let Job::Quit(done) = job {
                if let Some(Err(e)) = async { Some(self.connection.take()?.quit().await) }.await {
                    tracing::warn!(error = %e, "the keeper does not end; it will by itself");
                }
                let _ = done.send(());
                return;
            }
            if self.connection.is_none() {
                self.renew().await;
            }
            if let Some(connection) = &self.connection {
                let done = carry_out(connection, job).await;
                self.done(done);
            }
        }
    }

    /// How long no other may be tried yet.
    fn to_wait(&self) -> Duration {
        self.tried.map_or(Duration::ZERO, |at| self.pause.saturating_sub(at.elapsed()))
    }

    /// Connects, unless that was tried too short a time ago.
    async fn reach(&mut self) -> bool {
        if !self.to_wait().is_zero() {
            return false;
        }
        let connected = self.connector.connect().await;
        self.tried = Some(Instant::now());
        match connected {
            Ok(connection) => self.connection = Some(connection),
            Err(e) => {
                tracing::warn!(error = %e, "no keeper: loaded memories will not outlive this process");
                self.lost();
            }
        }
        self.connection.is_some()
    }

    /// There is none any more, or yet.
    fn lost(&mut self) {
        self.connection = None;
        self.pause = pause_after(self.pause, self.tried.map_or(Duration::ZERO, |at| at.elapsed()));
        if self.pause > PAUSE {
            let wait = self.to_wait();
            tracing::warn!(?wait, "the keeper does not stay: no other is started until then");
        }
    }

    async fn renew(&mut self) {
        if self.reach().await {
            let filled = match self.adopt().await {
                Ok(()) => self.refill().await,
                failed => failed,
            };
            self.done(filled);
        }
    }

    /// After a failure the next answer might be for the last question. A refusal is an answer.
    fn done(&mut self, result: io::Result<()>) {
        if let Err(e) = result {
            tracing::warn!(error = %e, "the keeper did not do what it was asked");
            if e.kind() != io::ErrorKind::Other {
                self.lost();
            }
        }
    }

    async fn adopt(&mut self) -> io::Result<()> {
        if self.adopted {
            return Ok(());
        }
        let Some(connection) = &self.connection else { return Ok(()) };
        for name in connection.names().await? {
            let Some(memory) = connection.get(&name).await? else { continue };
            let identified = Key::from_held(&name).ok_or_else(|| "its name is not ours".to_owned());
            match identified.and_then(|key| sealed::identify(&memory, &key.digest).map(|bytes| (key, bytes))) {
                Ok((key, bytes)) => {
                    let base = self.shelf.base(memory, bytes);
                    self.shelf.with(|state| {
                        if !state.wanted(&key) {
                            state.insert(key, base);
                        }
                    });
                }
                Err(why) => {
                    tracing::warn!(name, why, "the keeper holds something else");
                    connection.drop(&name).await?;
                }
            }
        }
        self.adopted = true;
        Ok(())
    }

    /// Has the keeper let go of what was removed and is not in use any more.
    async fn sweep(&self) -> io::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        for key in self.shelf.with(State::ended) {
            connection.drop(&key.held_as()).await?;
        }
        Ok(())
    }

    /// Makes a keeper hold exactly what is on the shelf, or was and is in use.
    async fn refill(&self) -> io::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let held: BTreeSet<String> = connection.names().await?.into_iter().collect();
        let (all, unwanted) = self.shelf.with(|state| {
            state.ended();
            let loaded = state.loaded.iter().map(|(key, slot)| (key.held_as(), slot.base.memory.clone()));
            let removed =
                state.removed.iter().filter_map(|(key, base)| Some((key.held_as(), base.upgrade()?.memory.clone())));
            let all: BTreeMap<String, Arc<OwnedFd>> = removed.chain(loaded).collect();
            let wanted = |name: &String| Key::from_held(name).is_some_and(|key| state.wanted(&key));
            (all, held.iter().filter(|name| !wanted(name)).cloned().collect::<Vec<_>>())
        });
        for name in unwanted {
            connection.drop(&name).await?;
        }
        for (name, memory) in all.iter().filter(|(name, _)| !held.contains(*name)) {
            connection.put(name, memory.as_fd()).await?;
        }
        Ok(())
    }
}

async fn carry_out(connection: &Connection, job: Job) -> io::Result<()> {
    match job {
        Job::Get(key, answer) => {
            let _ = answer.send(connection.get(&key.held_as()).await?);
        }
        Job::Put(key, memory, answer) => {
            connection.put(&key.held_as(), memory.as_fd()).await?;
            let _ = answer.send(());
        }
        Job::Drop(keys, answer) => {
            for key in keys {
                connection.drop(&key.held_as()).await?;
            }
            let _ = answer.send(());
        }
        // They end the line itself: see `Task::run`.
        Job::Quit(_) | Job::Leave(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_bound_and_starts_anew_after_a_keeper_that_lasted() {
        let mut pauses = vec![PAUSE];
        for _ in 0..8 {
            pauses.push(pause_after(pauses[pauses.len() - 1], Duration::from_millis(900)));
        }
        let seconds: Vec<u64> = pauses.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause_after(LONGEST, LONGEST), PAUSE);
        assert_eq!(pause_after(PAUSE, Duration::ZERO), 2 * PAUSE);
    }
}
