//! What updates of contracts cut off, until the node has forgotten it too: nobody can end it any more.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tartarus_types::Contract;
use tartarus_types::net::{Judgement, Protocol};
use tokio::sync::Notify;

use crate::rules;

/// The far side of a connection: its address, and its port where the protocol has ports.
pub(crate) type Far = (Ipv4Addr, Option<(Protocol, u16)>);

/// An update that is in force.
#[derive(Debug)]
pub(crate) struct Cut {
    /// Of the sandbox, as long as it is there.
    pub(crate) namespace: Weak<OwnedFd>,
    pub(crate) generation: u32,
    pub(crate) contract: Contract,
    /// Also of later: whoever asks for a name again goes on.
    pub(crate) pins: Mutex<HashSet<Ipv4Addr>>,
}

impl Cut {
    /// Whether a connection with this mark in the sandbox's namespace is cut off: an earlier contract let it through, and this one
    /// does not. What has this one's mark goes on, whatever else is known here.
    pub(crate) fn cuts(&self, mark: u32, far: Far) -> bool {
        let own = rules::generation_of(rules::mark_of(self.generation));
        rules::generation_of(mark).is_some_and(|generation| Some(generation) < own) && self.forbids(far)
    }

    /// Whether this contract would not let it through.
    pub(crate) fn forbids(&self, (to, port): Far) -> bool {
        self.contract.judge(to, port, locked(&self.pins).contains(&to)) != Judgement::Allowed
    }
}

/// By the address that a sandbox has outside of its namespace; no more of them than there are addresses.
pub(crate) type Due = HashMap<Ipv4Addr, Arc<Cut>>;

/// What the node is to look through its connections for.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    due: Mutex<Due>,
    wanted: Notify,
}

impl Cuts {
    pub(crate) fn set(&self, outer: Ipv4Addr, cut: Cut) {
        locked(&self.due).insert(outer, Arc::new(cut));
        self.want();
    }

    /// These are allowed from now on.
    pub(crate) fn pin(&self, outer: Ipv4Addr, addresses: impl Iterator<Item = Ipv4Addr>) {
        if let Some(cut) = locked(&self.due).get(&outer) {
            locked(&cut.pins).extend(addresses);
        }
    }

    /// There is something to look for.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Waits until there is.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// As it is now.
    pub(crate) fn due(&self) -> Due {
        locked(&self.due).clone()
    }

    /// Whether no update came after this one.
    pub(crate) fn is_newest(&self, outer: Ipv4Addr, cut: &Arc<Cut>) -> bool {
        locked(&self.due).get(&outer).is_some_and(|newest| Arc::ptr_eq(newest, cut))
    }

    /// These were done; what came since was not.
    pub(crate) fn done(&self, done: &Due) {
        locked(&self.due).retain(|outer, cut| !done.get(outer).is_some_and(|before| Arc::ptr_eq(before, cut)));
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tartarus_types::NetMode;

    const OUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

    fn web() -> Cut {
        let contract = Contract {
            mode: NetMode::Allow,
            cidrs: vec!["192.0.2.0/24".parse().unwrap()],
            ports: vec!["443".parse().unwrap()],
            ..Contract::default()
        };
        let pins = Mutex::new([Ipv4Addr::new(198, 51, 100, 7)].into());
        Cut { namespace: Weak::new(), generation: 3, contract, pins }
    }

    #[test]
    fn what_is_listed_or_pinned_or_newer_stays() {
        let (listed, pinned, other) = ([192, 0, 2, 1].into(), [198, 51, 100, 7].into(), [203, 0, 113, 1].into());
        let cuts = |generation, to, port| web().cuts(rules::mark_of(generation), (to, port));
        let (web_port, plain) = (Some((Protocol::Tcp, 443)), Some((Protocol::Tcp, 80)));
        assert!(!cuts(2, listed, web_port) && !cuts(2, pinned, web_port));
        assert!(cuts(2, listed, Some((Protocol::Udp, 443))) && cuts(2, listed, plain) && cuts(1, pinned, plain));
        assert!(cuts(2, other, web_port) && cuts(2, listed, None));
        assert!(!cuts(3, other, web_port), "its own, such as of one that was taken over");
        assert!(!cuts(4, other, web_port), "of one that is in force and not yet said");
        assert!(!web().cuts(0, (other, web_port)), "nobody let it through");
    }

    #[test]
    fn what_is_pinned_before_it_is_done_stays() {
        let (cuts, far) = (Cuts::default(), ([203, 0, 113, 1].into(), Some((Protocol::Tcp, 443))));
        cuts.set(OUTER, web());
        let due = cuts.due();
        assert!(due[&OUTER].forbids(far));
        cuts.pin(OUTER, [far.0].into_iter());
        cuts.pin(Ipv4Addr::LOCALHOST, [far.0].into_iter());
        assert!(!due[&OUTER].forbids(far));
    }

    #[test]
    fn what_came_while_it_was_done_is_still_due() {
        let cuts = Cuts::default();
        cuts.set(OUTER, web());
        let first = cuts.due();
        cuts.set(OUTER, web());
        assert!(!cuts.is_newest(OUTER, &first[&OUTER]) && cuts.is_newest(OUTER, &cuts.due()[&OUTER]));
        cuts.done(&first);
        assert_eq!(cuts.due().len(), 1);
        cuts.done(&cuts.due());
        assert!(cuts.due().is_empty());
    }
}
