//! The memory of golden snapshots: sealed, loaded once, and mapped by every clone.
//!
//! The packed file on disk is the truth and the memory a cache of it: hashed while it is copied in, sealed only when the
//! hash is right, and held by a keeper so that it survives the agent. How much of it there may be is bounded.

mod evict;
mod fetch;
mod keeping;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::keeper::{self, Connector};
use crate::sealed;
use crate::supervisor::Program;

pub use evict::{Loaded, evict};

/// Longest name of a base, in bytes: with `@` and a digest it is a name for the keeper.
pub const MAX_NAME: usize = keeper::MAX_NAME - 65;

/// Why there is no base. Repeatable but for `Damaged`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BaseError {
    /// The file is not what it was when it was made.
    #[error("the memory of {name} is damaged: {file}: {why}")]
    Damaged {
        /// The base.
        name: String,
        /// The packed file, as it was opened.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// It would be more than bases may take, and the others are in use.
    #[error(
        "the memory of {} ({} MiB) does not fit: raise `tartarus up --snapshot-memory`, now {} MiB; {} MiB are in use",
        short(name), need >> 20, budget >> 20, in_use >> 20
    )]
    NoRoom {
        /// The base.
        name: String,
        /// Its size in bytes.
        need: u64,
        /// What all may take, in bytes.
        budget: u64,
        /// What those that machines use or that are being loaded take, in bytes.
        in_use: u64,
    },
    /// An operation failed.
    #[error("loading the memory of {name}: {why}")]
    Failed {
        /// The base.
        name: String,
        /// What failed.
        why: String,
    },
}

/// A name that is a SHA-256 in a form that a person can read; any other as it is.
fn short(name: &str) -> &str {
    if sealed::unhex(name).is_some() { &name[..12] } else { name }
}

/// A sealed memory. While it is held outside of [`Bases`] it counts as in use.
#[derive(Debug)]
pub struct Base {
    memory: Arc<OwnedFd>,
    bytes: u64,
    /// Told when this ends: one that was removed while it was in use can be let go of then.
    ended: Arc<Notify>,
}

impl Drop for Base {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

impl Base {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Deref for Base {
    type Target = Arc<OwnedFd>;

    fn deref(&self) -> &Self::Target {
        &self.memory
    }
}

/// What identifies a base: two of one name but different content are two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: String,
    digest: [u8; 32],
}

impl Key {
    /// How the keeper calls it.
    fn held_as(&self) -> String {
        format!("{}@{}", self.name, sealed::hex(&self.digest))
    }

    fn from_held(text: &str) -> Option<Self> {
        let (name, digest) = text.rsplit_once('@')?;
        Some(Self { name: name.to_owned(), digest: sealed::unhex(digest)? })
    }
}

type Outcome = Result<Arc<Base>, BaseError>;

struct Slot {
    base: Arc<Base>,
    /// Counts up with every use of any base.
    used: u64,
}

struct Loading {
    /// Of this loading and no later one of the same base.
    number: u64,
    bytes: u64,
    outcome: watch::Receiver<Option<Outcome>>,
    /// It was removed meanwhile.
    unwanted: bool,
}

#[derive(Default)]
struct State {
    loaded: BTreeMap<Key, Slot>,
    loading: BTreeMap<Key, Loading>,
    /// Removed while machines used them: they still take memory, and the keeper holds them for the next agent.
    removed: Vec<(Key, Weak<Base>)>,
    uses: u64,
    /// What was taken over has been brought within the budget.
    trimmed: bool,
}

impl State {
    /// Everything that takes memory, as [`evict()`] wants it.
    fn all(&self) -> Vec<Loaded<Option<Key>>> {
        let loaded = self.loaded.iter().map(|(key, slot)| {
            // Handed out under this state's lock only, so that one holder means: nobody else, and nobody comes.
            let in_use = Arc::strong_count(&slot.base) > 1;
            Loaded { name: Some(key.clone()), bytes: slot.base.bytes, in_use, used: slot.used }
        });
        let loading = self.loading.values().map(|l| l.bytes);
        let removed = self.removed.iter().filter_map(|(_, base)| base.upgrade()).map(|base| base.bytes);
        let fixed = loading.chain(removed).map(|bytes| Loaded { name: None, bytes, in_use: true, used: 0 });
        loaded.chain(fixed).collect()
    }

    /// Makes room; gives what has to be dropped by the keeper as well, or else how much is in use.
    fn make_room(&mut self, need: u64, budget: u64) -> Result<Vec<Key>, u64> {
        let all = self.all();
        let Some(victims) = evict(&all, need, budget) else {
            return Err(all.iter().filter(|one| one.in_use).fold(0, |sum, one| sum.saturating_add(one.bytes)));
        };
        let victims: Vec<Key> = victims.into_iter().flatten().collect();
        for key in &victims {
            self.loaded.remove(key);
        }
        Ok(victims)
    }

