//! What a contract says is what passes.

use std::time::{Duration, Instant};

use crate::world::{METADATA, NODE, OTHER, PRIVATE, WEB, World, counted, reach, running, sh};

/// The default: the card leads nowhere, and has no address.
#[test]
fn nobody_has_a_network_who_did_not_ask() {
    let Some(world) = World::enter() else { return };
    let server = world.server();
    let id = running(&server, &[]);
    assert_eq!(sh(&server, &id, "ip -4 -o addr show | grep -v ' lo '; ip route; true"), "");
    for to in [WEB, PRIVATE, METADATA, NODE, "198.19.255.253"] {
        assert_eq!(reach(&server, &id, to, 80), "", "{to}");
    }
    server.ok(&["rm", &id]);
    server.nothing_left();
}

#[test]
fn what_is_listed_is_reached_and_nothing_else() {
    let Some(world) = World::enter() else { return };
    let server = world.server_with(&["--net-pool", "0"]);
    for how in ["--require-snapshot", "--no-snapshot"] {
        let contract = ["--allow-cidr", "203.0.113.10/32", "--allow-port", "80,443", how];
        let id = running(&server, &contract);
        // At once, also after a restore: the first command finds address, route and resolver.
        assert_eq!(reach(&server, &id, WEB, 80), "here is 80", "{how}");
        assert_eq!(reach(&server, &id, WEB, 443), "here is 443", "{how}");
        let forbidden = [(WEB, 22), (OTHER, 80), (PRIVATE, 80), (METADATA, 80), (NODE, 8022), ("198.19.255.253", 8022)];
        for (to, port) in forbidden {
            assert_eq!(reach(&server, &id, to, port), "", "{to}:{port} {how}");
        }
        let status = server.json(&["net", "show", &id, "--json"]);
        let blocked = status["blocked"].as_array().unwrap();
        let of = |to: &str, port: u64| blocked.iter().find(|b| b["to"] == to && b["port"] == port);
        assert_eq!(of(WEB, 22).unwrap()["why"], "port", "{status:#}");
        assert_eq!(of(METADATA, 80).unwrap()["why"], "never", "{status:#}");
        assert_eq!(of(PRIVATE, 80).unwrap()["why"], "private", "{status:#}");
        let counters = status["counters"].as_array().unwrap();
        let allowed = counters.iter().find(|c| c["name"] == "allowed").unwrap();
        assert!(allowed["packets"].as_u64().unwrap() > 4, "{status:#}");
        server.ok(&["rm", &id]);
    }
    server.nothing_left();
    assert_eq!(tt_addresses(), [], "nothing waits, and nothing is left");
}

#[test]
fn open_reaches_what_is_public() {
    let Some(world) = World::enter() else { return };
    let server = world.server();
    let id = running(&server, &["--net", "open"]);
    assert_eq!(reach(&server, &id, WEB, 22), "here is 22");
    assert_eq!(reach(&server, &id, "good.example.org", 80), "here is 80");
    for (to, port) in [(PRIVATE, 80), (METADATA, 80), (NODE, 8022), ("192.0.2.2", 7423)] {
        assert_eq!(reach(&server, &id, to, port), "", "{to}:{port}");
    }
    server.ok(&["rm", &id]);
    server.nothing_left();
}

#[test]
fn two_sandboxes_have_the_same_address_and_never_meet() {
    let Some(world) = World::enter() else { return };
    let server = world.server();
    let ids = [(); 2].map(|()| running(&server, &["--net", "open", "--allow-cidr", "10.0.0.0/8"]));
    let address = "ip -4 -o addr show | grep -v ' lo ' | awk '{print $4}'";
    let both = ids.each_ref().map(|id| sh(&server, id, address));
    assert_eq!(both[0], "198.19.255.254/30");
    assert_eq!(both[0], both[1]);
    sh(&server, &ids[1], "(while true; do echo neighbour | nc -l -p 80; done) >/dev/null 2>&1 &");
    assert_eq!(sh(&server, &ids[1], "sleep 1; nc -w 3 127.0.0.1 80 </dev/null"), "neighbour", "it would be heard");
    // Theirs, and those of namespaces that wait.
    let links = tt_addresses();
    assert!((2..=2 + 4).contains(&links.len()), "{links:?}");
    for (node_end, guest_end) in &links {
        for to in [node_end, guest_end] {
            assert_eq!(reach(&server, &ids[0], to, 80), "", "{to}");
        }
    }
    // What is private is reached where it is listed.
    assert_eq!(reach(&server, &ids[0], PRIVATE, 80), "here is 80");
    ids.iter().for_each(|id| drop(server.ok(&["rm", id])));
    server.nothing_left();
}

