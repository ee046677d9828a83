//! How networks come, change and go.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::io::{BufRead as _, Read, Write};
use std::time::{Duration, Instant};

use styx::{Options, Space, Styx};
use support::{OTHER, PUBLIC, allow, alone, in_world, open, packets, sandbox, soon, talks};

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn an_update_cuts_what_it_forbids_and_loses_nothing_else() {
    in_world(async |_world| {
        let (_styx, space, guest) = sandbox(alone(), &open()).await;
        let (mut kept, mut cut) = (guest.connect(PUBLIC, 80).unwrap(), guest.connect(OTHER, 80).unwrap());
        let mut listeners = [guest.connect(PUBLIC, 443).unwrap(), guest.connect(OTHER, 443).unwrap()];
        for stream in &mut listeners {
            stream.write_all(b"talk").unwrap();
            stream.read_exact(&mut [0; 5]).unwrap();
        }
        assert!(talks(&mut kept) && talks(&mut cut));
        // Datagrams all the while, each answered: none may be missing.
        let socket = guest.socket(PUBLIC, 9999);
        let flood = std::thread::spawn(move || {
            let end = Instant::now() + Duration::from_secs(2);
            let (mut sent, mut back) = (0, 0);
            while Instant::now() < end {
                socket.send(b"x").unwrap();
                sent += 1;
                back += usize::from(socket.recv(&mut [0; 10]).is_ok());
            }
            (sent, back)
        });
        for generation in 2..40 {
            space.apply(&allow(&["198.51.100.0/24", "203.0.113.0/24"], &[]), generation).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (sent, back) = flood.join().unwrap();
        eprintln!("{sent} datagrams during 38 updates, {back} answers");
        assert_eq!(sent, back);
        assert!(talks(&mut kept), "what is allowed goes on");
        assert!(!talks(&mut cut), "what is not is cut");
        let mut hears = |at: usize| {
            let stream: &mut std::net::TcpStream = &mut listeners[at];
            // What was on its way before.
            stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let end = Instant::now() + Duration::from_millis(300);
            let mut last = 0;
            while Instant::now() < end {
                last = stream.read(&mut [0; 65536]).unwrap_or(0);
            }
            last > 0 || stream.read(&mut [0; 10]).is_ok()
        };
        assert!(hears(0), "a server that alone talks goes on");
        assert!(!hears(1), "and is cut where it is forbidden");
    });
}

#[test]
fn an_update_is_in_force_at_once() {
    in_world(async |_world| {
        let (one, other) = (allow(&["192.0.2.0/24"], &[]), allow(&["198.51.100.0/24"], &[]));
        let (_styx, space, guest) = sandbox(alone(), &one).await;
        // All the while, so that some are judged in the very moment of the update.
        let (socket, stop) = (guest.socket(OTHER, 9999), std::sync::Arc::<std::sync::atomic::AtomicBool>::default());
        let (sender, stopped) = (socket.try_clone().unwrap(), stop.clone());
        let flood = std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                drop(sender.send(b"flood"));
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        socket.set_nonblocking(true).unwrap();
        let answered = || {
            while socket.recv(&mut [0; 10]).is_ok() {}
            std::thread::sleep(Duration::from_millis(50));
            std::iter::from_fn(|| socket.recv(&mut [0; 10]).ok()).count() > 0
        };
        for generation in (2..22).step_by(2) {
            space.apply(&other, generation).await.unwrap();
            // What was on its way.
            std::thread::sleep(Duration::from_millis(50));
            assert!(!answered(), "an old connection lives on in generation {generation}");
            space.apply(&one, generation + 1).await.unwrap();
            assert!(answered(), "and is let through again");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        flood.join().unwrap();
    });
}

#[test]
fn what_somebody_else_changes_is_noticed_and_mended() {
    in_world(async |world| {
        let (_styx, space, guest) = sandbox(alone(), &open()).await;
        let inside = support::Ns(space.namespace.clone());
        tokio::time::timeout(Duration::from_millis(300), space.changed()).await.ok();
        for change in [
            "nft flush ruleset",
            "nft insert rule ip tartarus forward accept",
            "nft delete element ip tartarus never_1 { 169.254.0.0/16 }",
            "ip link set eth0 down",
            "ip route del default",
            "ip addr flush dev tap0",
            "nft add table ip other",
        ] {
            let heard = tokio::time::timeout(Duration::from_secs(3), async {
                inside.sh(change);
                space.changed().await.unwrap();
            });
            heard.await.expect(change);
            space.check().await.expect_err(change);
            space.mend().await.expect(change);
            assert!(soon(async || guest.tcp(PUBLIC, 80)).await, "{change}");
            assert!(!guest.tcp(support::METADATA, 80), "{change}");
            // Its own changes.
            while tokio::time::timeout(Duration::from_millis(200), space.changed()).await.is_ok() {}
        }
        // A kernel that takes no program has the chain, whose rules are among the changes above.
        let programs = usize::from(!inside.sh("nft list ruleset").contains("table netdev"));
        assert_eq!(support::detach(&inside), programs);
        assert!(programs == 0 || !guest.tcp(PUBLIC, 80), "what came through no program is nobody's");
        assert_eq!(space.check().await.is_err(), programs == 1, "its program is gone");
        space.mend().await.unwrap();
        assert!(soon(async || guest.tcp(PUBLIC, 80)).await);
        while tokio::time::timeout(Duration::from_millis(200), space.changed()).await.is_ok() {}
        space.pin(&[(OTHER, Duration::from_secs(9))], &open()).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(300), space.changed()).await.is_err(), "a pin is no change");
        world.node.sh("nft flush ruleset");
        let table = || world.node.try_sh("nft list table ip tartarus").1.contains("fib daddr");
        assert!(soon(async || table()).await, "the node's table is put back");
        world.node.sh(&format!("ip link del tt{}", space.index));
        assert!(matches!(space.check().await, Err(styx::StyxError::Lost(_))));
        assert!(space.mend().await.is_err());
    });
}

