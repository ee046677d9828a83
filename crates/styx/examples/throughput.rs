//! What the rules of a sandbox cost: the same path with all of them and with none, in turns.
//!
//! `throughput [--pairs N] [--seconds S] [--held N] [--without GUARD] [--chain] [--tap] [--json] [--check]`, as root. A Linux stack in
//! the guest's place sends through the sandbox's namespace and the node's to an internet; each is a namespace of its own, and
//! none has a way out of the machine. A veth stands in for the TAP, so that no other process carries frames; `--tap` keeps
//! the TAP, and a thread writes frames into it, which measures packets alone.
//!
//! "None" is the path that remains without a single rule that refuses: forwarding, the sandbox's source NAT, the node's
//! masquerade, and so connection tracking in both namespaces. `--without` leaves one rule out of "all", to see what it
//! costs; with `--chain` frames are judged by rules, as on a kernel that takes no program. Limits are as high as they go: what is measured is that they are asked, not that they bite.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program of its own: its answers go to standard output, and whatever fails ends it"
)]

#[path = "throughput/meter.rs"]
mod meter;
#[path = "throughput/report.rs"]
mod report;
#[path = "../tests/support/mod.rs"]
mod support;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use meter::{Connections, Counted, Packets};
use report::Measure;
use styx::{Door, GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, Guard, Options, Space, Styx};
use support::{Ns, PUBLIC, World, allow, detach, in_world};
use tartarus_types::Contract;

/// What gets through with all rules is at least this much of what gets through with none.
const BAR: f64 = 0.90;

struct Asked {
    pairs: usize,
    slice: Duration,
    held: usize,
    without: Option<Guard>,
    door: Option<Door>,
    tap: bool,
    json: bool,
    check: bool,
}

impl Asked {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let slice = Duration::from_secs(1);
        let mut asked =
            Self { pairs: 10, slice, held: 0, without: None, door: None, tap: false, json: false, check: false };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} takes a value"));
            match word.as_str() {
                "--pairs" => asked.pairs = number(&value()?)?,
                "--seconds" => asked.slice = Duration::from_secs_f64(number(&value()?)?),
                "--held" => asked.held = number(&value()?)?,
                "--without" => asked.without = Some(value()?.parse()?),
                "--chain" => asked.door = Some(Door::Chain),
                "--tap" => asked.tap = true,
                "--json" => asked.json = true,
                "--check" => asked.check = true,
                _ => return Err(format!("{word:?} is no option: see the head of this example's source")),
            }
        }
        if asked.pairs == 0 { Err("--pairs is at least 1".to_owned()) } else { Ok(asked) }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn main() -> ExitCode {
    let asked = match Asked::read(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let (answer, answered) = std::sync::mpsc::sync_channel(1);
    in_world(async move |world| answer.send(measure(&world, &asked).await).unwrap());
    // Where there is no world, that was said.
    answered.recv().unwrap_or(ExitCode::FAILURE)
}

/// Two networks, three ports, a name with pinned addresses, and no limit that is reached.
fn contract() -> Contract {
    let mut contract = allow(&["192.0.2.0/24", "198.51.100.0/24"], &["80", "443", "80/udp"]);
    contract.domains = vec!["example.org".parse().unwrap()];
    contract.limits.mbit = 100_000;
    contract.limits.packets = 100_000_000;
    contract.limits.connections = 1_000_000;
    contract
}

/// Both rulesets, and where they go.
struct Path<'a> {
    world: &'a World,
    space: Space,
    inside: Ns,
    node_rules: String,
    generation: u32,
}

impl<'a> Path<'a> {
    async fn new(world: &'a World, asked: &Asked) -> Self {
        let styx = Styx::new(Options { pool: 0, without: asked.without, door: asked.door, ..Options::default() });
        let mut space = styx.take(&contract()).await.unwrap();
        let inside = Ns(space.namespace.clone());
        if !asked.tap {
            space.tap = None;
        }
        // The node's table stays as it is. Nobody puts it back any more when it is exchanged.
        drop(styx);
        let node_rules = world.node.sh("nft -s list table ip tartarus");
        Self { world, space, inside, node_rules, generation: 0 }
    }

