//! The node's table of connections, which is one for all sandboxes and the node itself.
#![allow(clippy::unwrap_used, reason = "tests may")]

mod support;

use styx::{Options, Styx};
use support::{Guest, PUBLIC, World, alone, in_world, open, sandbox, soon, talks};

/// What the node has in it.
fn tracked(world: &World) -> usize {
    let read = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
    world.node.run(read).trim().parse().unwrap()
}

async fn becomes(world: &World, count: usize) -> bool {
    // Whoever is gone is looked for a second later, once the kernel has taken its links away.
    soon(async || tracked(world) == count).await || soon(async || tracked(world) == count).await
}

#[test]
fn connections_of_a_sandbox_that_is_gone_are_forgotten() {
    in_world(async |world| {
        let (styx, stays, guest) = sandbox(alone(), &open()).await;
        let mut held = guest.connect(PUBLIC, 80).unwrap();
        let goes = styx.take(&open()).await.unwrap();
        goes.apply(&open(), 1).await.unwrap();
        let other = Guest::join(&goes);
        let before = tracked(&world);
        let some: Vec<_> = (0..10).map(|_| other.connect(PUBLIC, 80).unwrap()).collect();
        drop((0..10).map(|_| other.connect(PUBLIC, 80).unwrap()).collect::<Vec<_>>());
        drop((0..10).map(|_| other.udp(PUBLIC, 80)).collect::<Vec<_>>());
        assert_eq!(tracked(&world), before + 30);
        // Without a word to anybody.
        drop((goes, other));
        assert!(becomes(&world, before).await, "{} of {before}", tracked(&world));
        drop(some);
        assert!(talks(&mut held), "one that is there keeps its own");
        drop(stays);
    });
}

#[test]
fn and_so_they_are_where_nobody_saw_it_go() {
    in_world(async |world| {
        let (styx, space, guest) = sandbox(alone(), &open()).await;
        let some: Vec<_> = (0..10).map(|_| guest.connect(PUBLIC, 80).unwrap()).collect();
        drop(styx);
        drop((space, guest));
        assert!(soon(async || !world.node.try_sh("ip -br link | grep -w tt0").0).await);
        assert!(tracked(&world) >= some.len());
        let next = Styx::new(Options { pool: 0, ..Options::default() });
        next.ready().await.unwrap();
        assert!(becomes(&world, 0).await, "{}", tracked(&world));
    });
}

/// A minute later it would stand in nobody's way; two hours later an idle one goes too.
#[test]
fn the_node_forgets_sooner_what_is_closed_or_silent() {
    in_world(async |world| {
        let (_styx, _space, guest) = sandbox(alone(), &open()).await;
        let held = guest.connect(PUBLIC, 80).unwrap();
        drop(guest.connect(PUBLIC, 443).unwrap());
        let listed = || world.node.sh("cat /proc/net/nf_conntrack");
        let seconds = |port: u16, state: &str| -> Option<u32> {
            let (listed, port) = (listed(), format!(" dport={port} "));
            let line = listed.lines().find(|line| line.contains(&port) && line.contains(state))?;
            line.split_whitespace().nth(4)?.parse().ok()
        };
        assert!(soon(async || seconds(443, "TIME_WAIT").is_some_and(|left| left <= 10)).await, "{}", listed());
        assert!(seconds(80, "ESTABLISHED").is_some_and(|left| (7000..=7440).contains(&left)), "{}", listed());
        drop(held);
    });
}
