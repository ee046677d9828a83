//! The node's network: asked for namespaces, it keeps some ready.

mod shelf;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use ipnet::Ipv4Net;
use shelf::{Shelf, Step};
use tartarus_types::Contract;
use tartarus_types::net::NetLimits;
use tokio::sync::{Mutex, Notify, OnceCell};
use tokio::task::JoinHandle;

use crate::host::Host;
use crate::rules::Guard;
use crate::space::Place;
use crate::{Door, Finding, Space, StyxError, enter};

/// A start takes about so long: until then it needs the processor more than the pool does.
const CALM: Duration = Duration::from_millis(500);

/// How a node's network is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where sandboxes have their outer addresses, two each; a prefix of 8 to 28 bits.
    pub range: Ipv4Net,
    /// Namespaces that wait, once one was taken; up to half of them under contracts that are asked for again and again.
    pub pool: usize,
    /// The most connections at once that a contract may say; the node itself lets twice as many of a sandbox be.
    pub connections: u32,
    /// What sees to guests' frames; none for what the kernel has.
    pub door: Option<Door>,
    /// The one protective rule that is left out; only the attack suite leaves one out, to see that it is missed.
    pub without: Option<Guard>,
}

impl Default for Options {
    fn default() -> Self {
        let range = Ipv4Net::new_assert(std::net::Ipv4Addr::new(198, 18, 0, 0), 16);
        Self { range, pool: 4, connections: NetLimits::default().connections, door: None, without: None }
    }
}

/// The network of a node. Nothing is touched before [`Styx::ready`], [`Styx::findings`] or [`Styx::take`].
pub struct Styx {
    inner: Arc<Inner>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

struct Inner {
    options: Options,
    next: Arc<AtomicU32>,
    host: OnceCell<(Place, Host)>,
    shelf: Mutex<Shelf<Space>>,
    wanted: Notify,
}

impl Styx {
    /// Touches nothing.
    pub fn new(options: Options) -> Self {
        let shelf = Mutex::new(Shelf::new(options.pool));
        let inner = Inner { options, next: Arc::default(), host: OnceCell::new(), shelf, wanted: Notify::new() };
        Self { inner: Arc::new(inner), tasks: Mutex::default() }
    }

    /// Sees that the node's table is in force and that packets get through the node; remembered until something changes.
    pub async fn ready(&self) -> Result<(), StyxError> {
        let (_, host) = self.host().await?;
        host.ready().await
    }

    /// A namespace for a guest under `contract`, which [`Space::apply`] is to put in force: before, nothing passes, or what that
    /// contract lets pass. The pool is filled again in the background, one at a time.
    pub async fn take(&self, contract: &Contract) -> Result<Space, StyxError> {
        // Ways in are no rules.
        let contract = &Contract { forwards: Vec::new(), ..contract.clone() };
        let (place, host) = self.host().await?;
        host.ready().await?;
        self.refill().await;
        self.inner.shelf.lock().await.asked(contract);
        loop {
            let waiting = self.inner.shelf.lock().await.take(contract);
            self.inner.wanted.notify_one();
            match waiting {
                None => match Space::make(place.clone(), self.inner.next.clone()).await {
                    // All that is left waits for others.
                    Err(StyxError::Full(range)) => {
                        let given_up = self.inner.shelf.lock().await.give_up();
                        given_up.ok_or(StyxError::Full(range))?.remove().await?;
                    }
                    made => return made,
                },
                Some(space) => match space.check_waiting(contract).await {
                    Ok(()) => return Ok(space),
                    Err(error) => tracing::warn!(%error, index = space.index, "a namespace that waited is left"),
                },
            }
        }
    }

    /// The namespace of a sandbox that runs already, such as after a restart, by its open `/proc/PID/ns/net`.
    pub async fn adopt(&self, namespace: OwnedFd) -> Result<Space, StyxError> {
        let (place, host) = self.host().await?;
        host.enforce().await?;
        Space::adopt(Arc::new(namespace), place.clone()).await
    }

    /// What keeps sandboxes from the network, each with the command that changes it; nothing where all is well.
    pub async fn findings(&self) -> Vec<Finding> {
        let found =
            |problem: String, command: Option<&str>| vec![Finding { problem, command: command.map(Into::into) }];
        match self.host().await {
            Err(error) => found(error.to_string(), None),
            Ok((_, host)) => host.findings().await,
        }
    }

