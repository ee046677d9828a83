//! Namespaces that wait, and what they wait for.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::time::{Duration, Instant};

use styx::{FIRST_GENERATION, Options, Space, Styx};
use support::{Guest, Ns, OTHER, PUBLIC, World, allow, in_world, open, soon};
use tartarus_types::Contract;

#[test]
fn a_pool_is_filled_and_what_waits_is_closed() {
    in_world(async |world| {
        let styx = Styx::new(Options { pool: 2, ..Options::default() });
        assert_eq!(world.node.sh("nft list ruleset"), "", "nothing is touched before");
        let first = styx.take(&open()).await.unwrap();
        assert!(soon(async || styx.waiting().await.0 == 2).await);
        let second = styx.take(&open()).await.unwrap();
        let guest = support::Guest::join(&second);
        assert!(!guest.tcp(PUBLIC, 80), "nothing passes before there is a contract");
        second.apply(&open(), 1).await.unwrap();
        // It asks once a second where the gateway is, and was not heard before.
        assert!(soon(async || guest.tcp(PUBLIC, 80)).await);
        let adopted = styx.adopt(second.namespace.try_clone().unwrap()).await.unwrap();
        assert_eq!((adopted.index, adopted.outer), (second.index, second.outer));
        adopted.check().await.unwrap();
        adopted.apply(&open(), 1).await.unwrap();
        assert!(guest.tcp(PUBLIC, 80));
        drop((first, second, adopted, guest));
        styx.close().await.unwrap();
        let gone = async || !world.node.sh("ip -o link").contains(": tt");
        assert!(soon(gone).await);
        styx.close().await.unwrap();
        assert_eq!(world.node.sh("nft list ruleset"), "");
    });
}

/// Rules as they are listed, with the kernel's numbers of them.
fn rules(space: &Space) -> String {
    Ns(space.namespace.clone()).sh("nft -s -a list ruleset")
}

fn contract() -> Contract {
    allow(&["198.51.100.0/24"], &["80"])
}

