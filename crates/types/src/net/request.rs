//! A contract as somebody asks for one: texts, in any order, some of them wrong. Checked and put in order here, once, so
//! that everything behind this may trust what it is given. Errors name the field within the request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::contract::beyond;
use super::judge::{is_private, never};
use super::{Contract, DomainRule, Forward, MAX_FORWARDS, MAX_RULES, NetCeiling, NetLimits, NetMode, PortRule, shown};
use crate::Refusal;
use crate::spec::range;

/// What a sandbox shall reach, and who shall reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetRequest {
    /// How wide; `none` when absent.
    #[serde(default)]
    pub mode: NetMode,
    /// IPv4 networks such as `203.0.113.0/24`, or addresses; at most 1024. A private destination is reached only by one
    /// that lies within its private range.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// Ports such as `443`, `53/udp`, `8000-8010/tcp`; TCP when the text does not say; at most 1024. Without any, all ports
    /// and ICMP echo of the networks and domains listed; with ports alone, every public destination on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Names such as `example.org`, or `*.example.org` for all below it; at most 1024.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// How much.
    #[serde(default)]
    pub limits: LimitsRequest,
    /// Ports of the node that lead to ports of the guest, also without a network; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<ForwardRequest>,
}

/// How much a sandbox shall send and receive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsRequest {
    /// Megabits in a second, in each direction: 1 to 100000; 1000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mbit: Option<u32>,
    /// Packets in a second, in each direction: 10 to 10000000; 100000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u32>,
    /// Connections at once: 1 to 65536; 1024 when absent. A tenth as many may begin in a second, but 10 always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
}

/// A port of the node that shall lead to a TCP port of the guest's loopback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardRequest {
    /// Where the node listens, such as `127.0.0.1:8080`; it chooses a port when that is 0. `127.0.0.1:0` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// The guest's port.
    pub port: u16,
}

impl NetRequest {
    /// The contract that it asks for, if the operator lets anybody have it.
    ///
    /// # Errors
    /// Names the field (`cidrs[3]`), what is wrong with it, and what would be right.
    pub fn check(&self, most: NetCeiling) -> Result<Contract, Refusal> {
        let lists = [("cidrs", &self.cidrs), ("ports", &self.ports), ("domains", &self.domains)];
        for (field, list) in lists {
            check_count(field, list.len(), MAX_RULES)?;
            if self.mode == NetMode::None && !list.is_empty() {
                let detail = "are listed, but mode none reaches nothing: choose mode allow, or list nothing";
                return Err(Refusal::field(field, detail));
            }
        }
        let contract = Contract {
            mode: self.mode,
            cidrs: without_contained(each("cidrs", &self.cidrs, cidr)?),
            ports: merged(each("ports", &self.ports, PortRule::from_str)?),
            domains: sorted(each("domains", &self.domains, DomainRule::from_str)?),
            limits: self.limits.check(most.limits)?,
            forwards: forwards(&self.forwards, most)?,
        };
        contract.check_ceiling(most)?;
        Ok(contract)
    }
}

impl From<&Contract> for NetRequest {
    fn from(contract: &Contract) -> Self {
        let Contract { mode, cidrs, ports, domains, limits, forwards } = contract;
        let forward =
            |forward: &Forward| ForwardRequest { listen: Some(forward.listen.to_string()), port: forward.port };
        Self {
            mode: *mode,
            cidrs: cidrs.iter().map(ToString::to_string).collect(),
            ports: ports.iter().map(ToString::to_string).collect(),
            domains: domains.iter().map(ToString::to_string).collect(),
            limits: LimitsRequest {
                mbit: Some(limits.mbit),
                packets: Some(limits.packets),
                connections: Some(limits.connections),
            },
            forwards: forwards.iter().map(forward).collect(),
        }
    }
}

impl LimitsRequest {
    /// What is not said is as usual, or as much as there may be where that is less.
    fn check(self, most: NetLimits) -> Result<NetLimits, Refusal> {
        let usual = NetLimits::default();
        let limits = NetLimits {
            mbit: self.mbit.unwrap_or(usual.mbit.min(most.mbit)),
            packets: self.packets.unwrap_or(usual.packets.min(most.packets)),
            connections: self.connections.unwrap_or(usual.connections.min(most.connections)),
        };
        let bounds = NetLimits::LEAST.each().into_iter().zip(NetLimits::MOST.each());
        for ((name, value, unit), ((_, least, _), (_, most, _))) in limits.each().into_iter().zip(bounds) {
            range(&format!("limits.{name}"), value.into(), least.into(), most.into(), unit)?;
        }
        Ok(limits)
    }
}

fn check_count(field: &str, count: usize, most: usize) -> Result<(), Refusal> {
    match count > most {
        true => Err(Refusal::field(field, format!("has {count} entries of {most} at most"))),
        false => Ok(()),
    }
}

