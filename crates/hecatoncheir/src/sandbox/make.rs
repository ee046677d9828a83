//! The end of a sandbox that makes a golden snapshot: its warm-up went well, now it is frozen and kept.

use std::time::Duration;

use tartarus_guest::{Header, Kind};
use tartarus_types::{Outcome, Reason};

use super::steady::{MAIN, Steady};
use super::task::Task;
use crate::link::GuestEvent;

/// For writing everything to the layer.
const FREEZE: Duration = Duration::from_secs(60);

impl Steady {
    /// Makes the snapshot. The outcome is the warm-up's own, or why there is no snapshot.
    pub(super) async fn make_snapshot(&mut self, task: &Task, warmed: Outcome) -> Outcome {
        let failed = |why: String| Outcome::because(Reason::NodeFailed, format!("no snapshot was made: {why}"));
        if let Err(why) = self.freeze().await {
            return failed(why);
        }
        task.reached("frozen");
        let made = task.ctx.workshop.keep(&task.assignment.spec, &*self.vm, task.home.dir()).await;
        match made {
            Ok(()) => {
                task.reached("snapshot_made");
                warmed
            }
            Err(e) => failed(e.why),
        }
    }

    /// The guest writes everything down, and nothing more. It must not remember the warm-up: what is restored from it has
    /// never run anything.
    async fn freeze(&mut self) -> Result<(), String> {
        self.link.frame(Header::new(Kind::Forget, MAIN), &[]);
        self.link.frame(Header::new(Kind::Freeze, 0), &[]);
        let frozen = async {
            loop {
                match self.events.recv().await {
                    Some(GuestEvent::Frozen(None)) => return Ok(()),
                    Some(GuestEvent::Frozen(Some(why))) => return Err(format!("the layer could not be frozen: {why}")),
                    Some(GuestEvent::Gone(why)) => return Err(format!("the guest was lost: {why}")),
                    None => return Err("the guest was lost".to_owned()),
                    Some(_) => {}
                }
            }
        };
        tokio::time::timeout(FREEZE, frozen)
            .await
            .unwrap_or_else(|_| Err("the guest did not freeze in time".to_owned()))
    }
}
