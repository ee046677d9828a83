//! Machines whose end is on record and that are not quite gone: nobody who waits for the end waits for them, but their
//! memory is not free before. A new machine waits for those that were dying when it came.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tartarus_runtime::Vm;
use tartarus_types::SandboxId;
use tokio::sync::watch;

use crate::workshop::Hold;

/// A hypervisor that the kernel cannot end, one that waits for a broken disk, keeps others no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);

/// All of a node's.
#[derive(Clone, Default)]
pub(crate) struct Dying(Arc<watch::Sender<BTreeSet<SandboxId>>>);

/// One of them; forgotten when it is dropped.
pub(super) struct Departing {
    all: Dying,
    id: SandboxId,
    vm: Box<dyn Vm>,
    _hold: Hold,
}

impl Dying {
    /// A machine that was killed.
    pub(super) fn add(&self, id: SandboxId, vm: Box<dyn Vm>, hold: Hold) -> Departing {
        self.0.send_modify(|all| _ = all.insert(id.clone()));
        Departing { all: self.clone(), id, vm, _hold: hold }
    }

    /// Returns when those that are dying now are gone.
    pub(super) async fn gone(&self) {
        let mut all = self.0.subscribe();
        let now = all.borrow().clone();
        let gone = tokio::time::timeout(PATIENCE, all.wait_for(|all| all.is_disjoint(&now))).await.is_ok();
        if !gone {
            tracing::warn!(
                machines = now.len(),
                "killed machines are not gone; from now on others are started beside them"
            );
            self.0.send_modify(|all| all.retain(|id| !now.contains(id)));
        }
    }
}

impl Departing {
    /// Returns when it is gone.
    pub(super) async fn gone(self) {
        self.vm.wait().await;
    }
}

impl Drop for Departing {
    fn drop(&mut self) {
        self.all.0.send_modify(|all| _ = all.remove(&self.id));
    }
}