/// As a version before has it, or a kernel that takes no program at a TAP.
#[test]
fn a_sandbox_with_a_chain_at_its_card_is_taken_over_and_gets_a_program() {
    in_world(async |_world| {
        let chain = Options { door: Some(styx::Door::Chain), ..alone() };
        let (before, space, guest) = sandbox(chain, &open()).await;
        let inside = support::Ns(space.namespace.clone());
        let rules = || inside.sh("nft -s list ruleset");
        assert!(guest.tcp(PUBLIC, 80) && rules().contains("table netdev"));
        let mut kept = guest.connect(PUBLIC, 80).unwrap();
        assert!(talks(&mut kept));
        drop(before);
        let after = Styx::new(alone());
        let taken = after.adopt(space.namespace.try_clone().unwrap()).await.unwrap();
        taken.apply(&open(), 1).await.unwrap();
        let programs = usize::from(!rules().contains("netdev"));
        assert!(talks(&mut kept) && guest.tcp(PUBLIC, 80) && !guest.tcp(support::METADATA, 80));
        taken.check().await.unwrap();
        if programs == 0 {
            return println!("skipped: the kernel takes no program");
        }
        // And back, as a server that is told so, or of the version before, would have it.
        let back = Styx::new(Options { door: Some(styx::Door::Chain), ..alone() });
        let again = back.adopt(space.namespace.try_clone().unwrap()).await.unwrap();
        again.apply(&open(), 1).await.unwrap();
        assert!(rules().contains("netdev") && talks(&mut kept) && guest.tcp(PUBLIC, 80));
        assert_eq!(support::detach(&inside), 0, "a program would have the limits of then");
    });
}

/// As a version before might have them: with the same names, and not the same.
#[test]
fn a_sandbox_with_other_sets_is_taken_over_and_its_connections_go_on() {
    in_world(async |_world| {
        let contract = allow(&["198.51.100.0/24"], &["80"]);
        let (before, space, guest) = sandbox(alone(), &contract).await;
        let inside = support::Ns(space.namespace.clone());
        let own = inside.sh("nft -s list ruleset");
        let mut kept = guest.connect(PUBLIC, 80).unwrap();
        assert!(talks(&mut kept));
        drop(before);
        let ports = "type inet_proto . inet_service\n";
        assert!(own.contains(ports));
        let other = own.replace(ports, &format!("{ports}\t\tflags interval\n")).replace(" . 80 }", " . 443 }");
        inside.sh(&format!("nft -f - <<'END'\nflush ruleset\n{other}\nEND\n"));
        // And settings that it left to the kernel.
        inside.sh("sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close=10");
        assert!(guest.tcp(PUBLIC, 443) && !guest.tcp(PUBLIC, 80));
        let after = Styx::new(alone());
        let taken = after.adopt(space.namespace.try_clone().unwrap()).await.unwrap();
        taken.apply(&contract, 1).await.unwrap();
        taken.check().await.unwrap();
        assert!(talks(&mut kept) && guest.tcp(PUBLIC, 80) && !guest.tcp(PUBLIC, 443));
    });
}

#[test]
fn nothing_passes_a_card_before_its_contract() {
    in_world(async |_world| {
        let styx = Styx::new(alone());
        let space = styx.take(&open()).await.unwrap();
        let inside = support::Ns(space.namespace.clone());
        let frames = |guest: &support::Guest| {
            let watch = support::frames::Watch::new(&inside, 0x88b5);
            guest.inject(&support::frames::ethernet(styx::GUEST_MAC, 0x88b5, b"a frame of no protocol at all"));
            let mac = styx::GUEST_MAC;
            let arp = support::frames::Watch::new(&inside, 0x0806);
            guest.inject(&support::frames::ethernet(mac, 0x0806, &support::frames::arp(mac, styx::GUEST)));
            watch.sees(b"no protocol") || arp.sees(&styx::GUEST.octets())
        };
        let guest = support::Guest::join(&space);
        assert!(!frames(&guest), "before its contract");
        space.apply(&open(), 1).await.unwrap();
        assert!(frames(&guest), "ARP of its own is let through");
    });
}

