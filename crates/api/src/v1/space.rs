//! What takes how much space, and what of it may go.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What takes how much space on the server's disk. All sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUsage {
    /// Base images.
    pub images: Vec<StoredFile>,
    /// Guest kernels.
    pub kernels: Vec<StoredFile>,
    /// Golden snapshots.
    pub snapshots: Vec<StoredFile>,
    /// Output of sandboxes.
    pub logs: Logs,
    /// The database.
    pub database: u64,
    /// What running sandboxes wrote.
    pub sandboxes: u64,
    /// Empty layers, kept to be cloned.
    pub empty_layers: u64,
    /// Memory of loaded snapshots.
    pub loaded: u64,
    /// Most memory that loaded snapshots may take.
    pub loaded_limit: u64,
    /// The disk's free space.
    pub disk_free: u64,
    /// The disk's size.
    pub disk_size: u64,
    /// New work is refused while less than this is free; 0 when nothing is.
    pub min_free: u64,
    /// What `prune` would free.
    pub reclaimable: u64,
}

/// A file, or several that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoredFile {
    /// Digest of an image or kernel, name of a snapshot.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// What needs it, such as `template python`; nothing when `prune` would delete it.
    pub used_by: Vec<String>,
}

/// Output of sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Logs {
    /// Sandboxes that have output stored.
    pub sandboxes: u64,
    /// Bytes of it.
    pub bytes: u64,
    /// Bytes that `prune` would delete.
    pub reclaimable: u64,
}

/// What to delete of what nothing needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// Delete nothing, and say what would be.
    #[serde(default)]
    pub dry_run: bool,
    /// Sandboxes that ended longer ago than this, ms; the server's retention when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than_ms: Option<u64>,
    /// Records of sandboxes that have ended, and their logs; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<bool>,
    /// Images and kernels; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<bool>,
    /// Golden snapshots; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<bool>,
}

/// What was deleted, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// Nothing was.
    pub dry_run: bool,
    /// Sandboxes that had ended.
    pub sandboxes: u64,
    /// Bytes of their logs, and of logs of sandboxes that are not on record.
    pub log_bytes: u64,
    /// Images.
    pub images: Vec<PrunedFile>,
    /// Kernels.
    pub kernels: Vec<PrunedFile>,
    /// Golden snapshots.
    pub snapshots: Vec<PrunedFile>,
    /// Bytes in all.
    pub bytes: u64,
    /// What was left, and why.
    pub left: Vec<String>,
}

impl Pruned {
    /// Things in all.
    pub fn count(&self) -> usize {
        let files = self.images.len() + self.kernels.len() + self.snapshots.len();
        usize::try_from(self.sandboxes).unwrap_or(usize::MAX).saturating_add(files)
    }

    /// There is nothing to delete.
    pub fn is_nothing(&self) -> bool {
        self.count() == 0 && self.bytes == 0
    }
}

/// A file that was deleted, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedFile {
    /// Digest of an image or kernel, name of a snapshot.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
}
