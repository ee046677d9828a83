//! Flags of `torture`: attacks on an installation, by its owner.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{DriverChoice, GuestKernelArgs};
use crate::torture::Path;

#[derive(Debug, Subcommand)]
pub(crate) enum TortureCommand {
    /// Attack the networks of real guests, which must hold
    Net(Box<TortureNetArgs>),
}

const NET_HELP: &str = "\
The suite starts a server of its own in namespaces of its own, out of which no packet leads, and tries from inside of guests
all that their contracts forbid, and all that they allow. A forbidden attempt counts only when it succeeds once its one rule
is left out; that is the column CONTROL. The exit code is 0 when all is as it must be, 1 when something is not, and 2 when
the suite could not be carried out.

Needs root, a guest kernel, and the programs ip, nft, sysctl, unshare and nsenter.";

#[derive(Debug, Args)]
#[command(after_help = NET_HELP)]
pub(crate) struct TortureNetArgs {
    #[command(flatten)]
    pub(crate) kernel: GuestKernelArgs,
    /// The hypervisor to use; `auto` probes
    #[arg(long, value_enum, default_value_t = DriverChoice::Auto)]
    pub(crate) driver: DriverChoice,
    /// Make this attempt only; may be repeated
    #[arg(long, value_name = "ATTEMPT")]
    pub(crate) only: Vec<String>,
    /// Make them on this path only; may be repeated
    #[arg(long, value_enum, value_name = "PATH")]
    pub(crate) path: Vec<Path>,
    /// Leave no rule out: what fails may fail for another reason
    #[arg(long)]
    pub(crate) no_controls: bool,
    /// A sample: all attempts on one path, two on each, three controls
    #[arg(long)]
    pub(crate) quick: bool,
    /// List the attempts, and make none
    #[arg(long)]
    pub(crate) list: bool,
    /// Print the matrix as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Leave this rule out everywhere, so that the suite must fail
    #[arg(long, value_name = "GUARD", hide = true)]
    pub(crate) plant: Option<String>,
    /// How the suite starts its inner half, with its folder
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) within: Option<PathBuf>,
}
