use proptest::prelude::*;

use super::*;
use crate::net::{DomainRule, PortRule};

/// The documentation again, with other means: bits and texts, no shared helper, the first rule that speaks decides.
fn naive(contract: &Contract, to: Ipv4Addr, port: Option<(Protocol, u16)>, pinned: bool) -> Judgement {
    let within = |net: &str| {
        let (base, bits) = net.split_once('/').unwrap();
        let (base, bits): (Ipv4Addr, u32) = (base.parse().unwrap(), bits.parse().unwrap());
        bits == 0 || (u32::from(base) ^ u32::from(to)) >> (32 - bits) == 0
    };
    let cidr_is_private = |cidr: &Ipv4Net| {
        PRIVATE.iter().any(|range| {
            let range: Ipv4Net = range.parse().unwrap();
            range.network() <= cidr.network() && cidr.broadcast() <= range.broadcast()
        })
    };
    let covering: Vec<_> = contract.cidrs.iter().filter(|cidr| within(&cidr.to_string())).collect();
    let port_is_listed = contract.ports.iter().any(|rule| match port {
        Some((protocol, port)) => (rule.first..=rule.last).any(|p| p == port) && protocol == rule.protocol,
        None => false,
    });
    let by_port = if contract.ports.is_empty() || port_is_listed { Judgement::Allowed } else { Judgement::Port };
    if NEVER.iter().any(|(net, _)| within(net)) {
        return Judgement::Never;
    }
    if PRIVATE.iter().any(|net| within(net)) {
        let way = contract.mode != NetMode::None && covering.iter().any(|cidr| cidr_is_private(cidr));
        return if way { by_port } else { Judgement::Private };
    }
    match contract.mode {
        NetMode::Open => Judgement::Allowed,
        NetMode::None => Judgement::Unlisted,
        NetMode::Allow if pinned || !covering.is_empty() => by_port,
        NetMode::Allow if !contract.cidrs.is_empty() || !contract.domains.is_empty() => Judgement::Unlisted,
        NetMode::Allow if contract.ports.is_empty() => Judgement::Unlisted,
        NetMode::Allow => by_port,
    }
}

/// Addresses near the edges of everything that has a meaning, and some of no meaning.
fn address() -> impl Strategy<Value = Ipv4Addr> {
    let edges: Vec<u32> = NEVER
        .iter()
        .map(|(net, _)| *net)
        .chain(PRIVATE.iter().copied())
        .flat_map(|net| {
            let net: Ipv4Net = net.parse().unwrap();
            [net.network(), net.broadcast()].map(u32::from)
        })
        .collect();
    let near = (prop::sample::select(edges), -2i32..=2).prop_map(|(edge, by)| edge.wrapping_add_signed(by));
    prop_oneof![near, any::<u32>()].prop_map(Ipv4Addr::from)
}

fn contract() -> impl Strategy<Value = Contract> {
    let mode = prop::sample::select(vec![NetMode::None, NetMode::Allow, NetMode::Open]);
    let cidr = (address(), 0u8..=32).prop_map(|(ip, bits)| Ipv4Net::new(ip, bits).unwrap().trunc());
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let port = (protocol, 1u16..6, 0u16..3).prop_map(|(protocol, first, more)| PortRule {
        protocol,
        first,
        last: first + more,
    });
    let domains = prop_oneof![Just(vec![]), Just(vec!["example.org".parse::<DomainRule>().unwrap()])];
    (mode, prop::collection::vec(cidr, 0..4), prop::collection::vec(port, 0..3), domains)
        .prop_map(|(mode, cidrs, ports, domains)| Contract { mode, cidrs, ports, domains, ..Contract::default() })
}

