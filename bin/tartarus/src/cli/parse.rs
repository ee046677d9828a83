//! Values of flags, read from text. The environment is not looked at here: see [`env_map`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::Ipv4Net;
use tartarus_types::{Refusal, Shape, units};

/// `K=V`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair(pub(crate) String, pub(crate) String);

/// `K=V`, or `K` for the caller's own value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EnvEntry {
    key: String,
    value: Option<String>,
}

pub(super) fn size(text: &str) -> Result<u32, units::NotASize> {
    units::parse_mib(text)
}

/// A size, or 0 for none.
pub(super) fn size_or_none(text: &str) -> Result<u32, units::NotASize> {
    if text == "0" { Ok(0) } else { units::parse_mib(text) }
}

/// `CPUSxMEMORY`, such as `2x1G`.
pub(super) fn shape(text: &str) -> Result<Shape, String> {
    let (cpus_text, memory) = text
        .split_once('x')
        .ok_or_else(|| format!("{text:?} is no size of a machine: write CPUSxMEMORY, as in 2x1G"))?;
    Ok(Shape { cpus: cpus(cpus_text)?, memory_mib: units::parse_mib(memory).map_err(|cause| cause.to_string())? })
}

/// A network with room for a few sandboxes at least.
pub(super) fn net_range(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net = text.parse().map_err(|_| format!("{text:?} is no IPv4 network: write 198.18.0.0/16"))?;
    if net != net.trunc() {
        return Err(format!("{text} has host bits set: the network is {}", net.trunc()));
    }
    match net.prefix_len() {
        8..=28 => Ok(net),
        _ => Err(format!("{text} is no size for it: /8 to /28, two addresses for each sandbox")),
    }
}

/// `ADDR` or `ADDR:PORT`; port 53 when there is none.
pub(super) fn resolver(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)).or_else(|_| text.parse());
    address
        .ok()
        .filter(|address| address.port() != 0 && !address.ip().is_unspecified())
        .ok_or_else(|| format!("{text:?} is no resolver: write an address, or ADDR:PORT"))
}

pub(super) fn cpus(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is not a number of processors: write 1, 2, …")),
        Ok(n) => Ok(n),
    }
}

/// A time that may be nothing at all.
pub(super) fn age(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a time: write 7d, 12h or 0s"))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a time: write 30s, 1m30s or 500ms"))?;
    if duration < Duration::from_millis(1) {
        return Err(format!("{text:?} is shorter than 1ms"));
    }
    Ok(duration)
}

pub(super) fn label(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(Pair(key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label: write KEY=VALUE")),
    }
}

pub(super) fn env(text: &str) -> Result<EnvEntry, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    if key.is_empty() {
        return Err(format!("{text:?} is not a variable: write NAME=VALUE, or NAME to pass yours on"));
    }
    Ok(EnvEntry { key: key.to_owned(), value })
}

/// The environment that `entries` ask for; `own` looks a variable of the caller's up.
///
/// # Errors
/// When a variable to be passed on is not set: leaving it out would be found out much later, inside the sandbox.
pub(crate) fn env_map(
    entries: &[EnvEntry],
    own: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, Refusal> {
    let mut map = BTreeMap::new();
    for EnvEntry { key, value } in entries {
        let value = match value {
            Some(value) => value.clone(),
            None => own(key).ok_or_else(|| {
                Refusal::field(&format!("env.{key}"), "is not set here (or not UTF-8), so it cannot be passed on")
            })?,
        };
        map.insert(key.clone(), value);
    }
    Ok(map)
}

/// Milliseconds of a duration; saturates.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
