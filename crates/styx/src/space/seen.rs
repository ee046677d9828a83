//! What became of packets, read from nft's JSON. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::Value;
use tartarus_types::net::{Blocked, Judgement, NetCounter, Protocol};
use tartarus_types::{Contract, Timestamp};

/// Counters by their name, and refused destinations, the newest first. What is not as expected is left out: it comes from
/// the kernel, by way of a program of another version perhaps.
pub(super) fn read(
    json: &str,
    contract: &Contract,
    pinned: impl Fn(Ipv4Addr) -> bool,
    now: Timestamp,
) -> (Vec<NetCounter>, Vec<Blocked>) {
    let all: Value = serde_json::from_str(json).unwrap_or_default();
    let (mut counters, mut blocked) = (Vec::new(), Vec::new());
    for entry in all["nftables"].as_array().into_iter().flatten() {
        if let Some(name) = entry["counter"]["name"].as_str() {
            let (packets, bytes) = count(&entry["counter"]);
            counters.push(NetCounter { name: name.to_owned(), packets, bytes });
        }
        if matches!(entry["set"]["name"].as_str(), Some("blocked" | "blocked_other")) {
            let lifetime = entry["set"]["timeout"].as_i64().unwrap_or(0);
            let elements = entry["set"]["elem"].as_array().into_iter().flatten();
            blocked.extend(elements.filter_map(|element| refused(&element["elem"], lifetime, contract, &pinned, now)));
        }
    }
    blocked.sort_by_key(|refused: &Blocked| std::cmp::Reverse((refused.last_at, refused.to)));
    (merged(counters), blocked)
}

/// Each name once and in order: tables of two families have counters of one name.
pub(super) fn merged(counters: Vec<NetCounter>) -> Vec<NetCounter> {
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for NetCounter { name, packets, bytes } in counters {
        let sum = sums.entry(name).or_default();
        *sum = (sum.0.saturating_add(packets), sum.1.saturating_add(bytes));
    }
    sums.into_iter().map(|(name, (packets, bytes))| NetCounter { name, packets, bytes }).collect()
}

/// Addresses that are pinned, with the seconds they have.
pub(super) fn pins(json: &str) -> Vec<(Ipv4Addr, u64)> {
    let all: Value = serde_json::from_str(json).unwrap_or_default();
    let sets = all["nftables"].as_array().into_iter().flatten();
    let elements = sets.filter(|entry| entry["set"]["name"] == "pinned");
    let elements = elements.flat_map(|entry| entry["set"]["elem"].as_array().into_iter().flatten());
    let pin =
        |element: &Value| Some((element["elem"]["val"].as_str()?.parse().ok()?, element["elem"]["expires"].as_u64()?));
    elements.filter_map(pin).collect()
}

fn count(counter: &Value) -> (u64, u64) {
    (counter["packets"].as_u64().unwrap_or(0), counter["bytes"].as_u64().unwrap_or(0))
}

fn refused(
    element: &Value,
    lifetime: i64,
    contract: &Contract,
    pinned: &impl Fn(Ipv4Addr) -> bool,
    now: Timestamp,
) -> Option<Blocked> {
    let parts = element["val"]["concat"].as_array()?;
    let to: Ipv4Addr = parts.first()?.as_str()?.parse().ok()?;
    let protocol = match parts.get(1)? {
        Value::Number(number) => match number.as_u64()? {
            1 => "icmp".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            other => other.to_string(),
        },
        name => name.as_str()?.to_owned(),
    };
    let port = parts.get(2).and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let with_ports = match protocol.as_str() {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    };
    let destination = with_ports.zip(port);
    let why = match contract.judge(to, destination, pinned(to)) {
        // It was not: another protocol, an address of the node's own, or a name whose time was over.
        Judgement::Allowed if destination.is_none() => Judgement::Port,
        Judgement::Allowed if contract.judge(to, destination, false) == Judgement::Allowed => Judgement::Never,
        Judgement::Allowed => Judgement::Unlisted,
        why => why,
    };
    // The time that has passed since the last packet set the element's time anew.
    let age = element["timeout"].as_i64().unwrap_or(lifetime).saturating_sub(element["expires"].as_i64()?).max(0);
    let last_at = Timestamp(now.0.saturating_sub(age.saturating_mul(1_000_000)));
    Some(Blocked { to, protocol, port, packets: count(&element["counter"]).0, last_at, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"counter": {"family": "netdev", "name": "rate", "packets": 2, "bytes": 20}},
        {"counter": {"family": "ip", "name": "rate", "packets": 3, "bytes": 30}},
        {"set": {"name": "pinned", "elem": [{"elem": {"val": "192.0.2.9", "timeout": 60, "expires": 33}}]}},
        {"set": {"name": "blocked", "timeout": 3600, "elem": [
            {"elem": {"val": {"concat": ["192.0.2.1", "tcp", 25]}, "expires": 3590,
                "counter": {"packets": 4, "bytes": 200}}},
            {"elem": {"val": {"concat": ["192.0.2.2", 17, 53]}, "timeout": 3600, "expires": 3599,
                "counter": {"packets": 1, "bytes": 60}}}, {"elem": 7}, 7]}},
        {"set": {"name": "blocked_other", "elem": [
            {"elem": {"val": {"concat": ["192.0.2.3", "icmp"]}, "timeout": 3600, "expires": 1}}]}}]}"#;

    #[test]
    fn counters_are_summed_and_the_newest_refusal_is_first() {
        let now = Timestamp(10_000_000_000);
        let (counters, blocked) = read(JSON, &Contract::default(), |_| false, now);
        assert_eq!(counters, [NetCounter { name: "rate".to_owned(), packets: 5, bytes: 50 }]);
        let seen: Vec<_> = blocked.iter().map(|b| (b.to.octets()[3], b.protocol.as_str(), b.port, b.packets)).collect();
        assert_eq!(seen, [(2, "udp", Some(53), 1), (1, "tcp", Some(25), 4), (3, "icmp", None, 0)]);
        assert_eq!(blocked[1].last_at, Timestamp(now.0 - 10_000_000));
        assert_eq!(pins(JSON), [(Ipv4Addr::new(192, 0, 2, 9), 33)]);
    }

    #[test]
    fn what_is_no_json_is_nothing() {
        assert_eq!(read("{", &Contract::default(), |_| false, Timestamp(0)), (vec![], vec![]));
    }
}
