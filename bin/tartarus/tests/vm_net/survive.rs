//! A contract outlives whoever put it in force, and is put back when somebody takes it away.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::Server;
use crate::world::{OTHER, PRIVATE, WEB, World, reach, running};

/// The process that is in a sandbox's network namespace.
fn supervisor_of(server: &Server, id: &str) -> String {
    let hypervisor = server.json(&["inspect", id, "--json"])["hypervisor_pid"].as_u64().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{hypervisor}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().to_owned()
}

/// Runs `nft` in the network namespace of a process.
fn nft_in(process: &str, args: &[&str]) -> String {
    let output = Command::new("nsenter").args(["-t", process, "-n", "nft"]).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_contract_holds_while_its_agent_is_dead_and_after() {
    let Some(world) = World::enter() else { return };
    let mut server = world.server();
    let id = running(&server, &["--allow-cidr", "203.0.113.10/32", "--allow-domain", "other.example.org"]);
    server.ok(&["net", "update", &id, "--allow-cidr", "203.0.113.11/32", "--allow-domain", "good.example.org"]);
    let supervisor = supervisor_of(&server, &id);
    server.kill9();
    let rules = nft_in(&supervisor, &["list", "ruleset"]);
    assert!(rules.contains("203.0.113.11") && !rules.contains("203.0.113.10"), "{rules}");
    server.spawn();
    server.until(&id, &["running"]);
    assert_eq!(reach(&server, &id, OTHER, 80), "here is 80", "the contract as it was last changed");
    assert_eq!(reach(&server, &id, PRIVATE, 80), "");
    assert_eq!(reach(&server, &id, WEB, 80), "", "not any more");
    assert_eq!(reach(&server, &id, "good.example.org", 80), "here is 80", "its resolver is there again");
    server.ok(&["rm", &id]);
    server.nothing_left();
}

#[test]
fn rules_that_are_taken_away_are_put_back() {
    let Some(world) = World::enter() else { return };
    let server = world.server();
    let id = running(&server, &["--allow-cidr", "203.0.113.10/32"]);
    assert_eq!(reach(&server, &id, WEB, 80), "here is 80");
    let supervisor = supervisor_of(&server, &id);
    let before = nft_in(&supervisor, &["-s", "list", "ruleset"]);
    nft_in(&supervisor, &["flush", "ruleset"]);
    until("the sandbox's rules", || nft_in(&supervisor, &["-s", "list", "ruleset"]) == before);
    let nft = |args: &[&str]| {
        let output = Command::new("nft").args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let before = nft(&["-s", "list", "ruleset"]);
    assert!(before.contains("tartarus"), "{before}");
    nft(&["flush", "ruleset"]);
    // Stricter than before: what sandboxes began meanwhile is not trusted.
    let back = |rules: &str| ["fib daddr", "masquerade", "iifname"].iter().all(|part| rules.contains(part));
    assert!(back(&before), "{before}");
    until("the node's rules", || back(&nft(&["-s", "list", "ruleset"])));
    assert_eq!(reach(&server, &id, WEB, 80), "here is 80");
    assert!(server.json(&["net", "show", &id, "--json"])["mended"].as_u64().unwrap() >= 1);
    server.ok(&["rm", &id]);
    server.nothing_left();
}

/// A link that is gone is not made again: nothing can keep the contract, so the sandbox ends.
#[test]
fn a_sandbox_whose_link_is_taken_away_ends() {
    let Some(world) = World::enter() else { return };
    let server = world.server();
    let id = running(&server, &["--allow-cidr", "203.0.113.10/32"]);
    let links = Command::new("sh").args(["-c", "ip -o link show | grep -o 'tt[0-9]*@' | tr -d @"]).output().unwrap();
    let links = String::from_utf8(links.stdout).unwrap();
    assert!(!links.is_empty());
    links.split_whitespace().for_each(|link| crate::world::ip(&format!("link del {link}")));
    let record = server.until(&id, &["failed"]);
    assert!(record["outcome"]["message"].as_str().is_some_and(|why| why.contains("network")), "{record:#}");
    server.ok(&["rm", &id]);
    server.nothing_left();
}

/// A server that stops takes everything of the host along that it had put there.
#[test]
fn nothing_of_it_is_left_on_the_host() {
    let Some(world) = World::enter() else { return };
    let rules = || String::from_utf8(Command::new("nft").args(["list", "ruleset"]).output().unwrap().stdout).unwrap();
    let links = || {
        let output = Command::new("ip").args(["-o", "link"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().filter(|l| l.contains(": tt")).count()
    };
    let mut server = world.server();
    assert_eq!((rules(), links()), (String::new(), 0), "not before the first sandbox with a network");
    let id = running(&server, &["--allow-cidr", "203.0.113.10/32"]);
    assert!(rules().contains("tartarus") && links() >= 1);
    server.ok(&["rm", &id]);
    server.kill9();
    server.spawn();
    server.stop();
    until("links and rules gone", || (rules(), links()) == (String::new(), 0));
}

/// It is refused at once, and what helps is named: by the run and by doctor.
#[test]
fn a_network_is_refused_until_the_way_through_the_node_works() {
    let Some(world) = World::enter() else { return };
    let forward = |on: &str| std::fs::write("/proc/sys/net/ipv4/ip_forward", on).unwrap();
    forward("0");
    let server = world.server();
    let run = ["run", "--net", "open", "busybox", "--", "true"];
    let refused = server.run(&run);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(said.contains("sysctl -w net.ipv4.ip_forward=1"), "{said}");
    let doctor = server.ok(&["doctor"]);
    assert!(doctor.contains("sysctl -w net.ipv4.ip_forward=1"), "{doctor}");
    server.ok(&["run", "busybox", "--", "true"]);
    forward("1");
    server.ok(&run);
    let table =
        "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }";
    assert!(Command::new("nft").arg(table).status().unwrap().success());
    until("the drop is noticed", || !server.run(&run).status.success());
    let doctor = server.ok(&["doctor"]);
    let rule = "nft insert rule ip filter FORWARD ct original ip saddr 198.18.0.0/16 accept";
    assert!(doctor.contains(rule), "{doctor}");
    assert!(Command::new("sh").args(["-c", rule]).status().unwrap().success());
    until("the rule helps", || server.run(&run).status.success());
    server.nothing_left();
}
