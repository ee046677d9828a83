//! The node's side: its one table, and whether packets of sandboxes get through it. Touches no setting and no table of others.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::sync::Mutex;

use crate::enter::{enter, on_thread, within};
use crate::events::{Changed, Events, Sockets};
use crate::links::Links;
use crate::rules::{self, Judged};
use crate::space::Place;
use crate::{StyxError, nft, probe, rehearse, tracked};

/// How long connections that sandboxes left wait for those that others leave.
const GATHER: Duration = Duration::from_secs(1);
/// And how often as long as it took to list them the last time: a table of 200 000 takes more than half a second of a processor.
const REST: u32 = 20;
/// Where they could not be removed.
const AGAIN: Duration = Duration::from_secs(60);
/// For namespaces to go that nobody holds any more.
const LEAVING: Duration = Duration::from_secs(2);

/// Something that keeps sandboxes from the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub problem: String,
    /// The one command that changes it, where there is one.
    pub command: Option<String>,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.command {
            Some(command) => write!(f, "{}; run: {command}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

/// What the node's addresses and routes were, but for those of sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Surroundings {
    addresses: Vec<(String, Ipv4Net)>,
    routes: Vec<(Ipv4Net, Option<Ipv4Addr>, String)>,
    sandboxes: usize,
}

/// The node's namespace.
pub(crate) struct Host {
    place: Place,
    events: Events,
    /// What was around when the path was found to work; none before, and after something changed.
    well: Mutex<Option<Surroundings>>,
    /// Held while the path is tried.
    turn: Mutex<()>,
    /// Rules of sandboxes are understood here.
    rehearsed: Arc<AtomicBool>,
}

impl Host {
    pub(crate) async fn new(place: Place) -> Result<Self, StyxError> {
        let sockets = within(place.node.clone(), Sockets::here).await?;
        let host = Self {
            place,
            events: Events::new(sockets)?,
            well: Mutex::default(),
            turn: Mutex::default(),
            rehearsed: Arc::default(),
        };
        // What went while nobody was looking, before its addresses are somebody else's.
        host.forget().await;
        Ok(host)
    }

    /// Sees that the table is in force and that the path works; at once where both were seen and nothing changed since.
    pub(crate) async fn ready(&self) -> Result<(), StyxError> {
        let mut well = self.well.lock().await;
        if well.is_some() {
            return Ok(());
        }
        self.enforce().await?;
        let (found, around) = self.path().await?;
        if found.is_empty() {
            *well = Some(around);
            return Ok(());
        }
        Err(StyxError::NotReady(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(". ")))
    }

    /// What keeps sandboxes from the network; looks anew. The table is put in force for it.
    pub(crate) async fn findings(&self) -> Vec<Finding> {
        let looked = async {
            self.enforce().await?;
            // Somebody may have another nft by now.
            self.rehearsed.store(false, Ordering::Relaxed);
            self.path().await
        };
        match looked.await {
            Ok((found, _)) => found,
            Err(error) => vec![Finding { problem: error.to_string(), command: None }],
        }
    }

    /// Forgets that the path worked.
    pub(crate) async fn doubt(&self) {
        *self.well.lock().await = None;
    }

    /// Waits for changes, mends the table, and tries the path again after changes that concern it. Ends with an error only.
    pub(crate) async fn watch(&self) -> StyxError {
        loop {
            let Changed { rules, link_gone } = match self.events.changed().await {
                Ok(changed) => changed,
                Err(error) => {
                    // And was not heard.
                    self.place.cuts.want();
                    return error;
                }
            };
            if link_gone {
                self.place.cuts.want();
            }
            if !rules {
                self.look_around().await;
                continue;
            }
            match self.enforce().await {
                Ok(false) => {}
                Ok(true) => tracing::warn!("the node's table ip tartarus was changed by somebody else, and put back"),
                Err(error) => {
                    tracing::error!(%error, "the node's table ip tartarus could not be put back; tried with the next sandbox");
                    *self.well.lock().await = None;
                    continue;
                }
            }
            // Rules of others may be in the way now; whoever wants a network shall not have to wait to hear of it. That the
            // way was free is nothing to remember: something may have changed since.
            let tried = self.path().await;
            let mut well = self.well.lock().await;
            match tried {
                Ok((found, around)) if found.is_empty() => {
                    if let Some(before) = &mut *well {
                        *before = around;
                    }
                }
                Ok((found, _)) => {
                    tracing::warn!(found = %found[0], "sandboxes get no network until this is changed");
                    *well = None;
                }
                Err(error) => {
                    tracing::warn!(%error, "the way through the node could not be tried");
                    *well = None;
                }
            }
        }
    }

    /// Has the node forget connections of sandboxes that are gone or were put under another contract, whenever some were. Does not
    /// end.
    pub(crate) async fn sweep(&self) {
        let mut gather = GATHER;
        loop {
            self.place.cuts.wanted().await;
            tokio::time::sleep(gather).await;
            gather = self.forget().await;
        }
    }

    /// Has the node forget connections that sandboxes left; says how long to leave it at that.
    async fn forget(&self) -> Duration {
        let Place { node, range, cuts, .. } = self.place.clone();
        let forgotten = within(self.place.node.clone(), move || {
            let begin = Instant::now();
            // Where others have addresses in the range too it may be theirs.
            let whole = Surroundings::here(range)?.conflicts(range).is_empty();
            Ok((tracked::forget(&node, range, whole, &cuts)?, begin.elapsed()))
        });
        match forgotten.await {
            Ok((connections, took)) => {
                tracing::debug!(connections, ?took, "connections that sandboxes left were removed");
                GATHER.max(took * REST)
            }
            Err(error) => {
                tracing::warn!(%error, "connections that sandboxes left stay; tried again in a minute");
                self.place.cuts.want();
                AGAIN
            }
        }
    }

    /// After links, addresses or routes changed: the path is tried again with the next sandbox where that concerns it.
    async fn look_around(&self) {
        let (range, node) = (self.place.range, self.place.node.clone());
        let around = within(node, move || Surroundings::here(range)).await.unwrap_or_default();
        let mut well = self.well.lock().await;
        if well.as_ref().is_some_and(|before| !before.same_way(&around)) {
            *well = None;
        }
    }

    /// Puts the table in force; true where it was not.
    pub(crate) async fn enforce(&self) -> Result<bool, StyxError> {
        let Place { range, connections: most, without, .. } = self.place;
        within(self.place.node.clone(), move || {
            let list = || nft::run("list rules", &["-s", "-p", "list", "table", "ip", "tartarus"], "");
            let sandboxes = Surroundings::here(range)?.sandboxes > 0;
            let same = |table: &str, listed: &str| {
                nft::difference(table, listed).map_or(Ok(()), |line| Err(StyxError::Differs(line)))
            };
            // What sandboxes began while nobody judged it is not trusted.
            let (judged, fine) = match sandboxes {
                true => (Judged::Packets, &[Judged::Connections, Judged::Packets][..]),
                false => (Judged::Connections, &[Judged::Connections][..]),
            };
            let table = |judged, connections| rules::node(judged, range, connections, without);
            if let Ok(listed) = list() {
                // Of a server that lets more be, or fewer.
                let made_for = rules::connections_in(&listed).unwrap_or(most);
                let found = fine.iter().find(|judged| same(&table(**judged, made_for), &listed).is_ok());
                if let Some(judged) = found {
                    if made_for < most {
                        nft::run("apply rules", &["-f", "-"], &rules::node_more(most, without))?;
                        same(&table(*judged, most), &list()?)?;
                    }
                    return Ok(false);
                }
            }
            let table = table(judged, most);
            nft::run("apply rules", &["-f", "-"], &rules::node_batch(&table))?;
            same(&table, &list()?)?;
            Ok(true)
        })
        .await
    }

    async fn path(&self) -> Result<(Vec<Finding>, Surroundings), StyxError> {
        // One at a time: they use the same links.
        let _turn = self.turn.lock().await;
        let (place, rehearsed) = (self.place.clone(), self.rehearsed.clone());
        on_thread(move || {
            let Place { node, range, .. } = &place;
            enter(node)?;
            let around = Surroundings::here(*range)?;
            let mut found: Vec<Finding> = around.conflicts(*range).into_iter().chain(forwarding()).collect();
            if found.is_empty() && !probe::probe(node, *range)? {
                enter(node)?;
                found.push(dropped(*range));
            }
            if !rehearsed.load(Ordering::Relaxed) {
                // Twice: a machine that is short of something for a moment is no reason to give up.
                match rehearse::rehearse(&place).or_else(|_| rehearse::rehearse(&place)) {
                    Ok(()) => rehearsed.store(true, Ordering::Relaxed),
                    Err(error @ (StyxError::Nft { .. } | StyxError::Differs(_))) => {
                        found.push(Finding { problem: rehearse::failed(&error), command: None });
                    }
                    Err(error) if found.is_empty() => return Err(error),
                    Err(error) => found.push(Finding { problem: error.to_string(), command: None }),
                }
            }
            Ok((found, around))
        })
        .await
    }

    /// Removes the table where no sandbox is left, and connections of those that are gone. One whose holder was killed just now
    /// takes the kernel a moment; what is there longer is another server's.
    pub(crate) async fn close(&self) -> Result<(), StyxError> {
        let end = tokio::time::Instant::now() + LEAVING;
        while !self.remove().await? {
            match tokio::time::timeout_at(end, self.events.changed()).await {
                Ok(changed) => drop(changed?),
                Err(_) => break,
            }
        }
        self.forget().await;
        Ok(())
    }

    /// Whether there is no table any more.
    async fn remove(&self) -> Result<bool, StyxError> {
        let range = self.place.range;
        within(self.place.node.clone(), move || {
            if nft::run("list rules", &["list", "table", "ip", "tartarus"], "").is_err() {
                return Ok(true);
            }
            if Surroundings::here(range)?.sandboxes > 0 {
                return Ok(false);
            }
            nft::run("remove rules", &["-f", "-"], "add table ip tartarus\ndelete table ip tartarus\n")?;
            Ok(true)
        })
        .await
    }
}

impl Surroundings {
    /// Of the namespace of the calling thread.
    fn here(range: Ipv4Net) -> Result<Self, StyxError> {
        let asked = Links::here()?;
        let links = asked.list()?;
        let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        let ours = |name: &str| name.starts_with("tt") || name == "tp0";
        let addresses = asked.addresses()?.into_iter().filter_map(|(index, net)| Some((name(index)?, net)));
        let routes = asked.routes()?;
        let routes = routes.into_iter().map(|route| (route.to, route.via, name(route.link).unwrap_or_default()));
        let mut found = Self {
            addresses: addresses.filter(|(name, _)| !ours(name)).collect(),
            routes: routes.filter(|(to, _, name)| !(ours(name) || name.is_empty() && range.contains(to))).collect(),
            sandboxes: links.iter().filter(|link| is_sandbox(&link.name)).count(),
        };
        found.addresses.sort();
        found.routes.sort();
        Ok(found)
    }

    fn same_way(&self, other: &Self) -> bool {
        (&self.addresses, &self.routes) == (&other.addresses, &other.routes)
    }

    /// What overlaps with the range.
    fn conflicts(&self, range: Ipv4Net) -> Vec<Finding> {
        let overlaps = |net: &Ipv4Net| net.contains(&range) || range.contains(net);
        let found = |what: String| Finding {
            problem: format!("the range of sandboxes {range} overlaps with {what}: configure another one"),
            command: None,
        };
        let addresses = self.addresses.iter().filter(|(_, net)| range.contains(&net.addr()));
        let addresses = addresses.map(|(name, net)| found(format!("the address {} of {name}", net.addr())));
        let routes = self.routes.iter().filter(|(to, ..)| to.prefix_len() > 0 && overlaps(to));
        addresses.chain(routes.map(|(to, _, name)| found(format!("the route to {to} by {name}")))).collect()
    }
}

/// Whether a link of the node is one end of a sandbox's.
fn is_sandbox(name: &str) -> bool {
    name.strip_prefix("tt").is_some_and(|index| !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether the namespace of the calling thread passes packets on.
fn forwarding() -> Option<Finding> {
    let off =
        |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).is_ok_and(|text| text.trim() == "0");
    let setting = ["ip_forward", "conf/default/forwarding"].into_iter().find(|name| off(name))?;
    let name = format!("net.ipv4.{}", setting.replace('/', "."));
    Some(Finding {
        problem: format!("the node passes no packets on ({name} is 0)"),
        command: Some(format!("sysctl -w {name}=1")),
    })
}

/// Packets get lost on their way; mostly Docker's policy, which is to drop.
fn dropped(range: Ipv4Net) -> Finding {
    let nft = nft::run("list rules", &["list", "chain", "ip", "filter", "FORWARD"], "").is_ok();
    let command = match nft {
        true => format!("nft insert rule ip filter FORWARD ct original ip saddr {range} accept"),
        false => format!("iptables -I FORWARD -m conntrack --ctorigsrc {range} -j ACCEPT"),
    };
    Finding {
        problem: "packets of sandboxes do not get through the node: a rule of somebody else drops what is forwarded"
            .to_owned(),
        command: Some(command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_is_found() {
        let range = "198.18.0.0/16".parse().unwrap();
        let around = Surroundings {
            addresses: vec![
                ("eth0".to_owned(), "192.0.2.1/24".parse().unwrap()),
                ("utun".to_owned(), "198.18.0.1/16".parse().unwrap()),
            ],
            routes: vec![
                ("0.0.0.0/0".parse().unwrap(), None, "eth0".to_owned()),
                ("198.18.7.0/24".parse().unwrap(), None, "wg0".to_owned()),
                ("198.0.0.0/8".parse().unwrap(), None, "wg1".to_owned()),
            ],
            sandboxes: 0,
        };
        let found: Vec<String> = around.conflicts(range).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("198.18.0.1 of utun") && found[1].contains("wg0") && found[2].contains("wg1"));
    }

    #[test]
    fn only_numbered_links_are_sandboxes() {
        assert!(is_sandbox("tt0") && is_sandbox("tt32765"));
        assert!(!is_sandbox("tt") && !is_sandbox("ttprobe") && !is_sandbox("tty0") && !is_sandbox("eth0"));
    }
}
