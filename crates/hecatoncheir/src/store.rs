//! What this host has: images, kernels, empty disks, golden snapshots, drivers; `workbench` makes machines of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blobs::{BlobStore, Digest};
use erebus::disk_usage;
use erebus::kernels::KernelStore;
use erebus::lethe::Layers;
use erebus::nyx::Snapshots;
use tartarus_api::doctor::{Check, DoctorReport, Status};
use tartarus_api::node::{ByteStream, ImageMade, KernelMade, NodeUsage, SnapshotInfo};
use tartarus_runtime::Driver;
use tartarus_runtime::bases::Bases;
use tartarus_runtime::supervisor::Program;
use tartarus_types::{MIB, Refusal, Timestamp};
use tokio_util::io::StreamReader;

use crate::choice::{Candidate, Chooser, Chosen, Wanted};
use crate::doctor;
use crate::workbench::Golden;
use crate::workshop::CannotStart;

/// So long a snapshot that failed is not used: it may have been the host that failed.
const DISTRUST: Duration = Duration::from_secs(300);

/// How a host's store is opened.
pub struct HostOptions {
    /// Which driver.
    pub wanted: Wanted,
    /// How this program is started in its roles as supervisor and as keeper: the role's name and a folder are appended.
    pub program: PathBuf,
    /// The guest agent's program, for initramfs images.
    pub agent: &'static [u8],
    /// Memory that loaded golden snapshots may take together, bytes.
    pub loaded_limit: u64,
    /// The time.
    pub clock: fn() -> Timestamp,
}

/// Images, kernels, layers, golden snapshots and drivers of this host.
pub struct HostStore {
    root: PathBuf,
    pub(crate) blobs: Arc<BlobStore>,
    pub(crate) kernels: Arc<KernelStore>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) snapshots: Snapshots,
    pub(crate) bases: Bases,
    loaded_limit: u64,
    clock: fn() -> Timestamp,
    pub(crate) chooser: Chooser,
    agent: &'static [u8],
    agent_digest: String,
    /// Snapshots that a restore failed from, when and how.
    distrust: Mutex<HashMap<String, (Instant, String)>>,
}

