//! The command line, as clap reads it: names, flags and help. It is a contract that scripts rely on, so things are
//! added here and never renamed. It refuses to know what a command does.

mod bench;
mod guest_kernel;
mod net;
mod parse;
mod sandbox;
mod space;
mod template;
mod torture;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ipnet::Ipv4Net;
use tartarus_types::Overcommit;
use tartarus_types::net::NetLimits;

pub(crate) use bench::{BenchCommand, BenchStartArgs};
pub(crate) use guest_kernel::GuestKernelArgs;
pub(crate) use net::{NetChoice, NetCommand, NetUpdateArgs, PortArgs};
pub(crate) use parse::{env_map, millis};
pub(crate) use sandbox::{
    CodeArgs, CreateArgs, ExecArgs, IdsArgs, InspectArgs, KillArgs, LogsArgs, PsArgs, RunArgs, StreamName, WaitArgs,
};
pub(crate) use space::{DfArgs, PruneArgs};
pub(crate) use template::{TemplateArgs, TemplateCommand};
pub(crate) use torture::{TortureCommand, TortureNetArgs};

const AFTER: &str = "\
Environment:
  TARTARUS_URL       The server; otherwise the one this user started with `tartarus up`, or http://127.0.0.1:7423
  TARTARUS_API_KEY   The key to it; otherwise the key of the server this user started
  NO_COLOR           No colour, whatever the value";

/// Runs code that nobody trusts in microVMs, on machines of your own.
#[derive(Debug, Parser)]
#[command(name = "tartarus", version, after_help = AFTER, propagate_version = true)]
pub(crate) struct Cli {
    /// No progress and no notices; errors are still told
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a server: control plane and node in one process
    Up(UpArgs),
    /// Run a command in a new microVM, with its output here and its exit code
    Run(RunArgs),
    /// Make a sandbox without a command, for `exec`
    Create(CreateArgs),
    /// List sandboxes
    Ps(PsArgs),
    /// Show all about a sandbox
    Inspect(InspectArgs),
    /// Wait until a sandbox has ended, and exit as its command did
    Wait(WaitArgs),
    /// Print the output of a sandbox
    Logs(LogsArgs),
    /// Run a command in a running sandbox
    Exec(ExecArgs),
    /// Send a signal to a sandbox's command, and end the sandbox after 5 s
    Kill(KillArgs),
    /// Stop sandboxes where they are: nothing in them runs, their time limits wait
    Pause(IdsArgs),
    /// Let paused sandboxes go on
    Resume(IdsArgs),
    /// End sandboxes at once and forget them, their logs too
    Rm(IdsArgs),
    /// What sandboxes may reach
    #[command(subcommand)]
    Net(NetCommand),
    /// Let a port of the node lead to a port of a running sandbox
    Port(PortArgs),
    /// Root file systems
    #[command(subcommand)]
    Image(ImageCommand),
    /// Guest kernels
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// Named images with defaults, to run from
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Show what takes how much of the server's disk
    Df(DfArgs),
    /// Delete what nothing needs: old records and logs, images without name, snapshots of no template
    Prune(PruneArgs),
    /// Say what the server's machine can do, and what is missing
    Doctor(DoctorArgs),
    /// Attack this installation, to see whether it holds
    #[command(subcommand)]
    Torture(TortureCommand),
    /// Measure this installation, beside other programs of the machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print a shell's completion script
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Print the manual pages, or write them to a folder
    Man {
        /// Write one file per command there instead
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print the HTTP API's description (OpenAPI)
    Openapi,
}

impl Command {
    /// The exit code when it is Tartarus that failed. Commands that pass another program's code on use one that says
    /// so, as shells and container tools do.
    pub(crate) fn own_failure(&self) -> u8 {
        match self {
            Self::Run(_) | Self::Exec(_) | Self::Wait(_) => 125,
            // 1 is a finding of the suite or the benchmark.
            Self::Torture(_) | Self::Bench(_) => 2,
            _ => 1,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Folder for everything that lasts [default: $XDG_DATA_HOME/tartarus, or ~/.local/share/tartarus]
    #[arg(long, value_name = "DIR", env = "TARTARUS_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7423")]
    pub(crate) listen: SocketAddr,
    /// At SIGTERM leave sandboxes running; the next `up` takes them over
    #[arg(long)]
    pub(crate) leave_running: bool,
    /// Allow listening beyond this machine without TLS: whoever reads the traffic has the key
    #[arg(long)]
    pub(crate) insecure: bool,
    /// The hypervisor to use; `auto` probes
    #[arg(long, value_enum, default_value_t = DriverChoice::Auto)]
    pub(crate) driver: DriverChoice,
    /// Leave one protective rule of networks out: only for the attack suite, which lives in namespaces of its own
    #[arg(long, value_name = "GUARD", hide = true)]
    pub(crate) torture_without: Option<hecatoncheir::Guard>,
    /// Log in JSON
    #[arg(long)]
    pub(crate) log_json: bool,
    /// What is stored of the start of each output stream
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = tartarus_types::units::parse_mib)]
    pub(crate) log_head: u32,
    /// What is stored of the end of each output stream, at least
    #[arg(long, value_name = "SIZE", default_value = "63M", value_parser = tartarus_types::units::parse_mib)]
    pub(crate) log_tail: u32,
    /// Forget sandboxes, with their logs, so long after they ended
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = parse::duration)]
    pub(crate) retain: Duration,
    /// Keep no more sandboxes that have ended than so many, the newest
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) retain_count: u32,
    /// Take no new work on while the data folder's disk has less free; 0 takes it always
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse::size_or_none)]
    pub(crate) min_free: u32,
    /// Sandboxes that may be starting at once; the rest wait in the queue [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) start_slots: Option<u32>,
    /// Memory that loaded golden snapshots may take together [default: a quarter of all]
    #[arg(long, value_name = "SIZE", value_parser = parse::size_or_none)]
    pub(crate) snapshot_memory: Option<u32>,
    /// How often the memory of this machine is given to guests, 1 to 10: few use all that they may, and what they share is
    /// counted again for each. When they do use it, the kernel ends some of them
    #[arg(long, value_name = "FACTOR", default_value_t)]
    pub(crate) overcommit: Overcommit,
    /// The widest network that a sandbox may ask for
    #[arg(long, value_enum, value_name = "MODE", default_value_t = NetChoice::Allow)]
    pub(crate) net: NetChoice,
    /// Let sandboxes have ports of this machine beyond loopback lead to them
    #[arg(long)]
    pub(crate) public_ports: bool,
    /// Megabits in a second that a sandbox may have, in each direction
    #[arg(long, value_name = "N", default_value_t = NetLimits::default().mbit, value_parser = clap::value_parser!(u32).range(i64::from(NetLimits::LEAST.mbit)..=i64::from(NetLimits::MOST.mbit)))]
    pub(crate) net_most_mbit: u32,
    /// Packets in a second that a sandbox may have, in each direction
    #[arg(long, value_name = "N", default_value_t = NetLimits::default().packets, value_parser = clap::value_parser!(u32).range(i64::from(NetLimits::LEAST.packets)..=i64::from(NetLimits::MOST.packets)))]
    pub(crate) net_most_packets: u32,
    /// Connections at once that a sandbox may have; a tenth as many may begin in a second. This machine's table of them is one for all
    #[arg(long, value_name = "N", default_value_t = NetLimits::default().connections, value_parser = clap::value_parser!(u32).range(i64::from(NetLimits::LEAST.connections)..=i64::from(NetLimits::MOST.connections)))]
    pub(crate) net_most_connections: u32,
    /// Addresses between this machine and its sandboxes, two for each; nothing else may use them here
    #[arg(long, value_name = "CIDR", default_value = "198.18.0.0/16", value_parser = parse::net_range)]
    pub(crate) net_range: Ipv4Net,
    /// Networks that wait prepared for sandboxes
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub(crate) net_pool: u32,
    /// Where names that sandboxes may reach are looked up; may be repeated [default: this machine's resolvers]
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse::resolver)]
    pub(crate) dns: Vec<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DriverChoice {
    /// The fastest that boots the guest kernel
    Auto,
    /// Firecracker, with its jailer
    Firecracker,
    /// QEMU with KVM
    QemuKvm,
    /// QEMU alone
    QemuTcg,
}

