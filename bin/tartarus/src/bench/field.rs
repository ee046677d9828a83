//! The field: every row of the table, and what runs beside it for that.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::process::{self, Daemon};
use super::report::DOCKER;
use super::row::Row;
use super::scratch::Scratch;
use super::server::Server;
use super::{bare, engines, oci, ours};
use crate::cli::{BenchStartArgs, DriverChoice};

/// What `--only` calls no row at all.
const NONE: &str = "none";
const PODMAN: &str = "podman";

/// Everything that is measured, and what runs beside it for that.
pub(super) struct Field {
    pub(super) rows: Vec<Row>,
    daemons: Vec<Daemon>,
}

/// The driver whose sequence the bare one is: QEMU, translating.
const TRANSLATES: &str = "qemu-tcg";

/// As far as can be told before the server has chosen a driver.
fn may_have_bare(args: &BenchStartArgs) -> bool {
    args.bare_restore.is_some() && matches!(args.driver, DriverChoice::Auto | DriverChoice::QemuTcg)
}

fn wants(args: &BenchStartArgs, row: &str) -> bool {
    args.only.is_empty() || args.only.iter().any(|only| only == row)
}

/// Looks, before anything is made, whether the rows that are wanted exist.
///
/// # Errors
/// When one does not.
pub(super) fn check(args: &BenchStartArgs) -> Result<()> {
    let bare = may_have_bare(args).then_some(bare::BARE);
    let known: Vec<&str> = ours::ALL.into_iter().chain(bare).chain([DOCKER, PODMAN]).chain(oci::ALL).collect();
    if let Some(unknown) = args.only.iter().find(|only| *only != NONE && !known.contains(&only.as_str())) {
        bail!("--only: there is no row {unknown}; there are {}", known.join(", "));
    }
    Ok(())
}

impl Field {
    /// Makes every row that is wanted ready, for up to `slots` at once and a server with this driver.
    ///
    /// # Errors
    /// When it is interrupted, or the driver has no row that was asked for. What is wrong with a row is the row's.
    pub(super) fn gather(
        args: &BenchStartArgs,
        scratch: &Scratch,
        (server, driver): (&Arc<Server>, &str),
        tar: &Path,
        slots: usize,
    ) -> Result<Self> {
        if driver != TRANSLATES && args.only.iter().any(|only| only == bare::BARE) {
            bail!("--only: the row {} is {TRANSLATES}'s, and the driver here is {driver}", bare::BARE);
        }
        let mut rows: Vec<Row> = ours::rows(server);
        let mut daemons = Vec::new();
        let has_bare = driver == TRANSLATES && wants(args, bare::BARE);
        if let Some(program) = args.bare_restore.as_deref().filter(|_| has_bare) {
            let (row, seats) = bare::row(scratch, server, program, slots);
            rows.push(row);
            daemons.extend(seats);
        }
        process::go_on()?;
        if wants(args, DOCKER) {
            let (row, daemon) = engines::docker(scratch, tar);
            rows.push(row);
            daemons.extend(daemon);
        }
        process::go_on()?;
        if wants(args, PODMAN) {
            rows.push(engines::podman(scratch, tar));
        }
        process::go_on()?;
        if oci::ALL.into_iter().any(|name| wants(args, name)) {
            rows.extend(oci::rows(scratch, tar, slots)?);
        }
        rows.retain(|row| wants(args, row.name));
        Ok(Self { rows, daemons })
    }

    /// Processes that are waited for where they were started.
    pub(super) fn keep(&self, server: &Server) -> Vec<u32> {
        self.daemons.iter().map(Daemon::pid).chain([server.pid()]).collect()
    }

    /// What each row is.
    pub(super) fn text(&self) -> String {
        let row = |row: &Row| format!("  {:<21}{:<34}{}\n", row.name, row.version, row.how);
        self.rows.iter().map(row).collect::<String>()
    }

    /// Ends all of it.
    ///
    /// # Errors
    /// When the server leaves something behind.
    pub(super) fn stop(self, server: Arc<Server>) -> Result<()> {
        drop(self);
        Arc::into_inner(server).context("the server is still in use")?.stop()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::args;
    use super::*;

    #[test]
    fn only_some_rows_are_wanted() {
        assert!(wants(&args(&[]), "docker"));
        let some = args(&["--only", "runc,docker"]);
        assert!(wants(&some, "docker") && wants(&some, "runc") && !wants(&some, "crun"));
    }

    #[test]
    fn rows_that_do_not_exist_are_named_before_anything_is_made() {
        assert!(check(&args(&["--only", "none"])).is_ok());
        assert!(check(&args(&["--only", "restore-runner,cold-boot,runsc"])).is_ok());
        let error = check(&args(&["--only", "docker,dockre"])).unwrap_err().to_string();
        assert!(error.contains("dockre") && error.contains("restore-runner-api"), "{error}");
    }

    #[test]
    fn the_bare_sequence_is_there_where_its_program_is_and_qemu_may_translate() {
        assert!(check(&args(&["--only", "bare"])).is_err());
        assert!(check(&args(&["--only", "bare", "--bare-restore", "x"])).is_ok());
        assert!(check(&args(&["--only", "bare", "--bare-restore", "x", "--driver", "firecracker"])).is_err());
    }
}