impl HostStore {
    /// Opens the folders below `root`.
    ///
    /// # Errors
    /// When they cannot be made or read.
    pub async fn open(root: &Path, options: HostOptions) -> Result<Arc<Self>, Refusal> {
        let HostOptions { wanted, program, agent, loaded_limit, clock } = options;
        let role = |name: &str| Program(vec![program.clone(), name.into()]);
        let bases = Bases::open(&root.join("keeper"), role("keep"), loaded_limit).await.map_err(Refusal::internal)?;
        let kernels = KernelStore::open(root.join("kernels"))?;
        let (probes, cells) = (root.join("probe"), root.join("cells"));
        let chooser = Chooser::new(probes, cells, wanted, role("supervise"), kernels.clone());
        Ok(Arc::new(Self {
            root: root.to_owned(),
            blobs: Arc::new(BlobStore::open(root.join("blobs")).map_err(Refusal::internal)?),
            kernels: Arc::new(kernels),
            layers: Arc::new(Layers::open(root.join("layers"))?),
            snapshots: Snapshots::open(root.join("snapshots"))?,
            bases,
            loaded_limit,
            clock,
            chooser: chooser.map_err(Refusal::internal)?,
            agent,
            agent_digest: Digest::of(agent).hex(),
            distrust: Mutex::default(),
        }))
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Leaves loaded memory to the next agent, whose machines map it.
    pub async fn leave(&self) {
        self.bases.leave().await;
    }

    /// Lets go of all loaded memory: nothing runs any more.
    pub async fn close(&self) {
        self.bases.close().await;
        self.chooser.close();
    }

    /// Identifies the guest agent that new guests get.
    pub(crate) fn agent_digest(&self) -> &str {
        &self.agent_digest
    }

    fn distrust_map(&self) -> MutexGuard<'_, HashMap<String, (Instant, String)>> {
        self.distrust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a restore from this snapshot failed a short while ago.
    pub(crate) fn distrusted(&self, golden: &str) -> Option<String> {
        let map = self.distrust_map();
        map.get(golden).filter(|(at, _)| at.elapsed() < DISTRUST).map(|(_, why)| why.clone())
    }

    pub(crate) fn put_distrust(&self, golden: &str, why: &str) {
        self.distrust_map().insert(golden.to_owned(), (Instant::now(), why.to_owned()));
    }

    /// It was made anew.
    pub(crate) fn trust(&self, golden: &str) {
        self.distrust_map().remove(golden);
    }

    /// Kernel and initramfs, the latter made at first use.
    pub(crate) async fn kernel(&self, digest: &str) -> Result<(PathBuf, PathBuf), CannotStart> {
        let kernel = self.kernels.get(digest).ok_or_else(|| {
            CannotStart::never(format!("the kernel {digest} is not on this node: tartarus kernel add"))
        })?;
        let (kernels, digest, agent) = (self.kernels.clone(), digest.to_owned(), self.agent);
        let initramfs = blocking(move || kernels.initramfs(&digest, agent)).await.map_err(CannotStart::retry)?;
        Ok((kernel.vmlinuz, initramfs))
    }

    pub(crate) async fn choose(&self, kernel: &str, reprobe: bool) -> Result<(Arc<dyn Driver>, Chosen), CannotStart> {
        let (vmlinuz, initramfs) = self.kernel(kernel).await?;
        self.chooser.choose(Candidate { digest: kernel, vmlinuz: &vmlinuz, initramfs: &initramfs }, reprobe).await
    }

    /// The same for a kernel whose files are known.
    pub(crate) async fn choose_for(
        &self,
        kernel: &str,
        vmlinuz: &Path,
        initramfs: &Path,
    ) -> Result<(Arc<dyn Driver>, Chosen), CannotStart> {
        self.chooser.choose(Candidate { digest: kernel, vmlinuz, initramfs }, false).await
    }

    /// Probes for a driver and loads golden snapshots, newest first, ahead of the first sandbox, so that it need not
    /// wait.
    pub async fn prepare(&self, kernel: &str) {
        let driver = match self.choose(kernel, false).await {
            Ok((driver, _)) => driver,
            Err(e) => {
                tracing::warn!(kernel, error = %e, "no driver yet");
                return;
            }
        };
        let here = driver.fingerprint();
        let goldens = self.goldens().await.unwrap_or_default().into_iter().map(|(golden, _)| golden);
        let fits = |g: &Golden| g.about.kernel == kernel && g.about.unusable(&here).is_none();
        let mut usable: Vec<Golden> = goldens.filter(fits).collect();
        usable.sort_by_key(|g| std::cmp::Reverse(g.snapshot.created_at()));
        let mut room = self.loaded_limit;
        for golden in usable {
            let bytes = u64::from(golden.about.shape.memory_mib) * MIB;
            if bytes > room {
                break;
            }
            room -= bytes;
            let Golden { snapshot, about } = &golden;
            let (layer, template) = (snapshot.clone(), &about.template);
            if let Err(why) = blocking(move || layer.layer_checked()).await {
                tracing::warn!(%template, error = %why, "its snapshot cannot be used");
            } else if let Err(why) = self.base(&golden).await {
                tracing::warn!(%template, error = %why, "its snapshot is not loaded");
            }
        }
    }

    /// The golden snapshots that are whole, and whether they can be used.
    pub(crate) async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, Refusal> {
        let loaded = self.bases.loaded();
        let mut infos = Vec::new();
        // One that cannot even be read is nobody's: the usage has its name.
        for (Golden { snapshot, about }, bytes) in self.goldens().await? {
            let golden = snapshot.golden().to_owned();
            let unusable = match self.choose(&about.kernel, false).await {
                Ok((driver, _)) => about.unusable(&driver.fingerprint()),
                Err(e) => Some(e.why),
            };
            infos.push(SnapshotInfo {
                unusable: unusable.or_else(|| self.distrusted(&golden)),
                outdated: about.outdated(&self.agent_digest),
                loaded: loaded.iter().any(|(name, ..)| *name == golden),
                golden,
                template: about.template,
                shape: about.shape,
                created_at: snapshot.created_at(),
                bytes,
                layer_bytes: snapshot.layer_data_bytes(),
            });
        }
        Ok(infos)
    }

    pub(crate) async fn remove_snapshot(&self, golden: &str) -> Result<(), Refusal> {
        let (snapshots, name) = (self.snapshots.clone(), golden.to_owned());
        blocking(move || snapshots.remove(&name)).await.map(drop)?;
        self.bases.remove(golden).await;
        self.trust(golden);
        Ok(())
    }

    /// What takes how much space, with the folders of sandboxes and their logs.
    pub(crate) async fn usage(&self, sandboxes: &Path, logs: &Path) -> Result<NodeUsage, Refusal> {
        let loaded = self.bases.loaded().iter().map(|(_, bytes, _)| bytes).sum();
        let (blobs, kernels, snapshots) = (self.blobs.clone(), self.kernels.clone(), self.snapshots.clone());
        let (root, sandboxes, logs) = (self.root.clone(), sandboxes.to_owned(), logs.to_owned());
        let loaded_limit = self.loaded_limit;
        blocking(move || {
            let fs = rustix::fs::statvfs(&root).map_err(Refusal::internal)?;
            let size = |path: &Path| disk_usage(path).map_err(Refusal::internal);
            let mut of_logs = Vec::new();
            for entry in std::fs::read_dir(&logs).map_err(Refusal::internal)?.flatten() {
                if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                    of_logs.push((id, size(&entry.path())?));
                }
            }
            let snapshots = snapshots.list().map_err(Refusal::from)?;
            Ok::<_, Refusal>(NodeUsage {
                images: blobs.usage().map_err(Refusal::internal)?,
                kernels: kernels.usage().map_err(Refusal::from)?,
                snapshots: snapshots.into_iter().map(|entry| (entry.golden, entry.bytes)).collect(),
                empty_layers: size(&root.join("layers"))?,
                sandboxes: size(&sandboxes)?,
                logs: of_logs,
                loaded,
                loaded_limit,
                disk_free: fs.f_bavail * fs.f_frsize,
                disk_size: fs.f_blocks * fs.f_frsize,
            })
        })
        .await
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
                Ok((_, Chosen { kind, why, detail })) => {
                    let advice = detail.map(|how| format!("passed over: {how}"));
                    (kind.name().to_owned(), why, Status::Ok, advice)
                }
                Err(e) => ("none".to_owned(), e.why, Status::Fail, None),
            },
        };
        checks.push(Check { name: "driver".to_owned(), status, found: format!("{driver}: {why}"), advice });
        Ok(DoctorReport { driver, why, checks })
    }
}

pub(crate) async fn blocking<T: Send + 'static, E: Into<Refusal> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(Refusal::internal)?.map_err(Into::into)
}
