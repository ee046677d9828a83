//! `tartarus torture net`: attacks on the network contract of real guests, from inside of them, on this very installation.
//! For whoever wants to see for himself that nothing gets out.
//!
//! The suite brings its own world: it starts this program again in process, mount and network namespaces of its own, in which
//! a node, an internet with real servers and the guests live. There is no way out of it, and all of it is gone when the suite
//! ends, however it does. It knows what users know of the server that it attacks, and where a sandbox's namespace is.

mod attempts;
mod host;
mod image;
mod judge;
mod matrix;
mod names;
mod outside;
mod record;
mod servers;
mod space;
mod suite;
mod wire;
mod world;

use std::io::Read;
use std::path::Path as FilePath;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

pub(crate) use attempts::Path;
use attempts::{ALL, Attempt};
use host::Host;
use matrix::{Cell, Row};
use suite::Suite;
use world::World;

use crate::cli::TortureNetArgs;
use crate::guest_kernel;
use crate::terminal::{print, print_json};

/// What runs inside of the guests; `build.rs` made it.
static ATTACKER: &[u8] = include_bytes!(env!("TARTARUS_ATTACKER_FILE"));

/// The suite is being ended from outside.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Exit code of a suite that was ended by a signal.
const INTERRUPTED: u8 = 130;
/// Controls of a quick run: one of each wall that has one.
const QUICK_CONTROLS: [&str; 3] = ["other-port", "metadata", "host-published"];

/// `tartarus torture net`.
///
/// # Errors
/// When the suite could not be carried out. What an attempt came to is in the matrix and the exit code.
pub(crate) fn net(args: &TortureNetArgs, quiet: bool) -> anyhow::Result<ExitCode> {
    for name in &args.only {
        let known = || ALL.iter().map(|attempt| attempt.name).collect::<Vec<_>>().join(", ");
        ensure!(
            ALL.iter().any(|attempt| attempt.name == name),
            "--only: there is no attempt {name:?}; there are {}",
            known()
        );
    }
    if args.list {
        let lines: String =
            ALL.iter().map(|a| format!("{:<8} {:<22} {}\n", a.contract.name(), a.name, a.words)).collect();
        print(&lines)?;
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "the suite needs root: it makes network namespaces, and guests with networks in them"
    );
    match &args.within {
        None => outside::run(),
        Some(folder) => {
            let ended = within(args, folder, quiet);
            while ended.is_err() && ENDING.load(Ordering::SeqCst) {
                // What failed was ended, and the thread that ends it is not ready yet.
                std::thread::park();
            }
            ended
        }
    }
}

/// In namespaces of its own.
fn within(args: &TortureNetArgs, folder: &FilePath, quiet: bool) -> anyhow::Result<ExitCode> {
    nothing_outside()?;
    let dir = folder.to_owned();
    std::thread::spawn(move || {
        // The pipe closes when whoever started the suite ends it, or has ended.
        let mut rest = Vec::new();
        let _ = std::io::stdin().take(1).read_to_end(&mut rest);
        ENDING.store(true, Ordering::SeqCst);
        end_early();
        let _ = std::fs::remove_dir_all(dir);
        std::process::exit(INTERRUPTED.into());
    });
    let begin = Instant::now();
    let world = World::new()?;
    let mut host = Host::new(&world, folder, args.driver.word())?;
    let (kernel, image) = (guest_kernel::find(&args.kernel, folder)?.flags()?, image::make(folder)?);
    host.start(None)?;
    let kernel: Vec<&str> = kernel.iter().map(String::as_str).collect();
    host.prepare(&kernel, &image)?;
    if args.plant.is_some() {
        host.stop()?;
        host.start(args.plant.as_deref())?;
    }
    let mut suite = Suite { world: &world, host, plant: args.plant.clone(), quiet };
    suite.say(&format!("world, server and template are ready in {} s", begin.elapsed().as_secs()));
    let mut rows: Vec<Row> = ALL.iter().map(Row::new).collect();
    let picked = |attempt: &Attempt| args.only.is_empty() || args.only.iter().any(|name| name == attempt.name);
    for path in Path::ALL {
        let whole = !args.quick || path == Path::Restore;
        let sample = |attempt: &Attempt| whole || ALL[..2].iter().any(|first| first.name == attempt.name);
        if args.path.is_empty() || args.path.contains(&path) {
            suite.path(path, &mut rows, |attempt| picked(attempt) && sample(attempt))?;
        }
    }
    if !args.no_controls && args.plant.is_none() {
        let sample = |attempt: &Attempt| !args.quick || QUICK_CONTROLS.contains(&attempt.name);
        suite.controls(&mut rows, |attempt| picked(attempt) && sample(attempt))?;
    }
    suite.host.stop()?;
    rows.retain(|row| row.control != Cell::Empty || row.paths.iter().any(|(_, cell)| *cell != Cell::Empty));
    let seconds = begin.elapsed().as_secs();
    match args.json {
        true => print_json(&matrix::as_json(&rows, seconds, suite.host.guests()))?,
        false => print(&matrix::text(&rows, seconds))?,
    }
    Ok(ExitCode::from(u8::from(!matrix::failures(&rows).is_empty())))
}

/// Whatever is done here by mistake stays here.
fn nothing_outside() -> anyhow::Result<()> {
    let same = std::fs::read_link("/proc/self/ns/net")? == std::fs::read_link("/proc/1/ns/net")?;
    let output =
        std::process::Command::new("ip").args(["-o", "link", "show", "up"]).output().context("ip (iproute2)")?;
    let up = String::from_utf8_lossy(&output.stdout);
    if !same || !output.status.success() || up.lines().any(|line| !line.contains(": lo:")) {
        bail!("--within is how the suite starts itself, in an empty network namespace; this is none");
    }
    Ok(())
}

/// Lets a server end its sandboxes and remove what it made, for a while.
fn end_early() {
    let pid = host::RUNNING.load(Ordering::SeqCst);
    if pid == 0 {
        return;
    }
    host::terminate(pid);
    let end = Instant::now() + Duration::from_secs(8);
    // A zombie is gone as well: whoever waits for it may be busy.
    let runs = || std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    while runs() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
}
