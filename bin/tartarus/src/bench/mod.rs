//! `tartarus bench start`: how fast a sandbox starts on this very installation, beside what else the machine has for that,
//! alternated in the same run. For whoever wants figures of his own machine.
//!
//! The benchmark brings its own server, which is this program again, and its own daemons. Everything is in a folder of its
//! own and gone afterwards, also after Ctrl-C. It knows what users know of the server that it measures, and what processes use.

mod api;
mod bare;
mod engines;
mod field;
mod http;
mod idle;
mod image;
mod machine;
mod meter;
mod oci;
mod ours;
mod process;
mod programs;
mod progress;
mod report;
mod results;
mod rounds;
mod row;
mod scratch;
mod server;
mod soak;
mod stats;
mod tree;
mod verdict;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::cli::BenchStartArgs;
use crate::guest_kernel::{self, Found};
use crate::terminal::{print, print_json};
use field::Field;
use machine::Machine;
use progress::Progress;
use report::Report;
use rounds::Plan;
use scratch::Scratch;
use server::Server;
use verdict::Outcome;

/// Exit code of a benchmark that was ended by a signal.
const INTERRUPTED: u8 = 130;

/// `tartarus bench start`.
///
/// # Errors
/// When the benchmark could not be carried out. What was measured is in the table and the exit code.
pub(crate) fn start(args: &BenchStartArgs, quiet: bool) -> Result<ExitCode> {
    field::check(args)?;
    args.json_file.as_deref().map(results::check).transpose()?;
    let image = args.image.as_deref().map(image::given).transpose()?;
    process::prepare()?;
    let progress = Progress::new(quiet);
    let parent = args.dir.clone().unwrap_or_else(scratch::parent);
    let scratch = Scratch::new(&parent)?;
    let ran = run(args, image.as_deref(), &scratch, progress);
    // What failed then did so since it was ended.
    let interrupted = ran.is_err() && process::go_on().is_err();
    if interrupted {
        progress.say("interrupted");
    }
    // Images of others are large.
    progress.say("removing all that was made");
    drop(scratch);
    if interrupted { Ok(ExitCode::from(INTERRUPTED)) } else { ran }
}

fn plan(args: &BenchStartArgs) -> Plan {
    if args.quick {
        return Plan { rounds: 3, at_once: vec![1] };
    }
    let mut at_once: Vec<usize> = args.parallel.iter().map(|count| usize::from(*count)).collect();
    at_once.sort_unstable();
    at_once.dedup();
    Plan { rounds: usize::from(args.rounds), at_once }
}

fn run(args: &BenchStartArgs, image: Option<&Path>, scratch: &Scratch, progress: Progress) -> Result<ExitCode> {
    // Before anything that takes long.
    let maker = if image.is_none() { Some(image::maker()?) } else { None };
    let machine = Machine::look();
    let plan = plan(args);
    progress.say("getting ready: a server");
    // What idle clones use is measured; what they may use at most is more than a small machine has.
    let overcommit = args.idle.map(|_| ["--overcommit", "4"]);
    let options: Vec<&str> = overcommit.into_iter().flatten().chain(["--driver", args.driver.word()]).collect();
    let server = Arc::new(Server::start(scratch, &options)?);
    add_kernel(args, scratch, &server, progress)?;
    progress.say("getting ready: what this machine can do");
    let driver = server.fit()?;
    let made = match maker {
        None => None,
        Some(maker) => {
            progress.say("getting ready: a root file system, by mmdebstrap (takes minutes; --image TAR spares it)");
            Some(image::make(scratch, &maker)?)
        }
    };
    let tar = image.or(made.as_deref()).context("there is no root file system")?;
    progress.say("getting ready: image, template and golden snapshot");
    server.import(tar)?;
    server.make_template()?;
    progress.say("getting ready: rows");
    let mut field = Field::gather(args, scratch, (&server, &driver), tar, plan.most())?;

    progress.say("running");
    let keep = field.keep(&server);
    let results = rounds::run(&mut field.rows, &plan, &keep, progress)?;
    let restore = ours::restore(&server);
    let soak = args.soak.map(|count| soak::run(&server, &restore, count, &keep, progress).context("--soak"));
    let idle = args.idle.map(|count| idle::run(&server, &restore, count.into(), &keep, progress).context("--idle"));
    drop(restore);
    process::go_on()?;

    // The figures are shown whatever else goes wrong.
    let mut broken = Vec::new();
    let (soak, idle) = (keep_why(soak, &mut broken), keep_why(idle, &mut broken));
    let report = Report::new(&field.rows, &results);
    let mut outcome = Outcome::new(machine, &field, report, soak, idle, broken, args.check);
    let shown = match args.json {
        true => print_json(&outcome.figures),
        false => print(&outcome.text()).map_err(Into::into),
    };
    args.json_file.as_deref().map(|path| results::write(path, &outcome.figures)).transpose()?;
    shown?;
    // It is judged as well whether the server leaves anything.
    let stopped = field.stop(server);
    process::go_on()?;
    if let Err(why) = stopped {
        outcome.add_fault(format!("{why:#}"));
    }
    outcome.explain();
    Ok(outcome.code())
}

/// What there is of a result, with why there is nothing among `broken`.
fn keep_why<T>(result: Option<Result<T>>, broken: &mut Vec<String>) -> Option<T> {
    result?.map_err(|why| broken.push(format!("{why:#}"))).ok()
}

/// The kernel that was asked for or is there; else Debian's, as `tartarus kernel add` fetches it.
fn add_kernel(args: &BenchStartArgs, scratch: &Scratch, server: &Server, progress: Progress) -> Result<()> {
    match guest_kernel::find(&args.kernel, scratch.dir())? {
        // Who named a folder meant a kernel in it.
        Found::None(_) if args.kernel.data.is_none() => {
            progress
                .say("getting ready: Debian's cloud kernel, since there is none yet (`tartarus kernel add` keeps one)");
            server.add_kernel(&[]).context(
                "no guest kernel could be had: give one with --kernel DEB, or with --vmlinuz FILE --modules DIR",
            )
        }
        found => {
            progress.say("getting ready: the guest kernel");
            server.add_kernel(&found.flags()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{BenchCommand, Cli, Command};

    /// As the command line is read.
    pub(super) fn args(words: &[&str]) -> Box<BenchStartArgs> {
        match Cli::parse_from(["tartarus", "bench", "start"].iter().chain(words)).command {
            Command::Bench(BenchCommand::Start(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn numbers_at_once_are_in_order_and_once() {
        let of = |words: &[&str]| plan(&args(words));
        assert_eq!(of(&[]).at_once, [1, 2, 8, 16]);
        assert_eq!(of(&["--parallel", "8,2,8", "--rounds", "3"]).at_once, [2, 8]);
        let quick = of(&["--quick", "--parallel", "8"]);
        assert_eq!((quick.rounds, quick.at_once), (3, vec![1]));
    }
}
