//! The node's workbench: makes machines out of images, kernels, layers and golden snapshots, and snapshots out of
//! machines. The real [`Workshop`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use blobs::Digest;
use erebus::lethe::{LayerFormat, Layers, copy_layer};
use erebus::nyx::{Listed, Snapshot, Snapshots};
use tartarus_runtime::bases::{Base, BaseError};
use tartarus_runtime::{DiskFormat, Driver, Layer, Machine, Restore, Vm};
use tartarus_types::{MIB, Refusal, SandboxSpec, Shape, SnapshotUse};

use crate::golden::{self, About};
use crate::store::{HostStore, blocking};
use crate::workshop::{CannotStart, Hold, Ready, Start, Workshop};

/// The layer's file in a machine's folder.
const LAYER: &str = "layer";

/// Why a sandbox does not start from a snapshot.
struct NotRestored {
    why: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// There is none that fits and may be used.
    None,
    /// It is damaged, and will be the next time.
    Damaged,
    /// It could not be loaded now.
    Passing,
}

impl NotRestored {
    fn new(kind: Kind, why: impl std::fmt::Display) -> Self {
        Self { why: why.to_string(), kind }
    }
}

impl From<BaseError> for NotRestored {
    fn from(e: BaseError) -> Self {
        Self::new(if matches!(e, BaseError::Damaged { .. }) { Kind::Damaged } else { Kind::Passing }, e)
    }
}

impl From<erebus::ErebusError> for NotRestored {
    fn from(e: erebus::ErebusError) -> Self {
        Self::new(if matches!(e, erebus::ErebusError::Unusable { .. }) { Kind::Damaged } else { Kind::Passing }, e)
    }
}

/// A golden snapshot and what is on record of it.
pub(crate) struct Golden {
    pub(crate) snapshot: Snapshot,
    pub(crate) about: About,
}

/// The golden snapshot of a name. Reads a manifest: for a moment.
fn golden_of(snapshots: &Snapshots, name: &str) -> Result<Option<Golden>, String> {
    let Some(snapshot) = snapshots.get(name).map_err(|e| e.to_string())? else { return Ok(None) };
    let about = snapshot.meta().map_err(|e| e.to_string())?;
    Ok(Some(Golden { snapshot, about }))
}

fn shape(spec: &SandboxSpec) -> Shape {
    Shape { cpus: spec.cpus, memory_mib: spec.memory_mib }
}

impl HostStore {
    /// The golden snapshots that can be read, each with its bytes on disk.
    pub(crate) async fn goldens(&self) -> Result<Vec<(Golden, u64)>, Refusal> {
        let snapshots = self.snapshots.clone();
        blocking(move || {
            let readable = |listed: Listed| Some((golden_of(&snapshots, &listed.golden).ok()??, listed.bytes));
            Ok::<_, Refusal>(snapshots.list()?.into_iter().filter_map(readable).collect())
        })
        .await
    }

    /// The snapshot that a sandbox starts from, or why there is none.
    async fn fitting(&self, spec: &SandboxSpec, driver: &dyn Driver) -> Result<Golden, String> {
        let name = golden::wanted(spec)?;
        if let Some(why) = self.distrusted(name) {
            return Err(format!("the snapshot failed before: {why}"));
        }
        let Some(golden) = golden_of(&self.snapshots, name)? else {
            return Err(golden::missing(spec, &self.shapes_of(&spec.template).await));
        };
        match golden.about.unusable(&driver.fingerprint()) {
            Some(why) => Err(why),
            None => Ok(golden),
        }
    }

    /// Sizes that there are snapshots for.
    async fn shapes_of(&self, template: &str) -> Vec<Shape> {
        let all = self.goldens().await.unwrap_or_default().into_iter();
        let of = all.filter(|(golden, _)| golden.about.template == template);
        let mut shapes: Vec<Shape> = of.map(|(golden, _)| golden.about.shape).collect();
        shapes.sort_unstable();
        shapes.dedup();
        shapes
    }

