//! The ruleset of a sandbox's namespace.

use tartarus_types::net::NetLimits;
use tartarus_types::{Contract, NetMode};

use super::text::{bandwidth_over, chain, counter, new_connections_over, packets_over, set, table};
use super::{Guard, MARK, Site, sets};
use crate::{Door, GATEWAY, GUEST, GUEST_MAC, PINS, REMEMBERED};

/// Counters of frames that come from the guest.
pub(crate) const FRAME_COUNTERS: [&str; 3] = ["spoofed", "not_ipv4", "rate"];
/// Counters of packets, by what became of them.
pub(super) const COUNTERS: [&str; 10] =
    ["allowed", "never", "private", "port", "unlisted", "rate", "connections", "gateway", "inbound", "invalid"];

const HOOKS: [(&str, &str); 3] = [
    ("input", "type filter hook input priority filter; policy drop;"),
    ("output", "type filter hook output priority filter; policy drop;"),
    ("forward", "type filter hook forward priority filter; policy drop;"),
];
const INGRESS: &str = "type filter hook ingress device \"tap0\" priority filter; policy drop;";

/// Nothing passes.
pub(super) fn dormant(door: Door) -> String {
    let closed = HOOKS.map(|(name, hook)| chain(name, &[hook.to_owned()]));
    at_the_door(door, &[chain("guest", &[INGRESS.to_owned()])]) + &table("ip", &closed)
}

/// The table of the guest's card, where there is no program in its place.
fn at_the_door(door: Door, parts: &[String]) -> String {
    match door {
        Door::Program => String::new(),
        Door::Chain => table("netdev", parts),
    }
}

/// Everything of `contract`, whose packets are marked with `generation`.
pub(super) fn ruleset(contract: &Contract, generation: u32, site: &Site) -> String {
    let mark = format!("0x{:08x}", super::mark_of(generation));
    let set_of = |name: &str| sets::name(name, generation);
    let rules = Rules { contract, limits: contract.limits, without: site.without, generation, mark };
    let (pins, remembered) = (format!("size {PINS}"), format!("size {REMEMBERED}"));
    let interval = ["type ipv4_addr", "flags interval"];
    let mut parts: Vec<String> = COUNTERS.iter().map(|name| counter(name)).collect();
    parts.extend([
        set(&set_of("reachable"), &interval, &sets::reachable(contract, site)),
        set(&set_of("never"), &interval, &sets::never(&site.host_addresses, site.range, site.without)),
        set("private", &interval, &sets::private()),
        set(&set_of("ports"), sets::ports_type(&contract.ports), &sets::ports(&contract.ports)),
        set("pinned", &["type ipv4_addr", &pins, "flags timeout"], &[]),
        set(
            "blocked",
            &["type ipv4_addr . inet_proto . inet_service", &remembered, "flags dynamic,timeout", "timeout 1h"],
            &[],
        ),
        set("blocked_other", &["type ipv4_addr . inet_proto", &remembered, "flags dynamic,timeout", "timeout 1h"], &[]),
        chain("input", &rules.input()),
        chain("output", &[HOOKS[1].1.to_owned(), "ct state established accept".to_owned()]),
        chain("forward", &rules.forward()),
        chain("outbound", &rules.outbound()),
        chain("inbound", &rules.inbound()),
        chain("contract", &rules.contract("daddr", "refuse")),
        chain("mirrored", &rules.contract("saddr", "cut")),
        chain("ports_out", &rules.ports("dport", "refuse")),
        chain("ports_back", &rules.ports("sport", "cut")),
        chain("allow", &rules.allow()),
        chain("refuse", &rules.refuse()),
        chain("cut", &["drop".to_owned()]),
        chain(
            "postrouting",
            &[
                "type nat hook postrouting priority srcnat; policy accept;".to_owned(),
                format!("oifname \"eth0\" snat to {}", site.outer),
            ],
        ),
    ]);
    let mut frames: Vec<String> = FRAME_COUNTERS.iter().map(|name| counter(name)).collect();
    frames.push(chain("guest", &rules.frames()));
    frames.push(chain("rates", &rules.own_frames()));
    at_the_door(site.door, &frames) + &table("ip", &parts)
}

