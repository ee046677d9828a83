//! Bring-up as a chain of typed steps: each holds what was made so far, and each can end what it made that runs. The
//! sandbox's folder is the task's, which removes it when the end is on record.

use std::time::Duration;

use tartarus_api::node::Assignment;
use tartarus_guest::HelloAck;
use tartarus_runtime::{Adopted, Deadlines, Driver, Machine, RuntimeError, Vm, VmExit};
use tokio::sync::mpsc;

use super::Context;
use super::ending;
use crate::ledger::Home;
use crate::link::{self, GuestEvent, GuestLink, LinkError};
use crate::workshop::CannotStart;

/// Events of a guest that wait for the task; more hold the guest back.
const EVENTS: usize = 64;
/// Beyond the start deadline, before the supervisor ends a machine that its agent forgot.
const SUPERVISOR_SLACK_MS: u64 = 10_000;

/// Files are there; nothing runs.
pub(super) struct Prepared {
    machine: Machine,
    pub(super) driver: std::sync::Arc<dyn Driver>,
}

/// The machine runs; its guest may not have booted yet.
pub(super) struct Launched {
    pub(super) vm: Box<dyn Vm>,
}

/// The guest agent has answered.
pub(super) struct Greeted {
    pub(super) vm: Box<dyn Vm>,
    pub(super) link: GuestLink,
    pub(super) events: mpsc::Receiver<GuestEvent>,
    pub(super) ack: HelloAck,
}

impl Prepared {
    pub(super) async fn new(ctx: &Context, assignment: &Assignment) -> Result<Self, CannotStart> {
        let home = ctx.ledger.home(&assignment.sandbox);
        home.create(assignment).map_err(|e| CannotStart::retry(format!("writing the node's ledger: {e}")))?;
        let driver = ctx.workshop.driver(&assignment.spec.kernel).await?;
        let machine = ctx.workshop.machine(&assignment.spec, home.dir()).await?;
        Ok(Self { machine, driver })
    }

    /// Starts the machine. It ends itself when its agent is not heard of by `start_ms`.
    pub(super) async fn launch(self, start_ms: u64) -> Result<Launched, CannotStart> {
        let deadlines = Deadlines { wall_ms: Some(start_ms + SUPERVISOR_SLACK_MS), idle_ms: None, lease_ms: None };
        let vm = self.driver.boot(&self.machine, deadlines).await.map_err(CannotStart::retry)?;
        Ok(Launched { vm })
    }
}

impl Launched {
    /// Waits for the guest's answer, for as long as the caller lets it: dropping this future leaves `self` whole.
    pub(super) async fn greet(
        &self,
        hostname: &str,
    ) -> Result<(GuestLink, mpsc::Receiver<GuestEvent>, HelloAck), CannotStart> {
        let channel = self.vm.channel().await.map_err(CannotStart::retry)?;
        let (tell, events) = mpsc::channel(EVENTS);
        match link::open(channel, hostname.to_owned(), tell).await {
            Ok((link, ack)) => Ok((link, events, ack)),
            Err(LinkError::Io(_)) => {
                // The machine is ending, and its exit says more than a cut connection.
                match tokio::time::timeout(Duration::from_secs(5), self.vm.wait()).await {
                    Ok(exit) => Err(ended(&exit)),
                    Err(_) => Err(CannotStart::retry("the connection to the guest was cut")),
                }
            }
            // A guest that says it cannot be set up, or speaks another protocol, will say so again.
            Err(e) => Err(CannotStart::never(e)),
        }
    }

    pub(super) async fn unwind(self) {
        self.vm.kill().await;
        self.vm.wait().await;
    }
}

/// A machine that ended while it was started, in words.
pub(super) fn ended(exit: &VmExit) -> CannotStart {
    let message = ending::of_machine(exit, true).message.unwrap_or_default();
    CannotStart::retry(format!("it ended while it was started: {message}"))
}

impl Greeted {
    pub(super) async fn unwind(self) {
        drop(self.link);
        self.vm.kill().await;
        self.vm.wait().await;
    }
}

/// Ends whatever an earlier agent left of a machine; used where nothing of it is wanted any more.
pub(super) async fn put_down(ctx: &Context, home: &Home) -> Result<(), RuntimeError> {
    if let Adopted::Running(vm) = ctx.workshop.adopter().adopt(home.dir()).await? {
        vm.kill().await;
        vm.wait().await;
    }
    Ok(())
}
