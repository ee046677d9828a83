//! Bring-up as a chain of typed steps: each holds what was made so far, and each can end what it made that runs. The
//! sandbox's folder is the task's, which removes it when the end is on record.

use std::io;
use std::time::Duration;

use tartarus_api::node::{Assignment, StartedFrom};
use tartarus_guest::{HelloAck, SETS_CARD_UP};
use tartarus_runtime::Network as Peer;
use tartarus_runtime::{Adopted, Channel, Deadlines, RuntimeError, Vm, VmExit};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Context;
use super::ending;
use super::warm::warm_up;
use crate::ledger::{Home, RestoredFrom};
use crate::link::{self, GuestEvent, GuestLink, Identity, LinkError};
use crate::net::{Coming, Network};
use crate::workshop::{CannotStart, Hold, Ready, Start};

/// Events of a guest that wait for the task; more hold the guest back.
const EVENTS: usize = 64;
/// Beyond the start deadline, before the supervisor ends a machine that its agent forgot.
const SUPERVISOR_SLACK_MS: u64 = 10_000;

/// A guest that does not answer an agent that takes it over for so long is connected to anew, then after twice as long:
/// a QEMU whose last client went away while it wrote may never write to the next one. It takes the guest's port for full,
/// and nothing but another end of a connection tells it otherwise (7.2, `flush_buf` and `virtio_serial_close`).
const REDIAL: Duration = Duration::from_secs(3);

/// Files are there; nothing runs.
pub(super) struct Prepared {
    ready: Ready,
    network: Option<Coming>,
    /// The ledger's part of it is on its way to the disk.
    pub(super) created: Option<JoinHandle<io::Result<()>>>,
}

/// The machine runs; its guest may not have booted yet.
pub(super) struct Launched {
    pub(super) vm: Box<dyn Vm>,
    /// A connection to the guest that nothing was said on.
    pub(super) line: Option<Box<dyn Channel>>,
    /// What it shares with other machines.
    pub(super) hold: Hold,
    /// The snapshot's files, which the hypervisor may not have opened yet.
    pub(super) files: Hold,
    pub(super) origin: Origin,
    pub(super) network: Option<Network>,
}

/// Where a guest comes from: what may still have to be done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It boots, and must be made ready.
    Booted,
    /// It was just restored, ready, between two frames.
    Restored,
    /// It was restored and has been greeted since, by an earlier agent.
    WasRestored,
}

/// Whom a guest is greeted for.
pub(super) struct Identified<'a> {
    pub(super) identity: Identity,
    pub(super) assignment: &'a Assignment,
    /// Its command may run: the guest was made ready long ago.
    pub(super) begun: bool,
}

/// The guest agent has answered.
pub(super) struct Greeted {
    pub(super) vm: Box<dyn Vm>,
    pub(super) hold: Hold,
    pub(super) link: GuestLink,
    pub(super) events: mpsc::Receiver<GuestEvent>,
    pub(super) ack: HelloAck,
    pub(super) network: Option<Network>,
}

impl Prepared {
    pub(super) async fn new(ctx: &Context, assignment: &Assignment) -> Result<Self, CannotStart> {
        let home = ctx.ledger.home(&assignment.sandbox);
        let ledger = |e| CannotStart::retry(format!("writing the node's ledger: {e}"));
        home.make().map_err(ledger)?;
        let (kept, known) = (home.clone(), assignment.clone());
        let (tell, written) = tokio::sync::oneshot::channel();
        let created = tokio::task::spawn_blocking(move || {
            let _ = tell.send(kept.create(&known));
            kept.sync_created()
        });
        // Side by side: the machine is not started before a restarted agent would know of it.
        let contract = &assignment.spec.net;
        let (written, ready, network) =
            tokio::join!(written, ctx.workshop.machine(&assignment.spec, home.dir()), ctx.networks.begin(contract));
        written.map_err(CannotStart::retry)?.map_err(ledger)?;
        let ready = ready?;
        let network = network?;
        if let Start::Snapshot { golden, memory, .. } = &ready.start {
            let from = RestoredFrom { golden: golden.clone(), memory: memory.clone() };
            home.mark_restored(&from).map_err(ledger)?;
        }
        Ok(Self { ready, network, created: Some(created) })
    }

    /// The driver's name, and how the machine comes up.
    pub(super) fn describe(&self) -> (String, StartedFrom) {
        let from = match &self.ready.start {
            Start::Cold { why, .. } => StartedFrom::ColdBoot { why: why.clone() },
            Start::Snapshot { golden, .. } => StartedFrom::Snapshot { golden: golden.clone() },
        };
        (self.ready.driver.name().to_owned(), from)
    }