/// One that waited under [`contract`].
async fn ready(styx: &Styx) -> Space {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        let space = styx.take(&contract()).await.unwrap();
        if rules(&space).contains("198.51.100.0/24") {
            return space;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    panic!("none was made ready");
}

fn pool(size: usize) -> Styx {
    Styx::new(Options { pool: size, ..Options::default() })
}

/// It does what the contract says, no more and no less.
async fn holds(world: &World, space: &Space) {
    space.check().await.unwrap();
    let guest = Guest::join(space);
    assert!(soon(async || guest.tcp(PUBLIC, 80)).await);
    assert!(!guest.tcp(OTHER, 80));
    assert!(!guest.tcp("203.0.113.129".parse().unwrap(), 22), "{}", world.node.sh("ip -o addr"));
}

#[test]
fn what_comes_again_waits_under_its_contract() {
    in_world(async |world| {
        let styx = pool(2);
        let space = ready(&styx).await;
        let before = rules(&space);
        space.apply(&contract(), FIRST_GENERATION).await.unwrap();
        assert_eq!(rules(&space), before, "nothing was put anew");
        holds(&world, &space).await;
        // And is changed as any other.
        space.apply(&open(), 2).await.unwrap();
        let guest = Guest::join(&space);
        assert!(soon(async || guest.tcp(OTHER, 80)).await);
        drop((space, guest));
        styx.close().await.unwrap();
        assert!(soon(async || !world.node.sh("ip -o link").contains(": tt")).await);
    });
}

/// Waits until one waits under [`contract`], and one for whoever comes; on a machine that has much to do as well.
async fn settled(styx: &Styx) {
    for _ in 0..10 {
        drop(ready(styx).await);
        if soon(async || styx.waiting().await == (2, 1)).await {
            return;
        }
    }
    panic!("{:?} wait", styx.waiting().await);
}

#[test]
fn what_is_not_as_it_was_is_given_to_nobody() {
    in_world(async |world| {
        let styx = pool(2);
        let of = |space: &Space| Ns(space.namespace.clone());
        for change in ["flush ruleset", "insert rule ip tartarus forward accept", ""] {
            let space = ready(&styx).await;
            match change {
                // Of the program at the TAP no rule tells.
                "" if of(&space).sh("nft list ruleset").contains("table netdev") => {
                    drop(of(&space).sh("nft flush chain netdev tartarus guest"));
                }
                "" => assert_eq!(support::detach(&of(&space)), 1),
                rules => drop(of(&space).sh(&format!("nft '{rules}'"))),
            }
            assert!(space.apply(&contract(), FIRST_GENERATION).await.is_err(), "{change}");
            assert!(!Guest::join(&space).tcp(PUBLIC, 80), "{change}: nothing passes then");
            let chain = of(&space).sh("nft list ruleset").contains("table netdev");
            assert!(chain || support::detach(&of(&space)) == 1, "{change}: nor its card");
        }
        settled(&styx).await;
        world.node.sh("ip addr add 203.0.113.200/32 dev lo");
        let space = styx.take(&contract()).await.unwrap();
        assert!(!rules(&space).contains("203.0.113"), "it waited for another node");
        space.apply(&contract(), FIRST_GENERATION).await.unwrap();
        assert!(rules(&space).contains("203.0.113.200"));
        holds(&world, &space).await;
    });
}

#[test]
fn nobody_gets_anothers() {
    in_world(async |world| {
        let styx = pool(2);
        settled(&styx).await;
        let other = allow(&["192.0.2.0/24"], &["80"]);
        let spaces = [styx.take(&other).await.unwrap(), styx.take(&other).await.unwrap()];
        for space in &spaces {
            assert!(!Guest::join(space).tcp(PUBLIC, 80), "nothing passes before its own contract");
            space.apply(&other, FIRST_GENERATION).await.unwrap();
            let guest = Guest::join(space);
            assert!(soon(async || guest.tcp(OTHER, 80)).await);
            assert!(!guest.tcp(PUBLIC, 80));
        }
        drop((spaces, world));
    });
}

#[test]
fn a_range_that_is_full_gives_up_what_waits_for_others() {
    in_world(async |world| {
        // Six pairs of addresses.
        let range = "10.77.0.0/28".parse().unwrap();
        let styx = Styx::new(Options { pool: 2, range, ..Options::default() });
        settled(&styx).await;
        let other = allow(&["192.0.2.0/24"], &["80"]);
        let mut all = Vec::new();
        for _ in 0..6 {
            // Whoever fills the pool may have one in its hands just now: it is there the next time.
            let mut taken = None;
            let mut take = async || {
                taken = styx.take(&other).await.ok();
                taken.is_some()
            };
            for _ in 0..10 {
                if soon(&mut take).await {
                    break;
                }
            }
            let space = taken.unwrap();
            space.apply(&other, FIRST_GENERATION).await.unwrap();
            all.push(space);
        }
        assert!(matches!(styx.take(&other).await, Err(styx::StyxError::Full(_))));
        drop((all, world));
    });
}

/// Namespaces come and go, each with an address on the node: none of them is a reason to doubt those that wait.
#[test]
fn sandboxes_of_a_range_of_ones_own_are_ready_as_well() {
    in_world(async |world| {
        let range = "10.77.0.0/24".parse().unwrap();
        let styx = Styx::new(Options { pool: 2, range, ..Options::default() });
        let neighbour = styx.take(&open()).await.unwrap();
        settled(&styx).await;
        drop(neighbour);
        let space = ready(&styx).await;
        space.apply(&contract(), FIRST_GENERATION).await.unwrap();
        assert!(rules(&space).contains("10.77.0.0/24"));
        holds(&world, &space).await;
    });
}

/// What a start waits for its rules, from a namespace that waited under none and from one that waited under its own.
#[test]
fn what_each_costs() {
    in_world(async |_world| {
        let styx = pool(4);
        let (mut blank, mut under) = (Vec::new(), Vec::new());
        let mut kept = vec![ready(&styx).await];
        for round in 0..12 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let other = allow(&["192.0.2.0/24"], &[&(1000 + round).to_string()]);
            let own = if round % 2 == 0 { contract() } else { other };
            let at = Instant::now();
            let space = styx.take(&own).await.unwrap();
            let taken = at.elapsed();
            let waited = rules(&space).contains("198.51.100.0/24");
            let at = Instant::now();
            space.apply(&own, FIRST_GENERATION).await.unwrap();
            let both = taken + at.elapsed();
            if waited {
                under.push(both)
            } else {
                blank.push(both)
            }
            kept.push(space);
        }
        assert!(under.len() > 3 && blank.len() > 3, "{under:?} {blank:?}");
        for times in [&mut blank, &mut under] {
            times.sort();
        }
        eprintln!("taken and under their contract: {under:.1?} where it waited, {blank:.1?} where it did not");
        // Of the better ones: the kernel has one lock for the links of all namespaces, and whoever holds it stops both alike.
        assert!(2 * under[1] < blank[1]);
    });
}
