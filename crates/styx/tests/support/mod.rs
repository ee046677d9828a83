//! A node, an internet and guests, each a namespace of its own with no way out of the machine.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "each test file uses a part"
)]

mod card;
pub mod frames;
mod guest;
mod ns;
mod servers;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use styx::{Options, Space, Styx};
use tartarus_types::Contract;
use tartarus_types::net::{NetCounter, NetMode};

pub use card::detach;
pub use guest::{Guest, PATIENCE, checksum, echoes, talks, unique};
pub use ns::Ns;
pub use servers::Servers;

/// A public address, with servers.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Another one.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
/// A private one.
pub const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
/// The metadata service.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The node's addresses.
pub const NODE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const NODE_TOO: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 129);

/// The node of a test: this thread's namespace, joined with an internet that has servers.
pub struct World {
    pub node: Ns,
    pub internet: Ns,
    pub servers: Servers,
}

impl World {
    fn new() -> Self {
        let node = Ns::enter_fresh();
        let internet = Ns::fresh();
        node.sh("ip link set lo up");
        // Before links: the defaults are theirs.
        node.sh("sysctl -qw net.ipv4.ip_forward=1");
        node.sh("ip link add up0 type veth peer name down0");
        node.give("down0", &internet);
        node.sh("ip addr add 203.0.113.1/25 dev up0 && ip link set up0 up");
        node.sh("ip addr add 203.0.113.129/32 dev lo");
        node.sh("ip route add default via 203.0.113.2");
        internet.sh("ip link set lo up; ip addr add 203.0.113.2/25 dev down0; ip link set down0 up");
        for address in [PUBLIC, OTHER, PRIVATE, METADATA] {
            internet.sh(&format!("ip addr add {address}/32 dev lo"));
        }
        // Never to anywhere else.
        internet.sh("ip route add default via 203.0.113.1");
        let servers = Servers::start(&internet, &[PUBLIC, OTHER, PRIVATE, METADATA]);
        Self { node, internet, servers }
    }
}

/// Runs a test on its own thread and node; says why where it cannot.
pub fn in_world<F: AsyncFnOnce(World) + Send + 'static>(test: F) {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can make networks");
    }
    if !["/usr/sbin/nft", "/sbin/nft"].iter().any(|path| std::path::Path::new(path).exists()) {
        return eprintln!("skipped: nft is not installed");
    }
    if std::process::Command::new("ip").arg("-V").output().is_err() {
        return eprintln!("skipped: ip is not installed");
    }
    let thread = std::thread::spawn(move || {
        let world = World::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(world));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A contract of what is listed.
pub fn allow(cidrs: &[&str], ports: &[&str]) -> Contract {
    Contract {
        mode: NetMode::Allow,
        cidrs: cidrs.iter().map(|net| net.parse().unwrap()).collect(),
        ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
        ..Contract::default()
    }
}

/// A contract of every public destination.
pub fn open() -> Contract {
    Contract { mode: NetMode::Open, ..Contract::default() }
}

/// A sandbox with a guest, under a contract.
pub async fn sandbox(options: Options, contract: &Contract) -> (Styx, Space, Guest) {
    let styx = Styx::new(options);
    let space = styx.take(contract).await.unwrap();
    space.apply(contract, 1).await.unwrap();
    let guest = Guest::join(&space);
    (styx, space, guest)
}

pub fn alone() -> Options {
    Options { pool: 0, ..Options::default() }
}

/// Packets of one counter.
pub async fn packets(space: &Space, name: &str) -> u64 {
    let (counters, _) = space.counters().await.unwrap();
    counters.iter().find(|NetCounter { name: n, .. }| n == name).map_or(0, |counter| counter.packets)
}

/// Whether something is so within 3 seconds.
pub async fn soon(mut so: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        if so().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}
