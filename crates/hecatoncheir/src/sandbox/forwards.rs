//! Ports of the node that lead to ports of one sandbox's guest: who listens, and for whom.
//!
//! What changes is decided first, by a pure function; then everything new is opened, and only when all of that went well
//! anything is closed. Connections are `carry`'s.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tartarus_types::net::Forward;
use tartarus_types::{ErrorCode, Refusal};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::carry::{Carriers, serve};

/// Clients that wait for a connection of the sandbox to end, at each port. With 128, some of 400 that came at once were reset
/// by the kernel.
const BACKLOG: u32 = 512;
/// After the node could not take a client, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);

/// All that are open.
pub(super) struct Forwards {
    carriers: Arc<Carriers>,
    open: Vec<Open>,
}

struct Open {
    forward: Forward,
    listener: Arc<TcpListener>,
    /// Takes clients; its end is the end of their connections.
    task: AbortOnDropHandle<()>,
}

/// What becomes of one that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// It is this one, as it is.
    Keep(usize),
    /// It listens where this one does, and leads elsewhere.
    Turn(usize),
    /// It is new.
    Open,
}

impl Forwards {
    /// None yet, for this session's guest.
    pub(super) fn new(carriers: Arc<Carriers>) -> Self {
        Self { carriers, open: Vec::new() }
    }

    /// Opens what is new, keeps what stays, ends what is gone, with its connections. Gives what there is then, in the order
    /// of `wanted`, with the ports that were chosen for port 0.
    ///
    /// # Errors
    /// When one of them cannot be: nothing has changed then.
    pub(super) async fn set(&mut self, wanted: &[Forward]) -> Result<Vec<Forward>, Refusal> {
        if !wanted.is_empty() && !self.carriers.are_known() {
            let why = "the snapshot's guest agent is older: rebuild it with `tartarus template rebuild`";
            return Err(Refusal::new(ErrorCode::WrongState, why));
        }
        let there: Vec<Forward> = self.open.iter().map(|open| open.forward).collect();
        let plans = plan(&there, wanted);
        let mut listeners = Vec::with_capacity(wanted.len());
        for (wanted, plan) in wanted.iter().zip(&plans) {
            listeners.push(match plan {
                Plan::Keep(_) => None,
                Plan::Turn(open) => Some(self.open[*open].listener.clone()),
                Plan::Open => Some(Arc::new(listen(wanted.listen).map_err(|e| refusal(wanted.listen, &e))?)),
            });
        }
        let mut before: Vec<Option<Open>> = std::mem::take(&mut self.open).into_iter().map(Some).collect();
        for ((wanted, plan), listener) in wanted.iter().zip(plans).zip(listeners) {
            match (plan, listener) {
                (Plan::Keep(open), _) => self.open.extend(before[open].take()),
                (_, Some(listener)) => self.open.push(self.start(listener, wanted.port)),
                (_, None) => {}
            }
        }
        for gone in before.into_iter().flatten() {
            gone.end().await;
        }
        Ok(self.open.iter().map(|open| open.forward).collect())
    }

    /// Opens again what was open before, as far as that can be.
    pub(super) fn reopen(&mut self, forwards: &[Forward]) {
        for forward in forwards.iter().filter(|_| self.carriers.are_known()) {
            match listen(forward.listen) {
                Ok(listener) => self.open.push(self.start(Arc::new(listener), forward.port)),
                Err(e) => tracing::warn!(listen = %forward.listen, error = %e, "does not lead to its sandbox any more"),
            }
        }
    }

    /// Ends all of them and their connections.
    pub(super) async fn close(&mut self) {
        for open in std::mem::take(&mut self.open) {
            open.end().await;
        }
    }

    fn start(&self, listener: Arc<TcpListener>, port: u16) -> Open {
        // One that is open has an address.
        let listen = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener.clone(), self.carriers.clone(), port)));
        Open { forward: Forward { listen, port }, listener, task }
    }
}

impl Open {
    /// Returns when nobody listens any more, so that somebody else may.
    async fn end(self) {
        let Self { listener, task, .. } = self;
        drop(listener);
        task.abort();
        let _ = task.await;
    }
}

/// Takes clients as long as the session lasts. More than the guest takes at once wait: one that was taken already, for each
/// listener, and those in the listener's queue.
async fn accept(listener: Arc<TcpListener>, carriers: Arc<Carriers>, port: u16) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
        };
        match accepted {
            Ok((client, _)) => {
                let Some(slot) = carriers.slot().await else { return };
                clients.spawn(serve(client, carriers.clone(), slot, port));
            }
            Err(e) => {
                tracing::warn!(port, error = %e, "a client of a sandbox's port could not be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// What becomes of each that is wanted, given what is open. No two of a contract's are at one address with a port.
fn plan(open: &[Forward], wanted: &[Forward]) -> Vec<Plan> {
    let mut plans = vec![Plan::Open; wanted.len()];
    let mut used = vec![false; open.len()];
    for (at, forward) in wanted.iter().enumerate().filter(|(_, forward)| forward.listen.port() != 0) {
        if let Some(known) = open.iter().position(|open| open.listen == forward.listen) {
            used[known] = true;
            plans[at] = if open[known] == *forward { Plan::Keep(known) } else { Plan::Turn(known) };
        }
    }
    // Any port: the one that it has. After those that name theirs.
    for (at, forward) in wanted.iter().enumerate().filter(|(_, forward)| forward.listen.port() == 0) {
        let same = |open: &Forward| open.listen.ip() == forward.listen.ip() && open.port == forward.port;
        if let Some(known) = (0..open.len()).find(|known| !used[*known] && same(&open[*known])) {
            used[known] = true;
            plans[at] = Plan::Keep(known);
        }
    }
    plans
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections that ended a moment ago, of an agent before this one for example, do not keep it.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// By its address: a contract has them in another order than whoever asked.
fn refusal(listen: SocketAddr, error: &io::Error) -> Refusal {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => format!("{listen} is in use on the node: choose another port, or 0 for any"),
        io::ErrorKind::AddrNotAvailable => format!("{} is no address of the node", listen.ip()),
        io::ErrorKind::PermissionDenied => format!("the node may not listen at {listen}: choose a port from 1024 on"),
        _ => format!("the node cannot listen at {listen}: {error}"),
    };
    Refusal::field("forwards", why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(listen: &str, port: u16) -> Forward {
        Forward { listen: listen.parse().unwrap(), port }
    }

    #[test]
    fn what_stays_is_kept_and_what_leads_elsewhere_is_turned() {
        let a = forward("127.0.0.1:4000", 80);
        let b = forward("127.0.0.1:4001", 81);
        let open = [a, b];
        for (wanted, plans) in [
            (vec![], vec![]),
            (vec![b, a], vec![Plan::Keep(1), Plan::Keep(0)]),
            (vec![forward("127.0.0.1:4001", 9)], vec![Plan::Turn(1)]),
            (vec![forward("127.0.0.2:4000", 80)], vec![Plan::Open]),
            (vec![forward("127.0.0.1:0", 80), forward("127.0.0.1:0", 80)], vec![Plan::Keep(0), Plan::Open]),
            (vec![forward("127.0.0.1:0", 80), a], vec![Plan::Open, Plan::Keep(0)]),
            (vec![forward("127.0.0.1:0", 7)], vec![Plan::Open]),
        ] {
            assert_eq!(plan(&open, &wanted), plans, "{wanted:?}");
        }
    }
}
