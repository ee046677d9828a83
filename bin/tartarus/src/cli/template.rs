//! Flags of the commands about templates.

use clap::{Args, Subcommand, ValueEnum};
use tartarus_types::{Language, Shape};

use super::net::NetArgs;
use super::parse::{self, EnvEntry};

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Make a template and its golden snapshots; the same again changes nothing
    Create(Box<TemplateArgs>),
    /// List templates
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show all about a template
    Inspect {
        /// Its name
        name: String,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make golden snapshots anew; until then the old ones are used
    Rebuild {
        /// Names of templates
        #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME")]
        names: Vec<String>,
        /// Of all templates that keep any
        #[arg(long)]
        all: bool,
        /// Do not wait until they are made
        #[arg(long)]
        detach: bool,
    },
    /// Delete templates and their snapshots; sandboxes made from them go on
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

const CREATE_HELP: &str = "\
A golden snapshot is a machine that has booted and was made ready; sandboxes start from a copy of it. This waits until it
is made. When that fails, the output of --warm is shown, the template is removed again, and the exit code is 1. Ctrl-C
leaves it being made.

Examples:
  tartarus template create python --from python --runner python --preload numpy,json
  tartarus template create db --from debian --warm 'service postgresql start' --shape 2x1G";

#[derive(Debug, Args)]
#[command(after_help = CREATE_HELP)]
pub(crate) struct TemplateArgs {
    /// Its name
    pub(crate) name: String,
    /// Name of the image
    #[arg(long, value_name = "IMAGE")]
    pub(crate) from: String,
    /// Virtual processors of a sandbox [default: 1]
    #[arg(long, value_name = "N", value_parser = parse::cpus, allow_hyphen_values = true)]
    pub(crate) cpus: Option<u32>,
    /// Memory of a sandbox, such as 512M or 2G [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse::size, allow_hyphen_values = true)]
    pub(crate) memory: Option<u32>,
    /// Most that a sandbox may write [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = parse::size, allow_hyphen_values = true)]
    pub(crate) disk: Option<u32>,
    /// Environment of every command; without =V taken from here
    #[arg(long, value_name = "K[=V]", value_parser = parse::env)]
    pub(crate) env: Vec<EnvEntry>,
    /// Working directory of every command
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User of every command: NAME, UID, NAME:GROUP or UID:GID
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Make a sandbox ready with this shell command: before its snapshot is taken, and after a cold boot
    #[arg(long, value_name = "CMD", allow_hyphen_values = true)]
    pub(crate) warm: Option<String>,
    /// Keep a warm interpreter that takes --code
    #[arg(long, value_enum, value_name = "LANGUAGE")]
    pub(crate) runner: Option<RunnerChoice>,
    /// Modules that the runner has imported already
    #[arg(long, value_name = "MODULE,…", value_delimiter = ',', requires = "runner")]
    pub(crate) preload: Vec<String>,
    /// Keep a snapshot for sandboxes of this size as well; may be repeated
    #[arg(long = "shape", value_name = "CPUSxMEMORY", value_parser = parse::shape, allow_hyphen_values = true)]
    pub(crate) shapes: Vec<Shape>,
    /// Keep no snapshots: every sandbox boots
    #[arg(long, conflicts_with = "shapes")]
    pub(crate) no_snapshot: bool,
    #[command(flatten)]
    pub(crate) net: NetArgs,
    /// Do not wait until the snapshots are made
    #[arg(long)]
    pub(crate) detach: bool,
    /// Print the template as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RunnerChoice {
    /// The image's python3
    Python,
}

impl From<RunnerChoice> for Language {
    fn from(choice: RunnerChoice) -> Self {
        match choice {
            RunnerChoice::Python => Self::Python,
        }
    }
}
