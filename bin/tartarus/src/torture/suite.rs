//! The suite: makes sandboxes on every path and under every contract, attacks, asks the record, and leaves rules out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::attempts::{Attempt, Contract, Control, How, Path, WIDE};
use super::host::Host;
use super::judge::{Found, Said, judge};
use super::matrix::{Cell, Row};
use super::record::{Record, Token};
use super::servers::{self, Listen, Servers};
use super::space;
use super::wire::{self, Frames, Wire};
use super::world::World;

/// Where a service listens in a sandbox's own namespace, which only the suite starts.
const GATEWAY_SERVICE: u16 = 7001;
/// The guest's address, the same everywhere.
const GUEST: &str = "198.19.255.254";
/// Payloads that nothing in a sandbox's namespace shall see: ARP that is another's, IPv6, and what IEEE leaves for experiments.
const ETHERTYPES: [u16; 3] = [0x0806, 0x86dd, 0x88b5];

/// What a suite works with.
pub(super) struct Suite<'a> {
    pub(super) world: &'a World,
    pub(super) host: Host<'a>,
    /// A rule that is left out everywhere, to see the suite turn red.
    pub(super) plant: Option<String>,
    pub(super) quiet: bool,
}

/// A sandbox under attack, with the ears in its namespace.
struct Target {
    id: String,
    outer: String,
    link: String,
    neighbour: String,
    _ears: Vec<Wire>,
    _servers: Servers,
}

/// What is announced of an attempt that is on its way.
struct Sent {
    row: usize,
    attempt: &'static Attempt,
    token: Token,
    words: Vec<String>,
}

/// What came of attempts, by their place in the list of rows.
type Results = Vec<(usize, Result<Found, String>)>;

