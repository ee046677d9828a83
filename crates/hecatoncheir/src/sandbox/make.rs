//! The end of a sandbox that makes a golden snapshot: its warm-up went well, now it is frozen and kept.

use std::time::Duration;

use tartarus_guest::{Freeze, Header, Kind, message};
use tartarus_runtime::{Deadlines, Vm};
use tartarus_types::{Outcome, Reason};
use tokio::sync::mpsc;

use super::Request;
use super::ending::{self, Asked};
use super::requests::refuse;
use super::steady::{MAIN, Steady};
use super::task::{End, Task};
use crate::link::GuestEvent;
use crate::net::guest_side;

/// For writing everything to the layer.
const FREEZE: Duration = Duration::from_secs(60);
/// How long the guest is left alone before it is stopped: what its kernel puts off (freeing, statistics of the disk) is
/// done by then, once, and not first thing in every clone.
const REST: Duration = Duration::from_millis(500);
/// All of it must be done by then, ms; its limits were the warm-up's.
const MAKE_MS: u64 = 300_000;

impl Steady {
    /// Makes the snapshot, unless something else is asked for meanwhile: then there is none. The outcome is the warm-up's
    /// own, or why there is no snapshot.
    pub(super) async fn make_snapshot(&mut self, task: &mut Task, warmed: Outcome) -> Result<Outcome, End> {
        let failed = |why: String| Outcome::because(Reason::NodeFailed, format!("no snapshot was made: {why}"));
        // An agent that comes later must not take the machine for one whose command is still to be started.
        if let Err(e) = task.home.mark_saving() {
            return Ok(failed(format!("writing the node's ledger: {e}")));
        }
        let deadlines = Deadlines { wall_ms: Some(MAKE_MS), ..Deadlines::default() };
        // A supervisor that is gone shows as the machine's end.
        let _ = self.vm.set_deadlines(deadlines).await;
        self.link.frame(Header::new(Kind::Forget, MAIN), &[]);
        let freeze = Freeze { net: task.assignment.spec.card.then(guest_side) };
        self.link.frame(Header::new(Kind::Freeze, 0), &message::encode(&freeze));
        let (workshop, spec, dir) = (&task.ctx.workshop, &task.assignment.spec, task.home.dir());
        let (vm, events) = (&*self.vm, &mut self.events);
        let mut making = std::pin::pin!(async {
            frozen(events, vm).await?;
            let at = (task.ctx.clock)();
            tokio::select! {
                () = tokio::time::sleep(REST) => {}
                exit = vm.wait() => return Err(ending::of_machine(&exit, true).message.unwrap_or_default()),
            }
            workshop.keep(spec, vm, dir).await.map(|()| at).map_err(|e| e.why)
        });
        let made = loop {
            let request = tokio::select! {
                made = &mut making => break made,
                request = task.requests.recv() => request,
            };
            match request {
                None | Some(Request::Leave) => return Err(End::Left),
                Some(Request::Abandon) => return Err(End::Abandoned),
                Some(Request::Kill { reason, .. }) => {
                    return Ok(ending::outcome(None, Asked { kill: Some(reason), limit: None }));
                }
                Some(other) => refuse(other, "it makes a golden snapshot"),
            }
        };
        match made {
            Ok(frozen_at) => {
                task.reached_at("frozen", frozen_at);
                task.reached("snapshot_made");
                Ok(warmed)
            }
            Err(why) => Ok(failed(why)),
        }
    }
}

/// The guest has written everything down, and writes nothing more. It does not remember the warm-up: what is restored
/// from it has never run anything.
async fn frozen(events: &mut mpsc::Receiver<GuestEvent>, vm: &dyn Vm) -> Result<(), String> {
    let frozen = async {
        loop {
            match events.recv().await {
                Some(GuestEvent::Frozen(None)) => return Ok(()),
                Some(GuestEvent::Frozen(Some(why))) => return Err(format!("the layer could not be frozen: {why}")),
                Some(GuestEvent::Gone(why)) => return Err(format!("the guest was lost: {why}")),
                None => return Err("the guest was lost".to_owned()),
                Some(_) => {}
            }
        }
    };
    tokio::select! {
        frozen = tokio::time::timeout(FREEZE, frozen) => {
            frozen.unwrap_or_else(|_| Err("the guest did not freeze in time".to_owned()))
        }
        exit = vm.wait() => Err(ending::of_machine(&exit, true).message.unwrap_or_default()),
    }
}
