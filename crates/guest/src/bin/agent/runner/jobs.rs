//! Code that the host wants to be run: the agent's side of [`Runner`](super::Runner).

use std::os::fd::BorrowedFd;
use std::path::Path;

use tartarus_guest::{End, Header, Kind, RunnerState, Start, StartRunner, message};

use super::spare::{Ids, Plan};
use super::{Dealt, Job, NO_RUNNER, watching};
use crate::agent::Agent;
use crate::events::Source;
use crate::process::Process;
use crate::spawn::{Held, PATH, Pipes, Spawned, not_executable, user_of};
use crate::users::User;

impl Agent {
    /// Starts the runner and answers when it is known whether it works.
    pub(crate) fn start_runner(&mut self, start: StartRunner) -> Result<(), String> {
        let ground = self.ground.as_ref().map_err(|why| why.clone())?;
        let state = self.runner.start(start, &ground.held, &watching(&self.events));
        self.dealt((Vec::new(), state));
        Ok(())
    }

    /// Makes a process of `code`. It runs when a spare waits for it, and is queued otherwise.
    pub(crate) fn start_job(&mut self, number: u32, start: &Start, code: &str) -> Result<(), String> {
        let ground = self.ground.as_ref().map_err(|why| why.clone())?;
        let watch = |fd: BorrowedFd<'_>, role| self.events.watch(fd, Source::Pipe(number, role));
        let made = self.runner.user().ok_or_else(|| not_executable(NO_RUNNER.to_owned())).and_then(|user| {
            let same = self.runner.start_env();
            make(start, code, user, same == Some(&start.env), &ground.held, watch)
        });
        let made = made.and_then(|(job, mut spawned)| {
            let taken = self.runner.take(number, job, &ground.held, &watching(&self.events));
            spawned.pid = taken.map_err(not_executable)?;
            Ok(spawned)
        });
        // Not read anew: what was killed while nothing ran is nobody's, and reading costs a new clone milliseconds.
        self.processes.insert(number, Process::new(start.token.clone(), made, self.ooms));
        Ok(())
    }

    /// The zygote has news.
    pub(crate) fn runner_news(&mut self) {
        let Ok(ground) = &self.ground else { return };
        let news = self.runner.news(&ground.held, &watching(&self.events));
        self.dealt(news);
    }

    /// A child was reaped that is no process of the host.
    pub(crate) fn runner_reaped(&mut self, pid: u32) {
        let Ok(ground) = &self.ground else { return };
        let news = self.runner.reaped(pid, &ground.held, &watching(&self.events));
        self.dealt(news);
    }

    fn dealt(&mut self, (dealt, state): (Vec<Dealt>, Option<RunnerState>)) {
        for dealt in dealt {
            let (Dealt::Started(number, _) | Dealt::Failed(number, _)) = dealt;
            let Some(process) = self.processes.get_mut(&number) else { continue };
            match dealt {
                Dealt::Started(_, pid) => process.began(pid),
                Dealt::Failed(_, why) => process.failed(not_executable(why)),
            }
            self.answer_start(number);
        }
        if let Some(state) = state {
            self.session.send_message(Kind::Runner, 0, &message::encode(&state));
        }
    }

    /// Answers a start, unless its process waits for the runner.
    pub(crate) fn answer_start(&mut self, number: u32) {
        // Who comes after a host that was cut off learns it with its hello.
        if !self.session.is_open() {
            return;
        }
        match self.processes.get(&number).and_then(Process::started) {
            Some(Ok(pid)) => {
                let header = Header { offset: u64::from(pid), ..Header::new(Kind::Started, number) };
                self.session.send(header, b"");
            }
            Some(Err(end)) => {
                self.send_end(number, &end);
                self.processes.get_mut(&number).into_iter().for_each(Process::told_end);
            }
            None => {}
        }
    }

    /// A signal to a job that did not start yet: one that would end it does.
    pub(crate) fn signal_queued(&mut self, number: u32, signal: i32) {
        const DEADLY: [i32; 5] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGKILL, libc::SIGTERM];
        let Some(process) = self.processes.get_mut(&number).filter(|process| process.is_queued()) else { return };
        if DEADLY.contains(&signal) {
            self.runner.forget(number);
            process.failed(End::Signalled { signal, oom_kills: 0 });
            self.answer_start(number);
        }
    }
}

/// Pipes and packet of a job.
fn make(
    start: &Start,
    code: &str,
    runner: &User,
    same_env: bool,
    held: &Held,
    watch: impl Fn(BorrowedFd<'_>, crate::events::Role) -> Result<(), rustix::io::Errno>,
) -> Result<(Job, Spawned), End> {
    // Without a name it is who the runner is already: the user database is not read on the way of a fresh clone.
    let other = start.user.as_deref().map(|name| user_of(Some(name))).transpose()?;
    let user = other.as_ref().unwrap_or(runner);
    let cwd = start.cwd.as_deref().unwrap_or("/");
    if cwd != "/" && !Path::new(cwd).is_dir() {
        return Err(not_executable(format!("could not enter the working directory {cwd:?}: it is no directory")));
    }
    let ids: Option<Ids<'_>> = other.as_ref().map(|user| (user.uid, user.gid, user.groups.as_slice()));
    let env = (other.is_some() || !same_env).then(|| {
        let given = start.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let added = [("PATH", PATH), ("HOME", user.home.as_str())];
        added.into_iter().filter(|(name, _)| !start.env.contains_key(*name)).chain(given).collect()
    });
    let plan = Plan { piped: start.stdin, ids, cwd, arguments: &start.argv, env, code };
    let pipes = Pipes::new(start.stdin, user, held, watch)
        .map_err(|error| not_executable(format!("could not make the pipes of a job: {error}")))?;
    let job = Job::new(&plan, pipes.theirs).map_err(not_executable)?;
    Ok((job, Spawned { pid: None, stdin: pipes.stdin, outputs: pipes.outputs }))
}
