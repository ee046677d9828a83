//! The runner: a warm interpreter that forks a fresh child for each job, so that a job need not start one.
//!
//! One *zygote* imports what the template wants; when asked it forks a *spare*, which waits for one job and becomes it.
//! `docs/runner-protocol.md` says how they talk. Used by the agent's loop, which is never blocked: a job for which no
//! spare waits stands in a queue. Knows nothing of output and ends; a running job is a process like any other.

mod jobs;
mod spare;
mod zygote;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use tartarus_guest::{RunnerState, StartRunner};

use crate::events::Source;
use crate::spawn::{Held, user_of};
use crate::users::User;

pub(crate) use spare::{Given, Job};
use spare::{Lines, Spare};
use zygote::{Heard, Zygote};

/// Watches a descriptor of the runner.
pub(crate) type Watch<'a> = &'a dyn Fn(BorrowedFd<'_>, Source) -> Result<(), Errno>;

/// What happened to a job that stood in the queue.
#[derive(Debug)]
pub(crate) enum Dealt {
    /// The job with this number runs.
    Started(u32, Given),
    /// It will never be started.
    Failed(u32, String),
}

/// The runner of this guest: none, until the host asks for one.
#[derive(Debug, Default)]
pub(crate) struct Runner {
    wanted: Option<Wanted>,
    zygote: Option<Zygote>,
    spare: Option<Spare>,
    /// The zygote was asked for a spare, which will write to these, and did not send it yet.
    asked: Option<Lines>,
    /// How many spares were asked for.
    count: u32,
    /// How many of them ended before they could take a job, since the last one that could.
    lost: u32,
    queue: VecDeque<(u32, Job)>,
    /// The host waits for the answer to its request.
    owed: bool,
    /// A job that only makes the interpreter's files ready in memory, before the host is told.
    warming: Option<Given>,
}

#[derive(Debug)]
struct Wanted {
    start: StartRunner,
    /// Who it runs as.
    user: User,
}

impl Runner {
    /// Starts the runner, unless it is the one that was started before. The answer comes now or with later news.
    pub(crate) fn start(&mut self, start: StartRunner, held: &Held, watch: Watch<'_>) -> Option<RunnerState> {
        if self.wanted.as_ref().is_none_or(|wanted| wanted.start != start) {
            self.zygote = None;
            self.spare = None;
            self.asked = None;
            self.lost = 0;
            self.warming = None;
            self.wanted = Some(Wanted { start, user: root() });
        }
        if self.spare.is_some() && self.warming.is_none() {
            return Some(RunnerState::Ready);
        }
        self.owed = true;
        if self.warming.is_some() {
            return None;
        }
        if let Err(message) = self.ask(held, watch) {
            self.owed = false;
            return Some(RunnerState::Failed { message });
        }
        None
    }

    /// Who jobs run as when the host names nobody; `None` before a runner was started.
    pub(crate) fn user(&self) -> Option<&User> {
        self.wanted.as_ref().map(|wanted| &wanted.user)
    }

    /// The environment that the interpreter has already, beside `PATH` and `HOME`.
    pub(crate) fn start_env(&self) -> Option<&BTreeMap<String, String>> {
        self.wanted.as_ref().map(|wanted| &wanted.start.env)
    }

    /// The processes that wait for work: the zygote and the spare.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = u32> + '_ {
        self.zygote.iter().map(|zygote| zygote.pid).chain(self.spare.iter().map(|spare| spare.pid))
    }

    /// Takes a job. Gives its process when a spare waited for it, and nothing when it stands in the queue.
    ///
    /// # Errors
    /// Why it can never be started.
    pub(crate) fn take(
        &mut self,
        number: u32,
        job: Job,
        held: &Held,
        watch: Watch<'_>,
    ) -> Result<Option<Given>, String> {
        if self.queue.is_empty()
            && let Some(spare) = self.spare.take()
            && let Ok(given) = spare.give(&job)
        {
            return Ok(Some(given));
        }
        self.queue.push_back((number, job));
        self.ask(held, watch).inspect_err(|_| self.queue.retain(|(queued, _)| *queued != number)).map(|()| None)
    }

    /// Takes a job out of the queue.
    pub(crate) fn forget(&mut self, number: u32) {
        self.queue.retain(|(queued, _)| *queued != number);
    }

    /// A new session: whoever asked is gone.
    pub(crate) fn detach(&mut self) {
        self.owed = false;
    }

    /// The zygote has news: a spare, or its end.
    pub(crate) fn news(&mut self, held: &Held, watch: Watch<'_>) -> (Vec<Dealt>, Option<RunnerState>) {
        let mut dealt = Vec::new();
        self.hear(watch);
        while let Some((number, job)) = self.queue.pop_front() {
            let given = self.spare.take().and_then(|spare| spare.give(&job).ok());
            let Some(given) = given else {
                self.queue.push_front((number, job));
                break;
            };
            dealt.push(Dealt::Started(number, given));
        }
        if self.warming.is_some() && self.queue.is_empty() {
            return (dealt, None);
        }
        if self.owed && self.spare.is_some() && self.warming.is_none() {
            self.owed = false;
            return (dealt, Some(RunnerState::Ready));
        }
        let asked = if self.owed || !self.queue.is_empty() { self.ask(held, watch) } else { Ok(()) };
        let state = asked.err().and_then(|message| self.fail(&message, &mut dealt));
        (dealt, state)
    }

    /// A pipe of this spare, which has no job, has news. When nobody holds the pipes of one that was asked for, it ended
    /// before it was heard of: its parent is gone, and what is reaped has no name. So another one is asked for.
    pub(crate) fn hung_up(&mut self, spare: u32, held: &Held, watch: Watch<'_>) -> (Vec<Dealt>, Option<RunnerState>) {
        // The word of one that ended after it may still be on its way; the end of the zygote is heard when it is reaped.
        if !self.asked.as_ref().is_some_and(|lines| lines.is(spare) && lines.are_over())
            || !self.hear(watch)
            || self.asked.as_ref().is_none_or(|lines| !lines.is(spare))
        {
            return (Vec::new(), None);
        }
        self.asked = None;
        self.lost += 1;
        self.news(held, watch)
    }

    /// The output pipe of the zygote has news.
    pub(crate) fn drain(&mut self) {
        self.zygote.iter_mut().for_each(Zygote::drain);
    }

    /// A child of PID 1 was reaped: perhaps the spare, or the zygote, which is started again when somebody waits for it.
    pub(crate) fn reaped(&mut self, pid: u32, held: &Held, watch: Watch<'_>) -> (Vec<Dealt>, Option<RunnerState>) {
        if self.spare.as_ref().is_some_and(|spare| spare.pid == pid) {
            self.spare = None;
        }
        if self.warming.as_ref().is_some_and(|warming| warming.pid == pid) {
            self.warming = None;
            return self.news(held, watch);
        }
        if self.zygote.as_ref().is_none_or(|zygote| zygote.pid != pid) {
            return (Vec::new(), None);
        }
        self.hear(watch);
        self.asked = None;
        self.zygote.iter_mut().for_each(|zygote| zygote.reaped = true);
        match self.zygote.take() {
            // It never got as far as a child: it would not the next time either, and the host is told why.
            Some(mut zygote) if !zygote.ready => {
                let mut dealt = Vec::new();
                let state = self.fail(&zygote.last_words(), &mut dealt);
                (dealt, state)
            }
            _ => self.news(held, watch),
        }
    }

    /// Takes the spares that the zygote sent. Gives whether more can come of it.
    fn hear(&mut self, watch: Watch<'_>) -> bool {
        let Some(zygote) = &mut self.zygote else { return false };
        loop {
            match zygote.hear() {
                Heard::Spare(socket) => {
                    // What was not asked for, or can be neither known nor watched, is let go and ends.
                    let Some(lines) = self.asked.take() else { continue };
                    self.lost += 1;
                    let Some(spare) = Spare::new(socket, lines) else { continue };
                    if spare.watch(watch).is_err() {
                        continue;
                    }
                    self.lost = 0;
                    zygote.ready = true;
                    // Before a snapshot, not in the clone: what a job reads of the interpreter's files is in memory then.
                    if self.owed && self.queue.is_empty() && !std::mem::replace(&mut zygote.warmed, true) {
                        self.warming = Job::warm().and_then(|job| spare.give(&job)).ok();
                    } else {
                        self.spare = Some(spare);
                    }
                }
                Heard::Nothing => return true,
                Heard::End => {
                    // What it is without its socket is no runner; the rest follows when it is reaped.
                    zygote.kill();
                    return false;
                }
            }
        }
    }

    /// Sees to it that a spare is on its way.
    fn ask(&mut self, held: &Held, watch: Watch<'_>) -> Result<(), String> {
        let Some(wanted) = &self.wanted else { return Err(NO_RUNNER.to_owned()) };
        if self.asked.is_some() {
            return Ok(());
        }
        if self.lost >= LOST {
            self.lost = 0;
            return Err(format!("{LOST} children of the runner in a row ended before they could take a job"));
        }
        if self.zygote.is_none() {
            self.zygote = Some(Zygote::launch(&wanted.start, &wanted.user, held, watch)?);
        }
        self.count = self.count.wrapping_add(1);
        let made = Lines::new(self.count, &wanted.user, watch);
        let (lines, theirs) = made.map_err(|error| format!("could not make the pipes of a job: {error}"))?;
        // When it ended meanwhile, the next news say so and it is started anew.
        self.asked = Some(lines);
        self.zygote.iter().for_each(|zygote| zygote.ask(&theirs));
        Ok(())
    }

    fn fail(&mut self, message: &str, dealt: &mut Vec<Dealt>) -> Option<RunnerState> {
        dealt.extend(self.queue.drain(..).map(|(number, _)| Dealt::Failed(number, message.to_owned())));
        std::mem::take(&mut self.owed).then(|| RunnerState::Failed { message: message.to_owned() })
    }
}

/// Root as the image has it, or plain root where the image's user database is of no use.
fn root() -> User {
    user_of(None).unwrap_or_else(|_| User { uid: 0, gid: 0, groups: Vec::new(), home: "/root".to_owned() })
}

/// Spares that may be lost in a row before those who wait are told.
const LOST: u32 = 3;

/// Why code cannot be run.
pub(crate) const NO_RUNNER: &str = "the template has no runner: code needs one, and the host started none";

/// Watches what the runner wants to be watched.
pub(crate) fn watching(events: &crate::events::Events) -> impl Fn(BorrowedFd<'_>, Source) -> Result<(), Errno> + '_ {
    move |fd, source| match source {
        // An edge for each packet that a spare took would wake the agent in the middle of a job's start.
        Source::Spare(..) => events.listen(fd, source),
        _ => events.watch(fd, source),
    }
}

#[cfg(test)]
mod tests;