    /// Memory, devices and layer of a snapshot.
    async fn restore(&self, from: Golden, overlays: bool, dir: &Path) -> Result<(Layer, Start), NotRestored> {
        let base = self.base(&from).await?;
        let snapshot = from.snapshot;
        let (golden, lease) = (snapshot.golden().to_owned(), snapshot.lease());
        let digest = snapshot.memory_digest().hex();
        let target = dir.join(LAYER);
        let made = tokio::task::spawn_blocking(move || {
            let state = snapshot.state()?;
            Ok::<_, erebus::ErebusError>((state, from_golden(snapshot.layer_checked()?, target, overlays)?))
        });
        let (state, layer) = made.await.map_err(|e| NotRestored::new(Kind::Passing, e))??;
        let memory = Arc::clone(&**base);
        let from = Restore { memory, state };
        let (hold, files) = (Hold::on(base), Hold::on(lease));
        Ok((layer, Start::Snapshot { golden, memory: digest, from, hold, files }))
    }

    /// The layer for a cold boot: the golden one, where there is one, so that what the warm-up wrote is there.
    async fn cold_layer(&self, spec: &SandboxSpec, overlays: bool, dir: &Path) -> Result<(Layer, Hold), CannotStart> {
        let golden = spec.golden.as_ref().filter(|_| spec.snapshot != SnapshotUse::Make);
        let snapshot = golden.and_then(|golden| self.snapshots.get(golden).ok().flatten());
        let files = snapshot.as_ref().map(|s| Hold::on(s.lease())).unwrap_or_default();
        let (layers, target, size) = (self.layers.clone(), dir.join(LAYER), spec.disk_mib);
        let made = blocking(move || match snapshot.as_ref().and_then(|s| s.layer_checked().ok()) {
            Some(golden) => from_golden(golden, target, overlays),
            None => layers.make(size, &target).map(|_| Layer::raw(target)),
        });
        Ok((made.await.map_err(CannotStart::retry)?, files))
    }

    /// The memory of a snapshot, loaded and sealed.
    pub(crate) async fn base(&self, golden: &Golden) -> Result<Arc<Base>, BaseError> {
        let size = u64::from(golden.about.shape.memory_mib) * MIB;
        let (source, digest) = (golden.snapshot.clone(), golden.snapshot.memory_digest().bytes());
        let open = move || source.open_memory().map_err(std::io::Error::other);
        self.bases.get(golden.snapshot.golden(), size, digest, open).await
    }
}

/// Why a sandbox that must start from a snapshot cannot.
fn required(spec: &SandboxSpec, NotRestored { why, kind }: &NotRestored) -> CannotStart {
    match kind {
        Kind::Passing => CannotStart::retry(format!("a snapshot is required, and it could not be loaded now: {why}")),
        Kind::None | Kind::Damaged => {
            let advice = format!("`tartarus template rebuild {}` makes one", spec.template);
            CannotStart::never(format!("a snapshot is required: {why}; {advice}"))
        }
    }
}

/// A layer at `target` that begins as `golden`, as the driver can read it. Blocks.
fn from_golden(golden: PathBuf, target: PathBuf, overlays: bool) -> Result<Layer, erebus::ErebusError> {
    let make = if overlays { Layers::from_golden } else { Layers::copy_of_golden };
    let format = match make(&golden, &target)?.format {
        LayerFormat::Raw => DiskFormat::Raw,
        LayerFormat::Qcow2 => DiskFormat::Overlay { over: golden },
    };
    Ok(Layer { path: target, format })
}

