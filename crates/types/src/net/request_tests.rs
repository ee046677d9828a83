use proptest::prelude::*;

use super::*;
use crate::net::Protocol;

const ALL: NetCeiling = NetCeiling { mode: NetMode::Open, public_ports: true, limits: NetLimits::MOST };

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn allow() -> NetRequest {
    NetRequest { mode: NetMode::Allow, ..NetRequest::default() }
}

fn cidrs(list: &[&str]) -> NetRequest {
    NetRequest { cidrs: texts(list), ..allow() }
}

fn ports(list: &[&str]) -> NetRequest {
    NetRequest { ports: texts(list), ..allow() }
}

fn to_guest(forwards: &[(&str, u16)]) -> NetRequest {
    let forward = |(listen, port): &(&str, u16)| ForwardRequest { listen: Some((*listen).to_owned()), port: *port };
    NetRequest { forwards: forwards.iter().map(forward).collect(), ..NetRequest::default() }
}

#[test]
fn what_was_asked_for_is_put_in_order() {
    let request = NetRequest {
        cidrs: texts(&["203.0.113.7", "203.0.113.0/24", "10.0.0.0/8", "0.0.0.0/1", "10.1.0.0/16", "203.0.113.0/24"]),
        ports: texts(&["443", "53/udp", "444-500", "440-443/tcp", "65535", "65530-65535"]),
        domains: texts(&["*.example.org", "Example.org.", "example.org"]),
        forwards: to_guest(&[("127.0.0.1:9000", 90), ("127.0.0.1:0", 80)]).forwards,
        limits: LimitsRequest { mbit: Some(5), ..LimitsRequest::default() },
        ..allow()
    };
    let contract = request.check(ALL).unwrap();
    let list = |values: Vec<String>| values.join(" ");
    assert_eq!(
        list(contract.cidrs.iter().map(ToString::to_string).collect()),
        "0.0.0.0/1 10.0.0.0/8 203.0.113.0/24",
        "the private one is not reached by the wider one"
    );
    assert_eq!(list(contract.ports.iter().map(ToString::to_string).collect()), "440-500/tcp 65530-65535/tcp 53/udp");
    assert_eq!(list(contract.domains.iter().map(ToString::to_string).collect()), "*.example.org example.org");
    assert_eq!(contract.limits, NetLimits { mbit: 5, ..NetLimits::default() });
    assert_eq!(contract.forwards.iter().map(|forward| forward.port).collect::<Vec<_>>(), [80, 90]);
    assert_eq!(NetRequest::from(&contract).check(ALL).unwrap(), contract, "a contract asks for itself");
}

