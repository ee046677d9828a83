//! Taking over what an earlier agent was running: its machine goes on or stands still, its command is not started again.

use std::time::Duration;

use tartarus_runtime::Adopted;
use tartarus_types::{Outcome, Reason};

use super::bringup::{self, Launched, Origin};
use super::serve::Opened;
use super::task::{End, REQUESTS, Task, identified};
use super::{KillReason, Request, ending};
use crate::link::REGREET;
use crate::workshop::{CannotStart, Hold};

impl Task {
    pub(super) async fn take_over(&mut self) -> End {
        if let Ok(Some(outcome)) = self.home.outcome() {
            // The order may not have been given.
            if let Ok(Adopted::Running(vm)) = self.ctx.workshop.adopter().adopt(self.home.dir()).await {
                vm.kill().await;
                self.departing = Some(self.ctx.dying.add(self.assignment.sandbox.clone(), vm, Hold::default()));
            }
            return End::Outcome(outcome);
        }
        let adopted = loop {
            match self.ctx.workshop.adopter().adopt(self.home.dir()).await {
                Ok(adopted) => break adopted,
                Err(e) => tracing::warn!(sandbox = %self.assignment.sandbox, error = %e, "cannot be taken over yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
                request = self.requests.recv() => match request {
                    Some(Request::Leave) | None => return End::Left,
                    Some(request) => self.early.push_back(request),
                },
            }
        };
        match adopted {
            Adopted::Running(vm) => {
                tracing::info!(sandbox = %self.assignment.sandbox, pid = vm.pid(), "taken over");
                self.live.send_modify(|live| live.hypervisor_pid = Some(vm.pid()));
                let (hold, origin) = match self.home.restored() {
                    Some(from) => (self.ctx.workshop.hold(&from.golden, &from.memory), Origin::WasRestored),
                    None => (Hold::default(), Origin::Booted),
                };
                if self.home.saving() {
                    vm.kill().await;
                    vm.wait().await;
                    let why = "the node agent was restarted while it made the snapshot";
                    return End::Outcome(Outcome::because(Reason::NodeFailed, why));
                }
                // What is stored can be read although it stands still, or does not answer yet.
                let opened = self.home.begun().then(|| Opened::new(self));
                let network = match self.network_again(&*vm).await {
                    Ok(network) => network,
                    Err(why) => {
                        vm.kill().await;
                        vm.wait().await;
                        let why = format!("its network could not be taken over: {why}");
                        return match opened {
                            Some(_) => End::Outcome(Outcome::because(Reason::NodeFailed, why)),
                            None => End::GiveBack(CannotStart::retry(why)),
                        };
                    }
                };
                let line = match self.stand_still(&*vm, opened.as_ref(), network.as_ref()).await {
                    Ok(line) => line,
                    Err(end) => return end,
                };
                let launched = Launched { vm, line, hold, files: Hold::default(), origin, network };
                if let Some(opened) = opened {
                    return self.greet_again(launched, opened).await;
                }
                let left = Duration::from_millis(self.start_ms_left());
                self.boot(launched, left.max(REGREET)).await
            }
            Adopted::Ended(exit) if self.home.begun() => {
                End::Outcome(ending::of_machine(&exit, self.assignment.spec.has_command()))
            }
            Adopted::Ended(exit) => End::GiveBack(bringup::ended(&exit)),
            Adopted::Absent if self.home.begun() => {
                End::Outcome(Outcome::because(Reason::HypervisorDied, "nothing was left of its machine"))
            }
            Adopted::Absent => End::GiveBack(CannotStart::retry("the node agent was restarted")),
        }
    }

    /// Takes up a guest whose command may run. It is given all the time that its limits leave it; a kill that comes
    /// before it answers is obeyed when it does, and ends the machine when it does not.
    async fn greet_again(&mut self, mut launched: Launched, opened: Opened) -> End {
        self.live.send_modify(|live| live.hypervisor_pid = Some(launched.vm.pid()));
        let mut killed: Option<(tokio::time::Instant, KillReason)> = None;
        let greeting = {
            let (line, identified) = (launched.line.take(), identified(&self.assignment, true));
            let mut greeting = std::pin::pin!(bringup::greet(&*launched.vm, launched.origin, line, identified));
            loop {
                let patience = async {
                    match killed {
                        Some((at, _)) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    greeting = &mut greeting => break Some(greeting),
                    exit = launched.vm.wait() => {
                        return End::Outcome(ending::of_machine(&exit, self.assignment.spec.has_command()));
                    }
                    () = patience => break None,
                    request = self.requests.recv() => match request {
                        Some(Request::Leave) | None => return End::Left,
                        Some(Request::Abandon) => break None,
                        Some(Request::Kill { signal, grace_ms, reason }) => {
                            let at = tokio::time::Instant::now() + Duration::from_millis(grace_ms) + REGREET;
                            killed.get_or_insert((at, reason));
                            self.early.push_back(Request::Kill { signal, grace_ms, reason });
                        }
                        Some(request) => match opened.serve(self, launched.network.as_ref(), request).await {
                            None => {}
                            Some(request) if self.early.len() < REQUESTS => self.early.push_back(request),
                            Some(request) => super::requests::refuse(request, "it is still being taken over"),
                        },
                    },
                }
            }
        };
        match greeting {
            Some(Ok((link, events, ack))) => self.begin(launched.greeted(link, events, ack), Some(opened)).await,
            Some(Err(e)) => {
                launched.unwind().await;
                End::Outcome(Outcome::because(Reason::GuestDied, e.why))
            }
            None => {
                launched.unwind().await;
                match killed {
                    Some((_, reason)) => {
                        End::Outcome(ending::outcome(None, ending::Asked { kill: Some(reason), limit: None }))
                    }
                    None => End::Abandoned,
                }
            }
        }
    }
}