    /// What takes memory under that key, also when it was removed.
    fn find(&mut self, key: &Key) -> Option<Arc<Base>> {
        self.uses += 1;
        if let Some(slot) = self.loaded.get_mut(key) {
            slot.used = self.uses;
            return Some(slot.base.clone());
        }
        self.removed.iter().find_map(|(known, base)| base.upgrade().filter(|_| known == key))
    }

    /// Takes a base that is loaded off the shelf; gives whether nobody uses it.
    fn take_off(&mut self, key: &Key) -> bool {
        let Some(slot) = self.loaded.remove(key) else { return false };
        let idle = Arc::strong_count(&slot.base) == 1;
        if !idle {
            self.removed.push((key.clone(), Arc::downgrade(&slot.base)));
        }
        idle
    }

    /// What was removed and is not used any more, for the keeper to let go of.
    fn ended(&mut self) -> Vec<Key> {
        let mut ended = Vec::new();
        self.removed.retain(|(key, base)| {
            let lives = base.strong_count() > 0;
            if !lives {
                ended.push(key.clone());
            }
            lives
        });
        ended.retain(|key| !self.wanted(key));
        ended
    }

    /// The keeper has to hold it.
    fn wanted(&self, key: &Key) -> bool {
        let used = |(known, base): &(Key, Weak<Base>)| known == key && base.strong_count() > 0;
        self.loaded.contains_key(key) || self.loading.contains_key(key) || self.removed.iter().any(used)
    }

    /// Ends a loading, if it is not over yet; gives whether it is not wanted any more.
    fn loading_over(&mut self, key: &Key, number: u64) -> bool {
        match self.loading.get(key) {
            Some(loading) if loading.number == number => self.loading.remove(key).is_some_and(|l| l.unwanted),
            _ => false,
        }
    }

    /// One that was removed and is wanted again.
    fn put_back(&mut self, key: &Key, base: &Arc<Base>) {
        if !self.loaded.contains_key(key) {
            self.removed.retain(|(_, removed)| !std::ptr::eq(removed.as_ptr(), Arc::as_ptr(base)));
            self.insert(key.clone(), base.clone());
        }
    }

    fn insert(&mut self, key: Key, base: Arc<Base>) {
        self.uses += 1;
        self.loaded.insert(key, Slot { base, used: self.uses });
    }
}

/// The state, shared with the tasks that load and the one that speaks to the keeper.
#[derive(Default)]
struct Shelf {
    state: Mutex<State>,
    /// A base ended.
    ended: Arc<Notify>,
}

impl Shelf {
    fn with<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        use_it(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn base(&self, memory: OwnedFd, bytes: u64) -> Arc<Base> {
        Arc::new(Base { memory: Arc::new(memory), bytes, ended: self.ended.clone() })
    }
}

/// All bases of a node.
pub struct Bases {
    shelf: Arc<Shelf>,
    keeper: keeping::Keeping,
    budget: u64,
}

impl Bases {
    /// Takes over what the keeper in `dir` holds, and starts one where there is none. `budget_bytes` bounds the sum of all
    /// sizes. What was taken over is brought within it by the first [`Bases::get`]: call [`Bases::hold`] for every machine
    /// that is adopted before that, so that its base counts as in use.
    ///
    /// Without a keeper everything works but that memory does not outlive this process; that is logged.
    ///
    /// # Errors
    /// When `dir` cannot be made.
    pub async fn open(dir: &Path, keeper: Program, budget_bytes: u64) -> io::Result<Self> {
        Self::open_with(dir, keeper, budget_bytes, keeper::ALONE).await
    }

    /// As [`Bases::open`]; a keeper that has to be started ends after being `alone` for so long.
    ///
    /// # Errors
    /// As [`Bases::open`].
    pub async fn open_with(dir: &Path, keeper: Program, budget_bytes: u64, alone: Duration) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let shelf = Arc::new(Shelf::default());
        let connector = Connector { dir: dir.to_owned(), program: keeper, alone };
        let keeper = keeping::Keeping::start(connector, shelf.clone()).await;
        Ok(Self { shelf, keeper, budget: budget_bytes })
    }