#[test]
fn what_is_wrong_is_named() {
    let many = |text: fn(usize) -> String, count| (0..count).map(text).collect::<Vec<_>>();
    let address = |n: usize| format!("203.0.{}.{}", n / 256, n % 256);
    let limits = |mbit, packets, connections| NetRequest {
        limits: LimitsRequest { mbit, packets, connections },
        ..NetRequest::default()
    };
    for (request, field, word) in [
        (cidrs(&["8.0.0.0/8", "203.0.113.7/24"]), "cidrs[1]", "203.0.113.0/24"),
        (cidrs(&["2001:db8::/32"]), "cidrs[0]", "IPv6, which is off"),
        (cidrs(&["::1"]), "cidrs[0]", "IPv6, which is off"),
        (cidrs(&["fd00::1/8"]), "cidrs[0]", "IPv6, which is off"),
        (cidrs(&["8.8.8.8/33"]), "cidrs[0]", "no IPv4 network"),
        (cidrs(&["8.0.0.0/08"]), "cidrs[0]", "no IPv4 network"),
        (cidrs(&["8.8.8.8/"]), "cidrs[0]", "no IPv4 network"),
        (cidrs(&["8.8.8.8/+8"]), "cidrs[0]", "no IPv4 network"),
        (cidrs(&["8.8.8"]), "cidrs[0]", "no IPv4 network"),
        (cidrs(&["010.0.0.0/8"]), "cidrs[0]", "no IPv4 network"),
        (cidrs(&["8.8.8.8\0"]), "cidrs[0]", "no IPv4 network"),
        (cidrs(&["example.org"]), "cidrs[0]", "no IPv4 network"),
        (cidrs(&["169.254.169.254"]), "cidrs[0]", "169.254.0.0/16 (link-local"),
        (cidrs(&["168.63.129.16/32"]), "cidrs[0]", "Azure"),
        (cidrs(&["198.18.5.0/24"]), "cidrs[0]", "198.18.0.0/15"),
        (cidrs(&["255.255.255.255"]), "cidrs[0]", "224.0.0.0/3"),
        (NetRequest { cidrs: many(address, 10_000), ..allow() }, "cidrs", "10000 entries of 1024"),
        (NetRequest { ports: many(|n| (n + 1).to_string(), 1025), ..allow() }, "ports", "1025 entries of 1024"),
        (NetRequest { domains: many(|n| format!("a{n}.org"), 10_000), ..allow() }, "domains", "10000 entries"),
        (ports(&["0"]), "ports[0]", "from 1 to 65535"),
        (ports(&["80", "70000"]), "ports[1]", "from 1 to 65535"),
        (NetRequest { domains: texts(&["a.org", "a\0b.org"]), ..allow() }, "domains[1]", "NUL"),
        (NetRequest { domains: vec!["a.".repeat(300)], ..allow() }, "domains[0]", "253 at most"),
        (NetRequest { mode: NetMode::None, ..cidrs(&["8.8.8.8"]) }, "cidrs", "choose mode allow"),
        (NetRequest { mode: NetMode::None, ..ports(&["443"]) }, "ports", "choose mode allow"),
        (NetRequest { domains: texts(&["a.org"]), ..NetRequest::default() }, "domains", "choose mode allow"),
        (limits(Some(0), None, None), "limits.mbit", "1 to 100000"),
        (limits(Some(100_001), None, None), "limits.mbit", "1 to 100000"),
        (limits(None, Some(9), None), "limits.packets", "10 to 10000000"),
        (limits(None, None, Some(65_537)), "limits.connections", "1 to 65536"),
        (to_guest(&[("127.0.0.1:80", 0)]), "forwards[0].port", "1 to 65535"),
        (to_guest(&[("localhost:80", 1)]), "forwards[0].listen", "127.0.0.1:8080"),
        (to_guest(&[("127.0.0.1:80", 1), ("127.0.0.1:80", 2)]), "forwards[1].listen", "taken"),
        (to_guest(&[("127.0.0.1:80", 1), ("0.0.0.0:80", 2)]), "forwards[1].listen", "taken"),
        (to_guest(&[("127.0.0.1:0", 1), ("127.0.0.1:0", 1)]), "forwards[1].listen", "taken"),
        (to_guest(&[("127.0.0.1:0", 1); 65]), "forwards", "65 entries of 64"),
    ] {
        let refusal = request.check(ALL).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some(field), "{refusal}");
        assert!(refusal.detail.contains(word) && refusal.detail.len() < 250, "{refusal}");
    }
    assert_eq!(NetRequest { cidrs: many(address, 1024), ..allow() }.check(ALL).unwrap().cidrs.len(), 1024);
}

#[test]
fn nobody_gets_more_than_the_operator_gives() {
    let ceiling = |mode, public_ports| NetCeiling { mode, public_ports, limits: NetLimits::MOST };
    let open = NetRequest { mode: NetMode::Open, ..NetRequest::default() };
    let refusal = open.check(ceiling(NetMode::Allow, true)).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("mode"));
    assert!(refusal.detail.contains("`up --net open`"), "{refusal}");
    assert!(allow().check(ceiling(NetMode::None, true)).unwrap_err().detail.contains("`up --net allow`"));
    let within = to_guest(&[("127.0.0.1:0", 80), ("127.0.0.1:1024", 80)]);
    within.check(ceiling(NetMode::None, false)).unwrap();
    // Nor may a sandbox stand where this machine's own programs look for a service of its own.
    for taken in
        ["[::1]:0", "[::1]:5432", "127.9.9.9:2000", "[::ffff:127.0.0.1]:2000", "127.0.0.1:80", "127.0.0.1:1023"]
    {
        let request = to_guest(&[(taken, 80)]);
        let refusal = request.check(ceiling(NetMode::Open, false)).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("forwards[0].listen"), "{taken}");
        assert!(refusal.detail.contains("--public-ports"), "{refusal}");
        request.check(ceiling(NetMode::None, true)).unwrap();
    }
    let few = NetCeiling { limits: NetLimits { connections: 100, ..NetLimits::default() }, ..ALL };
    let usual = allow().check(few).unwrap();
    assert_eq!(usual.limits, few.limits, "what is not said is never too much");
    let asked = LimitsRequest { connections: Some(101), ..LimitsRequest::default() };
    let refusal = NetRequest { limits: asked, ..allow() }.check(few).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("limits.connections"));
    assert!(refusal.detail.contains("100: start it with `up --net-most-connections 101`"), "{refusal}");
    assert!(allow().check(ALL).unwrap().check_ceiling(few).is_err(), "a stored one is judged again");
    Contract::default().check_ceiling(few).unwrap();
    for public in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80", "[::ffff:192.0.2.1]:80"] {
        let request = to_guest(&[("127.0.0.1:0", 80), (public, 80)]);
        let refusal = request.check(ceiling(NetMode::Open, false)).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("forwards[1].listen"));
        assert!(refusal.detail.contains("--public-ports"), "{refusal}");
        let contract = request.check(ceiling(NetMode::None, true)).unwrap();
        assert!(contract.check_ceiling(ceiling(NetMode::Open, false)).is_err(), "a stored one is judged again");
    }
}

