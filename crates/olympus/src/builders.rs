//! Golden snapshots in the making: which sandboxes are queued to make them, by themselves or because somebody asked, and
//! what goes with a template that is removed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hades::store::{Accepted, KillAsked, NewSandbox, StoreError, TemplateRecord};
use tartarus_api::v1::SnapshotState;
use tartarus_types::{ErrorCode, Refusal, SandboxId, Timestamp};
use tokio::sync::Notify;

use crate::Olympus;
use crate::accept::check_fits;
use crate::golden::{LABEL, current, golden, maker_spec, shapes};
use crate::refusal::refuse;
use crate::snapshots::{Eagerness, Known, passing, snapshots, wanted};

/// Before another look when the node or the store did not answer.
const RETRY: Duration = Duration::from_secs(10);
/// From the end of a maker that failed for a passing reason to the next try.
const AGAIN: Duration = Duration::from_secs(1);
/// For the end of makers whose template was removed.
const MAKERS_END: Duration = Duration::from_secs(30);
/// How long the removal of a template waits for its snapshots; they go also after that.
const REMOVAL: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;

/// What is remembered of golden snapshots between requests; nothing of it is truth.
#[derive(Debug, Default)]
pub(crate) struct Builders {
    /// Something happened that may leave snapshots to be made.
    due: Notify,
    /// How often each was tried since the server started or somebody asked, and not seen ready since: one that cannot be
    /// made is not tried for ever. What an earlier server tried is tried once more, since that may have been killed.
    tries: Mutex<BTreeMap<String, u32>>,
    /// Held by whoever decides what is made or deleted, so that nothing is deleted that was just counted on.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

impl Builders {
    /// Look soon for snapshots that are to be made.
    pub(crate) fn kick(&self) {
        self.due.notify_one();
    }

    fn tries(&self) -> BTreeMap<String, u32> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It is being tried, as often as this.
    fn remember(&self, golden: String, times: u32) {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner).insert(golden, times);
    }

    fn succeeded(&self, golden: &str) {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner).remove(golden);
    }
}

impl Olympus {
    /// What is known of the golden snapshots of these templates.
    pub(crate) async fn known(&self, templates: &[TemplateRecord]) -> Result<Known, StoreError> {
        let kernel = self.store.kernels().await?.into_iter().next();
        let mut known = Known { nodes: self.store.nodes().await?, ..Known::default() };
        if templates.iter().all(|template| template.spec.cold) {
            return Ok(Known { kernel, ..known });
        }
        for golden in current(templates, kernel.as_ref()) {
            if let Some(record) = self.store.maker(&golden).await? {
                known.makers.insert(golden, record);
            }
        }
        // After the makers: one that ends in between is seen as it was, and what it made as well.
        known.stored = match self.node() {
            Ok(node) => node.snapshots().await.map_err(|e| tracing::warn!("snapshots are not known: {e}")).ok(),
            Err(_) => None,
        };
        Ok(Known { kernel, ..known })
    }

    /// Queues what makes the snapshots of a template that should be made now. True when one is to be made that must wait
    /// a moment: look again [`AGAIN`] later.
    pub(crate) async fn build(&self, name: &str, eagerness: Eagerness) -> Result<bool, Refusal> {
        let _turn = self.builders.turn.lock().await;
        // It may have been removed while others had their turn.
        let Some(template) = self.store.template(name).await.map_err(refuse)? else { return Ok(false) };
        let known = self.known(std::slice::from_ref(&template)).await.map_err(refuse)?;
        let Some(kernel) = &known.kernel else { return Ok(false) };
        if known.stored.is_none() && !template.spec.cold {
            self.builders.kick();
            return Ok(false);
        }
        let (tries, mut later) = (self.builders.tries(), false);
        for snapshot in snapshots(&template, &known) {
            let Some(golden) = snapshot.golden.clone() else { continue };
            if snapshot.state == SnapshotState::Ready {
                self.builders.succeeded(&golden);
            }
            let maker = known.makers.get(&golden);
            let tried = tries.get(&golden).copied().unwrap_or(0);
            if !wanted(&snapshot, eagerness, tried, maker.is_some_and(passing)) {
                continue;
            }
            let spec = maker_spec(&template, &kernel.digest, snapshot.shape, golden.clone());
            if let Err(refusal) = check_fits(&known.nodes, &spec) {
                tracing::debug!(template = name, "a snapshot is not made: {refusal}");
                continue;
            }
            let by_itself = eagerness == Eagerness::ByItself;
            let ended = maker.and_then(|maker| maker.ended_at).filter(|_| by_itself && tried > 0);
            if ended.is_some_and(|ended| Duration::from_millis(self.now().ms_since(ended)) < AGAIN) {
                later = true;
                continue;
            }
            self.disk.check()?;
            let labels = [(LABEL.to_owned(), name.to_owned())].into();
            let new = NewSandbox { id: SandboxId::random(), name: None, labels, spec, idempotency: None };
            let accepted = self.store.accept(new, self.now()).await.map_err(refuse)?;
            self.builders.remember(golden, if by_itself { tried + 1 } else { 1 });
            if let Accepted::New(record) = accepted {
                tracing::info!(template = name, sandbox = %record.id, "a golden snapshot is to be made");
                self.kick();
            }
        }
        Ok(later)
    }

