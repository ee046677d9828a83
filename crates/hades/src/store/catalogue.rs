//! What sandboxes are made of, and the keys of those who ask for them.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tartarus_types::{TemplateSpec, Timestamp};

use super::StoreError;

/// An image, kernel or template as the catalogue keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its name.
    pub name: String,
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// When.
    pub created_at: Timestamp,
}

/// A guest kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// `sha256:…`.
    pub digest: String,
    /// `uname -r`.
    pub release: String,
    /// Bytes.
    pub size: u64,
    /// When; the newest is used.
    pub created_at: Timestamp,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRecord {
    /// Its name.
    pub name: String,
    /// Its defaults.
    pub spec: TemplateSpec,
    /// When.
    pub created_at: Timestamp,
}

/// Images, kernels, templates and API keys.
#[async_trait]
pub trait Catalogue: Send + Sync + 'static {
    /// Adds an image, or moves the name to another digest. Returns the digest that no image, template or unfinished
    /// sandbox uses any more because of that.
    async fn put_image(&self, image: ImageRecord) -> Result<Option<String>, StoreError>;
    /// All images by name.
    async fn images(&self) -> Result<Vec<ImageRecord>, StoreError>;
    /// Removes a name; refused with `InUse` while a template or an unfinished sandbox needs the digest and no other
    /// name holds it. Returns the digest when nothing uses it any more.
    async fn remove_image(&self, name: &str) -> Result<Option<String>, StoreError>;

    /// Adds a kernel; adding one again makes it the newest.
    async fn put_kernel(&self, kernel: KernelRecord) -> Result<(), StoreError>;
    /// All kernels, newest first.
    async fn kernels(&self) -> Result<Vec<KernelRecord>, StoreError>;
    /// Removes one by digest, unique prefix of it, or release; `InUse` while an unfinished sandbox needs it. Returns it.
    async fn remove_kernel(&self, reference: &str) -> Result<KernelRecord, StoreError>;

    /// Adds a template. The same name with the same spec is no error; with another it is `NameTaken`. An image that is
    /// gone by now is `NotFound`.
    async fn put_template(&self, template: TemplateRecord) -> Result<TemplateRecord, StoreError>;
    /// All templates by name.
    async fn templates(&self) -> Result<Vec<TemplateRecord>, StoreError>;
    /// One template.
    async fn template(&self, name: &str) -> Result<Option<TemplateRecord>, StoreError>;
    /// Removes a template. Sandboxes made from it go on.
    async fn remove_template(&self, name: &str) -> Result<(), StoreError>;

    /// Stores the hash of an API key under a name; the same name is replaced.
    async fn put_key(&self, name: &str, hash: [u8; 32], now: Timestamp) -> Result<(), StoreError>;
    /// Name of the key with this hash.
    async fn find_key(&self, hash: [u8; 32]) -> Result<Option<String>, StoreError>;
}
