//! Opening a control plane on one machine: its store, its first key.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use cerberus::ApiKey;
use hades::sqlite::Sqlite;
use hades::store::QueueRules;
use tartarus_types::{Refusal, Timestamp};

use crate::refusal::refuse;
use crate::{DATABASE, Olympus, Settings};

/// Name of the first key.
const ADMIN: &str = "admin";

impl Olympus {
    /// A control plane on the SQLite file in a data folder, which is made or migrated; blocks.
    ///
    /// # Errors
    /// When the file is no store, is of a newer version, or cannot be written.
    pub fn open(folder: &Path, settings: Settings, clock: fn() -> Timestamp) -> Result<Self, Refusal> {
        let store = Sqlite::open(&folder.join(DATABASE), QueueRules::default()).map_err(refuse)?;
        Ok(Self::new(Arc::new(store), Some(folder), settings, clock))
    }

    /// Makes sure that `file` (mode 0600) holds a key that is known: a missing file, or one with another key, gets a
    /// fresh one, and the old one is void.
    ///
    /// # Errors
    /// When the file or the store cannot be written.
    pub async fn admin_key(&self, file: &Path) -> Result<(), Refusal> {
        if let Ok(text) = std::fs::read_to_string(file)
            && let Ok(key) = ApiKey::parse(text.trim())
            && self.store.find_key(key.hash()).await.map_err(refuse)?.is_some()
        {
            return Ok(());
        }
        let key = ApiKey::generate();
        // The file first: a crash in between leaves a key that is not known, which the next start replaces.
        let name = file.display();
        write_private(file, &key).map_err(|e| Refusal::internal(format!("writing the API key to {name}: {e}")))?;
        self.store.put_key(ADMIN, key.hash(), self.now()).await.map_err(refuse)
    }

    /// Digest of the kernel that new sandboxes get.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_kernel(&self) -> Result<Option<String>, Refusal> {
        let kernels = self.store.kernels().await.map_err(refuse)?;
        Ok(kernels.into_iter().next().map(|kernel| kernel.digest))
    }
}

fn write_private(path: &Path, key: &ApiKey) -> std::io::Result<()> {
    let temporary = path.with_extension("key.new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    // Also when an earlier, interrupted one was there.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    writeln!(file, "{}", key.reveal())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}
