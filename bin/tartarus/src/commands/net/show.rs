//! What `net show`, `inspect` and `port --list` show of a network.

use std::fmt::Display;

use indicatif::BinaryBytes;
use tartarus_types::Contract;
use tartarus_types::net::{Forward, Judgement, NetStatus};

use crate::terminal::{date, pairs, table};

/// Entries of a list that are shown; `--json` has all of them.
const SHOWN: usize = 20;

/// The contract, and what became of packets.
pub(super) fn describe_all(status: &NetStatus) -> String {
    let mut out = contract(&status.contract);
    let tables = describe(status);
    if !tables.is_empty() {
        out.push('\n');
        out.push_str(&tables);
    }
    out
}

/// A contract, line by line.
pub(crate) fn contract(contract: &Contract) -> String {
    let Contract { mode, cidrs, ports, domains, limits, forwards } = contract;
    let limits = format!("{} Mbit/s, {} packets/s, {} connections", limits.mbit, limits.packets, limits.connections);
    let forwards: Vec<String> =
        forwards.iter().map(|forward| format!("{} -> {}", forward.listen, forward.port)).collect();
    pairs(&[
        ("network", Some(mode.to_string())),
        ("networks allowed", some(cidrs)),
        ("names allowed", some(domains)),
        ("ports allowed", some(ports)),
        ("limits", Some(limits).filter(|_| *mode != tartarus_types::NetMode::None)),
        ("forwarded", some(&forwards)),
    ])
}

fn some<T: Display>(values: &[T]) -> Option<String> {
    let shown: Vec<String> = values.iter().take(SHOWN).map(ToString::to_string).collect();
    match values.len() {
        0 => None,
        n if n > SHOWN => Some(format!("{}, and {} more", shown.join(", "), n - SHOWN)),
        _ => Some(shown.join(", ")),
    }
}

/// Counters and what was refused, a table for each; nothing of what there is none of.
pub(crate) fn describe(status: &NetStatus) -> String {
    let mut tables = Vec::new();
    let mut add = |head: &[&str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            tables.push(table(head, &rows));
        }
    };
    let counter = |counter: &tartarus_types::net::NetCounter| {
        vec![counter.name.clone(), counter.packets.to_string(), BinaryBytes(counter.bytes).to_string()]
    };
    add(&["PACKETS THAT WERE", "PACKETS", "SIZE"], status.counters.iter().map(counter).collect());
    let blocked = |blocked: &tartarus_types::net::Blocked| {
        let port = blocked.port.map_or("-".to_owned(), |port| port.to_string());
        vec![
            blocked.to.to_string(),
            blocked.protocol.clone(),
            port,
            blocked.packets.to_string(),
            date(blocked.last_at),
            why(blocked.why).to_owned(),
        ]
    };
    add(&["BLOCKED", "PROTOCOL", "PORT", "PACKETS", "LAST", "WHY"], status.blocked.iter().map(blocked).collect());
    let refused = |refused: &tartarus_types::net::RefusedName| {
        vec![refused.name.clone(), refused.times.to_string(), date(refused.last_at), refused.why.clone()]
    };
    add(&["REFUSED NAME", "TIMES", "LAST", "WHY"], status.refused_names.iter().map(refused).collect());
    if status.mended > 0 {
        tables.push(pairs(&[(
            "mended",
            Some(format!("{} times somebody else had changed rules or links", status.mended)),
        )]));
    }
    tables.join("\n")
}

fn why(judgement: Judgement) -> &'static str {
    match judgement {
        Judgement::Allowed => "it is allowed by now",
        Judgement::Never => "no sandbox reaches it",
        Judgement::Private => "it is private, and no private network that holds it is listed",
        Judgement::Port => "its port is not listed",
        Judgement::Unlisted => "neither it nor a name of it is listed",
    }
}

/// `port --list`.
pub(super) fn forwards(forwards: &[Forward]) -> String {
    let row = |forward: &Forward| vec![forward.listen.to_string(), forward.port.to_string()];
    table(&["LISTENS", "GUEST PORT"], &forwards.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use tartarus_types::net::{Blocked, NetCounter, NetLimits, NetRequest, RefusedName};
    use tartarus_types::{NetCeiling, NetMode, Timestamp};

    use super::*;

    #[test]
    fn a_network_is_shown_with_what_it_refused() {
        let request = NetRequest {
            mode: NetMode::Allow,
            cidrs: (0..25).map(|n| format!("203.0.{n}.0/24")).collect(),
            domains: vec!["*.example.org".to_owned()],
            ..NetRequest::default()
        };
        let most = NetCeiling { mode: NetMode::Open, public_ports: true, limits: NetLimits::MOST };
        let status = NetStatus {
            contract: request.check(most).unwrap(),
            counters: vec![NetCounter { name: "never".to_owned(), packets: 3, bytes: 2048 }],
            blocked: vec![Blocked {
                to: "169.254.169.254".parse().unwrap(),
                protocol: "tcp".to_owned(),
                port: Some(80),
                packets: 3,
                last_at: Timestamp(0),
                why: Judgement::Never,
            }],
            refused_names: vec![RefusedName {
                name: "evil.\x1b[2Jnet".to_owned(),
                times: 2,
                last_at: Timestamp(0),
                why: "not listed".to_owned(),
            }],
            mended: 1,
        };
        let text = describe_all(&status);
        for part in [
            "network           allow",
            "203.0.19.0/24, and 5 more",
            "names allowed     *.example.org",
            "limits            1000 Mbit/s, 100000 packets/s, 1024 connections",
            "never              3        2.00 KiB",
            "169.254.169.254  tcp       80    3        1970-01-01T00:00:00.000Z  no sandbox reaches it",
            "not listed",
            "mended  1 times",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(!text.contains('\x1b') && !text.contains("forwarded"), "{text}");
        let none = describe_all(&NetStatus::default());
        assert_eq!(
            none.split_whitespace().collect::<Vec<_>>(),
            ["network", "none"],
            "nothing is said of what there is none of"
        );
        let forward = Forward { listen: "127.0.0.1:4000".parse().unwrap(), port: 80 };
        assert_eq!(forwards(&[forward]), "LISTENS         GUEST PORT\n127.0.0.1:4000  80\n");
    }
}
