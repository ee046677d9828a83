//! The table of attempts: what each tries, under which contract, and the rule without which it succeeds. Pure.

/// A contract that sandboxes of the suite have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Contract {
    /// One address, two ports.
    Narrow,
    /// Some names, and their ports.
    Names,
    /// Every public destination, and two private ones.
    Open,
    /// One address, and little of it.
    Limits,
}

impl Contract {
    pub(super) const ALL: [Self; 4] = [Self::Narrow, Self::Names, Self::Open, Self::Limits];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Narrow => "narrow",
            Self::Names => "names",
            Self::Open => "open",
            Self::Limits => "limits",
        }
    }

    /// As flags of `create` and `net update`.
    pub(super) fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Narrow => &["--net=allow", "--allow-cidr=203.0.113.10/32", "--allow-port=8080/tcp,9000/udp"],
            Self::Names => &[
                "--net=allow",
                "--allow-domain=good.example.org,later.example.org,rebind.example.org,metadata.example.org,host.example.org",
                "--allow-port=80/tcp,7000/tcp,8080/tcp",
            ],
            Self::Open => &["--net=open", "--allow-cidr=10.20.0.0/24,10.9.9.9/32"],
            Self::Limits => &[
                "--net=allow",
                "--allow-cidr=203.0.113.10/32",
                "--net-packets=1000",
                "--net-mbit=4",
                "--net-connections=20",
            ],
        }
    }
}

/// The contract that a sandbox has before an update narrows it.
pub(super) const WIDE: &[&str] = &["--net=open", "--allow-cidr=10.0.0.0/8"];

/// How an attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// In the guest, beside others.
    Guest,
    /// In the guest, alone: it is about how much.
    Alone,
    /// From the node to the guest, which listens.
    Inbound,
    /// Over an update from [`WIDE`] to the contract.
    Update,
}

/// Who says whether an attempt reached its aim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judge {
    /// Whoever received its token: any server, and any ear where only what got through is heard.
    Heard,
    /// The attacker, to whom the answer comes; or the record.
    Said,
    /// The receiving server: more datagrams than these.
    Packets(u64),
    /// The receiving server: more bytes than these.
    Bytes(u64),
}

/// What shows that an attempt can succeed at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    /// It does without this rule.
    Guard(&'static str),
    /// It does under its contract with these flags added: the rule is the contract's own.
    Flags(&'static [&'static str]),
    /// It is an allowed use, which succeeds as it is.
    Allowed,
    /// None: more than one wall stands there, or it is the kernel's own. The text says which.
    None(&'static str),
}

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) name: &'static str,
    pub(super) contract: Contract,
    pub(super) how: How,
    /// Of the attacker, with places for `TOKEN`, `OUTER` (the sandbox's address outside), `LINK` (the node's end of its
    /// link) and `NEIGHBOUR` (another sandbox's address).
    pub(super) words: &'static str,
    pub(super) judge: Judge,
    pub(super) control: Control,
}

impl Attempt {
    /// Whether the contract allows it.
    pub(super) fn allowed(&self) -> bool {
        self.control == Control::Allowed
    }
}

const fn may(name: &'static str, contract: Contract, words: &'static str) -> Attempt {
    Attempt { name, contract, how: How::Guest, words, judge: Judge::Said, control: Control::Allowed }
}

const fn no(name: &'static str, contract: Contract, words: &'static str, control: Control) -> Attempt {
    Attempt { name, contract, how: How::Guest, words, judge: Judge::Heard, control }
}

const fn said(attempt: Attempt) -> Attempt {
    Attempt { judge: Judge::Said, ..attempt }
}

const fn alone(attempt: Attempt, judge: Judge) -> Attempt {
    Attempt { how: How::Alone, judge, ..attempt }
}

const fn how(attempt: Attempt, how: How) -> Attempt {
    Attempt { how, ..attempt }
}

use Contract::{Limits, Names, Narrow, Open};
use Control::{Flags, Guard};