#[async_trait]
impl Workshop for HostStore {
    async fn machine(&self, spec: &SandboxSpec, dir: &Path) -> Result<Ready, CannotStart> {
        let gone = || CannotStart::never(format!("the image {} is not on this node: import it again", spec.image));
        let base = self.blobs.path(&spec.image).ok_or_else(gone)?;
        let (kernel, initramfs) = self.kernel(&spec.kernel).await?;
        let (driver, _) = self.choose_for(&spec.kernel, &kernel, &initramfs).await?;
        let restored = match self.fitting(spec, &*driver).await {
            Ok(golden) => self.restore(golden, driver.overlays(), dir).await,
            Err(why) => Err(NotRestored::new(Kind::None, why)),
        };
        let (layer, start) = match restored {
            Ok(restored) => restored,
            Err(not) => {
                if let (Kind::Damaged, Some(golden)) = (not.kind, &spec.golden) {
                    // It is not read again for each sandbox.
                    self.put_distrust(golden, &not.why);
                }
                if spec.snapshot == SnapshotUse::Require {
                    return Err(required(spec, &not));
                }
                // A restore that came half-way may have left its layer.
                let _ = std::fs::remove_file(dir.join(LAYER));
                let (layer, files) = self.cold_layer(spec, driver.overlays(), dir).await?;
                (layer, Start::Cold { why: not.why, files })
            }
        };
        let kernel =
            if driver.takes_elf() { self.kernels.elf(&spec.kernel).await.map_err(CannotStart::retry)? } else { kernel };
        let Shape { cpus, memory_mib } = shape(spec);
        let machine = Machine { dir: dir.to_owned(), cpus, memory_mib, kernel, initramfs, base, layer, network: None };
        Ok(Ready { machine, driver, start })
    }

    async fn keep(&self, spec: &SandboxSpec, vm: &dyn Vm, dir: &Path) -> Result<(), CannotStart> {
        let golden = spec.golden.clone().ok_or_else(|| CannotStart::never("it has no name"))?;
        let (driver, _) = self.choose(&spec.kernel, false).await?;
        let about = About {
            template: spec.template.clone(),
            kernel: spec.kernel.clone(),
            shape: shape(spec),
            fingerprint: driver.fingerprint(),
            agent: self.agent_digest().to_owned(),
            protocol: tartarus_guest::VERSION,
        };
        vm.pause().await.map_err(CannotStart::retry)?;
        let draft = self.snapshots.draft(&golden).map_err(CannotStart::retry)?;
        let state = draft.create_state().map_err(CannotStart::retry)?;
        let memory = draft.create_memory().map_err(CannotStart::retry)?;
        vm.save(state, memory).await.map_err(CannotStart::retry)?;
        let (layer, now) = (dir.join(LAYER), self.now());
        let kept = blocking(move || {
            let copy = draft.create_layer()?;
            copy_layer(&layer, &copy).map_err(|e| Refusal::internal(format!("copying the layer: {e}")))?;
            let snapshot = draft.commit(&about, now)?;
            Ok::<_, Refusal>(Golden { snapshot, about })
        });
        let made = kept.await.map_err(CannotStart::retry)?;
        self.bases.remove_others(&golden, made.snapshot.memory_digest().bytes()).await;
        self.trust(&golden);
        // Whoever is told that it is ready shall not have to wait for its memory. What does not fit now may fit later.
        if let Err(why) = self.base(&made).await {
            tracing::warn!(template = %spec.template, error = %why, "the snapshot's memory is not loaded yet");
        }
        Ok(())
    }

    fn distrust(&self, golden: &str, why: &str) {
        tracing::warn!(
            golden,
            why,
            "a restore failed; the snapshot is not used for a while, or until it is made again"
        );
        self.put_distrust(golden, why);
    }

    fn hold(&self, golden: &str, memory: &str) -> Hold {
        Digest::from_hex(memory)
            .and_then(|memory| self.bases.hold(golden, memory.bytes()))
            .map(Hold::on)
            .unwrap_or_default()
    }

    async fn shred(&self, dir: &Path) -> std::io::Result<()> {
        let layer = dir.join(LAYER);
        // It may have ended before it had one.
        if !layer.exists() {
            return Ok(());
        }
        tokio::task::spawn_blocking(move || erebus::lethe::shred(&layer)).await?.map(drop)
    }

    fn adopter(&self) -> Arc<dyn Driver> {
        self.chooser.adopter()
    }
}