    /// Makes what is missing, whenever something happened that may have left some. Never returns.
    pub(crate) async fn keep_snapshots(&self) {
        loop {
            self.builders.due.notified().await;
            loop {
                match self.build_missing().await {
                    Ok(false) => break,
                    Ok(true) => tokio::time::sleep(AGAIN).await,
                    Err(refusal) => {
                        tracing::warn!("golden snapshots could not be looked after, trying again: {refusal}");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }

    /// True as for [`Olympus::build`].
    async fn build_missing(&self) -> Result<bool, Refusal> {
        let Ok(node) = self.node() else { return Ok(false) };
        let templates = self.store.templates().await.map_err(refuse)?;
        if templates.iter().all(|template| template.spec.cold) {
            return Ok(false);
        }
        node.snapshots().await?;
        let mut later = false;
        for template in templates {
            later |= self.build(&template.name, Eagerness::ByItself).await?;
        }
        Ok(later)
    }

    /// Removes a template, ends what makes its snapshots, and deletes those that no other template shares. Sandboxes that
    /// are starting from them are not harmed: the node waits for them. With `created_at`, another of the same name stays.
    pub(crate) async fn drop_template(
        self: &Arc<Self>,
        name: &str,
        created_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let makers = {
            let _turn = self.builders.turn.lock().await;
            let template = self.store.template(name).await?;
            let template = template.ok_or_else(|| StoreError::NotFound("template", shown(name)))?;
            if created_at.is_some_and(|created_at| created_at != template.created_at) {
                return Err(StoreError::NameTaken(shown(name)));
            }
            self.store.remove_template(name).await?;
            self.end_makers(&template).await?
        };
        let (app, name) = (Arc::clone(self), name.to_owned());
        // In a task of its own, so that neither a client that goes away nor a node that does not answer stops it.
        let deleting = tokio::spawn(async move {
            for id in makers {
                if let Err(error) = app.watch(&id, MAKERS_END, |record| record.state.is_terminal()).await {
                    tracing::warn!(sandbox = %id, "its end could not be waited for: {error}");
                }
            }
            if let Err(refusal) = app.delete_snapshots(&name).await {
                tracing::warn!(template = name, "its snapshots stay until `tartarus prune`: {refusal}");
            }
        });
        let _ = tokio::time::timeout(REMOVAL, deleting).await;
        Ok(())
    }

    /// Asks for the end of whatever makes snapshots of this template alone.
    async fn end_makers(&self, template: &TemplateRecord) -> Result<Vec<SandboxId>, StoreError> {
        let kernel = self.store.kernels().await?.into_iter().next();
        let Some(kernel) = kernel else { return Ok(Vec::new()) };
        let shared = current(&self.store.templates().await?, Some(&kernel));
        let goldens = shapes(&template.spec).into_iter();
        let goldens = goldens.filter_map(|shape| golden(&template.spec, &kernel.digest, shape));
        let mut ended = Vec::new();
        for golden in goldens.filter(|golden| !shared.contains(golden)) {
            let Some(maker) = self.store.maker(&golden).await?.filter(|maker| !maker.state.is_terminal()) else {
                continue;
            };
            match self.store.kill(&maker.id, KillAsked { signal: SIGKILL, grace_ms: 0 }, false, self.now()).await {
                Ok(_) => ended.push(maker.id),
                Err(StoreError::Denied(_) | StoreError::NotFound(..)) => {}
                Err(error) => return Err(error),
            }
        }
        self.kick();
        Ok(ended)
    }

    /// Deletes the snapshots that were made for a template of this name and belong to none that there is.
    async fn delete_snapshots(&self, name: &str) -> Result<(), Refusal> {
        let _turn = self.builders.turn.lock().await;
        let node = self.node()?;
        let kernel = self.store.kernels().await.map_err(refuse)?.into_iter().next();
        let kept = current(&self.store.templates().await.map_err(refuse)?, kernel.as_ref());
        for info in node.snapshots().await? {
            if info.template != name || kept.contains(&info.golden) {
                continue;
            }
            match node.remove_snapshot(&info.golden).await {
                Err(refusal) if refusal.code != ErrorCode::NotFound => return Err(refusal),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(80).collect()
}
