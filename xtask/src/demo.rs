//! `cargo xtask demo`: from nothing to a Python program in a real microVM, by the commands that a person would type.
//!
//! A second run reuses what the first made. Whatever happens, the server that it started is stopped.

mod server;
mod steps;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::{fixtures, packages, product, sh};

/// Runs the demo with the server's data in `data`.
pub(crate) fn run(data: &Path) -> Result<()> {
    let mut clock = Clock::default();
    clock.time("packages", packages::ensure_demo)?;
    // First what may need a word with the administrator, then the long build.
    let tar = clock.time("root file system", || fixtures::ensure_python(fixtures::Age::Any))?;
    clock.time("build", product::build)?;

    // One thread: the kernel ends the server when the thread that started it is gone.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    runtime.block_on(async {
        let mut server = server::Server::spawn(data)?;
        let shown = tokio::select! {
            shown = steps::show(&mut server, &tar, &mut clock) => shown,
            interrupted = interrupted() => interrupted,
        };
        let stopped = clock.time_async("stop", server.stop()).await;
        shown.and(stopped)
    })?;
    clock.print();
    Ok(())
}

/// Ends with an error when somebody wants the demo to end.
async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    bail!("interrupted")
}

/// How long each step took.
#[derive(Debug, Default)]
struct Clock(Vec<(&'static str, Duration)>);

impl Clock {
    fn time<T>(&mut self, step: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work();
        self.0.push((step, start.elapsed()));
        result
    }

    async fn time_async<T>(&mut self, step: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let start = Instant::now();
        let result = work.await;
        self.0.push((step, start.elapsed()));
        result
    }

    fn print(&self) {
        println!("\n{}", sh::bold("seconds per step"));
        for (step, took) in &self.0 {
            println!("  {step:<17} {:>7.1}", took.as_secs_f64());
        }
    }
}
