//! The node's table of connections, which is one for all sandboxes and the node itself.
#![allow(clippy::unwrap_used, reason = "tests may")]

mod support;

use std::time::Duration;

use styx::{Options, Styx};
use support::{Guest, Ns, OTHER, PUBLIC, World, allow, alone, in_world, open, sandbox, soon, talks};
use tartarus_types::Contract;

/// What the node has in it.
fn tracked(world: &World) -> usize {
    let read = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
    world.node.run(read).trim().parse().unwrap()
}

/// Whether something is so within half a minute: whoever is gone is looked for a second later at the earliest, once the kernel has taken
/// its links away.
async fn later(mut so: impl AsyncFnMut() -> bool) -> bool {
    for _ in 0..10 {
        if soon(&mut so).await {
            return true;
        }
    }
    false
}

/// Whether all but a few are gone: the check of the path leaves some of its own.
async fn few_are_left(world: &World) -> bool {
    later(async || tracked(world) < 10).await
}

#[test]
fn connections_of_a_sandbox_that_is_gone_are_forgotten() {
    in_world(async |world| {
        let (styx, stays, guest) = sandbox(alone(), &open()).await;
        let mut held = guest.connect(PUBLIC, 80).unwrap();
        let goes = styx.take(&open()).await.unwrap();
        goes.apply(&open(), 1).await.unwrap();
        let other = Guest::join(&goes);
        let some: Vec<_> = (0..10).map(|_| other.connect(PUBLIC, 80).unwrap()).collect();
        drop((0..10).map(|_| other.connect(PUBLIC, 80).unwrap()).collect::<Vec<_>>());
        drop((0..10).map(|_| other.udp(PUBLIC, 80)).collect::<Vec<_>>());
        assert!(tracked(&world) > 30);
        // Without a word to anybody.
        drop((goes, other));
        assert!(few_are_left(&world).await, "{}", tracked(&world));
        drop(some);
        assert!(talks(&mut held), "one that is there keeps its own");
        drop(stays);
    });
}

#[test]
fn and_so_they_are_where_nobody_saw_it_go() {
    in_world(async |world| {
        let (styx, space, guest) = sandbox(alone(), &open()).await;
        let some: Vec<_> = (0..20).map(|_| guest.connect(PUBLIC, 80).unwrap()).collect();
        drop(styx);
        drop((space, guest));
        assert!(later(async || !world.node.try_sh("ip -br link | grep -w tt0").0).await);
        assert!(tracked(&world) >= some.len());
        let next = Styx::new(Options { pool: 0, ..Options::default() });
        next.ready().await.unwrap();
        assert!(few_are_left(&world).await, "{}", tracked(&world));
    });
}

/// Nobody can end them any more, and they would count for hours.
#[test]
fn what_an_update_cuts_off_is_forgotten_and_nothing_else() {
    in_world(async |world| {
        let (_styx, space, guest) = sandbox(alone(), &open()).await;
        let (_other, _neighbour, beside) = sandbox(alone(), &open()).await;
        let some = |guest: &Guest, to| (0..20).map(|_| guest.connect(to, 80).unwrap()).collect::<Vec<_>>();
        let (mut cut, mut kept, mut theirs) = (some(&guest, PUBLIC), some(&guest, OTHER), some(&beside, PUBLIC));
        let (before, narrow) = (tracked(&world), allow(&["192.0.2.0/24"], &["80"]));
        assert!(before >= 60);
        space.apply(&narrow, 2).await.unwrap();
        assert!(later(async || tracked(&world) <= before - 20).await, "{}", tracked(&world));
        // The check of the path leaves some that go meanwhile.
        assert!(tracked(&world) >= before - 30, "{before}, {}", tracked(&world));
        assert!(kept.iter_mut().chain(&mut theirs).all(talks));
        assert!(!talks(&mut cut[0]));
        // What is allowed again begins anew.
        space.apply(&open(), 3).await.unwrap();
        assert!(guest.tcp(PUBLIC, 80));
        assert!(kept.iter_mut().all(talks));
    });
}

