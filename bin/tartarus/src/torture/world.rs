//! A small world for the suite, out of which no packet leads: the node's namespace, as a machine with two cards and a
//! published port, and an internet with real servers.
//!
//! ```text
//!  sandboxes ── ttN ─┐
//!                    node ── up0 192.0.2.2/24 ──── in0 192.0.2.1/24  internet
//!          lan0 10.20.0.1/24, published port               lo 203.0.113.10 …, 169.254.169.254, 10.1.2.3 …
//! ```

use std::net::Ipv4Addr;

use anyhow::ensure;

use super::record::Record;
use super::servers::{self, Listen, Servers, each};
use super::space::Space;
use super::wire::{self, Frames, Wire};

/// Addresses of the internet, each with the same servers.
const INTERNET: [Ipv4Addr; 9] = [
    Ipv4Addr::new(203, 0, 113, 10),
    Ipv4Addr::new(203, 0, 113, 11),
    Ipv4Addr::new(203, 0, 113, 12),
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(10, 1, 2, 3),
    Ipv4Addr::new(10, 9, 9, 9),
];
/// Its name server.
pub(super) const DNS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
/// The node's address towards it.
const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The node's address on a link of its own.
const LAN: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
/// Where a service of the node listens, on all its addresses.
const SERVICE: u16 = 7000;
/// A port of the node that leads to its service, as container engines publish ports.
const PUBLISHED: u16 = 9999;

/// The world; it is gone when this is dropped.
pub(super) struct World {
    pub(super) node: Space,
    _internet: Space,
    pub(super) record: Record,
    _servers: [Servers; 2],
    _wire: Wire,
}

impl World {
    /// Makes it and checks that nothing leads out.
    ///
    /// # Errors
    /// When it cannot be made, or something leads out.
    pub(super) fn new() -> anyhow::Result<Self> {
        let (node, internet, record) = (Space::new("the node")?, Space::new("the internet")?, Record::default());
        for line in [
            format!("ip link add up0 type veth peer name in0 netns {}", internet.pid()),
            format!("ip address add {UPLINK}/24 dev up0"),
            "ip link set up0 up".to_owned(),
            // Not every kernel has dummy cards: this one's other end is on the node as well.
            "ip link add lan0 type veth peer name lan1".to_owned(),
            "ip link set lan1 up".to_owned(),
            format!("ip address add {LAN}/24 dev lan0"),
            "ip link set lan0 up".to_owned(),
            "ip route add default via 192.0.2.1".to_owned(),
            "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
            "nft add table ip publisher".to_owned(),
            "nft add chain ip publisher pre { type nat hook prerouting priority dstnat ; }".to_owned(),
            format!("nft add rule ip publisher pre fib daddr type local tcp dport {PUBLISHED} dnat to {LAN}:{SERVICE}"),
        ] {
            node.run(&line)?;
        }
        internet.run("ip address add 192.0.2.1/24 dev in0")?;
        internet.run("ip link set in0 up")?;
        for address in INTERNET.iter().chain([&DNS]) {
            internet.run(&format!("ip address add {address}/32 dev lo"))?;
        }
        closed(&node, &["lo", "up0", "lan0", "lan1"])?;
        closed(&internet, &["lo", "in0"])?;
        ensure!(internet.run("ip route show default")?.trim().is_empty(), "the suite's internet has a way out");

        let everywhere = [Ipv4Addr::UNSPECIFIED];
        let outside = Listen {
            server: "internet",
            tcp: each(&everywhere, &[80, 8080, 8081]),
            // Each address by itself: an answer must come from where it was asked.
            udp: each(&INTERNET, &[9000, 9001]),
            dns: each(&[DNS], &[53]),
        };
        let host = Listen {
            server: "node",
            tcp: each(&everywhere, &[SERVICE]),
            udp: each(&everywhere, &[SERVICE]),
            dns: Vec::new(),
        };
        let servers = [
            servers::start(internet.file()?, outside, record.clone())?,
            servers::start(node.file()?, host, record.clone())?,
        ];
        let wire = wire::listen(internet.file()?, Frames::All, "wire of the internet", record.clone())?;
        Ok(Self { node, _internet: internet, record, _servers: servers, _wire: wire })
    }
}

/// These links are up in a namespace, and no other ones.
fn closed(space: &Space, links: &[&str]) -> anyhow::Result<()> {
    let listed = space.run("ip -o link show up")?;
    let named = listed.lines().filter_map(|line| line.split(':').nth(1)).map(str::trim);
    let mut found: Vec<&str> = named.map(|name| name.split('@').next().unwrap_or(name)).collect();
    let mut wanted = links.to_vec();
    found.sort_unstable();
    wanted.sort_unstable();
    ensure!(found == wanted, "the suite's world has the links {found:?}, and {wanted:?} were made");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::ATTACKER;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// The attacker on the node itself, where nothing stops it: what it says and what is recorded agree.
    #[test]
    #[allow(clippy::print_stderr, reason = "it says why it is skipped")]
    fn an_attacker_that_nobody_stops_reaches_everything() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let world = World::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("attack");
        std::fs::write(&program, ATTACKER).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let attack = |line: &str| {
            let token = world.record.announce().unwrap();
            let line = line.replace("TOKEN", token.text());
            let output = world.node.command(program.to_str().unwrap()).args(line.split(' ')).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            // What was sent is on its way, and nothing answers to all of it.
            std::thread::sleep(std::time::Duration::from_millis(50));
            (said, world.record.of(token))
        };
        for line in ["tcp TOKEN 203.0.113.10 8080", "tcp TOKEN 169.254.169.254 80", "udp TOKEN 10.1.2.3 9001"] {
            let (said, heard) = attack(line);
            assert_eq!(said["reached"], true, "{line}: {said}");
            assert!(heard.arrivals.iter().any(|a| a.server == "internet"), "{line}: {heard:?}");
            assert!(heard.arrivals.iter().any(|a| a.protocol == "frame"), "the ear is deaf: {heard:?}");
        }
        let (said, heard) = attack("tcp TOKEN 10.20.0.1 7000");
        assert_eq!((said["reached"].as_bool(), heard.arrivals[0].server), (Some(true), "node"));
        assert_eq!(attack("icmp TOKEN 203.0.113.10").0["reached"], true);
        let (said, heard) = attack("dns TOKEN 203.0.113.53 TOKEN.evil.example.org");
        assert_eq!((&said["reached"], &said["detail"]), (&true.into(), &"203.0.113.11".into()));
        assert!(heard.arrivals.iter().any(|a| a.protocol == "dns"), "{heard:?}");
        assert_eq!(attack("name TOKEN 203.0.113.53 good.example.org 8080").0["reached"], true);
        let (said, heard) = attack("flood TOKEN 203.0.113.10 9000 64 200");
        assert!(heard.count("udp", "internet").0 > 100, "{said} {heard:?}");
        assert_eq!(attack("connections TOKEN 203.0.113.10 8080 50").0["reached"], true);
        assert_eq!(attack("churn TOKEN 203.0.113.10 8080 200").0["reached"], true);
        assert_eq!(attack("hold TOKEN 203.0.113.10 8080 300").0["reached"], true);

        let (said, heard) = attack("tcp TOKEN 203.0.113.10 8082");
        assert_eq!((said["reached"].as_bool(), heard.arrivals.len()), (Some(false), 0), "nobody listens: {said}");
        let (said, _) = attack("tcp TOKEN 198.51.100.1 80");
        assert_eq!(said["reached"], false, "the internet has no way out: {said}");
    }
}
