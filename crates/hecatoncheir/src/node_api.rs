//! The node as the control plane sees it: requests find their sandbox's task, logs are read from disk.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tartarus_api::doctor::DoctorReport;
use tartarus_api::node::{
    ByteStream, ExecSpec, ImageMade, KernelMade, Live, Node, NodeUsage, OutputRequest, OutputStream, SnapshotInfo,
    Target,
};
use tartarus_types::net::{NetStatus, NetTotals};
use tartarus_types::{Contract, ErrorCode, ExecId, Outcome, Refusal, SandboxId};
use tokio::sync::oneshot;

use crate::agent::Agent;
use crate::output::follow;
use crate::sandbox::{Request, log_dir, stored_exec};
use crate::store::HostStore;

/// A node: its agent, and the files of its host.
pub struct LocalNode {
    /// Runs sandboxes.
    pub agent: Arc<Agent>,
    /// Images, kernels, drivers.
    pub store: Arc<HostStore>,
}

impl LocalNode {
    /// It runs, and no task of this agent has it now: the agent starts or stops. Whoever asks should ask again.
    fn between_agents(&self, sandbox: &SandboxId) -> bool {
        let home = self.agent.ctx.ledger.home(sandbox);
        home.dir().exists() && matches!(home.outcome(), Ok(None))
    }

    fn stored(&self, sandbox: &SandboxId, exec: &ExecId) -> Result<(ExecSpec, Option<Outcome>), Refusal> {
        stored_exec(&self.agent.ctx.logs, sandbox, exec)
            .map_err(Refusal::internal)?
            .ok_or_else(|| Refusal::not_found("exec", exec.as_str()))
    }
}

fn ask_again() -> Refusal {
    Refusal::new(ErrorCode::NodeUnreachable, "the node agent is starting or stopping; ask again")
}

#[async_trait]
impl Node for LocalNode {
    fn kick(&self) {
        self.agent.wake();
    }

    async fn exec(&self, sandbox: &SandboxId, spec: ExecSpec) -> Result<(), Refusal> {
        self.agent.ask(sandbox, |reply| Request::Exec { spec, reply }).await
    }

    async fn exec_status(
        &self,
        sandbox: &SandboxId,
        exec: &ExecId,
        wait: Duration,
    ) -> Result<(ExecSpec, Option<Outcome>), Refusal> {
        let asked = self.agent.ask(sandbox, |reply| Request::ExecStatus { id: exec.clone(), reply }).await;
        let Ok((spec, mut outcome)) = asked else {
            // It has ended, or its sandbox has.
            return match self.stored(sandbox, exec)? {
                (_, None) if self.between_agents(sandbox) => Err(ask_again()),
                (spec, None) if self.agent.handle(sandbox).is_none() => {
                    let lost = Outcome::because(tartarus_types::Reason::NodeLost, "its sandbox ended without a word");
                    Ok((spec, Some(lost)))
                }
                stored => Ok(stored),
            };
        };
        match tokio::time::timeout(wait, outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => Ok((spec, outcome.clone())),
            // The task is gone: what it wrote last is the answer.
            Ok(Err(_)) => self.stored(sandbox, exec),
            Err(_) => Ok((spec, None)),
        }
    }

    async fn signal(&self, sandbox: &SandboxId, target: &Target, signal: i32) -> Result<(), Refusal> {
        self.agent.ask(sandbox, |reply| Request::Signal { target: target.clone(), signal, reply }).await
    }

    async fn stdin(
        &self,
        sandbox: &SandboxId,
        target: &Target,
        offset: u64,
        bytes: Bytes,
        eof: bool,
    ) -> Result<u64, Refusal> {
        self.agent.ask(sandbox, |reply| Request::Stdin { target: target.clone(), offset, bytes, eof, reply }).await
    }

    async fn output(
        &self,
        sandbox: &SandboxId,
        target: &Target,
        request: OutputRequest,
    ) -> Result<OutputStream, Refusal> {
        let dir = log_dir(&self.agent.ctx.logs, sandbox, target);
        let (reply, answer) = oneshot::channel();
        if let Some(handle) = self.agent.handle(sandbox) {
            // A task that has just ended drops the request, and with it the reply.
            let _ = handle.requests.send(Request::Log { target: target.clone(), reply }).await;
        } else {
            drop(reply);
        }
        let live = match answer.await {
            Ok(live) => live,
            Err(_) if self.between_agents(sandbox) => return Err(ask_again()),
            Err(_) => None,
        };
        Ok(follow(dir, live, request))
    }

    async fn live(&self, sandbox: &SandboxId) -> Option<Live> {
        self.agent.handle(sandbox).map(|handle| handle.live.borrow().clone())
    }

    async fn pause(&self, sandbox: &SandboxId) -> Result<(), Refusal> {
        self.agent.pause(sandbox).await
    }

    async fn resume(&self, sandbox: &SandboxId) -> Result<(), Refusal> {
        self.agent.resume(sandbox).await
    }

    async fn net(&self, sandbox: &SandboxId) -> Result<NetStatus, Refusal> {
        self.agent.net(sandbox).await
    }

    async fn set_net(&self, sandbox: &SandboxId, contract: Contract) -> Result<NetStatus, Refusal> {
        self.agent.set_net(sandbox, contract).await
    }

    async fn net_totals(&self) -> Result<NetTotals, Refusal> {
        Ok(self.agent.ctx.networks.totals().await)
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, Refusal> {
        self.store.snapshots().await
    }

    async fn remove_snapshot(&self, golden: &str) -> Result<(), Refusal> {
        self.store.remove_snapshot(golden).await
    }

    async fn usage(&self) -> Result<NodeUsage, Refusal> {
        self.store.usage(self.agent.ctx.ledger.root(), &self.agent.ctx.logs).await
    }

    async fn forget(&self, sandbox: &SandboxId) -> Result<(), Refusal> {
        if self.agent.handle(sandbox).is_some() {
            return Err(Refusal::new(ErrorCode::Busy, format!("{sandbox} is still being put away")));
        }
        let dir = self.agent.ctx.logs.join(sandbox.as_str());
        match tokio::fs::remove_dir_all(&dir).await {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Refusal::internal(format!("removing the logs of {sandbox}: {e}")))
            }
            _ => Ok(()),
        }
    }

    async fn import_image(&self, tar: ByteStream) -> Result<ImageMade, Refusal> {
        self.store.import_image(tar).await
    }

    async fn remove_image(&self, digest: &str) -> Result<(), Refusal> {
        self.store.remove_image(digest).await
    }

    async fn import_kernel(&self, tar: ByteStream) -> Result<KernelMade, Refusal> {
        self.store.import_kernel(tar).await
    }

    async fn remove_kernel(&self, digest: &str) -> Result<(), Refusal> {
        self.store.remove_kernel(digest).await
    }

    async fn doctor(&self, kernel: Option<&str>, reprobe: bool) -> Result<DoctorReport, Refusal> {
        let mut report = self.store.doctor(kernel, reprobe).await?;
        report.checks.extend(self.agent.ctx.networks.checks().await);
        Ok(report)
    }
}
