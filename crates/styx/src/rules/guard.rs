//! The protective rules by name, so that each can be left out and missed.

use std::fmt;
use std::str::FromStr;

/// Names each protective rule once.
macro_rules! guards {
    ($($(#[$doc:meta])* $guard:ident = $name:literal;)*) => {
        /// One protective rule.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Guard { $($(#[$doc])* $guard,)* }

        impl Guard {
            /// All of them.
            pub const ALL: &[Guard] = &[$(Guard::$guard,)*];

            /// Its name, such as `source-mac`.
            pub fn name(self) -> &'static str {
                match self { $(Guard::$guard => $name,)* }
            }
        }
    };
}

guards! {
    /// Frames come from the guest's own card.
    SourceMac = "source-mac";
    /// Packets come from the guest's own address.
    SourceIp = "source-ip";
    /// ARP speaks only of the guest's own card and address.
    Arp = "arp";
    /// There is nothing but IPv4 and ARP.
    EtherType = "ether-type";
    /// Packets in a second.
    Packets = "packets";
    /// Bytes in a second.
    Bandwidth = "bandwidth";
    /// Connections at once.
    Connections = "connections";
    /// New connections in a second.
    NewConnections = "new-connections";
    /// Connections of a sandbox that the node has in its table.
    Held = "held";
    /// Destinations that no sandbox reaches, but for the node and other sandboxes.
    Never = "never";
    /// Private destinations are listed.
    Private = "private";
    /// Ports are listed.
    Ports = "ports";
    /// Only TCP, UDP and ICMP echo requests leave.
    Protocols = "protocols";
    /// Destinations are listed.
    Unlisted = "unlisted";
    /// The gateway answers nothing but names.
    Gateway = "gateway";
    /// Questions for names in a second, by a rule and by the resolver itself.
    Queries = "queries";
    /// A connection that an update forbids is cut.
    Update = "update";
    /// Nothing comes in that was not asked for.
    Inbound = "inbound";
    /// The node's own addresses and published ports.
    HostLocal = "host-local";
    /// Other sandboxes.
    Neighbours = "neighbours";
    /// What leaves a namespace has its address, as the node sees it.
    ReversePath = "reverse-path";
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Guard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Guard::ALL.iter().map(|guard| guard.name()).collect::<Vec<_>>().join(", ");
        let found = Guard::ALL.iter().find(|guard| guard.name() == text).copied();
        found.ok_or_else(|| format!("{text:?} is no rule; there are {}", known()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_differ() {
        for guard in Guard::ALL {
            assert_eq!(guard.name().parse(), Ok(*guard));
        }
        assert!("nothing".parse::<Guard>().unwrap_err().contains("source-mac"));
    }
}