    /// The memory of `size` bytes that is packed in a file with that SHA-256. `open` opens the file, and is called only
    /// when the memory is not there yet; it may block. Who asks for the same base meanwhile waits for the same loading,
    /// which goes on when nobody waits any more.
    ///
    /// # Errors
    /// When it does not fit, or its file is not what it should be. Then nothing of it is kept.
    pub async fn get(
        &self,
        name: &str,
        size: u64,
        digest: [u8; 32],
        open: impl FnOnce() -> io::Result<File> + Send + 'static,
    ) -> Result<Arc<Base>, BaseError> {
        let failed = |why: &str| BaseError::Failed { name: name.to_owned(), why: why.to_owned() };
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(failed("its name is empty, too long, or has control characters"));
        }
        if size == 0 || !size.is_multiple_of(crate::pages::PAGE as u64) {
            return Err(failed("its size is not a number of pages"));
        }
        let key = Key { name: name.to_owned(), digest };
        let found = self.shelf.with(|state| {
            let here = state.find(&key);
            let now = state.uses;
            if let Some(base) = here {
                if base.bytes != size {
                    return Err(failed("it has another size"));
                }
                state.put_back(&key, &base);
                // Not before this one is in use. Where even all that is idle is not enough, nothing is dropped.
                let trim = !std::mem::replace(&mut state.trimmed, true);
                let victims = if trim { state.make_room(0, self.budget).unwrap_or_default() } else { Vec::new() };
                return Ok(Found::Here(base, victims));
            }
            if let Some(loading) = state.loading.get(&key) {
                return Ok(Found::Coming(loading.outcome.clone()));
            }
            let no_room = |in_use| BaseError::NoRoom { name: name.to_owned(), need: size, budget: self.budget, in_use };
            let victims = state.make_room(size, self.budget).map_err(no_room)?;
            state.trimmed = true;
            let (tell, outcome) = watch::channel(None);
            let loading = Loading { number: now, bytes: size, outcome: outcome.clone(), unwanted: false };
            state.loading.insert(key.clone(), loading);
            let (shelf, keeper) = (self.shelf.clone(), self.keeper.clone());
            let fetch = fetch::Fetch { shelf, keeper, key: key.clone(), size, number: now, tell };
            tokio::spawn(fetch.run(victims, open));
            Ok(Found::Coming(outcome))
        })?;
        let mut outcome = match found {
            Found::Here(base, victims) => {
                self.keeper.drop(victims).await;
                return Ok(base);
            }
            Found::Coming(outcome) => outcome,
        };
        let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        outcome.ok().flatten().unwrap_or_else(|| Err(failed("the loading was given up")))
    }

    /// The base of exactly that name and SHA-256 if it is in memory, for a machine that maps it already: loaded, taken
    /// over from the keeper, or removed while another machine uses it. Nothing is loaded and nothing makes way. While the
    /// answer is held the base counts as in use.
    pub fn hold(&self, name: &str, digest: [u8; 32]) -> Option<Arc<Base>> {
        let key = Key { name: name.to_owned(), digest };
        self.shelf.with(|state| state.find(&key))
    }

    /// Lets go of all bases of that name, for good. Machines that use one go on, and it is kept for them, also over a
    /// restart of this process, until the last of them is gone.
    pub async fn remove(&self, name: &str) {
        self.remove_if(|key| key.name == name).await;
    }

    /// As [`Bases::remove`], but for the base with that SHA-256, which stays or goes on loading.
    pub async fn remove_others(&self, name: &str, keep_digest: [u8; 32]) {
        self.remove_if(|key| key.name == name && key.digest != keep_digest).await;
    }

    async fn remove_if(&self, unwanted: impl Fn(&Key) -> bool) {
        let idle = self.shelf.with(|state| {
            for (_, loading) in state.loading.iter_mut().filter(|(key, _)| unwanted(key)) {
                loading.unwanted = true;
            }
            let keys: Vec<Key> = state.loaded.keys().filter(|key| unwanted(key)).cloned().collect();
            keys.into_iter().filter(|key| state.take_off(key)).collect()
        });
        self.keeper.drop(idle).await;
    }

    /// Ends the keeper: no machine will need a base again. Bases that are held go on.
    pub async fn close(&self) {
        self.keeper.quit().await;
    }

    /// Leaves the keeper as it is, for the next agent: call it before what is held for machines that run on is let go of,
    /// or those that were removed meanwhile are lost to them. Afterwards bases work as without a keeper.
    pub async fn leave(&self) {
        self.keeper.leave().await;
    }

    /// Every base that takes memory: its name, its size in bytes, whether it is in use.
    pub fn loaded(&self) -> Vec<(String, u64, bool)> {
        self.shelf.with(|state| {
            let all = state.all().into_iter();
            let loaded = all.filter_map(|one| one.name.map(|key| (key.name, one.bytes, one.in_use)));
            let removed =
                state.removed.iter().filter_map(|(key, base)| Some((key.name.clone(), base.upgrade()?.bytes, true)));
            loaded.chain(removed).collect()
        })
    }
}

enum Found {
    /// And what has to be dropped by the keeper.
    Here(Arc<Base>, Vec<Key>),
    Coming(watch::Receiver<Option<Outcome>>),
}