    /// Starts the machine. It ends itself when its agent is not heard of by `start_ms`.
    pub(super) async fn launch(mut self, start_ms: u64) -> Result<Launched, CannotStart> {
        let deadlines = Deadlines { wall_ms: Some(start_ms + SUPERVISOR_SLACK_MS), idle_ms: None, lease_ms: None };
        let Ready { mut machine, driver, start } = self.ready;
        if let Some(coming) = &mut self.network {
            let tap = match coming.tap.take() {
                Some(tap) if driver.opens_tap() => styx::leave_tap(tap).map(|()| None).map_err(CannotStart::retry)?,
                tap => tap,
            };
            machine.network = Some(Peer { namespace: coming.namespace.clone(), tap });
        }
        let network = async {
            let Some(coming) = self.network else { return Ok(None) };
            coming.started().await.map(Some)
        };
        let (hold, files, origin, vm, network) = match start {
            Start::Cold { files, .. } => {
                let (vm, network) = tokio::join!(driver.boot(&machine, deadlines), network);
                (Hold::default(), files, Origin::Booted, vm, network)
            }
            Start::Snapshot { from, hold, files, .. } => {
                let (vm, network) = tokio::join!(driver.restore(&machine, from, deadlines), network);
                (hold, files, Origin::Restored, vm, network)
            }
        };
        let vm = vm.map_err(CannotStart::retry)?;
        match network {
            Ok(network) => Ok(Launched { vm, line: None, hold, files, origin, network }),
            Err(why) => {
                vm.kill().await;
                vm.wait().await;
                Err(CannotStart::retry(format!("its network contract could not be put in force: {why}")))
            }
        }
    }
}

impl Launched {
    pub(super) fn greeted(self, link: GuestLink, events: mpsc::Receiver<GuestEvent>, ack: HelloAck) -> Greeted {
        let Self { vm, hold, files, network, .. } = self;
        // It runs, so its hypervisor has opened what it needs.
        drop(files);
        Greeted { vm, hold, link, events, ack, network }
    }

    pub(super) async fn unwind(self) {
        self.vm.kill().await;
        self.vm.wait().await;
    }
}

/// What a greeting comes to.
type Greeting = (GuestLink, mpsc::Receiver<GuestEvent>, HelloAck);

/// Waits for the guest's answer, on `line` or a connection of its own, and makes it ready where it booted, for as long as
/// the caller lets it: dropping this future leaves the machine as it is.
pub(super) async fn greet(
    vm: &dyn Vm,
    origin: Origin,
    mut line: Option<Box<dyn Channel>>,
    task: Identified<'_>,
) -> Result<Greeting, CannotStart> {
    let identity = Identity { restored: origin == Origin::Restored, ..task.identity };
    let needs_net = identity.net.is_some();
    let mut patience = REDIAL;
    let (link, mut events, ack) = loop {
        let channel = match line.take() {
            Some(line) => line,
            None => vm.channel().await.map_err(CannotStart::retry)?,
        };
        let (tell, events) = mpsc::channel(EVENTS);
        let opening = link::open(channel, identity.clone(), tell);
        // One that boots answers when it has booted; one that was spoken to before, soon.
        let opened = match task.begun || origin == Origin::WasRestored {
            true => tokio::time::timeout(patience, opening).await,
            false => Ok(opening.await),
        };
        match opened {
            Ok(Ok((_, ack))) if needs_net && ack.version < SETS_CARD_UP => {
                let why = "the guest agent in its snapshot is older than sandboxes' networks";
                return Err(CannotStart::retry(why));
            }
            Ok(Ok((link, ack))) => break (link, events, ack),
            Ok(Err(LinkError::Io(_))) => {
                return Err(lost(vm, CannotStart::retry("the connection to the guest was cut")).await);
            }
            // A guest that says it cannot be set up, or speaks another protocol, will say so again.
            Ok(Err(e)) => return Err(CannotStart::never(e)),
            Err(_) => {
                patience *= 2;
                // One that shall run and was not heard to be told so; else nothing happens.
                let _ = vm.resume().await;
            }
        }
    };
    if origin == Origin::Booted && !task.begun && task.assignment.spec.warm.is_some() {
        let Assignment { spec, token, .. } = task.assignment;
        if let Err(why) = warm_up(&link, &mut events, spec, token.as_str()).await {
            return Err(if why.retry { lost(vm, why).await } else { why });
        }
    }
    Ok((link, events, ack))
}

/// Why a guest cannot be spoken to any more: its machine is ending, and its exit says more than a connection that was cut.
async fn lost(vm: &dyn Vm, cut: CannotStart) -> CannotStart {
    match tokio::time::timeout(Duration::from_secs(5), vm.wait()).await {
        Ok(exit) => ended(&exit),
        Err(_) => cut,
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
