//! The network of one sandbox that runs.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use styx::names::{self, Pins};
use styx::{Space, StyxError};
use tartarus_types::Contract;
use tartarus_types::net::NetStatus;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::totals::Metered;
use super::{Kept, Networks};

/// Counters take milliseconds to read; who waits for them holds its sandbox's other requests back.
const READ: Duration = Duration::from_secs(2);
/// Until a namespace in which nothing changes is looked at for the first time.
const FIRST_CHECK: Duration = Duration::from_secs(1);

/// A namespace whose contract is in force. Dropping it ends the resolver, and adds its counters up for the last time; the
/// namespace goes with its machine.
pub(crate) struct Network {
    metered: Arc<Metered>,
    contract: Arc<watch::Sender<Arc<Contract>>>,
    lost: watch::Receiver<Option<String>>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

struct Pinned(Arc<Space>);

#[async_trait]
impl Pins for Pinned {
    async fn pin(&self, addresses: &[(Ipv4Addr, Duration)], under: &Contract) -> Result<(), String> {
        self.0.pin(addresses, under).await.map_err(|e| e.to_string())
    }
}

impl Network {
    pub(super) async fn start(space: Space, kept: &Kept, node: &Networks) -> Result<Self, String> {
        let words = |e: StyxError| e.to_string();
        space.apply(&kept.contract, kept.generation).await.map_err(words)?;
        let sockets = space.resolver_sockets().await.map_err(words)?;
        let metered = node.totals.meter(Arc::new(space));
        let (contract, rules) = watch::channel(Arc::new(kept.contract.clone()));
        let contract = Arc::new(contract);
        let pins = Arc::new(Pinned(metered.space.clone()));
        let (tell, lost) = watch::channel(None);
        let (upstream, refused) = (node.upstream.clone(), metered.refused.clone());
        let serving = names::serve(sockets, node.rate, rules, upstream, pins, refused, node.clock);
        let ended = tell.clone();
        let resolver = tokio::spawn(async move {
            let Err(e) = serving.await;
            ended.send_replace(Some(format!("its resolver ended: {e}")));
        });
        let watch = tokio::spawn(keep(metered.clone(), contract.clone(), tell));
        let tasks = [AbortOnDropHandle::new(resolver), AbortOnDropHandle::new(watch)];
        Ok(Self { metered, contract, lost, _tasks: tasks })
    }

    /// Puts another contract in force, whole or not at all.
    ///
    /// # Errors
    /// When it could not be; then the former one is, or nothing passes and [`Network::lost`] says so.
    pub(crate) async fn set(&self, kept: &Kept) -> Result<(), String> {
        let apply = self.metered.space.apply(&kept.contract, kept.generation);
        self.metered.across(apply).await.map_err(|e| e.to_string())?;
        self.contract.send_replace(Arc::new(kept.contract.clone()));
        Ok(())
    }

    /// All but the contract, of which the caller knows more.
    pub(crate) async fn status(&self) -> Result<NetStatus, String> {
        let read = tokio::time::timeout(READ, self.metered.space.counters()).await;
        let (counters, blocked) = read.map_err(|_| "its rules cannot be read in time")?.map_err(|e| e.to_string())?;
        let (refused_names, mended) = (self.metered.refused.list(), self.metered.mended.load(Ordering::Relaxed));
        Ok(NetStatus { counters, blocked, refused_names, mended, ..NetStatus::default() })
    }

    /// Waits until its contract cannot be kept any more: the machine must end.
    pub(crate) async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await.map(|why| why.clone()) {
            Ok(Some(why)) => why,
            _ => "nobody watches over its rules any more".to_owned(),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let metered = self.metered.clone();
        // A server that ends tells nobody any more.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move { metered.tell().await });
    }
}

/// Its end, however it comes, is known.
struct Watching(watch::Sender<Option<String>>);

impl Drop for Watching {
    fn drop(&mut self) {
        let why = || "nobody watches over its rules any more".to_owned();
        self.0.send_if_modified(|lost| lost.is_none() && lost.replace(why()).is_none());
    }
}

/// Puts back what others change, for as long as that can be done.
async fn keep(metered: Arc<Metered>, contract: Arc<watch::Sender<Arc<Contract>>>, tell: watch::Sender<Option<String>>) {
    let (tell, space) = (Watching(tell), &metered.space);
    // What was put in force was read back just now: until something changes again, the sandbox's start needs the processor more.
    // What changed before this was heard is seen then.
    let mut first = Some(FIRST_CHECK);
    space.forget_changes();
    loop {
        let changed = tokio::time::timeout(first.take().unwrap_or(Duration::MAX), space.changed()).await;
        if let Ok(Err(e)) = changed {
            tell.0.send_replace(Some(format!("its rules cannot be watched: {e}")));
            return;
        }
        let Err(found) = space.check().await else { continue };
        tracing::warn!(sandbox_network = space.index, error = %found, "rules or links were changed by somebody; put back");
        if let Err(e) = metered.across(space.mend()).await {
            tell.0.send_replace(Some(format!("its rules were changed and could not be put back: {e}")));
            return;
        }
        metered.mended.fetch_add(1, Ordering::Relaxed);
        // The resolver shall not rely on what it had pinned.
        contract.send_modify(|_| ());
    }
}
