//! Flags of `bench`: how fast this installation is, measured by its owner.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{DriverChoice, GuestKernelArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// How fast a sandbox starts: from the request to the last byte of output, beside docker, podman, runc, crun and runsc
    #[command(mut_arg("data", |data| data.help(DATA_HELP)))]
    Start(Box<BenchStartArgs>),
}

const START_HELP: &str = "\
Every row runs the same Python program: with the runner, as a process, booted cold, by command line and by API. The
benchmark starts a server of its own, and a Docker daemon of its own where Docker is installed, in one folder that is gone
afterwards, also after Ctrl-C; nothing is installed, and your servers and sandboxes are not touched. What is not installed
has no figures. Other programs that run meanwhile are in the figures.

Two things may be downloaded, into that folder, by apt from your package sources: Debian's cloud kernel, where your data
folder has no guest kernel and you give none; and the packages of a root file system, without --image.

Rows of others need root. As an ordinary user you get those of Tartarus.

The exit code is 0 when everything of Tartarus worked, 1 when something did not (the bars of --soak and --idle count always,
those of the rows with --check), 2 when the benchmark could not be carried out (with --check also where there is no docker to
compare with), and 130 when Ctrl-C or SIGTERM ended it.";

const DATA_HELP: &str = "\
Take the newest guest kernel of this data folder, and nothing else of it [default: that of `up`, and where that has none, apt \
downloads Debian's cloud kernel]";

#[derive(Debug, Args)]
#[command(after_help = START_HELP)]
pub(crate) struct BenchStartArgs {
    #[command(flatten)]
    pub(crate) kernel: GuestKernelArgs,
    /// A root file system with python3 and numpy [default: made with mmdebstrap, from Debian's packages]
    #[arg(long, value_name = "TAR")]
    pub(crate) image: Option<PathBuf>,
    /// The hypervisor to use; `auto` probes
    #[arg(long, value_enum, default_value_t = DriverChoice::Auto)]
    pub(crate) driver: DriverChoice,
    /// Rounds; in each, every row runs once
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: u16,
    /// How many at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,8,16", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) parallel: Vec<u16>,
    /// Three rounds, one at a time
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these rows; `none` runs no rounds
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    pub(crate) only: Vec<String>,
    /// Run so many sandboxes one after another, and show what they leave behind
    #[arg(long, value_name = "N")]
    pub(crate) soak: Option<usize>,
    /// Keep so many idle clones, and show what they cost and what a restore beside them takes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) idle: Option<u16>,
    /// Exit with 1 when a bar of the rows is missed, and with 2 when there is no docker to compare with
    #[arg(long)]
    pub(crate) check: bool,
    /// Print the figures as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the figures to a file as JSON, too
    #[arg(long, value_name = "FILE")]
    pub(crate) json_file: Option<PathBuf>,
    /// Where the folder of the run is made [default: /var/tmp, or where that is missing the folder for temporary files]; a disk
    /// in memory would flatter everybody
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// A program that restores a golden snapshot with nothing of Tartarus around it
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) bare_restore: Option<PathBuf>,
}
