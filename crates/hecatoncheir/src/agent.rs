//! The node agent: leases work, keeps its leases alive, does what it is told, and takes over what an earlier agent ran.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tartarus_api::node::{Action, Assignment, ControlPlane, Directive, NodeInfo};
use tartarus_types::net::NetStatus;
use tartarus_types::{Contract, ErrorCode, LeaseToken, Refusal, SandboxId, Timestamp};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ledger::{Ledger, make_dir};
use crate::net::Networks;
use crate::output::LogLimits;
use crate::sandbox::{self, Context, Dying, Handle, KillReason, Request};
use crate::workshop::Workshop;

/// Leases are renewed this often; the control plane gives them several times as long.
const SYNC: Duration = Duration::from_secs(5);
/// A lease request waits this long for work.
const LEASE_WAIT: Duration = Duration::from_secs(30);
/// Commands' time to end after SIGTERM when the server stops, ms.
const STOP_GRACE_MS: u64 = 5_000;

/// How a node stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Sandboxes are ended first.
    EndSandboxes,
    /// Machines go on; the next agent takes them over.
    LeaveRunning,
}

/// What a node is made of.
pub struct Parts {
    /// What it says of itself.
    pub info: NodeInfo,
    /// The control plane.
    pub control: Arc<dyn ControlPlane>,
    /// Where machines come from.
    pub workshop: Arc<dyn Workshop>,
    /// Where networks come from.
    pub networks: Arc<Networks>,
    /// A folder for each sandbox that runs here.
    pub sandboxes: PathBuf,
    /// A folder for each sandbox's logs.
    pub logs: PathBuf,
    /// How much of the output is stored.
    pub limits: LogLimits,
    /// The time.
    pub clock: fn() -> Timestamp,
}

/// A node's agent.
pub struct Agent {
    pub(crate) ctx: Context,
    info: NodeInfo,
    handles: Mutex<HashMap<SandboxId, Handle>>,
    kick: Notify,
    registered: watch::Sender<bool>,
    tasks: TaskTracker,
}

impl Agent {
    /// Opens the node's folders, and takes over what an earlier agent was running. Within a tokio runtime.
    ///
    /// # Errors
    /// When they cannot be made or read.
    pub fn open(parts: Parts) -> std::io::Result<Arc<Self>> {
        let Parts { info, control, workshop, networks, sandboxes, logs, limits, clock } = parts;
        make_dir(&logs)?;
        let ctx = Context {
            control,
            workshop,
            networks,
            ledger: Ledger::open(sandboxes)?,
            logs,
            limits,
            dying: Dying::default(),
            clock,
        };
        let agent = Arc::new(Self {
            ctx,
            info,
            handles: Mutex::default(),
            kick: Notify::new(),
            registered: watch::Sender::new(false),
            tasks: TaskTracker::new(),
        });
        // Before anybody can ask for a sandbox: one that runs must never look as if it did not.
        agent.adopt()?;
        Ok(agent)
    }

    fn handles(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task of a sandbox that this node runs.
    pub(crate) fn handle(&self, id: &SandboxId) -> Option<Handle> {
        self.handles().get(id).cloned()
    }

    /// Asks the task of a sandbox, and waits for its answer.
    pub(crate) async fn ask<T>(
        &self,
        sandbox: &SandboxId,
        request: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Request,
    ) -> Result<T, Refusal> {
        let not_here = || Refusal::new(ErrorCode::WrongState, "the sandbox does not run");
        let handle = self.handle(sandbox).ok_or_else(not_here)?;
        let (reply, answer) = oneshot::channel();
        handle.requests.send(request(reply)).await.map_err(|_| not_here())?;
        answer.await.map_err(|_| not_here())?
    }

    /// Stops a sandbox's machine; see `api::node::Node::pause`.
    ///
    /// # Errors
    /// When it does not run, is being ended, or cannot be stopped.
    pub async fn pause(&self, sandbox: &SandboxId) -> Result<(), Refusal> {
        self.ask(sandbox, |reply| Request::Pause { reply }).await
    }

    /// Lets it go on; see `api::node::Node::resume`.
    ///
    /// # Errors
    /// When it does not run, or cannot go on.
    pub async fn resume(&self, sandbox: &SandboxId) -> Result<(), Refusal> {
        self.ask(sandbox, |reply| Request::Resume { reply }).await
    }

    /// Its network; see `api::node::Node::net`.
    ///
    /// # Errors
    /// When it does not run, or its rules cannot be read.
    pub async fn net(&self, sandbox: &SandboxId) -> Result<NetStatus, Refusal> {
        self.ask(sandbox, |reply| Request::Net { reply }).await
    }

    /// Puts another contract in force; see `api::node::Node::set_net`.
    ///
    /// # Errors
    /// When it does not run, its guest agent is too old, a port cannot be listened at (by its field), or the rules could not
    /// be changed: then the former contract is in force.
    pub async fn set_net(&self, sandbox: &SandboxId, contract: Contract) -> Result<NetStatus, Refusal> {
        let contract = Box::new(contract);
        self.ask(sandbox, |reply| Request::SetNet { contract, reply }).await
    }

    /// There is news; see `api::node::Node::kick`.
    pub fn wake(&self) {
        self.kick.notify_one();
    }

    /// Returns when the control plane knows this node, from when on it may be given work.
    pub async fn registered(&self) {
        // The sender is in `self`, so this cannot fail.
        let _ = self.registered.subscribe().wait_for(|registered| *registered).await;
    }

    /// Works until `shutdown`, then stops as `stop` says.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken, stop: Stop) {
        self.register(&shutdown).await;
        self.registered.send_replace(true);
        self.sweep_logs().await;
        let work = async {
            tokio::join!(self.lease_loop(), self.sync_loop());
        };
        let _ = shutdown.run_until_cancelled(work).await;
        self.wind_down(stop).await;
    }

