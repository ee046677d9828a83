//! What updates of contracts cut off, until the node has forgotten it too: nobody can end it any more.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tartarus_types::Contract;
use tartarus_types::net::{Judgement, Protocol};
use tokio::sync::Notify;

/// The far side of a connection: its address, and its port where the protocol has ports.
pub(crate) type Far = (Ipv4Addr, Option<(Protocol, u16)>);

/// What a sandbox may have connections to. More than its rules let through, never less: these know the node's own addresses too.
#[derive(Debug)]
pub(crate) struct Allowed {
    pub(crate) contract: Contract,
    pub(crate) pins: HashSet<Ipv4Addr>,
}

impl Allowed {
    pub(crate) fn lets(&self, (to, port): Far) -> bool {
        self.contract.judge(to, port, self.pins.contains(&to)) == Judgement::Allowed
    }
}

/// By the address that a sandbox has outside of its namespace; no more of them than there are addresses.
pub(crate) type Due = HashMap<Ipv4Addr, Arc<Allowed>>;

/// What the node is to look through its connections for.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    due: Mutex<Due>,
    wanted: Notify,
}

impl Cuts {
    /// Another contract is in force. None where it is the first one: what was to be done for an earlier sandbox is not its business.
    pub(crate) fn set(&self, outer: Ipv4Addr, allowed: Option<Allowed>) {
        let Some(allowed) = allowed else {
            self.locked().remove(&outer);
            return;
        };
        self.locked().insert(outer, Arc::new(allowed));
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
        self.locked().retain(|outer, allowed| !done.get(outer).is_some_and(|before| Arc::ptr_eq(before, allowed)));
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

    fn web() -> Allowed {
        let contract = Contract {
            mode: NetMode::Allow,
            cidrs: vec!["192.0.2.0/24".parse().unwrap()],
            ports: vec!["443".parse().unwrap()],
            ..Contract::default()
        };
        Allowed { contract, pins: [Ipv4Addr::new(198, 51, 100, 7)].into() }
    }

    #[test]
    fn what_is_listed_or_pinned_stays() {
        let (listed, pinned, other) = ([192, 0, 2, 1].into(), [198, 51, 100, 7].into(), [203, 0, 113, 1].into());
        let lets = |to, port| web().lets((to, port));
        assert!(lets(listed, Some((Protocol::Tcp, 443))) && lets(pinned, Some((Protocol::Tcp, 443))));
        assert!(!lets(listed, Some((Protocol::Udp, 443))) && !lets(listed, Some((Protocol::Tcp, 80))));
        assert!(!lets(other, Some((Protocol::Tcp, 443))) && !lets(listed, None));
    }

    #[test]
    fn what_came_while_it_was_done_is_still_due() {
        let cuts = Cuts::default();
        cuts.set(OUTER, Some(web()));
        let first = cuts.due();
        cuts.set(OUTER, Some(web()));
        cuts.done(&first);
        assert_eq!(cuts.due().len(), 1);
        cuts.done(&cuts.due());
        assert!(cuts.due().is_empty());
        cuts.set(OUTER, Some(web()));
        cuts.set(OUTER, None);
        assert!(cuts.due().is_empty(), "another sandbox has the address");
    }
}