/// What the rules let go on, for whatever reason, is not touched.
#[test]
fn what_goes_on_after_a_restart_or_by_a_name_is_not_forgotten() {
    in_world(async |world| {
        let named = |domains: &[&str]| Contract {
            domains: domains.iter().map(|name| name.parse().unwrap()).collect(),
            ..allow(&[], &["80"])
        };
        let (before, after) = (named(&["example.org"]), named(&["example.org", "example.com"]));
        let (styx, space, guest) = sandbox(alone(), &before).await;
        space.pin(&[(PUBLIC, Duration::from_secs(3))], &before).await.unwrap();
        let mut held: Vec<_> = (0..10).map(|_| guest.connect(PUBLIC, 80).unwrap()).collect();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!guest.tcp(PUBLIC, 80), "the address may not be reached any more, but what is there goes on");
        assert!(held.iter_mut().all(talks));
        let adopted = styx.adopt(space.namespace.try_clone().unwrap()).await.unwrap();
        adopted.apply(&before, 1).await.unwrap();
        swept(&world).await;
        assert!(tracked(&world) >= 10);
        assert!(held.iter_mut().all(talks));
        // Nor is what begins after an update, while what it cut off is looked for.
        adopted.apply(&after, 2).await.unwrap();
        adopted.pin(&[(OTHER, Duration::from_secs(60))], &after).await.unwrap();
        let mut new: Vec<_> = (0..10).map(|_| guest.connect(OTHER, 80).unwrap()).collect();
        swept(&world).await;
        assert!(later(async || tracked(&world) < 20).await, "{}", tracked(&world));
        assert!(tracked(&world) >= 10);
        assert!(new.iter_mut().all(talks) && !talks(&mut held[0]));
        drop(space);
    });
}

/// Waits until what began before has been looked for: a sandbox that comes and goes is gone from the table then.
async fn swept(world: &World) {
    let (styx, space, guest) = sandbox(alone(), &open()).await;
    let before = tracked(world);
    let some: Vec<_> = (0..100).map(|_| guest.udp(PUBLIC, 9999)).collect();
    // The check of the path may have left some before that go meanwhile.
    assert!(tracked(world) >= before + some.len() / 2);
    drop((styx, space, guest));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(later(async || tracked(world) < before + 5).await, "{before}, {}", tracked(world));
}

#[test]
fn what_is_closed_or_silent_is_forgotten_sooner() {
    in_world(async |world| {
        let (_styx, space, guest) = sandbox(alone(), &open()).await;
        if !world.node.try_sh("test -e /proc/net/nf_conntrack").0 {
            return println!("skipped: this kernel does not list connections in /proc");
        }
        let inside = Ns(space.namespace.clone());
        let held = guest.connect(PUBLIC, 80).unwrap();
        drop(guest.connect(PUBLIC, 443).unwrap());
        let reset = guest.connect(PUBLIC, 25).unwrap();
        for ns in [&world.node, &inside] {
            let line = |port: u16| {
                let (listed, port) = (ns.sh("cat /proc/net/nf_conntrack"), format!(" dport={port} "));
                listed.lines().find(|line| line.contains(&port)).map(str::to_owned)
            };
            let left = |port: u16, state: &str| -> Option<u32> {
                line(port).filter(|line| line.contains(state))?.split_whitespace().nth(4)?.parse().ok()
            };
            assert!(soon(async || left(443, "TIME_WAIT").is_some_and(|left| left <= 10)).await, "{:?}", line(443));
            assert!(left(80, "ESTABLISHED").is_some_and(|left| (7000..=7440).contains(&left)), "{:?}", line(80));
            assert!(line(25).is_some());
        }
        // A reset is the end at once, so that nothing brings it to life again past who counts.
        rustix::net::sockopt::set_socket_linger(&reset, Some(std::time::Duration::ZERO)).unwrap();
        drop(reset);
        for ns in [&world.node, &inside] {
            assert!(soon(async || !ns.sh("cat /proc/net/nf_conntrack").contains(" dport=25 ")).await);
        }
        drop(held);
    });
}

/// Two servers, or one that is started with another limit: the table lets as many be as whoever lets most, and stays what it is.
#[test]
fn a_server_with_another_limit_changes_a_number_and_no_more() {
    in_world(async |world| {
        let few = Options { connections: 9, ..alone() };
        let (one, space, guest) = sandbox(few.clone(), &open()).await;
        let _held: Vec<_> = (0..5).map(|_| guest.connect(PUBLIC, 80).unwrap()).collect();
        let handle = || world.node.sh("nft -a list tables");
        let before = handle();
        let many = Styx::new(Options { connections: 12, ..alone() });
        many.ready().await.unwrap();
        // Each looks at what the other one did.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        Styx::new(few).ready().await.unwrap();
        assert_eq!(handle(), before, "it is the same table, so what is counted stays");
        let rules = world.node.sh("nft list chain ip tartarus begun");
        assert!(rules.contains("ct count over 24"), "{rules}");
        drop((one, many, space));
    });
}