/// All of them. The first two are tried on every path also when little time is given.
pub(super) const ALL: &[Attempt] = &[
    may("listed-tcp", Narrow, "tcp TOKEN 203.0.113.10 8080"),
    no("other-address", Narrow, "tcp TOKEN 203.0.113.11 8080", Guard("unlisted")),
    may("listed-udp", Narrow, "udp TOKEN 203.0.113.10 9000"),
    no("other-address-udp", Narrow, "udp TOKEN 203.0.113.11 9000", Guard("unlisted")),
    no("other-port", Narrow, "tcp TOKEN 203.0.113.10 8081", Guard("ports")),
    no("other-port-udp", Narrow, "udp TOKEN 203.0.113.10 9001", Guard("ports")),
    no("from-listed-port", Narrow, "udp-from TOKEN 9000 203.0.113.10 9001", Guard("ports")),
    said(no("icmp", Narrow, "icmp TOKEN 203.0.113.10", Guard("ports"))),
    no("stray-tcp", Narrow, "stray-tcp TOKEN 8080 203.0.113.11 8081", Guard("unlisted")),
    no("fragments", Narrow, "fragments TOKEN 203.0.113.10 9001", Guard("ports")),
    no(
        "fragments-overlap",
        Narrow,
        "overlap TOKEN 203.0.113.10 9000 9001",
        Control::None("the kernel takes no fragments that overlap"),
    ),
    no("ip-options", Narrow, "options TOKEN 203.0.113.10 9001", Guard("ports")),
    no(
        "source-route",
        Narrow,
        "source-route TOKEN 203.0.113.10 203.0.113.11 9000",
        Control::None("the kernel follows no route in a packet"),
    ),
    no("spoofed-ip", Narrow, "spoof-ip TOKEN 203.0.113.77 203.0.113.10 9000", Guard("source-ip")),
    no("spoofed-mac", Narrow, "spoof-mac TOKEN 203.0.113.10 9000", Guard("source-mac")),
    no("arp-claim", Narrow, "arp-claim TOKEN 198.19.255.252", Guard("arp")),
    said(no("arp-neighbour", Narrow, "arp-ask TOKEN NEIGHBOUR", Control::None("no neighbour is on the guest's link"))),
    no("vlan", Narrow, "vlan TOKEN 203.0.113.10 9000", Guard("ether-type")),
    no("other-ethertype", Narrow, "ethertype TOKEN", Guard("ether-type")),
    said(no("ipv6-neighbours", Narrow, "ipv6-ask TOKEN", Guard("ether-type"))),
    no("ipv6-udp", Narrow, "ipv6-udp TOKEN ff02::1 9000", Guard("ether-type")),
    no("ipv6-router", Narrow, "ipv6-router TOKEN", Guard("ether-type")),
    how(said(no("inbound", Narrow, "listen TOKEN 7002 2500", Guard("inbound"))), How::Inbound),
    how(no("cut-connection", Narrow, "hold TOKEN 203.0.113.11 8081 8000", Guard("update")), How::Update),
    how(may("kept-connection", Narrow, "hold TOKEN 203.0.113.10 8080 8000"), How::Update),
    may("listed-name", Names, "name TOKEN 198.19.255.253 good.example.org 8080"),
    no("direct-address", Names, "tcp TOKEN 203.0.113.11 8080", Guard("unlisted")),
    no("before-its-name", Names, "tcp TOKEN 203.0.113.12 8080", Guard("unlisted")),
    no("other-port-of-a-name", Names, "name TOKEN 198.19.255.253 good.example.org 8081", Guard("ports")),
    no(
        "unlisted-name",
        Names,
        "dns TOKEN 198.19.255.253 TOKEN.evil.example.org",
        Flags(&["--allow-domain=*.evil.example.org"]),
    ),
    no("other-resolver", Names, "dns TOKEN 203.0.113.53 TOKEN.evil.example.org", Guard("unlisted")),
    no("other-resolver-tcp", Names, "dns-tcp TOKEN 203.0.113.53 TOKEN.evil.example.org", Guard("unlisted")),
    no("rebinding", Names, "name TOKEN 198.19.255.253 rebind.example.org 80", Flags(&["--allow-cidr=10.1.2.3/32"])),
    no(
        "rebinding-metadata",
        Names,
        "name TOKEN 198.19.255.253 metadata.example.org 80",
        Control::None("the resolver does not tell it, and the rule `never` drops it"),
    ),
    no("rebinding-host", Names, "name TOKEN 198.19.255.253 host.example.org 7000", Guard("host-local")),
    alone(no("queries", Names, "queries TOKEN 198.19.255.253 good.example.org 1000", Guard("queries")), Judge::Said),
    may("public-tcp", Open, "tcp TOKEN 203.0.113.11 8081"),
    may("public-udp", Open, "udp TOKEN 203.0.113.11 9001"),
    may("public-icmp", Open, "icmp TOKEN 203.0.113.11"),
    may("listed-private", Open, "tcp TOKEN 10.9.9.9 80"),
    may("resolver", Open, "dns TOKEN 198.19.255.253 shared.example.org"),
    no("metadata", Open, "tcp TOKEN 169.254.169.254 80", Guard("never")),
    no("metadata-azure", Open, "tcp TOKEN 168.63.129.16 80", Guard("never")),
    no("metadata-oracle", Open, "tcp TOKEN 192.0.0.192 80", Guard("never")),
    no(
        "metadata-alibaba",
        Open,
        "udp TOKEN 100.100.100.200 9000",
        Control::None("the rules `never` and `private` both drop it"),
    ),
    no("private", Open, "tcp TOKEN 10.1.2.3 80", Guard("private")),
    no("private-udp", Open, "udp TOKEN 10.1.2.3 9000", Guard("private")),
    no("host-uplink", Open, "tcp TOKEN 192.0.2.2 7000", Guard("host-local")),
    no("host-uplink-udp", Open, "udp TOKEN 192.0.2.2 7000", Guard("host-local")),
    said(no("host-icmp", Open, "icmp TOKEN 192.0.2.2", Guard("host-local"))),
    no("host-other-card", Open, "tcp TOKEN 10.20.0.1 7000", Guard("host-local")),
    no("host-published", Open, "tcp TOKEN 192.0.2.2 9999", Guard("host-local")),
    no("host-link", Open, "tcp TOKEN LINK 7000", Control::None("the rules `neighbours` and `host-local` both drop it")),
    no("gateway", Open, "tcp TOKEN 198.19.255.253 7001", Guard("gateway")),
    no("gateway-udp", Open, "udp TOKEN 198.19.255.253 7001", Guard("gateway")),
    said(no("gateway-icmp", Open, "icmp TOKEN 198.19.255.253", Guard("gateway"))),
    no("gateway-outer", Open, "tcp TOKEN OUTER 7001", Guard("gateway")),
    no("neighbour", Open, "udp TOKEN NEIGHBOUR 9000", Guard("neighbours")),
    no("other-protocol", Open, "protocol TOKEN 253 203.0.113.11", Guard("protocols")),
    no("other-icmp", Open, "icmp-type TOKEN 13 203.0.113.11", Guard("protocols")),
    no("broadcast", Open, "udp TOKEN 255.255.255.255 7000", Control::None("the kernel forwards no broadcast")),
    no("multicast", Open, "udp TOKEN 224.0.0.251 9000", Control::None("the kernel forwards no multicast")),
    alone(may("few-connections", Limits, "connections TOKEN 203.0.113.10 8080 10"), Judge::Said),
    alone(no("many-connections", Limits, "connections TOKEN 203.0.113.10 8080 60", Guard("connections")), Judge::Said),
    // The server lets twice its own limit of 50 be, which is in host.rs.
    alone(no("forgotten-connections", Limits, "strand TOKEN 203.0.113.10 8080 130", Guard("held")), Judge::Said),
    alone(no("many-new-connections", Open, "churn TOKEN 203.0.113.10 8080 200", Guard("new-connections")), Judge::Said),
    alone(no("flood", Limits, "flood TOKEN 203.0.113.10 9000 66 2000", Guard("packets")), Judge::Packets(4000)),
    alone(
        no("flood-bytes", Limits, "flood TOKEN 203.0.113.10 9000 1400 2000", Guard("bandwidth")),
        Judge::Bytes(1_900_000),
    ),
];

