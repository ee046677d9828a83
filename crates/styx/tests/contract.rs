//! What a guest reaches under its contract, and what it does not.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::time::Duration;

use styx::GATEWAY;
use support::{METADATA, NODE, NODE_TOO, OTHER, PRIVATE, PUBLIC, allow, alone, in_world, open, packets, sandbox};

#[test]
fn what_is_listed_is_reached_and_nothing_else() {
    in_world(async |world| {
        let contract = allow(&["198.51.100.0/24"], &["80", "53/udp"]);
        let (styx, space, guest) = sandbox(alone(), &contract).await;
        space.check().await.unwrap();
        assert!(guest.tcp(PUBLIC, 80), "listed");
        assert!(guest.udp(PUBLIC, 53), "listed");
        assert_eq!(world.servers.sender("00000000"), Some("203.0.113.1".parse().unwrap()), "as the node");
        assert!(!guest.tcp(PUBLIC, 443), "port");
        assert!(!guest.udp(PUBLIC, 80), "port of the other protocol");
        assert!(!guest.tcp(OTHER, 80), "unlisted");
        assert!(!guest.ping(PUBLIC), "no echo where ports are listed");
        for never in [METADATA, NODE, NODE_TOO, PRIVATE] {
            assert!(!guest.tcp(never, 80), "{never}");
        }
        assert!(!guest.ping(GATEWAY) && !guest.tcp(GATEWAY, 80), "the gateway");
        for counter in ["allowed", "port", "unlisted", "never", "private", "gateway"] {
            assert!(packets(&space, counter).await > 0, "{counter}");
        }
        let (_, blocked) = space.counters().await.unwrap();
        let seen = |to, protocol: &str, port| {
            blocked.iter().any(|b| b.to == to && b.protocol == protocol && b.port == port && b.packets > 0)
        };
        assert!(seen(PUBLIC, "tcp", Some(443)) && seen(PUBLIC, "udp", Some(80)), "{blocked:?}");
        assert!(seen(METADATA, "tcp", Some(80)) && seen(PUBLIC, "icmp", None), "{blocked:?}");
        space.check().await.unwrap();
        drop(guest);
        space.remove().await.unwrap();
        styx.close().await.unwrap();
        assert_eq!(world.node.sh("nft list ruleset"), "", "nothing is left");
    });
}

#[test]
fn fragments_are_put_together_before_they_are_judged() {
    in_world(async |_world| {
        let (_styx, _space, guest) = sandbox(alone(), &allow(&["198.51.100.0/24"], &["80/udp"])).await;
        assert!(support::echoes(&guest.socket(PUBLIC, 80), 4000));
        assert!(!support::echoes(&guest.socket(PUBLIC, 9999), 4000));
    });
}

#[test]
fn open_is_public_only() {
    in_world(async |_world| {
        let (_styx, space, guest) = sandbox(alone(), &open()).await;
        assert!(guest.tcp(PUBLIC, 443) && guest.udp(OTHER, 9999) && guest.ping(PUBLIC));
        for never in [METADATA, NODE, NODE_TOO, PRIVATE, space.outer] {
            assert!(!guest.tcp(never, 80) && !guest.udp(never, 80) && !guest.ping(never), "{never}");
        }
    });
}

#[test]
fn ports_are_listed_one_by_one_and_as_ranges() {
    in_world(async |_world| {
        let (_styx, space, guest) = sandbox(alone(), &allow(&["198.51.100.0/24"], &["443"])).await;
        assert!(guest.tcp(PUBLIC, 443) && !guest.tcp(PUBLIC, 80) && !guest.tcp(PUBLIC, 25));
        space.apply(&allow(&["198.51.100.0/24"], &["26-442", "53/udp"]), 2).await.unwrap();
        assert!(!guest.tcp(PUBLIC, 443) && guest.tcp(PUBLIC, 80) && guest.udp(PUBLIC, 53) && !guest.tcp(PUBLIC, 25));
        space.apply(&allow(&["198.51.100.0/24"], &["25"]), 3).await.unwrap();
        assert!(!guest.tcp(PUBLIC, 80) && !guest.udp(PUBLIC, 53) && guest.tcp(PUBLIC, 25));
    });
}

#[test]
fn a_private_network_is_reached_where_it_is_listed() {
    in_world(async |_world| {
        let (_styx, space, guest) = sandbox(alone(), &allow(&["10.9.9.0/24"], &[])).await;
        assert!(guest.tcp(PRIVATE, 80) && guest.udp(PRIVATE, 53) && guest.ping(PRIVATE));
        assert!(!guest.tcp(PUBLIC, 80));
        space.apply(&allow(&["8.0.0.0/5"], &[]), 2).await.unwrap();
        assert!(!guest.tcp(PRIVATE, 80), "one that is not within a private one lists nothing private");
    });
}