fn destination() -> impl Strategy<Value = Option<(Protocol, u16)>> {
    prop::option::of((prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]), 0u16..9))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn the_judgement_is_the_documented_one(
        contract in contract(), to in address(), port in destination(), pinned in any::<bool>(), aim in 0usize..8,
    ) {
        // Often at one of the listed networks: chance alone hits few of them.
        let to = contract.cidrs.get(aim).map_or(to, |cidr| if aim % 2 == 0 { cidr.network() } else { cidr.broadcast() });
        prop_assert_eq!(contract.judge(to, port, pinned), naive(&contract, to, port, pinned));
    }

    #[test]
    fn what_is_never_reached_is_never_reached(contract in contract(), port in destination(), pinned in any::<bool>(), at in 0..8usize, low in any::<u32>()) {
        let net: Ipv4Net = NEVER[at].0.parse().unwrap();
        let to = Ipv4Addr::from(u32::from(net.network()) | (low & u32::from(net.hostmask())));
        prop_assert_eq!(contract.judge(to, port, pinned), Judgement::Never);
    }
}

fn allow(cidrs: &[&str], ports: &[&str], domains: &[&str]) -> Contract {
    Contract {
        mode: NetMode::Allow,
        cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(),
        ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
        domains: domains.iter().map(|text| text.parse().unwrap()).collect(),
        ..Contract::default()
    }
}

#[test]
fn contradictions_are_decided_by_the_order() {
    use Judgement::*;
    let open = Contract { mode: NetMode::Open, ..Contract::default() };
    let https = Some((Protocol::Tcp, 443));
    for (contract, to, port, pinned, said) in [
        (open.clone(), "169.254.169.254", https, true, Never),
        (open.clone(), "10.0.0.1", https, true, Private),
        (open.clone(), "8.8.8.8", None, false, Allowed),
        (Contract { ports: vec!["80".parse().unwrap()], ..open.clone() }, "8.8.8.8", https, false, Allowed),
        (Contract { cidrs: vec!["10.1.0.0/16".parse().unwrap()], ..open }, "10.1.2.3", https, false, Allowed),
        (allow(&["0.0.0.0/0"], &[], &[]), "10.0.0.1", https, false, Private),
        (allow(&["0.0.0.0/0"], &[], &[]), "8.8.8.8", None, false, Allowed),
        (allow(&["0.0.0.0/0"], &[], &[]), "127.0.0.1", https, false, Never),
        (allow(&["0.0.0.0/0", "10.0.0.0/24"], &[], &[]), "10.0.0.1", https, false, Allowed),
        (allow(&["10.0.0.0/7"], &[], &[]), "10.0.0.1", https, false, Private),
        (allow(&["10.0.0.0/7"], &[], &[]), "11.0.0.1", https, false, Allowed),
        (allow(&["10.0.0.0/8"], &["80"], &[]), "10.0.0.1", https, false, Port),
        (allow(&["10.0.0.0/8"], &["80"], &[]), "10.0.0.1", None, false, Port),
        (allow(&[], &["443"], &[]), "8.8.8.8", https, false, Allowed),
        (allow(&[], &["443/udp"], &[]), "8.8.8.8", https, false, Port),
        (allow(&[], &["443"], &["example.org"]), "8.8.8.8", https, false, Unlisted),
        (allow(&[], &["443"], &["example.org"]), "8.8.8.8", https, true, Allowed),
        (allow(&[], &["80"], &["example.org"]), "8.8.8.8", https, true, Port),
        (allow(&[], &[], &["example.org"]), "192.168.0.1", https, true, Private),
        (allow(&[], &[], &[]), "8.8.8.8", https, false, Unlisted),
        (Contract::default(), "8.8.8.8", https, true, Unlisted),
        (Contract::default(), "10.0.0.1", https, true, Private),
        (Contract::default(), "169.254.169.254", https, true, Never),
    ] {
        assert_eq!(contract.judge(to.parse().unwrap(), port, pinned), said, "{to} {port:?} of {contract:?}");
    }
}

#[test]
fn the_constant_networks_are_networks() {
    assert!(never().iter().all(|(net, _)| net.addr() == net.network()));
    assert!(private().iter().all(|net| net.addr() == net.network()));
}
