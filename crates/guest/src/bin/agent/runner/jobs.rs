//! Code that the host wants to be run: the agent's side of [`Runner`](super::Runner).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use tartarus_guest::{End, Header, Kind, RunnerState, Start, StartRunner, message};

use super::spare::{Ids, Plan};
use super::{Dealt, Job, NO_RUNNER, watching};
use crate::agent::Agent;
use crate::events::{Role, Source, SparePart};
use crate::process::Process;
use crate::spawn::{PATH, not_executable, stdin_pipe, user_of};
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
        let watch = |fd: BorrowedFd<'_>| self.events.watch(fd, Source::Pipe(number, Role::Stdin));
        let made = self.runner.user().ok_or_else(|| not_executable(NO_RUNNER.to_owned())).and_then(|user| {
            let same = self.runner.start_env();
            make(start, code, user, same == Some(&start.env), watch)
        });
        let made = made.and_then(|(job, stdin)| {
            let taken = self.runner.take(number, job, &ground.held, &watching(&self.events));
            Ok((taken.map_err(not_executable)?, stdin))
        });
        // Not read anew: what was killed while nothing ran is nobody's, and reading costs a new clone milliseconds.
        let process = match made {
            Ok((given, stdin)) => {
                let mut process = Process::queued(start.token.clone(), stdin, self.ooms);
                given.into_iter().for_each(|given| process.began(given));
                process
            }
            Err(end) => Process::new(start.token.clone(), Err(end), self.ooms),
        };
        self.processes.insert(number, process);
        Ok(())
    }

    /// A job has news, or a spare that is none yet.
    pub(crate) fn job_news(&mut self, spare: u32, part: SparePart) {
        let mut jobs = self.processes.values_mut();
        let Some(process) = jobs.find(|process| process.spare() == Some(spare)) else {
            let Ok(ground) = &self.ground else { return };
            let news = self.runner.hung_up(spare, &ground.held, &watching(&self.events));
            return self.dealt(news);
        };
        match part {
            SparePart::Output(stream) => process.output(stream).wake(),
            SparePart::Socket => {
                let Some(code) = process.last_word() else { return };
                self.ooms = self.ground.as_ref().map_or(0, |ground| ground.held.ooms.since(self.ooms));
                process.ends(Ok(code), self.ooms);
            }
        }
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
            let (Dealt::Started(number, _) | Dealt::Failed(number, _)) = &dealt;
            let number = *number;
            let Some(process) = self.processes.get_mut(&number) else { continue };
            match dealt {
                Dealt::Started(_, given) => process.began(given),
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

/// Packet and standard input of a job.
fn make(
    start: &Start,
    code: &str,
    runner: &User,
    same_env: bool,
    watch: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>,
) -> Result<(Job, Option<OwnedFd>), End> {
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
    let (stdin, theirs) = if start.stdin {
        let pipe = stdin_pipe(user).and_then(|pipe| watch(pipe.0.as_fd()).map(|()| pipe).map_err(Into::into));
        let (ours, theirs) =
            pipe.map_err(|error| not_executable(format!("could not make the pipe of a job: {error}")))?;
        (Some(ours), Some(theirs))
    } else {
        (None, None)
    };
    let plan = Plan { ids, cwd, arguments: &start.argv, env, code };
    Ok((Job::new(&plan, theirs).map_err(not_executable)?, stdin))
}