impl Suite<'_> {
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            // Whoever closed standard error does not want to know.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    fn record(&self) -> &Record {
        &self.world.record
    }

    /// Every attempt of `rows` on one path. `wanted` says which of them.
    ///
    /// # Errors
    /// When sandboxes cannot be made; what an attempt came to is in its row.
    pub(super) fn path(
        &mut self,
        path: Path,
        rows: &mut [Row],
        wanted: impl Fn(&Attempt) -> bool,
    ) -> anyhow::Result<()> {
        let begin = Instant::now();
        let picked: Vec<usize> =
            (0..rows.len()).filter(|i| path.fits(rows[*i].attempt) && wanted(rows[*i].attempt)).collect();
        let list: Vec<(usize, &'static Attempt)> = picked.iter().map(|i| (*i, rows[*i].attempt)).collect();
        for (row, found) in self.attack(path, &list, &[])? {
            let should = rows[row].attempt.allowed();
            rows[row].set(path, Cell::of(found, should));
        }
        self.say(&format!("path {}: {} attempts in {} s", path.name(), list.len(), begin.elapsed().as_secs()));
        Ok(())
    }

    /// Sees forbidden attempts succeed where their rule is left out.
    ///
    /// # Errors
    /// When a server or sandbox cannot be made.
    pub(super) fn controls(&mut self, rows: &mut [Row], wanted: impl Fn(&Attempt) -> bool) -> anyhow::Result<()> {
        let mut guards: BTreeMap<&'static str, Vec<(usize, &'static Attempt)>> = BTreeMap::new();
        let mut flags: BTreeMap<&'static str, (usize, &'static [&'static str])> = BTreeMap::new();
        for (row, attempt) in rows.iter().map(|row| row.attempt).enumerate().filter(|(_, attempt)| wanted(attempt)) {
            match attempt.control {
                Control::Guard(guard) => guards.entry(guard).or_default().push((row, attempt)),
                Control::Flags(more) => _ = flags.insert(attempt.name, (row, more)),
                Control::Allowed | Control::None(_) => {}
            }
        }
        for (row, more) in flags.into_values() {
            self.control(rows, &[(row, rows[row].attempt)], Path::Restore, more)?;
        }
        for (guard, list) in guards {
            let begin = Instant::now();
            self.host.stop()?;
            self.host.start(Some(guard))?;
            let (updates, others): (Vec<_>, Vec<_>) = list.into_iter().partition(|(_, a)| a.how == How::Update);
            self.control(rows, &others, Path::Restore, &[])?;
            self.control(rows, &updates, Path::Update, &[])?;
            self.say(&format!(
                "without {guard}: {} attempts in {} s",
                others.len() + updates.len(),
                begin.elapsed().as_secs()
            ));
        }
        Ok(())
    }

    fn control(
        &mut self,
        rows: &mut [Row],
        list: &[(usize, &'static Attempt)],
        path: Path,
        more: &[&str],
    ) -> anyhow::Result<()> {
        if list.is_empty() {
            return Ok(());
        }
        for (row, found) in self.attack(path, list, more)? {
            rows[row].control = Cell::of(found, true);
        }
        Ok(())
    }

    /// Makes sandboxes for the contracts of `list` and attacks from each of them.
    fn attack(&mut self, path: Path, list: &[(usize, &'static Attempt)], more: &[&str]) -> anyhow::Result<Results> {
        let contracts: Vec<Contract> =
            Contract::ALL.into_iter().filter(|contract| list.iter().any(|(_, a)| a.contract == *contract)).collect();
        if contracts.is_empty() {
            return Ok(Vec::new());
        }
        let neighbour = self.host.create(&[&["--require-snapshot"], Contract::Open.flags()].concat())?;
        let ids = self.make(path, &contracts, more)?;
        if path == Path::Restart {
            self.host.kill()?;
            self.host.start(self.plant.as_deref())?;
        }
        for id in ids.iter().chain([&neighbour]) {
            self.host.until_running(id)?;
        }
        let address = Self::outer(&neighbour, &self.host.namespace(&neighbour)?)?;
        let _ear = wire::listen(self.host.namespace(&neighbour)?, Frames::All, "neighbour", self.record().clone())?;
        let mut results = Vec::new();
        for (contract, id) in contracts.iter().zip(&ids) {
            let target = self.target(id, &address)?;
            let of: Vec<_> = list.iter().filter(|(_, a)| a.contract == *contract).copied().collect();
            results.extend(self.attack_from(&target, path, *contract, &of, more)?);
        }
        for id in ids.iter().chain([&neighbour]) {
            self.host.ok(&["rm", id])?;
        }
        Ok(results)
    }

    /// Sandboxes on their path; those of [`Path::Update`] have the wide contract still.
    fn make(&self, path: Path, contracts: &[Contract], more: &[&str]) -> anyhow::Result<Vec<String>> {
        let start = if path == Path::Cold { "--no-snapshot" } else { "--require-snapshot" };
        let mut ids = Vec::new();
        for contract in contracts {
            let flags = if path == Path::Update { WIDE } else { contract.flags() };
            // They start side by side; the server has slots for as many as it can.
            ids.push(self.host.ok(&[&["create", super::host::TEMPLATE, start], flags, more].concat())?);
        }
        for id in &ids {
            self.host.until_running(id)?;
            if path == Path::Resume {
                self.host.ok(&["pause", id])?;
                self.host.ok(&["resume", id])?;
            }
        }
        Ok(ids)
    }

    /// The address that a sandbox has on the node's side.
    fn outer(id: &str, namespace: &File) -> anyhow::Result<String> {
        let text = in_namespace(namespace, "ip -o -4 address show dev eth0")?;
        let address = text.split_whitespace().skip_while(|word| *word != "inet").nth(1);
        let address = address.and_then(|address| address.split('/').next());
        address.map(str::to_owned).with_context(|| format!("the network of {id} has no address outside: {text:?}"))
    }

    fn target(&self, id: &str, neighbour: &str) -> anyhow::Result<Target> {
        let namespace = self.host.namespace(id)?;
        let outer = Self::outer(id, &namespace)?;
        let parsed: std::net::Ipv4Addr = outer.parse()?;
        // The two ends of a link of two addresses differ in their last bit.
        let link = std::net::Ipv4Addr::from_bits(parsed.to_bits() ^ 1).to_string();
        let mut ears = Vec::new();
        for ethertype in ETHERTYPES {
            let inside = namespace.try_clone()?;
            ears.push(wire::listen(inside, Frames::Of(ethertype), "sandbox's namespace", self.record().clone())?);
        }
        let listen = Listen {
            server: "gateway",
            tcp: servers::each(&[std::net::Ipv4Addr::UNSPECIFIED], &[GATEWAY_SERVICE]),
            udp: servers::each(&[std::net::Ipv4Addr::new(198, 19, 255, 253), parsed], &[GATEWAY_SERVICE]),
            dns: Vec::new(),
        };
        let servers = servers::start(namespace, listen, self.record().clone())?;
        let (id, neighbour) = (id.to_owned(), neighbour.to_owned());
        Ok(Target { id, outer, link, neighbour, _ears: ears, _servers: servers })
    }

    fn attack_from(
        &self,
        target: &Target,
        path: Path,
        contract: Contract,
        list: &[(usize, &'static Attempt)],
        more: &[&str],
    ) -> anyhow::Result<Results> {
        let of = |how: How| list.iter().filter(move |(_, attempt)| attempt.how == how);
        let mut results = Vec::new();
        if path == Path::Update {
            let held: Vec<_> = of(How::Update).map(|entry| self.prepared(target, entry)).collect::<Result<_, _>>()?;
            let (said, since) = std::thread::scope(|scope| {
                let words = all(&held);
                let attack = scope.spawn(move || (!words.is_empty()).then(|| self.host.attack(&target.id, &words)));
                // The connections have to be there, and used.
                std::thread::sleep(Duration::from_millis(if held.is_empty() { 0 } else { 2500 }));
                let updated = self.host.ok(&[&["net", "update", &target.id], contract.flags(), more].concat());
                // Packets that were under way are no later than this.
                let since = Instant::now() + Duration::from_millis(200);
                let said = attack.join().unwrap_or(None);
                updated.map(|_| (said, since))
            })?;
            results.extend(self.judged(held, said.unwrap_or_else(|| Ok(Vec::new())), Some(since)));
        }
        let together: Vec<_> = of(How::Guest).map(|entry| self.prepared(target, entry)).collect::<Result<_, _>>()?;
        if !together.is_empty() {
            let said = self.host.attack(&target.id, &all(&together));
            results.extend(self.judged(together, said, None));
        }
        for entry in of(How::Alone) {
            let sent = vec![self.prepared(target, entry)?];
            let said = self.host.attack(&target.id, &all(&sent));
            results.extend(self.judged(sent, said, None));
        }
        for entry in of(How::Inbound) {
            let sent = vec![self.prepared(target, entry)?];
            let said = self.knock(target, &sent[0]);
            results.extend(self.judged(sent, said, None));
        }
        Ok(results)
    }

    fn prepared(&self, target: &Target, (row, attempt): &(usize, &'static Attempt)) -> anyhow::Result<Sent> {
        let token = self.record().announce()?;
        let word = |word: &str| match word {
            "OUTER" => target.outer.clone(),
            "LINK" => target.link.clone(),
            "NEIGHBOUR" => target.neighbour.clone(),
            other => other.replace("TOKEN", token.text()),
        };
        Ok(Sent { row: *row, attempt, token, words: attempt.words.split(' ').map(word).collect() })
    }

    /// Comes to the guest from the node, over a route that only the suite's node has.
    fn knock(&self, target: &Target, sent: &Sent) -> anyhow::Result<Vec<Said>> {
        let port: u16 = sent.words.get(2).and_then(|word| word.parse().ok()).context("no port to come in by")?;
        self.world.node.run(&format!("ip route replace {GUEST}/32 via {}", target.outer))?;
        let (node, token) = (self.world.node.file()?, sent.token);
        std::thread::scope(|scope| {
            let knocking = scope.spawn(move || -> std::io::Result<()> {
                space::enter(&node)?;
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                for _ in 0..40 {
                    // A refusal of an earlier one may come back here.
                    let _ = socket.send_to(token.text().as_bytes(), (GUEST, port));
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            });
            let said = self.host.attack(&target.id, &sent.words);
            knocking.join().unwrap_or_else(|_| Err(std::io::Error::other("the knocking thread ended")))?;
            self.world.node.run(&format!("ip route del {GUEST}/32"))?;
            said
        })
    }

    fn judged(&self, sent: Vec<Sent>, said: anyhow::Result<Vec<Said>>, since: Option<Instant>) -> Results {
        std::thread::sleep(Duration::from_millis(50));
        let judged = sent.into_iter().map(|sent| {
            let heard = self.record().of(sent.token);
            let found = match &said {
                Ok(said) => {
                    let own = said.iter().find(|said| said.token == sent.token.text());
                    judge(sent.attempt, own, &heard, since)
                }
                Err(why) => {
                    let why = format!("{why:#}");
                    // The end of the server's log is for whoever looks into it.
                    self.say(&why);
                    Err(why.lines().next().unwrap_or_default().to_owned())
                }
            };
            (sent.row, found)
        });
        judged.collect()
    }
}

/// The words of several attempts as one call.
fn all(sent: &[Sent]) -> Vec<String> {
    let mut words = Vec::new();
    for (i, one) in sent.iter().enumerate() {
        words.push(if i == 0 { "all" } else { "--" }.to_owned());
        words.extend(one.words.iter().cloned());
    }
    words
}

/// Runs a program in a namespace that has no helper of the suite's.
fn in_namespace(namespace: &File, line: &str) -> anyhow::Result<String> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let mut command = std::process::Command::new("nsenter");
    let output = command.arg(format!("--net={path}")).arg("--").args(line.split(' ')).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