impl DriverChoice {
    /// As it is written on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Firecracker => "firecracker",
            Self::QemuKvm => "qemu-kvm",
            Self::QemuTcg => "qemu-tcg",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an image of a root file system
    Import {
        /// A tar, a folder (without what is mounted below it), or - for a tar on standard input
        #[arg(value_name = "TAR|DIR|-")]
        source: PathBuf,
        /// The image's name; one that is taken moves to the new image
        #[arg(long, value_name = "N")]
        name: String,
        /// Print the image as JSON
        #[arg(long)]
        json: bool,
    },
    /// List images
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Delete images
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// Add a guest kernel: Debian's cloud kernel out of its package (nothing is installed here), or one of your own
    Add {
        /// A Debian kernel package
        #[arg(long, value_name = "FILE", conflicts_with_all = ["vmlinuz", "modules"])]
        deb: Option<PathBuf>,
        /// A kernel
        #[arg(requires = "modules")]
        vmlinuz: Option<PathBuf>,
        /// Its modules: a folder such as lib/modules/RELEASE
        #[arg(long, value_name = "DIR", requires = "vmlinuz")]
        modules: Option<PathBuf>,
        /// What `dpkg-deb --fsys-tarfile` prints, or a tar of a kernel and its modules
        #[arg(long, value_name = "FILE", hide = true, conflicts_with_all = ["deb", "vmlinuz", "modules"])]
        tar: Option<PathBuf>,
        /// Print the kernel as JSON
        #[arg(long)]
        json: bool,
    },
    /// List kernels, newest first; the newest is used
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Delete kernels
    Rm {
        /// Their digests or releases
        #[arg(required = true, value_name = "KERNEL")]
        kernels: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Probe again instead of trusting what was found before
    #[arg(long)]
    pub(crate) reprobe: bool,
}

#[cfg(test)]
#[path = "cli/tests.rs"]
mod tests;