#[test]
fn two_hundred_at_once_and_what_each_costs() {
    in_world(async |world| {
        let styx = Styx::new(alone());
        styx.ready().await.unwrap();
        let contract = allow(&["198.51.100.0/24"], &["80"]);
        let (mut make, mut apply, mut remove) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..20 {
            let at = Instant::now();
            let space = styx.take(&open()).await.unwrap();
            make.push(at.elapsed());
            let at = Instant::now();
            space.apply(&contract, 1).await.unwrap();
            apply.push(at.elapsed());
            let at = Instant::now();
            space.remove().await.unwrap();
            remove.push(at.elapsed());
        }
        eprintln!(
            "medians: make {:?}, apply and verify {:?}, remove {:?}",
            median(make),
            median(apply),
            median(remove)
        );
        let pooled = Styx::new(Options { pool: 1, ..Options::default() });
        let mut taken = Vec::new();
        let mut kept = vec![pooled.take(&open()).await.unwrap()];
        for _ in 0..20 {
            assert!(soon(async || pooled.waiting().await.0 == 1).await);
            let at = Instant::now();
            kept.push(pooled.take(&open()).await.unwrap());
            taken.push(at.elapsed());
        }
        eprintln!("median: from the pool {:?}", median(taken));
        kept.clear();
        pooled.close().await.unwrap();
        let before = memory();
        let at = Instant::now();
        let mut all: Vec<Space> = Vec::new();
        for _ in 0..200 {
            let space = styx.take(&open()).await.unwrap();
            space.apply(&contract, 1).await.unwrap();
            all.push(space);
        }
        let kib = (before - memory()) / 200;
        eprintln!("200 with rules in {:?}, {kib} KiB each (of the whole machine's memory)", at.elapsed());
        let guest = support::Guest::join(&all[199]);
        assert!(guest.tcp(PUBLIC, 80) && !guest.tcp(OTHER, 80));
        assert!(packets(&all[199], "unlisted").await > 0);
        let at = Instant::now();
        drop((guest, all));
        while world.node.sh("ip -o link").contains(": tt") {
            assert!(at.elapsed() < Duration::from_secs(60), "they go by themselves");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        eprintln!("gone {:?} after their descriptors", at.elapsed());
    });
}

/// In another process: holds a sandbox's network until it is killed.
#[tokio::test]
async fn holder() {
    if std::env::var_os("STYX_HOLD").is_some() {
        println!("begins");
        let styx = Styx::new(Options { pool: 1, ..Options::default() });
        let space = styx.take(&open()).await.unwrap();
        space.apply(&open(), 1).await.unwrap();
        space.apply(&allow(&["192.0.2.0/24"], &["80"]), 2).await.unwrap();
        while styx.waiting().await.0 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("held {}", space.index);
        std::future::pending::<()>().await;
    }
}

/// With a process group of its own, in which all that it starts is too.
fn start_holder() -> std::process::Child {
    use std::os::unix::process::CommandExt;
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder", "--nocapture"])
        .env("STYX_HOLD", "1")
        .stdout(std::process::Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap()
}

/// Processes of a group that are more than a number somebody has to collect.
fn alive_of(group: u32) -> usize {
    let of = |stat: &String| {
        // After the name, which may have anything in it: state, parent, group.
        let mut fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        let state = fields.next().unwrap().to_owned();
        state != "Z" && fields.nth(1) == Some(&group.to_string())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok()).filter(of).count()
}

/// From the check of the path to an update and a pool that is filled again: wherever it is then.
#[test]
fn killed_at_any_moment_it_leaves_nothing() {
    in_world(async |world| {
        let mut seen = std::collections::BTreeSet::new();
        for after in (0..300).step_by(6).map(Duration::from_millis) {
            let mut holder = start_holder();
            let mut said = std::io::BufReader::new(holder.stdout.take().unwrap()).lines();
            assert!(said.any(|line| line.unwrap().contains("begins")), "it never began");
            tokio::time::sleep(after).await;
            let links = || world.node.sh("ip -o link").matches(": tt").count();
            seen.insert(links());
            holder.kill().unwrap();
            holder.wait().unwrap();
            assert!(soon(async || links() == 0).await, "links, killed after {after:?}");
            let gone = || alive_of(holder.id()) == 0;
            assert!(soon(async || gone()).await, "processes, killed after {after:?}");
        }
        assert!(seen.len() > 1, "it was killed at several steps: {seen:?}");
        let styx = Styx::new(alone());
        styx.ready().await.unwrap();
        styx.close().await.unwrap();
        assert_eq!(world.node.sh("nft list ruleset"), "");
    });
}

#[test]
fn a_killed_holder_leaves_nothing() {
    in_world(async |world| {
        let mut holder = start_holder();
        let links = || world.node.sh("ip -o link").matches(": tt").count();
        assert!(soon(async || links() == 2).await);
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(soon(async || links() == 0).await);
        // The next one finds the table, and removes it.
        let styx = Styx::new(alone());
        styx.ready().await.unwrap();
        styx.close().await.unwrap();
        assert_eq!(world.node.sh("nft list ruleset"), "");
    });
}

/// Memory that the machine has available, in KiB.
fn memory() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
