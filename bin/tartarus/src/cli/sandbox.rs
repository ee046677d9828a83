//! Flags of the commands about sandboxes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::net::NetArgs;
use super::parse::{self, EnvEntry, Pair};

const RUN_HELP: &str = "\
Exit code: the command's own; 128+N when signal N ended it; 124 when a time limit did; 125 when Tartarus failed;
126 when the program cannot be executed; 127 when there is none.

The first Ctrl-C sends SIGINT to the command, the second ends the sandbox (130).

Examples:
  tartarus run python -- python3 -c 'print(6 * 7)'
  tartarus run python --timeout 30s --memory 1G -i -- python3 - < script.py
  tartarus run python --code 'print(6 * 7)'
  tartarus run python --code-file script.py -- its arguments
  tartarus run python --allow-domain pypi.org,files.pythonhosted.org -- pip install requests";

/// Code for the template's runner.
#[derive(Debug, Default, Args)]
pub(crate) struct CodeArgs {
    /// Run this in the template's runner instead of a program; what follows -- are its arguments
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "code_file")]
    pub(crate) code: Option<String>,
    /// The same from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) code_file: Option<PathBuf>,
}

/// How a sandbox starts and ends.
#[derive(Debug, Default, Args)]
pub(crate) struct SnapshotArgs {
    /// Start from the template's golden snapshot, or not at all
    #[arg(long, conflicts_with = "no_snapshot")]
    pub(crate) require_snapshot: bool,
    /// Boot, although there may be a golden snapshot
    #[arg(long)]
    pub(crate) no_snapshot: bool,
    /// Overwrite what the sandbox wrote when it ends
    #[arg(long)]
    pub(crate) shred: bool,
    /// End it after so long without request or output, such as 10m
    #[arg(long, value_name = "TIME", value_parser = parse::duration, allow_hyphen_values = true)]
    pub(crate) idle_timeout: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
pub(crate) struct RunArgs {
    /// The template to run from
    pub(crate) template: String,
    /// Add to the environment; without =V taken from here
    #[arg(long, value_name = "K[=V]", value_parser = parse::env)]
    pub(crate) env: Vec<EnvEntry>,
    /// Virtual processors
    #[arg(long, value_name = "N", value_parser = parse::cpus, allow_hyphen_values = true)]
    pub(crate) cpus: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = parse::size, allow_hyphen_values = true)]
    pub(crate) memory: Option<u32>,
    /// End the command so long after its start, such as 30s or 1m30s
    #[arg(long, value_name = "TIME", value_parser = parse::duration, allow_hyphen_values = true)]
    pub(crate) timeout: Option<Duration>,
    /// Give up when it has not started so long after it was accepted [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse::duration, allow_hyphen_values = true)]
    pub(crate) start_timeout: Option<Duration>,
    /// Working directory in the sandbox
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User in the sandbox: NAME, UID, NAME:GROUP or UID:GID
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Pass standard input on
    #[arg(short, long, conflicts_with = "detach")]
    pub(crate) interactive: bool,
    #[command(flatten)]
    pub(crate) code: CodeArgs,
    #[command(flatten)]
    pub(crate) snapshot: SnapshotArgs,
    #[command(flatten)]
    pub(crate) net: NetArgs,
    /// Print the id and do not wait
    #[arg(long)]
    pub(crate) detach: bool,
    /// A name, unique among sandboxes that have not ended
    #[arg(long, value_name = "N")]
    pub(crate) name: Option<String>,
    /// A label, for finding it again
    #[arg(long = "label", value_name = "K=V", value_parser = parse::label)]
    pub(crate) labels: Vec<Pair>,
    /// The same key again within 24 h is the same run
    #[arg(long, value_name = "K")]
    pub(crate) idempotency_key: Option<String>,
    /// Print the sandbox as one line of JSON: with --detach on standard output, otherwise at the end, on standard error
    #[arg(long)]
    pub(crate) json: bool,
    /// Program and arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The template to make it from
    pub(crate) template: String,
    /// End it after so long, such as 10m
    #[arg(long, value_name = "TIME", value_parser = parse::duration, allow_hyphen_values = true)]
    pub(crate) ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) snapshot: SnapshotArgs,
    #[command(flatten)]
    pub(crate) net: NetArgs,
    /// Give up when it has not started so long after it was accepted [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse::duration, allow_hyphen_values = true)]
    pub(crate) start_timeout: Option<Duration>,
    /// Add to the environment; without =V taken from here
    #[arg(long, value_name = "K[=V]", value_parser = parse::env)]
    pub(crate) env: Vec<EnvEntry>,
    /// Virtual processors
    #[arg(long, value_name = "N", value_parser = parse::cpus, allow_hyphen_values = true)]
    pub(crate) cpus: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = parse::size, allow_hyphen_values = true)]
    pub(crate) memory: Option<u32>,
    /// A name, unique among sandboxes that have not ended
    #[arg(long, value_name = "N")]
    pub(crate) name: Option<String>,
    /// A label, for finding it again
    #[arg(long = "label", value_name = "K=V", value_parser = parse::label)]
    pub(crate) labels: Vec<Pair>,
    /// The same key again within 24 h is the same sandbox
    #[arg(long, value_name = "K")]
    pub(crate) idempotency_key: Option<String>,
    /// Print the sandbox as JSON instead of its id
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Also those that have ended
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only those with this label
    #[arg(long = "label", value_name = "K=V", value_parser = parse::label)]
    pub(crate) labels: Vec<Pair>,
    /// At most so many, newest first
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Id, unique prefix of one, or name
    pub(crate) id: String,
    /// Print it as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Id, unique prefix of one, or name
    pub(crate) id: String,
    /// Print the sandbox as JSON when it has ended
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Id, unique prefix of one, or name
    pub(crate) id: String,
    /// Go on until the command has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only this stream
    #[arg(long, value_enum, value_name = "STREAM")]
    pub(crate) stream: Option<StreamName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamName {
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit code: as for `tartarus run`.")]
pub(crate) struct ExecArgs {
    /// Id, unique prefix of one, or name
    pub(crate) id: String,
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    #[command(flatten)]
    pub(crate) code: CodeArgs,
    /// Add to the sandbox's environment; without =V taken from here
    #[arg(long, value_name = "K[=V]", value_parser = parse::env)]
    pub(crate) env: Vec<EnvEntry>,
    /// Working directory in the sandbox
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User in the sandbox: NAME, UID, NAME:GROUP or UID:GID
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Program and arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Id, unique prefix of one, or name
    pub(crate) id: String,
    /// The signal: TERM, SIGTERM or 15
    #[arg(short, long, default_value = "TERM")]
    pub(crate) signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct IdsArgs {
    /// Ids, unique prefixes or names
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
}
