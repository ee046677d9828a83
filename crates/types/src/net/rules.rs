//! Ports and domains of a contract, and their text forms.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::shown;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A range of ports of one protocol, from 1 on; as text `443`, `443/tcp`, `8000-8010/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRule {
    /// The protocol; TCP when the text does not say.
    pub protocol: Protocol,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// A name (`example.org`), or everything below one and not itself (`*.example.org`); lower case, without a final dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainRule(String);

impl std::fmt::Display for PortRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { protocol, first, last } = self;
        let protocol = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        if first == last { write!(f, "{first}/{protocol}") } else { write!(f, "{first}-{last}/{protocol}") }
    }
}

impl std::str::FromStr for PortRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{:?} is no port: 443, 443/tcp or 8000-8010/udp, from 1 to 65535", shown(text));
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(wrong()),
        };
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u16>().ok().filter(|port| plain && *port > 0).ok_or_else(wrong)
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (number(first)?, number(last)?);
        if first > last { Err(wrong()) } else { Ok(Self { protocol, first, last }) }
    }
}

impl DomainRule {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is about `name`, which is lower case and without a final dot.
    pub fn covers(&self, name: &str) -> bool {
        match self.0.strip_prefix("*.") {
            Some(parent) => name.strip_suffix(parent).is_some_and(|below| below.len() > 1 && below.ends_with('.')),
            None => name == self.0,
        }
    }
}

impl std::fmt::Display for DomainRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Longest name without its final dot, and longest label of one, bytes: RFC 1035.
const LONGEST: (usize, usize) = (253, 63);

impl std::str::FromStr for DomainRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let base = name.strip_prefix("*.").unwrap_or(&name);
        match wrong(base) {
            None => Ok(Self(name)),
            Some(why) => Err(format!("{:?} {why}: example.org, or *.example.org for all below it", shown(text))),
        }
    }
}

/// What a name is wrong in, if anything.
fn wrong(name: &str) -> Option<String> {
    let (longest, longest_label) = LONGEST;
    let last = name.rsplit('.').next().unwrap_or_default();
    let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    Some(match name {
        _ if name.len() > longest => format!("has {} bytes of {longest} at most", name.len()),
        _ if name.contains('\0') => "holds a NUL".to_owned(),
        _ if !name.is_ascii() => "is not written in punycode (xn--…)".to_owned(),
        _ if name.contains('*') => "has a * that is no whole label in front of others".to_owned(),
        _ if name.split('.').any(str::is_empty) => "has an empty label".to_owned(),
        _ if name.split('.').any(|label| label.len() > longest_label) => {
            format!("has a label of more than {longest_label} bytes")
        }
        _ if name.split('.').any(|label| label.starts_with('-') || label.ends_with('-')) => {
            "has a label with a hyphen at its end".to_owned()
        }
        _ if !name.split('.').all(|label| label.bytes().all(known)) => "is no domain".to_owned(),
        _ if last.bytes().all(|b| b.is_ascii_digit()) => "is an address, which is listed as a CIDR".to_owned(),
        _ if !name.contains('.') => "has one label only".to_owned(),
        _ => return None,
    })
}

/// Serialised as its text.
macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(PortRule);
as_text!(DomainRule);

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
