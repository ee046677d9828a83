//! Each protective rule is left out once, and missed: its attempt fails with all rules and succeeds without that one.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use styx::{Door, GATEWAY, GUEST, GUEST_MAC, Guard, Options, Space};
use support::frames::{self, Watch};
use support::{
    Guest, METADATA, NODE, Ns, OTHER, PRIVATE, PUBLIC, World, allow, echoes, in_world, open, sandbox, unique,
};
use tartarus_types::Contract;

/// Another sandbox's address, where something answers.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(198, 18, 200, 1);
/// One that nobody but a route on the node knows to be there, and one that the node's operator translates to it.
const ROUTED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 60);
const TRANSLATED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 61);

fn contract(guard: Guard) -> Contract {
    let mut contract = match guard {
        Guard::Unlisted => allow(&["198.51.100.7/32"], &[]),
        Guard::Ports => allow(&["198.51.100.7/32"], &["80", "80/udp"]),
        Guard::Private => allow(&["198.51.100.7/32", "192.0.2.0/24"], &[]),
        _ => open(),
    };
    match guard {
        Guard::Packets => contract.limits.packets = 20,
        Guard::Bandwidth => contract.limits.mbit = 1,
        Guard::Connections | Guard::Held => contract.limits.connections = 3,
        Guard::NewConnections => contract.limits.connections = 100,
        // Without the rule for what is private, it must be what lists all that is left.
        Guard::Private => contract.mode = tartarus_types::NetMode::Open,
        _ => {}
    }
    contract
}