    /// Namespaces that wait, and how many of them under a contract.
    pub async fn waiting(&self) -> (usize, usize) {
        let shelf = self.inner.shelf.lock().await;
        (shelf.len(), shelf.ready())
    }

    /// What sees to it that frames are the guests' own; none before the host was looked at.
    pub fn door(&self) -> Option<Door> {
        self.inner.host.get().map(|(place, _)| place.door)
    }

    /// Removes what waits, and the node's table where no sandbox is left.
    pub async fn close(&self) -> Result<(), StyxError> {
        if rustix::process::geteuid().is_root() {
            // Also what an earlier process left, which was killed.
            self.host().await?;
        }
        for task in self.tasks.lock().await.drain(..) {
            task.abort();
            // Aborted, which is what was asked for.
            drop(task.await);
        }
        for space in self.inner.shelf.lock().await.drain() {
            space.remove().await?;
        }
        match self.inner.host.get() {
            Some((_, host)) => host.close().await,
            None => Ok(()),
        }
    }

    async fn host(&self) -> Result<&(Place, Host), StyxError> {
        let make = || async {
            if !rustix::process::geteuid().is_root() {
                return Err(StyxError::NotRoot);
            }
            let Options { range, connections, door, without, .. } = self.inner.options;
            if !(8..=28).contains(&range.prefix_len()) {
                return Err(StyxError::NotReady(format!("the range {range} must have a prefix of 8 to 28 bits")));
            }
            let door = match door {
                Some(door) => door,
                None => enter::on_thread(Door::of_kernel).await?,
            };
            let (node, cuts) = (enter::own()?, Arc::default());
            let place = Place { node, range: range.trunc(), connections, door, without, cuts };
            let host = Host::new(place.clone()).await?;
            Ok((place, host))
        };
        let host = self.inner.host.get_or_try_init(make).await?;
        let mut tasks = self.tasks.lock().await;
        if tasks.is_empty() {
            let inner = self.inner.clone();
            tasks.push(tokio::spawn(async move {
                _ = tokio::join!(inner.watch(), inner.sweep());
            }));
        }
        Ok(host)
    }

    /// Starts what fills the pool.
    async fn refill(&self) {
        let mut tasks = self.tasks.lock().await;
        if tasks.len() == 1 && self.inner.options.pool > 0 {
            let inner = self.inner.clone();
            tasks.push(tokio::spawn(async move { inner.fill().await }));
        }
    }
}

impl Inner {
    async fn sweep(&self) {
        if let Some((_, host)) = self.host.get() {
            host.sweep().await;
        }
    }

    async fn watch(&self) {
        let Some((_, host)) = self.host.get() else { return };
        loop {
            let error = host.watch().await;
            tracing::error!(%error, "the node's network cannot be watched; tried again");
            host.doubt().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Fills the pool whenever one was taken, one at a time; after a failure with the next one that is taken.
    async fn fill(&self) {
        loop {
            self.wanted.notified().await;
            self.calm().await;
            let Err(error) = self.settle().await else { continue };
            tracing::warn!(%error, "no namespace could be prepared");
            if let (false, Some((_, host))) = (matches!(error, StyxError::Full(_)), self.host.get()) {
                host.doubt().await;
            }
        }
    }

    async fn settle(&self) -> Result<(), StyxError> {
        let Some((place, _)) = self.host.get() else { return Ok(()) };
        loop {
            // In a statement of its own: nobody waits for what is done then.
            let step = self.shelf.lock().await.step();
            let (under, space) = match step {
                Step::Make => (None, Space::make(place.clone(), self.next.clone()).await?),
                Step::Ready(space, contract) => {
                    if let Err(error) = space.prepare(&contract).await {
                        tracing::warn!(%error, index = space.index, "no namespace waits under a contract that comes again");
                        self.shelf.lock().await.forget(&contract);
                        continue;
                    }
                    (Some(contract), space)
                }
                Step::Drop(space) => {
                    space.remove().await?;
                    continue;
                }
                Step::Rest => return Ok(()),
            };
            self.shelf.lock().await.put(under, space);
        }
    }

    /// Waits until whoever took one has had the processor for its start, unless few are left for whoever comes next.
    async fn calm(&self) {
        while self.shelf.lock().await.is_calm() {
            if tokio::time::timeout(CALM, self.wanted.notified()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Styx {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().drain(..) {
            task.abort();
        }
    }
}
