//! `cargo xtask bench start`: how fast a sandbox starts, beside what else the machine has for that, alternated in the same
//! run. Everything is in a folder of its own and gone afterwards, also after Ctrl-C.

mod api;
mod bare;
mod engines;
mod http;
mod idle;
mod machine;
mod meter;
mod oci;
mod ours;
mod process;
mod programs;
mod report;
mod rounds;
mod row;
mod scratch;
mod server;
mod soak;
mod stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::{fixtures, product, sh};
use process::Daemon;
use report::{DOCKER, Report};
use rounds::Plan;
use row::Row;
use scratch::Scratch;
use server::Server;

/// Exit code of `--check` where there is nothing to compare with.
const CANNOT_JUDGE: u8 = 2;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// From the request to the last byte of output, beside docker, podman, runc, crun and runsc
    Start(Start),
}

#[derive(Args)]
pub(crate) struct Start {
    /// Rounds; in each, every row runs once
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How many at once
    #[arg(long, value_delimiter = ',', default_value = "1,2,8,16", value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: Vec<u16>,
    /// Three rounds, one at a time
    #[arg(long)]
    quick: bool,
    /// Only these rows; --only none runs no rounds
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    only: Vec<String>,
    /// So many sandboxes one after another, and what they leave behind
    #[arg(long, value_name = "N")]
    soak: Option<usize>,
    /// So many idle clones: what they cost, and what a restore beside them takes
    #[arg(long, value_name = "N")]
    idle: Option<usize>,
    /// Writes the figures to a file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exits with 1 when a bar is missed, and with 2 when there is no docker to compare with
    #[arg(long)]
    check: bool,
    /// The driver that sandboxes run with, as in `tartarus up --driver`
    #[arg(long, value_name = "DRIVER")]
    driver: Option<String>,
    /// A folder with `tartarus` and `examples/bare_restore`; otherwise they are built
    #[arg(long, value_name = "DIR")]
    prebuilt: Option<PathBuf>,
    /// Where the folder of the run is made; a disk in memory would flatter everybody
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(bench: Bench) -> Result<ExitCode> {
    let Bench::Start(start) = bench;
    let programs = start.prebuilt.clone().map_or_else(build, Ok)?;
    let tar = std::path::absolute(fixtures::ensure_python(fixtures::Age::Any)?)?;
    process::prepare()?;
    let parent = start.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::new(&parent)?;
    start.run(&scratch, &std::path::absolute(programs)?, &tar)
}

fn build() -> Result<PathBuf> {
    product::build()?;
    let example = ["build", "--release", "--package", "tartarus-runtime", "--example", "bare_restore"];
    sh::run(&mut sh::cargo(&example))?;
    let folder = Path::new(product::BINARY).parent().context("the binary is in a folder")?;
    Ok(folder.to_owned())
}

impl Start {
    fn plan(&self) -> Plan {
        if self.quick {
            return Plan { rounds: 3, at_once: vec![1] };
        }
        let mut at_once: Vec<usize> = self.parallel.iter().map(|count| usize::from(*count)).collect();
        at_once.sort_unstable();
        at_once.dedup();
        Plan { rounds: usize::from(self.rounds), at_once }
    }

    fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == row)
    }

    fn run(&self, scratch: &Scratch, programs: &Path, tar: &Path) -> Result<ExitCode> {
        let machine = machine::Machine::look();
        let plan = self.plan();
        println!("{}", sh::bold("getting ready"));
        // What idle clones use is measured; what they may use at most is more than a small machine has.
        let overcommit = self.idle.map(|_| ["--overcommit", "4"]);
        let driver = self.driver.as_deref().map(|driver| ["--driver", driver]);
        let options: Vec<&str> = overcommit.into_iter().chain(driver).flatten().collect();
        let server = Arc::new(Server::start(scratch, &programs.join("tartarus"), tar, &options)?);
        server.make_template()?;
        let mut field = Field::gather(self, scratch, &server, programs, tar, plan.most())?;

        println!("{}", sh::bold("running"));
        let keep = field.keep(&server);
        let results = rounds::run(&mut field.rows, &plan, &keep)?;
        let restore = ours::restore(&server);
        let soak = self.soak.map(|count| soak::run(&server, &restore, count, &keep)).transpose()?;
        let idle = self.idle.map(|count| idle::run(&server, &restore, count, &keep)).transpose()?;
        drop(restore);

        let report = Report::new(&field.rows, &results);
        println!();
        machine.print(&report.drivers);
        field.print();
        report.print();
        soak.iter().for_each(soak::Soak::print);
        idle.iter().for_each(idle::Idle::print);
        if let Some(path) = &self.json {
            let json =
                json!({"machine": machine, "drivers": report.drivers, "start": report, "soak": soak, "idle": idle});
            sh::write_whole(path, serde_json::to_string_pretty(&json)?.as_bytes())?;
        }
        let mut faults: Vec<String> = soak.iter().flat_map(|soak| soak.faults.clone()).collect();
        faults.extend(idle.iter().flat_map(|idle| idle.faults.clone()));
        let docker = field.rows.iter().any(|row| row.name == DOCKER && row.is_installed());
        if self.check {
            faults.extend(report::faults(&report, &field.rows));
        }
        field.stop(server)?;
        if self.check && !docker {
            println!("there is no docker here to compare with");
            return Ok(ExitCode::from(CANNOT_JUDGE));
        }
        faults.iter().for_each(|fault| println!("{} {fault}", sh::bold("fault:")));
        Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Everything that is measured, and what runs beside it for that.
struct Field {
    rows: Vec<Row>,
    daemons: Vec<Daemon>,
}

impl Field {
    fn gather(
        wanted: &Start,
        scratch: &Scratch,
        server: &Arc<Server>,
        programs: &Path,
        tar: &Path,
        slots: usize,
    ) -> Result<Self> {
        let mut rows: Vec<Row> = ours::rows(server);
        let mut daemons = Vec::new();
        // Its sequence is that of QEMU, translating.
        if wanted.wants(bare::BARE) && wanted.driver.as_deref().is_none_or(|driver| driver == "qemu-tcg") {
            let (row, seats) = bare::row(scratch, server, &programs.join("examples/bare_restore"), slots);
            rows.push(row);
            daemons.extend(seats);
        }
        process::go_on()?;
        if wanted.wants(DOCKER) {
            let (row, daemon) = engines::docker(scratch, tar);
            rows.push(row);
            daemons.extend(daemon);
        }
        process::go_on()?;
        if wanted.wants("podman") {
            rows.push(engines::podman(scratch, tar));
        }
        process::go_on()?;
        if ["runc", "crun", "runsc"].into_iter().any(|name| wanted.wants(name)) {
            let rootfs = oci::unpack(scratch, tar).map_err(|error| format!("{error:#}"));
            process::go_on()?;
            rows.extend(oci::rows(scratch, &rootfs, slots));
        }
        let known: Vec<&str> = rows.iter().map(|row| row.name).collect();
        if let Some(unknown) = wanted.only.iter().find(|only| *only != "none" && !known.contains(&only.as_str())) {
            bail!("there is no row {unknown}; there are {}", known.join(", "));
        }
        rows.retain(|row| wanted.wants(row.name));
        Ok(Self { rows, daemons })
    }

    /// Processes that are waited for where they were started.
    fn keep(&self, server: &Server) -> Vec<u32> {
        self.daemons.iter().map(Daemon::pid).chain([server.pid()]).collect()
    }

    fn print(&self) {
        println!("\nrows");
        for row in &self.rows {
            println!("  {:<21}{:<34}{}", row.name, row.version, row.how);
        }
    }

    /// Ends all of it.
    fn stop(self, server: Arc<Server>) -> Result<()> {
        drop(self);
        Arc::into_inner(server).context("the server is still in use")?.stop()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(subcommand)]
        bench: Bench,
    }

    fn start(args: &[&str]) -> Start {
        let Bench::Start(start) = Cli::parse_from(["x", "start"].iter().chain(args)).bench;
        start
    }

    #[test]
    fn numbers_at_once_are_in_order_and_once() {
        assert_eq!(start(&[]).plan().at_once, [1, 2, 8, 16]);
        assert_eq!(start(&["--parallel", "8,2,8", "--rounds", "3"]).plan().at_once, [2, 8]);
        let quick = start(&["--quick", "--parallel", "8"]).plan();
        assert_eq!((quick.rounds, quick.at_once), (3, vec![1]));
    }

    #[test]
    fn only_some_rows_are_wanted() {
        assert!(start(&[]).wants("docker"));
        let some = start(&["--only", "runc,docker"]);
        assert!(some.wants("docker") && some.wants("runc") && !some.wants("crun"));
    }
}