/// Whether one of many texts that were sent with `send` got there within half a second.
async fn arrives(world: &World, text: &str) -> bool {
    for _ in 0..25 {
        if world.servers.sender(text).is_some() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

fn udp(mac: [u8; 6], from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &str) -> Vec<u8> {
    frames::ethernet(mac, 0x0800, &frames::udp(from, to, port, text.as_bytes()))
}

/// Tries what `guard` is there to prevent; true where it succeeded.
async fn attempt(guard: Guard, world: &mut World, space: &Space, guest: &Guest) -> bool {
    let text = unique();
    let inside = Ns(space.namespace.clone());
    match guard {
        Guard::SourceMac => {
            guest.inject(&udp([2, 0, 0, 0, 0, 9], GUEST, PUBLIC, 80, &text));
            arrives(world, &text).await
        }
        Guard::SourceIp => {
            guest.inject(&udp(GUEST_MAC, Ipv4Addr::new(203, 0, 113, 77), PUBLIC, 80, &text));
            arrives(world, &text).await
        }
        Guard::Arp => {
            let watch = Watch::new(&inside, 0x0806);
            guest.inject(&frames::ethernet(
                GUEST_MAC,
                0x0806,
                &frames::arp(GUEST_MAC, Ipv4Addr::new(198, 19, 255, 250)),
            ));
            watch.sees(&[198, 19, 255, 250])
        }
        Guard::EtherType => {
            let watch = Watch::new(&inside, 0x86dd);
            guest.inject(&frames::ethernet(
                GUEST_MAC,
                0x86dd,
                &[&[0x60, 0, 0, 0, 0, 8, 59, 64], text.as_bytes()].concat(),
            ));
            watch.sees(text.as_bytes())
        }
        Guard::Packets => {
            let texts: Vec<String> = (0..300).map(|_| unique()).collect();
            for text in &texts {
                guest.inject(&udp(GUEST_MAC, GUEST, PUBLIC, 80, text));
                std::thread::sleep(Duration::from_micros(300));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            texts.iter().filter(|text| world.servers.sender(text).is_some()).count() > 100
        }
        Guard::Bandwidth => {
            let texts: Vec<String> = (0..600).map(|_| unique()).collect();
            for text in &texts {
                guest.inject(&udp(GUEST_MAC, GUEST, PUBLIC, 80, &format!("{text:x<1400}")));
                std::thread::sleep(Duration::from_micros(300));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            texts.iter().filter(|text| world.servers.sender(&format!("{text:x<60}")).is_some()).count() > 450
        }
        Guard::Connections => {
            let held: Vec<_> = (0..6).map(|_| guest.connect(PUBLIC, 80)).collect();
            assert!(held[0].is_some());
            held.iter().flatten().count() > 3
        }
        Guard::NewConnections => {
            let end = Instant::now() + Duration::from_secs(4);
            // A hundred in one go, and ten in each second. The server has a moment to close its side, so that there are few at once.
            let mut made = 0;
            while Instant::now() < end && made < 200 {
                made += usize::from(guest.connect(PUBLIC, 80).is_some());
                std::thread::sleep(Duration::from_millis(2));
            }
            made > 150
        }
        Guard::Held => {
            let held: Vec<_> = (0..12).map(|_| guest.connect_and_strand(PUBLIC, 80)).collect();
            let made = held.iter().flatten().count();
            assert!(made > 3, "it brings its namespace to forget them: {made}");
            made > 6
        }
        Guard::Never => guest.tcp(METADATA, 80),
        Guard::Private => guest.tcp(PRIVATE, 80),
        Guard::Ports => guest.tcp(PUBLIC, 443),
        Guard::Protocols => {
            let watch = Watch::new(&world.internet, 0x0800);
            guest.inject(&frames::ethernet(GUEST_MAC, 0x0800, &frames::ip(GUEST, PUBLIC, 99, text.as_bytes())));
            watch.sees(text.as_bytes())
        }
        Guard::Unlisted => guest.tcp(OTHER, 80),
        Guard::Gateway => guest.ping(GATEWAY),
        Guard::Queries => {
            let (resolver, _tcp) = space.resolver_sockets().await.unwrap();
            resolver.set_nonblocking(false).unwrap();
            resolver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let count = std::thread::spawn(move || {
                let mut buffer = [0; 100];
                std::iter::from_fn(|| resolver.recv_from(&mut buffer).ok()).count()
            });
            for _ in 0..2000 {
                guest.inject(&udp(GUEST_MAC, GUEST, GATEWAY, 53, &text));
                std::thread::sleep(Duration::from_micros(100));
            }
            let heard = count.join().unwrap();
            heard > 1200
        }
        Guard::Update => {
            let mut long = guest.connect(PUBLIC, 80).unwrap();
            assert!(support::talks(&mut long));
            space.apply(&allow(&["192.0.2.0/24"], &[]), 2).await.unwrap();
            support::talks(&mut long)
        }
        Guard::Inbound => {
            world.node.sh(&format!("ip route replace {GUEST}/32 via {}", space.outer));
            let socket = guest.ns.run(|| std::net::UdpSocket::bind((GUEST, 4444)).unwrap());
            socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
            world.node.run(|| {
                std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(text.as_bytes(), (GUEST, 4444)).unwrap();
            });
            socket.recv(&mut [0; 100]).is_ok()
        }
        Guard::HostLocal => {
            let node = world.node.clone();
            world.servers.add(&node, &[NODE]);
            guest.tcp(NODE, 80)
        }
        Guard::Neighbours => {
            let other = neighbour(world);
            other.sh(&format!("ip addr add {ROUTED}/32 dev lo"));
            world.node.sh(&format!("ip route replace {ROUTED}/32 via {NEIGHBOUR}"));
            world.servers.add(&other, &[NEIGHBOUR, ROUTED]);
            let hook = "type nat hook prerouting priority dstnat;";
            let rule = format!("ip daddr {TRANSLATED} dnat to {NEIGHBOUR}");
            world.node.sh(&format!("nft 'table ip operator {{ chain prerouting {{ {hook} {rule}; }}; }}'"));
            let reached = [NEIGHBOUR, ROUTED, TRANSLATED].map(|to| guest.tcp(to, 80));
            world.node.sh("nft delete table ip operator");
            assert_eq!(reached, [reached[0]; 3], "by its range, by its link, and by that after a translation");
            reached[0]
        }
        Guard::ReversePath => {
            // Behind the link of a sandbox whose own rules are gone.
            let other = neighbour(world);
            other.sh("ip addr add 203.0.113.50/32 dev lo");
            let socket = other.run(|| {
                let socket = std::net::UdpSocket::bind("203.0.113.50:0").unwrap();
                socket.connect((PUBLIC, 80)).unwrap();
                socket
            });
            drop(socket.send(text.as_bytes()));
            arrives(world, &text).await
        }
    }
}

/// A namespace in the place of another sandbox's, without rules.
fn neighbour(world: &World) -> Ns {
    let other = Ns::fresh();
    world.node.sh("ip link add tt25600 type veth peer name far0");
    world.node.give("far0", &other);
    world.node.sh("ip addr add 198.18.200.0/31 dev tt25600 && ip link set tt25600 up");
    other.sh("ip link set lo up; ip link set far0 up; ip addr add 198.18.200.1/31 dev far0");
    other.sh("ip route add default via 198.18.200.0");
    other
}

/// Whether the attempt succeeds, in a world of its own.
fn succeeds(guard: Guard, without: Option<Guard>, door: Option<Door>) -> Option<bool> {
    let (answer, answered) = std::sync::mpsc::sync_channel(1);
    in_world(async move |mut world| {
        let connections = if guard == Guard::Held { 3 } else { Options::default().connections };
        let options = Options { pool: 0, connections, without, door, ..Options::default() };
        let (_styx, space, guest) = sandbox(options, &contract(guard)).await;
        // What is allowed works in every case, so that silence is no success.
        assert!(echoes(&guest.socket(PUBLIC, 80), 20), "{guard} {without:?}");
        let succeeded = attempt(guard, &mut world, &space, &guest).await;
        answer.send(succeeded).unwrap();
    });
    answered.recv().ok()
}

#[test]
fn each_rule_is_missed() {
    let wrong: Vec<_> = Guard::ALL.iter().filter(|guard| !is_missed(**guard, None)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Those that are in a program at the TAP where the kernel takes one: also in the chain that is in its place elsewhere.
#[test]
fn each_rule_about_frames_is_missed_in_a_chain_too() {
    use Guard::{Arp, Bandwidth, EtherType, Gateway, Packets, SourceIp, SourceMac};
    let guards = [SourceMac, SourceIp, Arp, EtherType, Packets, Bandwidth, Gateway];
    let wrong: Vec<_> = guards.iter().filter(|guard| !is_missed(**guard, Some(Door::Chain))).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Whether what it prevents succeeds without it, and not with it.
fn is_missed(guard: Guard, door: Option<Door>) -> bool {
    let (with, without) = (succeeds(guard, None, door), succeeds(guard, Some(guard), door));
    eprintln!("{guard}: with all rules {with:?}, without it {without:?}");
    (with, without) == (Some(false), Some(true)) || with.is_none()
}
