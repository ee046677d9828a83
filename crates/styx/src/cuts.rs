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
    pub(crate) pins: HashSet<Ipv4Addr>,
}

impl Cut {
    /// Whether a connection with this mark in the sandbox's namespace is cut off: an earlier contract let it through, and this one
    /// does not. What has this one's mark goes on, whatever else is known here.
    pub(crate) fn cuts(&self, mark: u32, (to, port): Far) -> bool {
        let earlier = rules::generation_of(mark).is_some_and(|generation| generation < self.generation);
        earlier && self.contract.judge(to, port, self.pins.contains(&to)) != Judgement::Allowed
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
        self.locked().insert(outer, Arc::new(cut));
        self.want();
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
        self.locked().clone()
    }

    /// These were done; what came since was not.
    pub(crate) fn done(&self, done: &Due) {
        self.locked().retain(|outer, cut| !done.get(outer).is_some_and(|before| Arc::ptr_eq(before, cut)));
    }

    fn locked(&self) -> MutexGuard<'_, Due> {
        // Each change is one call.
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        Cut { namespace: Weak::new(), generation: 3, contract, pins: [Ipv4Addr::new(198, 51, 100, 7)].into() }
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
    fn what_came_while_it_was_done_is_still_due() {
        let cuts = Cuts::default();
        cuts.set(OUTER, web());
        let first = cuts.due();
        cuts.set(OUTER, web());
        cuts.done(&first);
        assert_eq!(cuts.due().len(), 1);
        cuts.done(&cuts.due());
        assert!(cuts.due().is_empty());
    }
}