fn each<T>(field: &str, texts: &[String], read: fn(&str) -> Result<T, String>) -> Result<Vec<T>, Refusal> {
    let entry = |(at, text): (usize, &String)| read(text).map_err(|why| Refusal::field(&format!("{field}[{at}]"), why));
    texts.iter().enumerate().map(entry).collect()
}

/// One network, or an address as a network of one.
fn cidr(text: &str) -> Result<Ipv4Net, String> {
    let name = shown(text);
    // Stricter than ipnet, to which 010.0.0.0 is 10.0.0.0 and to others 8.0.0.0.
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let wrong = || format!("{name:?} is no IPv4 network: 203.0.113.0/24, or one address");
    let address = match address.parse() {
        Ok(IpAddr::V4(address)) => address,
        Ok(IpAddr::V6(_)) => return Err(format!("{name} is IPv6, which is off in sandboxes: list IPv4 networks")),
        Err(_) => return Err(wrong()),
    };
    let plain = |bits: &str| bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let bits = match bits {
        None => 32,
        Some(bits) => bits.parse().ok().filter(|_| plain(bits)).ok_or_else(wrong)?,
    };
    let net = Ipv4Net::new(address, bits).map_err(|_| wrong())?;
    if net.addr() != net.network() {
        let (meant, host) = (net.trunc(), net.addr());
        return Err(format!(
            "{name} has host bits set: write {meant} for the network, or {host}/32 for the one address"
        ));
    }
    match never().iter().find(|(range, _)| range.contains(&net)) {
        Some((range, what)) => Err(format!("{name} lies within {range} ({what}), which no sandbox ever reaches")),
        None => Ok(net),
    }
}

/// Sorted, without those that another one contains. A private one is kept beside a wider one, which does not reach it.
fn without_contained(nets: Vec<Ipv4Net>) -> Vec<Ipv4Net> {
    let mut kept: Vec<Ipv4Net> = Vec::with_capacity(nets.len());
    let mut last = [None::<Ipv4Net>; 2];
    for net in sorted(nets) {
        let last = &mut last[usize::from(is_private(net))];
        // A wider network sorts before all that it contains.
        if last.is_none_or(|wider| !wider.contains(&net)) {
            *last = Some(net);
            kept.push(net);
        }
    }
    kept
}

fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort_unstable();
    values.dedup();
    values
}

/// Sorted, those that overlap or follow each other as one.
fn merged(rules: Vec<PortRule>) -> Vec<PortRule> {
    let mut kept: Vec<PortRule> = Vec::with_capacity(rules.len());
    for rule in sorted(rules) {
        match kept.last_mut() {
            Some(last) if last.protocol == rule.protocol && rule.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(rule.last);
            }
            _ => kept.push(rule),
        }
    }
    kept
}

fn forwards(wanted: &[ForwardRequest], most: NetCeiling) -> Result<Vec<Forward>, Refusal> {
    check_count("forwards", wanted.len(), MAX_FORWARDS)?;
    let mut kept: Vec<Forward> = Vec::with_capacity(wanted.len());
    for (at, wanted) in wanted.iter().enumerate() {
        let field = |leaf: &str| format!("forwards[{at}].{leaf}");
        if wanted.port == 0 {
            return Err(Refusal::field(&field("port"), "is a port of the guest, from 1 to 65535"));
        }
        let listen = wanted.listen.as_deref().map_or(Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))), str::parse);
        let Ok(listen) = listen else {
            let text = shown(wanted.listen.as_deref().unwrap_or_default());
            return Err(Refusal::field(
                &field("listen"),
                format!("{text:?} is no address with a port: 127.0.0.1:8080"),
            ));
        };
        let forward = Forward { listen, port: wanted.port };
        if forward.is_public() && !most.public_ports {
            return Err(beyond(at, listen));
        }
        if !most.public_ports && !is_plain(listen) {
            let why = "127.0.0.1 and a port from 1024 on, or 0 for a free one: others are where this machine's own programs look \
                       for its own services; the operator allows them with `tartarus up --public-ports`";
            return Err(Refusal::field(&field("listen"), why));
        }
        if let Some(other) = kept.iter().find(|other| clash(other, &forward)) {
            let detail = format!("{listen} is taken by the forward of {} to port {}", other.listen, other.port);
            return Err(Refusal::field(&field("listen"), detail));
        }
        kept.push(forward);
    }
    Ok(sorted(kept))
}

/// Whether nobody on this machine takes it for a service of its own.
fn is_plain(listen: SocketAddr) -> bool {
    listen.ip() == Ipv4Addr::LOCALHOST && (listen.port() == 0 || listen.port() >= 1024)
}

/// One socket cannot serve both. Those for which the node chooses a port differ unless they are the same.
fn clash(a: &Forward, b: &Forward) -> bool {
    let (x, y) = (a.listen, b.listen);
    let same_ip = x.ip() == y.ip() || x.ip().is_unspecified() || y.ip().is_unspecified();
    a == b || (x.port() != 0 && x.port() == y.port() && same_ip)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
