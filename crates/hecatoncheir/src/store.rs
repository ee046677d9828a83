//! What this host has: images, kernels, empty disks, drivers. The real [`Workshop`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use blobs::BlobStore;
use erebus::kernels::KernelStore;
use erebus::lethe::Layers;
use tartarus_api::doctor::{Check, DoctorReport, Status};
use tartarus_api::node::{ByteStream, ImageMade, KernelMade};
use tartarus_runtime::supervisor::Program;
use tartarus_runtime::{Driver, Machine};
use tartarus_types::{Refusal, SandboxSpec};
use tokio_util::io::StreamReader;

use crate::choice::{Chooser, Chosen, Wanted};
use crate::doctor;
use crate::workshop::{CannotStart, Workshop};

/// Images, kernels, layers and drivers of this host.
pub struct HostStore {
    root: PathBuf,
    blobs: Arc<BlobStore>,
    kernels: Arc<KernelStore>,
    layers: Arc<Layers>,
    chooser: Chooser,
    /// The guest agent's program, for initramfs images.
    agent: &'static [u8],
}

impl HostStore {
    /// Opens the folders below `root`.
    ///
    /// # Errors
    /// When they cannot be made or read.
    pub fn open(root: &Path, wanted: Wanted, supervisor: Program, agent: &'static [u8]) -> Result<Arc<Self>, Refusal> {
        Ok(Arc::new(Self {
            root: root.to_owned(),
            blobs: Arc::new(BlobStore::open(root.join("blobs")).map_err(Refusal::internal)?),
            kernels: Arc::new(KernelStore::open(root.join("kernels"))?),
            layers: Arc::new(Layers::open(root.join("layers"))?),
            chooser: Chooser::new(root.join("probe"), wanted, supervisor).map_err(Refusal::internal)?,
            agent,
        }))
    }

    /// Kernel and initramfs, the latter made at first use.
    async fn kernel(&self, digest: &str) -> Result<(PathBuf, PathBuf), CannotStart> {
        let kernel = self.kernels.get(digest).ok_or_else(|| {
            CannotStart::never(format!("the kernel {digest} is not on this node: tartarus kernel add"))
        })?;
        let (kernels, digest, agent) = (self.kernels.clone(), digest.to_owned(), self.agent);
        let initramfs = blocking(move || kernels.initramfs(&digest, agent)).await.map_err(CannotStart::retry)?;
        Ok((kernel.vmlinuz, initramfs))
    }

    async fn choose(&self, kernel: &str, reprobe: bool) -> Result<(Arc<dyn Driver>, Chosen), CannotStart> {
        let (vmlinuz, initramfs) = self.kernel(kernel).await?;
        self.chooser.choose(kernel, &vmlinuz, &initramfs, reprobe).await
    }

    /// Probes for a driver ahead of the first sandbox, so that it need not wait.
    pub async fn prepare(&self, kernel: &str) {
        if let Err(e) = self.choose(kernel, false).await {
            tracing::warn!(kernel, error = %e, "no driver yet");
        }
    }

    pub(crate) async fn import_image(&self, tar: ByteStream) -> Result<ImageMade, Refusal> {
        let made = erebus::images::import(&self.blobs, StreamReader::new(tar)).await?;
        Ok(ImageMade { digest: made.digest, size: made.size })
    }

    pub(crate) async fn remove_image(&self, digest: &str) -> Result<(), Refusal> {
        let (blobs, digest) = (self.blobs.clone(), digest.to_owned());
        blocking(move || blobs.remove(&digest).map_err(Refusal::internal)).await.map(drop)
    }

    pub(crate) async fn import_kernel(&self, tar: ByteStream) -> Result<KernelMade, Refusal> {
        let made = self.kernels.import(StreamReader::new(tar)).await?;
        Ok(KernelMade { digest: made.digest, release: made.release, size: made.size })
    }

    pub(crate) async fn remove_kernel(&self, digest: &str) -> Result<(), Refusal> {
        let (kernels, digest) = (self.kernels.clone(), digest.to_owned());
        blocking(move || kernels.remove(&digest)).await.map(drop)
    }

    /// What this host can do.
    ///
    /// # Errors
    /// Never now; a remote node could be out of reach.
    pub async fn doctor(&self, kernel: Option<&str>, reprobe: bool) -> Result<DoctorReport, Refusal> {
        let mut checks = doctor::checks(&self.root, self.chooser.tsc().await).await;
        let (driver, why, status, advice) = match kernel {
            None => {
                let why = "there is no guest kernel to probe with".to_owned();
                ("unknown".to_owned(), why, Status::Unknown, Some("add a kernel: tartarus kernel add".to_owned()))
            }
            Some(kernel) => match self.choose(kernel, reprobe).await {
                Ok((_, Chosen { driver, why, detail })) => {
                    let advice = detail.map(|how| format!("what the probe of KVM saw: {how}"));
                    (driver.to_owned(), why, Status::Ok, advice)
                }
                Err(e) => ("none".to_owned(), e.why, Status::Fail, None),
            },
        };
        checks.push(Check { name: "driver".to_owned(), status, found: format!("{driver}: {why}"), advice });
        Ok(DoctorReport { driver, why, checks })
    }
}

async fn blocking<T: Send + 'static, E: Into<Refusal> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(Refusal::internal)?.map_err(Into::into)
}

#[async_trait]
impl Workshop for HostStore {
    async fn machine(&self, spec: &SandboxSpec, dir: &Path) -> Result<Machine, CannotStart> {
        let gone = || CannotStart::never(format!("the image {} is not on this node: import it again", spec.image));
        let base = self.blobs.path(&spec.image).ok_or_else(gone)?;
        let (kernel, initramfs) = self.kernel(&spec.kernel).await?;
        let layer = dir.join("layer");
        let (layers, target, size) = (self.layers.clone(), layer.clone(), spec.disk_mib);
        blocking(move || layers.make(size, &target)).await.map_err(CannotStart::retry)?;
        let (cpus, memory_mib) = (spec.cpus, spec.memory_mib);
        Ok(Machine { dir: dir.to_owned(), cpus, memory_mib, kernel, initramfs, base, layer })
    }

    async fn driver(&self, kernel: &str) -> Result<Arc<dyn Driver>, CannotStart> {
        self.choose(kernel, false).await.map(|(driver, _)| driver)
    }

    fn adopter(&self) -> Arc<dyn Driver> {
        self.chooser.adopter()
    }
}