#[test]
fn a_request_has_one_form_on_the_wire() {
    let request: NetRequest =
        serde_json::from_str(r#"{"mode":"allow","cidrs":["8.8.8.8"],"limits":{"mbit":3},"forwards":[{"port":80}]}"#)
            .unwrap();
    let contract = request.check(ALL).unwrap();
    let json = serde_json::to_value(&contract).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "mode": "allow", "cidrs": ["8.8.8.8/32"], "ports": [], "domains": [],
            "limits": {"mbit": 3, "packets": 100_000, "connections": 1024},
            "forwards": [{"listen": "127.0.0.1:0", "port": 80}],
        })
    );
    assert_eq!(serde_json::from_value::<Contract>(json).unwrap(), contract);
    assert!(serde_json::from_str::<NetRequest>(r#"{"mode":"allow","cidr":[]}"#).is_err());
    assert!(serde_json::from_str::<NetRequest>(r#"{"limits":{"mbits":1}}"#).is_err());
    assert!(serde_json::from_str::<NetRequest>(r#"{"mode":"all"}"#).is_err());
}

proptest! {
    /// Order and repetition say nothing, and putting in order changes no judgement.
    #[test]
    fn order_changes_nothing(
        nets in prop::collection::vec((any::<u32>(), 0u8..=32), 0..12),
        rules in prop::collection::vec((1u16..40, 0u16..9, any::<bool>()), 0..12),
        to in any::<u32>(), aim in any::<prop::sample::Index>(), port in 1u16..60, udp in any::<bool>(),
    ) {
        let nets: Vec<Ipv4Net> = nets
            .iter()
            .map(|(ip, bits)| Ipv4Net::new(Ipv4Addr::from(*ip), *bits).unwrap().trunc())
            .chain(["10.0.0.0/8".parse().unwrap(), "10.2.0.0/16".parse().unwrap()])
            .filter(|net| !never().iter().any(|(range, _)| range.contains(net)))
            .collect();
        let protocol = |udp| if udp { Protocol::Udp } else { Protocol::Tcp };
        let rules: Vec<PortRule> = rules
            .iter()
            .map(|(first, more, udp)| PortRule { protocol: protocol(*udp), first: *first, last: first + more })
            .collect();
        let raw = Contract { mode: NetMode::Allow, cidrs: nets.clone(), ports: rules.clone(), ..Contract::default() };
        let contract = NetRequest::from(&raw).check(ALL).unwrap();
        let turned = Contract {
            cidrs: nets.iter().rev().chain(&nets).copied().collect(),
            ports: rules.iter().rev().chain(&rules).copied().collect(),
            ..raw.clone()
        };
        prop_assert_eq!(NetRequest::from(&turned).check(ALL).unwrap(), contract.clone());
        for to in [Ipv4Addr::from(to), aim.get(&nets).network(), aim.get(&nets).broadcast()] {
            let port = Some((protocol(udp), port));
            prop_assert_eq!(contract.judge(to, port, false), raw.judge(to, port, false));
        }
        for kind in [contract.public_cidrs().collect::<Vec<_>>(), contract.private_cidrs().collect()] {
            prop_assert!(kind.windows(2).all(|pair| pair[0].broadcast() < pair[1].network()), "{kind:?}");
        }
    }
}