#[test]
fn a_pinned_address_is_reached_for_its_time() {
    in_world(async |_world| {
        let mut contract = allow(&[], &["80"]);
        contract.domains = vec!["example.org".parse().unwrap()];
        let (_styx, space, guest) = sandbox(alone(), &contract).await;
        assert!(!guest.tcp(PUBLIC, 80));
        space.pin(&[(PUBLIC, Duration::from_secs(1)), (OTHER, Duration::from_secs(60))], &contract).await.unwrap();
        space.pin(&[(PUBLIC, Duration::from_secs(2))], &contract).await.unwrap();
        let mut long = guest.connect(PUBLIC, 80).unwrap();
        assert!(support::talks(&mut long));
        assert!(!guest.tcp(PUBLIC, 443), "only on listed ports");
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert!(guest.tcp(PUBLIC, 80), "renewed");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!guest.tcp(PUBLIC, 80), "expired");
        assert!(support::talks(&mut long), "what was connected goes on");
        space.apply(&contract, 2).await.unwrap();
        assert!(guest.tcp(OTHER, 80), "an update keeps pins");
        assert!(!support::talks(&mut long), "what is allowed no more is cut by an update");
        space.mend().await.unwrap();
        assert!(guest.tcp(OTHER, 80), "and mending too");
        let old = contract.clone();
        contract.domains = vec!["example.com".parse().unwrap()];
        // Nobody waits for this one; it is done before the update, or not at all.
        let addresses = [(PUBLIC, Duration::from_secs(60))];
        let pin = space.pin(&addresses, &old);
        assert!(tokio::time::timeout(Duration::from_micros(50), pin).await.is_err());
        space.apply(&contract, 3).await.unwrap();
        assert!(!guest.tcp(OTHER, 80), "unless a name is listed no more");
        assert!(space.pin(&[(OTHER, Duration::from_secs(60))], &old).await.is_err(), "another contract is in force");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!guest.tcp(PUBLIC, 80) && !guest.tcp(OTHER, 80));
    });
}

/// What ends on its way here begins and ends nothing that the node would keep.
#[test]
fn what_would_not_arrive_is_not_looked_at() {
    in_world(async |_world| {
        let (_styx, space, guest) = sandbox(alone(), &open()).await;
        let inside = support::Ns(space.namespace.clone());
        let connections = || -> usize {
            let read = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
            inside.run(read).trim().parse().unwrap()
        };
        let send = |ttl: u32| {
            for _ in 0..20 {
                let socket = guest.socket(PUBLIC, 9);
                socket.set_ttl(ttl).unwrap();
                socket.send(b"x").unwrap();
            }
        };
        send(64);
        assert!(support::soon(async || connections() >= 20).await, "{}", connections());
        let before = connections();
        send(1);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(connections(), before);
    });
}

#[test]
fn names_are_asked_for_at_the_gateway() {
    in_world(async |_world| {
        let (_styx, space, guest) = sandbox(alone(), &allow(&[], &[])).await;
        let (udp, tcp) = space.resolver_sockets().await.unwrap();
        udp.set_nonblocking(false).unwrap();
        tcp.set_nonblocking(false).unwrap();
        let answer = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            let (length, from) = udp.recv_from(&mut buffer).unwrap();
            udp.send_to(&buffer[..length], from).unwrap();
            tcp.accept().unwrap();
        });
        assert!(guest.udp(GATEWAY, 53));
        assert!(guest.connect(GATEWAY, 53).is_some());
        answer.join().unwrap();
    });
}

#[test]
fn what_is_counted_is_read_either_way() {
    in_world(async |_world| {
        let (_styx, space, guest) = sandbox(alone(), &allow(&["198.51.100.0/24"], &["80"])).await;
        assert!(guest.tcp(PUBLIC, 80) && !guest.tcp(PUBLIC, 22) && !guest.tcp(METADATA, 80));
        let (listed, _) = space.counters().await.unwrap();
        let tally = space.tally().await.unwrap();
        assert_eq!(tally, listed);
        let packets = |name: &str| tally.iter().find(|counter| counter.name == name).unwrap().packets;
        assert!(["allowed", "port", "never"].iter().all(|name| packets(name) > 0), "{tally:?}");
    });
}
