//! Brings one base into memory: from the keeper, or from its file.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::watch;

use super::keeping::Keeping;
use super::{BaseError, Key, Outcome, Shelf};
use crate::pages::{PagesError, load_into};
use crate::sealed;

/// One base that is being brought in. Room for it is reserved until this is dropped, however it ends.
pub(super) struct Fetch {
    pub(super) shelf: Arc<Shelf>,
    pub(super) keeper: Keeping,
    pub(super) key: Key,
    pub(super) size: u64,
    pub(super) number: u64,
    pub(super) tell: watch::Sender<Option<Outcome>>,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.shelf.with(|state| state.loading_over(&self.key, self.number));
    }
}

impl Fetch {
    /// Drops what makes way, then brings the base in and tells all who wait.
    pub(super) async fn run(self, victims: Vec<Key>, open: impl FnOnce() -> io::Result<File> + Send + 'static) {
        self.keeper.drop(victims).await;
        let outcome = self.bring(open).await.map(|memory| self.shelf.base(memory, self.size));
        if let Ok(base) = &outcome {
            // Before anybody knows of it: whoever has it may rely on finding it again.
            self.keeper.put(&self.key, base.memory.clone()).await;
        }
        self.shelf.with(|state| {
            let unwanted = state.loading_over(&self.key, self.number);
            match &outcome {
                // The keeper lets go of it when those who waited for it do.
                Ok(base) if unwanted => state.removed.push((self.key.clone(), Arc::downgrade(base))),
                Ok(base) => state.insert(self.key.clone(), base.clone()),
                Err(_) => {}
            }
        });
        let _ = self.tell.send(Some(outcome));
    }

    async fn bring(&self, open: impl FnOnce() -> io::Result<File> + Send + 'static) -> Result<OwnedFd, BaseError> {
        if let Some(memory) = self.keeper.get(&self.key).await {
            match sealed::identify(&memory, &self.key.digest) {
                Ok(bytes) if bytes == self.size => return Ok(memory),
                found => tracing::warn!(base = %self.key.name, ?found, "the keeper's memory is not this base"),
            }
        }
        let (key, size) = (self.key.clone(), self.size);
        let loaded = tokio::task::spawn_blocking(move || load(&key, size, open)).await;
        loaded.unwrap_or_else(|e| Err(BaseError::Failed { name: self.key.name.clone(), why: e.to_string() }))
    }
}

/// Loads, checks and seals. Blocks.
fn load(key: &Key, size: u64, open: impl FnOnce() -> io::Result<File>) -> Result<OwnedFd, BaseError> {
    let failed = |what: &'static str| {
        move |e: io::Error| BaseError::Failed { name: key.name.clone(), why: format!("{what}: {e}") }
    };
    let packed = open().map_err(failed("opening its file"))?;
    let damaged = |why: String| {
        let file = std::fs::read_link(format!("/proc/self/fd/{}", packed.as_raw_fd()));
        let file = file.map_or_else(|_| "its file".to_owned(), |path| path.display().to_string());
        BaseError::Damaged { name: key.name.clone(), file, why }
    };
    let memory = sealed::unsealed(&key.digest, size).map_err(failed("allocating it"))?;
    let digest = load_into(&packed, &memory).map_err(|e| match e {
        PagesError::Damaged(why) => damaged(why),
        PagesError::Io(e) => failed("copying it")(e),
    })?;
    if digest != key.digest {
        let (found, expected) = (sealed::hex(&digest), sealed::hex(&key.digest));
        return Err(damaged(format!("its SHA-256 is {found}, expected is {expected}")));
    }
    sealed::seal(memory).map_err(failed("sealing it"))
}
