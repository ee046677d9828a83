//! Flags of the commands about the server's disk.

use std::time::Duration;

use clap::Args;

use super::parse;

#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    /// Print it as JSON, sizes in bytes
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Sandboxes that ended longer ago than this [default: what the server was started with, 7d]
    #[arg(long, value_name = "TIME", value_parser = parse::age, allow_hyphen_values = true)]
    pub(crate) older_than: Option<Duration>,
    /// Show what would be deleted, and delete nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask
    #[arg(short, long, visible_short_alias = 'y', conflicts_with = "dry_run")]
    pub(crate) force: bool,
    /// Print what was deleted as JSON, sizes in bytes
    #[arg(long)]
    pub(crate) json: bool,
}