/// Without restarting anything: what is forbidden is cut, what stays allowed goes on.
#[test]
fn an_update_holds_at_once_for_connections_too() {
    let Some(world) = World::enter() else { return };
    let server = world.server();
    let id = running(&server, &["--allow-cidr", "203.0.113.10/32,203.0.113.11/32"]);
    for (name, to) in [("a", WEB), ("b", OTHER)] {
        let line = format!(
            "mkfifo /tmp/{name}.in; (tail -f /tmp/{name}.in | nc {to} 80 > /tmp/{name}.out 2>&1) >/dev/null 2>&1 & \
             sleep 1; echo first > /tmp/{name}.in"
        );
        sh(&server, &id, &line);
    }
    let lines = |name: &str| sh(&server, &id, &format!("sleep 2; cat /tmp/{name}.out"));
    assert_eq!(lines("a"), "here is 80\nfirst");
    assert_eq!(lines("b"), "here is 80\nfirst");
    let before = counted(&server, "allowed");
    assert!(before >= 4, "two connections: {before}");
    server.ok(&["net", "update", &id, "--allow-cidr", "203.0.113.10/32"]);
    assert!(counted(&server, "allowed") >= before, "the rules' own counters begin anew");
    sh(&server, &id, "for n in a b; do echo second > /tmp/$n.in; done");
    assert_eq!(lines("a"), "here is 80\nfirst\nsecond");
    assert_eq!(lines("b"), "here is 80\nfirst");
    assert_eq!(reach(&server, &id, OTHER, 80), "");
    let refused = server.run(&["net", "update", &id, "--net", "none"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("started with a network"), "{refused:?}");
    let unlisted = counted(&server, "unlisted");
    assert!(unlisted > 0 && counted(&server, "allowed") > before, "{unlisted}");
    assert_eq!(reach(&server, &id, OTHER, 80), "");
    server.ok(&["rm", &id]);
    // Its last packets are added when its namespace goes, which is a moment later.
    let end = Instant::now() + Duration::from_secs(5);
    while counted(&server, "unlisted") == unlisted && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(counted(&server, "unlisted") > unlisted, "what is counted outlives the sandbox");
    server.nothing_left();
}

/// Its sandboxes find address, route and resolver as the snapshot has them, whatever the warm-up did to its own.
#[test]
fn a_template_with_a_network_has_it_in_its_snapshot() {
    let Some(world) = World::enter() else { return };
    let server = world.server();
    let break_it = "ip link set eth0 down; echo nameserver 192.0.2.9 > /etc/resolv.conf";
    let contract = ["--allow-cidr", "203.0.113.10/32", "--warm", break_it];
    server.ok(&[&["template", "create", "net", "--from", "busybox", "--memory", "128M"][..], &contract].concat());
    let create = |args: &[&str]| {
        let id = server.ok(&[&["create", "net", "--require-snapshot"], args].concat());
        server.until(&id, &["running"]);
        id
    };
    let (with, without) = (create(&[]), create(&["--net", "none"]));
    let seen = "ip -4 -o addr show | grep -v ' lo ' | awk '{print $4}'; ip route";
    let seen = |id: &str| sh(&server, id, seen);
    let expected = "198.19.255.254/30\ndefault via 198.19.255.253 dev eth0 \n198.19.255.252/30 dev eth0 scope link  src 198.19.255.254 ";
    assert_eq!(seen(&with), expected);
    assert_eq!(sh(&server, &with, "cat /etc/resolv.conf"), "nameserver 198.19.255.253");
    assert_eq!(reach(&server, &with, WEB, 80), "here is 80");
    assert_eq!(reach(&server, &with, OTHER, 80), "");
    assert_eq!(seen(&without), "");
    assert_eq!(sh(&server, &without, "cat /etc/resolv.conf"), "nameserver 192.0.2.9", "as the warm-up left it");
    assert_eq!(reach(&server, &without, WEB, 80), "");
    for id in [with, without] {
        server.ok(&["rm", &id]);
    }
    server.nothing_left();
}

/// `ttN` of the node's namespace and the addresses of both ends.
fn tt_addresses() -> Vec<(String, String)> {
    let output = std::process::Command::new("ip").args(["-4", "-o", "addr", "show"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let of_link = text.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|name| name.starts_with("tt")));
    of_link
        .map(|line| {
            let address = line.split_whitespace().nth(3).unwrap().split('/').next().unwrap();
            let node: std::net::Ipv4Addr = address.parse().unwrap();
            (node.to_string(), std::net::Ipv4Addr::from(u32::from(node) + 1).to_string())
        })
        .collect()
}
