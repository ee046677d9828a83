//! `tartarus`: the one binary. Reads the command line and turns what comes of it into an exit code and, where it
//! failed, one line that says what to do. Everything else is behind [`commands`] and [`serve`].

mod bench;
mod cli;
mod commands;
mod failure;
mod guest_kernel;
mod pointer;
mod serve;
mod server;
mod terminal;
mod torture;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use cli::{BenchCommand, Cli, Command, TortureCommand};
use failure::Failed;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = serve::role(&args) {
        return code;
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&args, &error),
    };
    let for_own_failure = cli.command.own_failure();
    match dispatch(cli) {
        Ok(code) => code,
        Err(failed) => failed.report(for_own_failure),
    }
}

/// The server makes a runtime of its own, and so do the halves of an attack suite, and the benchmark has none.
fn dispatch(cli: Cli) -> Result<ExitCode, Failed> {
    match cli.command {
        Command::Up(args) => Ok(serve::up(args)?),
        Command::Torture(TortureCommand::Net(args)) => Ok(torture::net(&args, cli.quiet)?),
        Command::Bench(BenchCommand::Start(args)) => Ok(bench::start(&args, cli.quiet)?),
        Command::Openapi => {
            serve::openapi();
            Ok(ExitCode::SUCCESS)
        }
        command => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
            let result = runtime.block_on(commands::run(command, cli.quiet));
            // Standard input is read by a thread that may sit in read(2) until the terminal closes.
            runtime.shutdown_background();
            result
        }
    }
}
