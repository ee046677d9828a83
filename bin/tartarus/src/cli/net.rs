//! Flags about networks: what a sandbox may reach, and who reaches it.

use std::net::SocketAddr;

use clap::{Args, Subcommand, ValueEnum};
use tartarus_types::net::{LimitsRequest, NetRequest};
use tartarus_types::{NetMode, Refusal};

/// How wide a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetChoice {
    /// No network
    None,
    /// What is listed
    Allow,
    /// Every public destination
    Open,
}

impl From<NetChoice> for NetMode {
    fn from(choice: NetChoice) -> Self {
        match choice {
            NetChoice::None => Self::None,
            NetChoice::Allow => Self::Allow,
            NetChoice::Open => Self::Open,
        }
    }
}

/// Their heading in the help; set one by one, since one for all of them would go on to what follows where they are flattened.
const NETWORK: &str = "Network";

/// What a sandbox may reach.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NetArgs {
    /// Give it a network: what is listed, or every public destination. Private destinations, metadata services, this machine
    /// and other sandboxes stay out of reach
    #[arg(help_heading = NETWORK, long, value_enum, value_name = "MODE")]
    pub(crate) net: Option<NetChoice>,
    /// Let it reach these IPv4 networks, such as 203.0.113.0/24; may be repeated
    #[arg(help_heading = NETWORK, long = "allow-cidr", value_name = "CIDR,…", value_delimiter = ',')]
    pub(crate) cidrs: Vec<String>,
    /// Let it reach these ports only, such as 443, 53/udp or 8000-8010; without networks and names, of every public
    /// destination; may be repeated
    #[arg(help_heading = NETWORK, long = "allow-port", value_name = "PORT,…", value_delimiter = ',')]
    pub(crate) ports: Vec<String>,
    /// Let it reach these names, such as example.org, or *.example.org for all below it; may be repeated
    #[arg(help_heading = NETWORK, long = "allow-domain", value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) domains: Vec<String>,
    /// Megabits in a second, in each direction [default: 1000]
    #[arg(help_heading = NETWORK, long, value_name = "N")]
    pub(crate) net_mbit: Option<u32>,
    /// Packets in a second, in each direction [default: 100000]
    #[arg(help_heading = NETWORK, long, value_name = "N")]
    pub(crate) net_packets: Option<u32>,
    /// Connections at once; a tenth as many may begin in a second [default: 1024]
    #[arg(help_heading = NETWORK, long, value_name = "N")]
    pub(crate) net_connections: Option<u32>,
}

impl NetArgs {
    /// What they ask for; `None` when they say nothing. A list implies `--net allow`.
    ///
    /// # Errors
    /// When they contradict each other.
    pub(crate) fn request(self) -> Result<Option<NetRequest>, Refusal> {
        let limits =
            LimitsRequest { mbit: self.net_mbit, packets: self.net_packets, connections: self.net_connections };
        let lists = [("allow_cidr", &self.cidrs), ("allow_port", &self.ports), ("allow_domain", &self.domains)];
        let listed = lists.iter().find(|(_, list)| !list.is_empty()).map(|(field, _)| *field);
        let limited = limits != LimitsRequest::default();
        let mode = match (self.net, listed) {
            (Some(NetChoice::None), Some(field)) => {
                return Err(Refusal::field(
                    field,
                    "contradicts --net none, which reaches nothing: leave one of them out",
                ));
            }
            (Some(NetChoice::None), None) | (None, None) if limited => {
                let why =
                    "is of a network, which there is none of: add --net allow and what it may reach, or --net open";
                return Err(Refusal::field("net", format!("a limit {why}")));
            }
            (None, None) => return Ok(None),
            (None, Some(_)) => NetMode::Allow,
            (Some(mode), _) => mode.into(),
        };
        let Self { cidrs, ports, domains, .. } = self;
        Ok(Some(NetRequest { mode, cidrs, ports, domains, limits, forwards: Vec::new() }))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetCommand {
    /// Replace what a running sandbox may reach, whole and at once; its forwarded ports stay
    Update(Box<NetUpdateArgs>),
    /// Show what a sandbox may reach, what became of its packets, and what was blocked
    Show {
        /// Id, unique prefix of one, or name
        id: String,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
}

const UPDATE_HELP: &str = "\
What is not listed here is not reachable any more, and connections to it are cut; the others go on. --net allow alone cuts
everything off.

Example:
  tartarus net update build --allow-domain example.org,*.example.org --allow-port 443";

#[derive(Debug, Args)]
#[command(after_help = UPDATE_HELP)]
pub(crate) struct NetUpdateArgs {
    /// Id, unique prefix of one, or name
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) net: NetArgs,
    /// Print what is in force as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

const PORT_HELP: &str = "\
The port leads to one of the guest's loopback, also without a network. Whoever can connect to the address
reaches it: beyond loopback the server has to allow that with `up --public-ports`.

Examples:
  tartarus port web 8080                          prints the address that the node chose
  tartarus port web 8080 --listen 127.0.0.1:9000
  tartarus port web --remove 8080";

#[derive(Debug, Args)]
#[command(after_help = PORT_HELP)]
#[command(override_usage = "tartarus port [OPTIONS] <ID> <GUEST_PORT|--list|--remove <GUEST_PORT>>")]
#[command(group(clap::ArgGroup::new("what").required(true).args(["port", "list", "remove"])))]
pub(crate) struct PortArgs {
    /// Id, unique prefix of one, or name
    pub(crate) id: String,
    /// The guest's TCP port
    #[arg(value_name = "GUEST_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Where the node listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0", conflicts_with_all = ["list", "remove"])]
    pub(crate) listen: SocketAddr,
    /// List what leads to it
    #[arg(long)]
    pub(crate) list: bool,
    /// Take away what leads to this guest port
    #[arg(long, value_name = "GUEST_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) remove: Option<u16>,
    /// Print what leads to it now as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