struct Rules<'a> {
    contract: &'a Contract,
    limits: NetLimits,
    without: Option<Guard>,
    generation: u32,
    mark: String,
}

impl Rules<'_> {
    /// A set of this contract's own.
    fn set(&self, name: &str) -> String {
        format!("@{}", sets::name(name, self.generation))
    }

    /// `rules` unless they are what is left out.
    fn unless(&self, guard: Guard, rules: &[String]) -> Vec<String> {
        if self.without == Some(guard) { Vec::new() } else { rules.to_vec() }
    }

    /// Frames from the guest, before the kernel looks at them. What is as it should be meets one rule, of adjacent bytes.
    fn frames(&self) -> Vec<String> {
        let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        let own = format!("arp saddr ether {mac} arp saddr ip {GUEST} limit rate 50/second burst 50 packets accept");
        let any = "ether type arp limit rate 50/second burst 50 packets accept".to_owned();
        let mut rules = vec![INGRESS.to_owned()];
        // What would end on its way here would end a connection for this namespace that goes on for the node.
        rules.push(match self.without {
            Some(Guard::SourceMac) => format!("ip saddr {GUEST} ip ttl > 1 goto rates"),
            Some(Guard::SourceIp) => format!("ether saddr {mac} ip ttl > 1 goto rates"),
            _ => format!("ether saddr {mac} ip saddr {GUEST} ip ttl > 1 goto rates"),
        });
        rules.extend(self.unless(Guard::SourceMac, &[format!("ether saddr != {mac} counter name \"spoofed\" drop")]));
        rules.push(if self.without == Some(Guard::Arp) { any } else { own });
        rules.push("ether type arp counter name \"spoofed\" drop".to_owned());
        rules.extend(self.unless(Guard::EtherType, &["ether type != ip counter name \"not_ipv4\" drop".to_owned()]));
        rules.extend(self.unless(Guard::SourceIp, &[format!("ip saddr != {GUEST} counter name \"spoofed\" drop")]));
        if self.without == Some(Guard::EtherType) {
            rules.push("goto rates".to_owned());
        }
        rules
    }

    /// Frames from the guest that are its own: so many.
    fn own_frames(&self) -> Vec<String> {
        [self.rates(), vec![format!("meta mark set 0x{MARK:08x} accept")]].concat()
    }

    /// How much passes in one direction.
    fn rates(&self) -> Vec<String> {
        let over = |limit: String| format!("{limit} counter name \"rate\" drop");
        let packets = self.unless(Guard::Packets, &[over(packets_over(self.limits.packets))]);
        let bandwidth = self.unless(Guard::Bandwidth, &[over(bandwidth_over(self.limits.mbit))]);
        [packets, bandwidth].concat()
    }

    /// To the gateway: questions for names.
    fn input(&self) -> Vec<String> {
        let open = self.without == Some(Guard::Gateway);
        let hook = if open { HOOKS[0].1.replace("drop", "accept") } else { HOOKS[0].1.to_owned() };
        let ask =
            format!("iifname \"tap0\" meta mark 0x{MARK:08x} ip daddr {GATEWAY} meta l4proto {{ 6, 17 }} th dport 53");
        let over = format!("{ask} limit rate over 200/second burst 200 packets counter name \"rate\" drop");
        let mut rules = vec![hook];
        rules.extend(self.unless(Guard::Queries, &[over]));
        rules.push(format!("{ask} accept"));
        rules.extend(self.unless(Guard::Gateway, &["counter name \"gateway\" drop".to_owned()]));
        rules
    }

    /// Links by their number, which is cheaper to compare than a name. One that was made anew is none of them, for what is not
    /// known.
    fn forward(&self) -> Vec<String> {
        vec![
            HOOKS[2].1.to_owned(),
            // Most packets are of a connection that is known. Its mark says that one is the guest's, without asking for the link.
            format!("meta mark 0x{MARK:08x} {}", self.known("ct state established,new")),
            "iif \"eth0\" oif \"tap0\" goto inbound".to_owned(),
            // To its own side again it could go to networks only that no sandbox reaches.
            format!("iif \"tap0\" meta mark 0x{MARK:08x} goto outbound"),
        ]
    }

    /// From the guest: what this contract lets through.
    fn outbound(&self) -> Vec<String> {
        // Of no connection: it would leave with the guest's own address.
        let mut rules = vec!["ct state invalid,untracked counter name \"invalid\" drop".to_owned()];
        rules.extend(self.unless(
            Guard::Protocols,
            &[
                "icmp type != echo-request counter name \"port\" goto refuse".to_owned(),
                "meta l4proto != { 1, 6, 17 } counter name \"port\" goto refuse".to_owned(),
            ],
        ));
        rules.push("goto contract".to_owned());
        rules
    }

    /// To the guest: answers only, to what this contract let through or would let through.
    fn inbound(&self) -> Vec<String> {
        let mut rules = self.rates();
        rules.push(self.known("ct state established ct direction reply"));
        rules.push("icmp type redirect counter name \"invalid\" drop".to_owned());
        rules.push(match self.without {
            Some(Guard::Inbound) => "ct direction original accept".to_owned(),
            _ => "ct direction original counter name \"inbound\" drop".to_owned(),
        });
        rules.push(self.known("ct state related"));
        rules.push("ct state != established counter name \"inbound\" drop".to_owned());
        rules.push("icmp type != echo-reply counter name \"inbound\" drop".to_owned());
        rules.push("goto mirrored".to_owned());
        rules
    }

    /// What belongs to a connection that was let through, by this contract.
    fn known(&self, states: &str) -> String {
        match self.without {
            Some(Guard::Update) => format!("ct mark != 0x00000000 {states} counter name \"allowed\" accept"),
            _ => format!("ct mark {} {states} counter name \"allowed\" accept", self.mark),
        }
    }

    /// The order of judgement, by the address on the far side. One that a listed network has is one question; the rules after it
    /// say why another is refused, or that it is reached all the same.
    fn contract(&self, far: &str, refuse: &str) -> Vec<String> {
        let no = |name: &str| format!("counter name \"{name}\" goto {refuse}");
        let ports = if far == "daddr" { "ports_out" } else { "ports_back" };
        let (reachable, never) = (self.set("reachable"), self.set("never"));
        let mut rules = vec![format!("ip {far} {reachable} goto {ports}"), format!("ip {far} {never} {}", no("never"))];
        rules.extend(self.unless(Guard::Private, &[format!("ip {far} @private {}", no("private"))]));
        match self.contract.mode {
            NetMode::None => {}
            // Whatever a list says, the same destination is public and so allowed.
            NetMode::Open => rules.push("goto allow".to_owned()),
            NetMode::Allow => {
                rules.push(format!("ip {far} @pinned goto {ports}"));
                if self.contract.reaches_public_ports() {
                    rules.push(format!("goto {ports}"));
                }
            }
        }
        rules.push(match self.without {
            Some(Guard::Unlisted) => "goto allow".to_owned(),
            _ => no("unlisted"),
        });
        rules
    }

    /// The port on the far side, of a destination that is listed.
    fn ports(&self, far: &str, refuse: &str) -> Vec<String> {
        if self.without == Some(Guard::Ports) || self.contract.ports.is_empty() {
            return vec!["goto allow".to_owned()];
        }
        let ports = self.set("ports");
        vec![format!("meta l4proto . th {far} {ports} goto allow"), format!("counter name \"port\" goto {refuse}")]
    }

    fn allow(&self) -> Vec<String> {
        let over = |limit: String| format!("{limit} counter name \"connections\" drop");
        let (often, most) = (new_connections_over(self.limits.connections), self.limits.connections.max(1));
        // First: what is dropped for its number is counted for a moment too, and shall not come as fast as packets do.
        let mut rules = self.unless(Guard::NewConnections, &[over(often)]);
        rules.extend(self.unless(Guard::Connections, &[over(format!("ct count over {most}"))]));
        rules.push(format!("ct mark set {} counter name \"allowed\" accept", self.mark));
        rules
    }

    /// Remembers what was refused. Where there is no more place the rule ends there, so the drop is one of its own.
    fn refuse(&self) -> Vec<String> {
        vec![
            "meta l4proto { 6, 17 } update @blocked { ip daddr . meta l4proto . th dport counter }".to_owned(),
            "meta l4proto != { 6, 17 } update @blocked_other { ip daddr . meta l4proto counter }".to_owned(),
            "drop".to_owned(),
        ]
    }
}