/// A way by which a sandbox comes to be under its contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub(crate) enum Path {
    /// Booted
    Cold,
    /// Restored from a golden snapshot
    Restore,
    /// Restored, paused and resumed
    Resume,
    /// Taken over by a server that follows a killed one
    Restart,
    /// Narrowed from a wide contract while it runs
    Update,
}

impl Path {
    pub(super) const ALL: [Self; 5] = [Self::Cold, Self::Restore, Self::Resume, Self::Restart, Self::Update];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Restore => "restore",
            Self::Resume => "resume",
            Self::Restart => "restart",
            Self::Update => "update",
        }
    }

    /// Whether an attempt can be made on it.
    pub(super) fn fits(self, attempt: &Attempt) -> bool {
        attempt.how != How::Update || self == Self::Update
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_differ_and_every_attempt_carries_its_token() {
        let names: BTreeSet<_> = ALL.iter().map(|attempt| attempt.name).collect();
        assert_eq!(names.len(), ALL.len());
        for attempt in ALL {
            assert_eq!(attempt.words.split(' ').nth(1), Some("TOKEN"), "{}", attempt.name);
        }
    }

    /// A rule that is added needs an attempt.
    #[test]
    fn every_rule_has_an_attempt_that_succeeds_without_it() {
        use hecatoncheir::Guard;
        // Behind the translation of addresses in the sandbox's namespace, so nothing is stopped by it alone.
        let behind = Guard::ReversePath;
        let guards: BTreeSet<Guard> = ALL
            .iter()
            .filter_map(|attempt| match attempt.control {
                Control::Guard(name) => Some(name.parse().unwrap()),
                _ => None,
            })
            .collect();
        for guard in Guard::ALL {
            assert_eq!(guards.contains(guard), *guard != behind, "{guard}");
        }
    }

    #[test]
    fn every_contract_allows_something_and_forbids_something() {
        for contract in Contract::ALL {
            for allowed in [true, false] {
                assert!(ALL.iter().any(|a| a.contract == contract && a.allowed() == allowed), "{contract:?} {allowed}");
            }
        }
    }
}