    /// Takes over what an earlier agent was running.
    fn adopt(self: &Arc<Self>) -> std::io::Result<()> {
        for id in self.ctx.ledger.sandboxes()? {
            let home = self.ctx.ledger.home(&id);
            match home.assignment() {
                Ok(Some(assignment)) => {
                    let (handle, task) = sandbox::adopt(&self.ctx, assignment);
                    self.keep(handle, Box::pin(task));
                }
                // Killed before the assignment was written, so nothing was started; or a power cut, which ended everything.
                Ok(None) => drop(home.remove()),
                Err(e) if home.spoilt(&e) => {
                    tracing::warn!(sandbox = %id, error = %e, "its ledger is spoilt, as a power cut may leave it; removed");
                    drop(home.remove());
                }
                Err(e) => {
                    let dir = home.dir().display().to_string();
                    return Err(std::io::Error::new(
                        e.kind(),
                        format!("the ledger of {id} in {dir} cannot be read: {e}"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn keep(self: &Arc<Self>, handle: Handle, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let (agent, id) = (self.clone(), handle.id.clone());
        self.handles().insert(id.clone(), handle);
        self.tasks.spawn(async move {
            let panicked = AssertUnwindSafe(task).catch_unwind().await.is_err();
            agent.handles().remove(&id);
            if panicked {
                tracing::error!(sandbox = %id, "its task failed on a broken invariant; it is taken over anew");
                tokio::time::sleep(Duration::from_secs(1)).await;
                if let Ok(Some(assignment)) = agent.ctx.ledger.home(&id).assignment() {
                    let (handle, task) = sandbox::adopt(&agent.ctx, assignment);
                    agent.keep(handle, Box::pin(task));
                }
            }
        });
    }

    fn held(&self) -> Vec<(SandboxId, LeaseToken)> {
        self.handles().values().map(|h| (h.id.clone(), h.token.clone())).collect()
    }

    async fn register(&self, shutdown: &CancellationToken) {
        let held = self.held();
        while let Err(e) = self.ctx.control.register(self.info.clone(), &held).await {
            tracing::warn!(error = %e, "the node could not register; trying again");
            if shutdown.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_none() {
                return;
            }
        }
    }

    /// Deletes logs of sandboxes that were removed while no agent was there to hear of it.
    async fn sweep_logs(&self) {
        let entries = std::fs::read_dir(&self.ctx.logs).into_iter().flatten().flatten();
        let kept: Vec<SandboxId> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        let Ok(known) = self.ctx.control.on_record(&kept).await else { return };
        for id in kept.iter().filter(|id| !known.contains(id) && self.handle(id).is_none()) {
            tracing::info!(sandbox = %id, "its record is gone; its logs follow");
            // What cannot be removed now is tried again at the next start.
            let _ = tokio::fs::remove_dir_all(self.ctx.logs.join(id.as_str())).await;
        }
    }

    async fn lease_loop(self: &Arc<Self>) {
        loop {
            match self.ctx.control.lease(&self.info.id, LEASE_WAIT).await {
                Ok(Some(assignment)) => self.take(assignment),
                Ok(None) => {}
                Err(e) => {
                    tracing::warn!(error = %e, "no work could be leased; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn take(self: &Arc<Self>, assignment: Assignment) {
        if self.handle(&assignment.sandbox).is_some() {
            // Its earlier attempt is still being ended here: the lease runs out and comes again.
            tracing::warn!(sandbox = %assignment.sandbox, "leased again while an earlier attempt is still here");
            return;
        }
        tracing::info!(sandbox = %assignment.sandbox, template = %assignment.spec.template, "leased");
        let (handle, task) = sandbox::fresh(&self.ctx, assignment);
        self.keep(handle, Box::pin(task));
    }

    async fn sync_loop(&self) {
        loop {
            match self.ctx.control.sync(&self.info.id, &self.held()).await {
                Ok(directives) => {
                    for directive in directives {
                        self.obey(directive);
                    }
                }
                Err(e) => tracing::warn!(error = %e, "leases could not be renewed; trying again"),
            }
            let _ = tokio::time::timeout(SYNC, self.kick.notified()).await;
        }
    }

    fn obey(&self, directive: Directive) {
        let Some(handle) = self.handle(&directive.sandbox).filter(|h| h.token == directive.token) else { return };
        let request = match directive.action {
            Action::Kill { signal, grace_ms } => Request::Kill { signal, grace_ms, reason: KillReason::Asked },
            Action::Abandon => Request::Abandon,
        };
        // Never waits: a task that is busy hears of it with the next sync, one that has just ended needs no orders.
        let _ = handle.requests.try_send(request);
    }

    async fn wind_down(&self, stop: Stop) {
        let handles: Vec<Handle> = self.handles().values().cloned().collect();
        if !handles.is_empty() {
            tracing::info!(sandboxes = handles.len(), ?stop, "the node stops");
        }
        for handle in handles {
            let request = match stop {
                Stop::EndSandboxes => {
                    Request::Kill { signal: 15, grace_ms: STOP_GRACE_MS, reason: KillReason::Shutdown }
                }
                Stop::LeaveRunning => Request::Leave,
            };
            let _ = handle.requests.send(request).await;
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}
