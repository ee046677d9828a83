//! A running sandbox's network: what it is, and another contract for it.

use std::sync::Arc;

use tartarus_runtime::Vm;
use tartarus_types::net::NetStatus;
use tartarus_types::{Contract, ErrorCode, NetMode, Reason, Refusal, SnapshotUse};

use super::ending::Asked;
use super::forwards::Forwards;
use super::steady::Steady;
use super::task::Task;
use crate::carry::Carriers;
use crate::net::{Kept, Network};

impl Task {
    /// The contract that is, or shall be, in force.
    pub(super) fn kept_net(&self) -> std::io::Result<Kept> {
        Ok(self.home.net()?.unwrap_or_else(|| Kept::first(&self.assignment.spec.net)))
    }

    /// The network of a machine that an earlier agent had started.
    pub(super) async fn network_again(&self, vm: &dyn Vm) -> Result<Option<Network>, String> {
        let kept = self.kept_net().map_err(|e| format!("reading the node's ledger: {e}"))?;
        if kept.contract.mode == NetMode::None {
            return Ok(None);
        }
        match vm.network() {
            Some(namespace) => self.ctx.networks.adopt(namespace, &kept).await.map(Some),
            None => Err("its namespace is gone".to_owned()),
        }
    }

    /// Whatever its machine does: nothing here asks the guest.
    pub(super) async fn net_status(&self, network: Option<&Network>) -> Result<NetStatus, Refusal> {
        // With the ports that were chosen for forwards, which the rules know nothing of.
        let contract = self.kept_net().map_err(Refusal::internal)?.contract;
        let status = match network {
            Some(network) => network.status().await.map_err(Refusal::internal)?,
            None => NetStatus::default(),
        };
        Ok(NetStatus { contract, ..status })
    }

    /// The ports of the node that lead to it. What was open before this agent's time is opened again as far as that can be;
    /// what is asked for the first time is open, or there is a reason for which the sandbox must not run.
    pub(super) async fn forwards(&self, carriers: Arc<Carriers>) -> (Forwards, Option<String>) {
        let mut forwards = Forwards::new(carriers);
        let opened = async {
            let ledger = |e: std::io::Error| format!("the node's ledger: {e}");
            if let Some(known) = self.home.net().map_err(ledger)? {
                forwards.reopen(&known.contract.forwards);
                return Ok(());
            }
            let mut kept = Kept::first(&self.assignment.spec.net);
            let wanted = &mut kept.contract.forwards;
            if wanted.is_empty() {
                return Ok(());
            }
            *wanted = forwards.set(wanted).await.map_err(|refusal| refusal.detail)?;
            // With the ports that were chosen, for whoever takes it over.
            self.home.put_net(&kept).map_err(ledger)
        };
        let failed = opened.await.err();
        (forwards, failed)
    }
}

impl Steady {
    /// On the disk before the rules: a node that dies in between puts it in force when it comes back.
    pub(super) async fn set_net(&mut self, task: &Task, mut contract: Contract) -> Result<NetStatus, Refusal> {
        if self.asked != Asked::default() || self.gone.is_some() {
            return Err(Refusal::new(ErrorCode::WrongState, "the sandbox is being ended"));
        }
        if task.assignment.spec.snapshot == SnapshotUse::Make {
            return Err(Refusal::new(ErrorCode::WrongState, "it makes a golden snapshot, which has no network"));
        }
        let former = task.kept_net().map_err(Refusal::internal)?;
        if (former.contract.mode == NetMode::None) != (contract.mode == NetMode::None) {
            let why = "a running sandbox neither gets a network nor loses it: create it anew with the other --net";
            return Err(Refusal { field: Some("mode".to_owned()), ..Refusal::new(ErrorCode::WrongState, why) });
        }
        contract.forwards = self.forwards.set(&contract.forwards).await?;
        let kept = Kept { contract, generation: former.generation.wrapping_add(1).max(1) };
        let in_force = async |kept: &Kept| {
            task.home.put_net(kept).map_err(|e| format!("the node's ledger: {e}"))?;
            match &self.network {
                Some(network) => network.set(kept).await,
                None => Ok(()),
            }
        };
        if let Err(why) = in_force(&kept).await {
            if task.kept_net().is_ok_and(|still| still == former) {
                // Nothing but ports has changed.
                let _ = self.forwards.set(&former.contract.forwards).await;
                return Err(Refusal::internal(format!(
                    "the contract could not be kept, the former one is in force: {why}"
                )));
            }
            // Under a number of its own: connections may have been marked meanwhile, and the ledger may say the other one.
            let back = Kept { generation: kept.generation.wrapping_add(1).max(1), ..former };
            let again = in_force(&back).await;
            let _ = self.forwards.set(&back.contract.forwards).await;
            let is = match again {
                Ok(()) => "the former one is".to_owned(),
                Err(worse) => {
                    self.fail(Reason::NodeFailed, &format!("its network was lost: {worse}"));
                    "the sandbox ends".to_owned()
                }
            };
            return Err(Refusal::internal(format!("the contract could not be put in force, {is}: {why}")));
        }
        self.used();
        task.net_status(self.network.as_ref()).await
    }
}