    /// A veth in place of the TAP, with the same names and addresses.
    fn veth(&self, guest: &Ns) {
        let (own, theirs) = (mac(GUEST_MAC), mac(GATEWAY_MAC));
        while self.inside.try_sh("ip link show tap0").0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        guest.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        guest.sh(&format!("ip link add eth0 address {own} type veth peer name tap0 address {theirs}"));
        guest.give("tap0", &self.inside);
        guest.sh(&format!("ip link set lo up; ip link set eth0 up; ip addr add {GUEST}/30 dev eth0"));
        guest.sh(&format!("ip route add default via {GATEWAY}"));
        self.inside.sh(&format!("ip link set tap0 up; ip addr add {GATEWAY}/30 dev tap0"));
        self.inside.sh(&format!("ip neigh replace {GUEST} lladdr {own} dev tap0"));
        guest.sh(&format!("ip neigh replace {GATEWAY} lladdr {theirs} dev eth0"));
    }

    /// All rules.
    async fn guarded(&mut self) {
        self.world.node.sh(&nft(&format!("add table ip tartarus\ndelete table ip tartarus\n{}", self.node_rules)));
        self.generation += 1;
        let pins: Vec<(Ipv4Addr, Duration)> =
            (1..=40).map(|at| (Ipv4Addr::new(203, 0, 114, at), Duration::from_secs(3600))).collect();
        self.space.apply(&contract(), self.generation).await.unwrap();
        self.space.pin(&pins, &contract()).await.unwrap();
    }

    /// What is left of them without one that refuses.
    fn bare(&self) {
        let nat = |rule: &str| {
            let hook = "type nat hook postrouting priority srcnat; policy accept;";
            format!("table ip tartarus {{\n chain postrouting {{\n {hook}\n {rule}\n }}\n}}")
        };
        let snat = nat(&format!("oifname \"eth0\" snat to {}", self.space.outer));
        self.inside.sh(&nft(&format!("flush ruleset\n{snat}")));
        detach(&self.inside);
        let masquerade = nat("ip saddr 198.18.0.0/16 oifname != \"tt*\" masquerade");
        self.world.node.sh(&nft(&format!("add table ip tartarus\ndelete table ip tartarus\n{masquerade}")));
    }
}

/// A command that applies `text`.
fn nft(text: &str) -> String {
    format!("nft -f - <<'END'\n{text}\nEND\n")
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

async fn measure(world: &World, asked: &Asked) -> ExitCode {
    let mut path = Path::new(world, asked).await;
    let guest = Ns::fresh();
    if !asked.tap {
        path.veth(&guest);
    }
    for ns in [&path.inside, &world.node] {
        // What is over is forgotten as soon as rules have it, in both cases.
        ns.sh("sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_time_wait=10");
    }
    for ns in [&guest, &world.internet] {
        ns.sh("sysctl -qw net.ipv4.tcp_max_tw_buckets=0 net.ipv4.ip_local_port_range='1025 65000'");
    }
    path.guarded().await;
    let packets = match &path.space.tap {
        Some(tap) => Packets::into_tap(tap.clone(), &world.internet, PUBLIC),
        None => Packets::from_stack(&guest, &world.internet, PUBLIC),
    };
    let connections = (!asked.tap).then(|| Connections::new(&guest, &world.internet, PUBLIC, asked.held));
    let meters = std::iter::once(&packets as &dyn Counted);
    let meters: Vec<&dyn Counted> = meters.chain(connections.iter().map(|one| one as &dyn Counted)).collect();
    let mut all: Vec<Vec<(f64, f64)>> = vec![Vec::new(); meters.len()];
    for pair in 0..asked.pairs {
        let mut rates = [vec![], vec![]];
        // Whatever drifts meets both alike.
        for guarded in [pair % 2 == 0, pair % 2 != 0] {
            if guarded {
                path.guarded().await
            } else {
                path.bare()
            }
            rates[usize::from(guarded)] = meters.iter().map(|meter| meter.rate(asked.slice)).collect();
        }
        let [bare, guarded] = rates;
        for (pairs, both) in all.iter_mut().zip(guarded.into_iter().zip(bare)) {
            pairs.push(both);
        }
    }
    let names = meters.iter().map(|meter| meter.name());
    let measures: Vec<Measure> = names.zip(&all).map(|(name, pairs)| Measure::of(name, pairs)).collect();
    print!("{}", if asked.json { report::json(asked, &measures) } else { report::table(asked, &measures) });
    let missed = measures.iter().any(|measure| measure.ratio < BAR);
    if asked.check && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
