//! The node's workbench: makes machines out of images, kernels, layers and golden snapshots, and snapshots out of
//! machines. The real [`Workshop`].

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use erebus::lethe::{LayerFormat, Layers, copy_layer};
use erebus::nyx::Snapshot;
use tartarus_runtime::bases::{Base, BaseError};
use tartarus_runtime::{DiskFormat, Driver, Layer, Machine, Restore, Vm};
use tartarus_types::{MIB, Refusal, SandboxSpec, Shape, SnapshotUse, Timestamp};

use crate::golden::{self, About};
use crate::store::{HostStore, blocking, hex};
use crate::workshop::{CannotStart, Hold, Ready, Start, Workshop};

/// The layer's file in a machine's folder.
const LAYER: &str = "layer";

/// Why a snapshot that fits was not used.
struct NotRestored {
    why: String,
    /// It is damaged, and will be the next time.
    damaged: bool,
}

impl NotRestored {
    fn passing(why: impl std::fmt::Display) -> Self {
        Self { why: why.to_string(), damaged: false }
    }
}

impl From<BaseError> for NotRestored {
    fn from(e: BaseError) -> Self {
        Self { why: e.to_string(), damaged: matches!(e, BaseError::Damaged { .. }) }
    }
}

impl From<erebus::ErebusError> for NotRestored {
    fn from(e: erebus::ErebusError) -> Self {
        Self { why: e.to_string(), damaged: matches!(e, erebus::ErebusError::Unusable { .. }) }
    }
}

/// A golden snapshot and what is on record of it.
pub(crate) struct Golden {
    pub(crate) snapshot: Snapshot,
    pub(crate) about: About,
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Vec<u8> = (0..64).step_by(2).map_while(digits).collect();
    bytes.try_into().ok().filter(|_| text.len() == 64)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

fn shape(spec: &SandboxSpec) -> Shape {
    Shape { cpus: spec.cpus, memory_mib: spec.memory_mib }
}

impl HostStore {
    /// The golden snapshots that can be read.
    pub(crate) fn goldens(&self) -> Vec<Golden> {
        let listed = self.snapshots.list().unwrap_or_default();
        listed.into_iter().filter_map(|entry| self.golden(&entry.golden).ok().flatten()).collect()
    }

    /// The golden snapshot of a name.
    pub(crate) fn golden(&self, name: &str) -> Result<Option<Golden>, String> {
        let Some(snapshot) = self.snapshots.get(name).map_err(|e| e.to_string())? else { return Ok(None) };
        let about = snapshot.meta().map_err(|e| e.to_string())?;
        Ok(Some(Golden { snapshot, about }))
    }

    /// The snapshot that a sandbox starts from, or why there is none.
    fn fitting(&self, spec: &SandboxSpec, driver: &dyn Driver) -> Result<Golden, String> {
        let golden = golden::wanted(spec)?;
        if let Some(why) = self.distrusted(golden) {
            return Err(format!("the snapshot failed before: {why}"));
        }
        let golden = self.golden(golden)?.ok_or_else(|| golden::missing(spec, &self.shapes_of(&spec.template)))?;
        match golden.about.unusable(&driver.fingerprint()) {
            Some(why) => Err(why),
            None => Ok(golden),
        }
    }

    /// Sizes that there are snapshots for.
    fn shapes_of(&self, template: &str) -> Vec<Shape> {
        let of = self.goldens().into_iter().filter(|golden| golden.about.template == template);
        let mut shapes: Vec<Shape> = of.map(|golden| golden.about.shape).collect();
        shapes.sort_unstable();
        shapes.dedup();
        shapes
    }

    /// Memory, devices and layer of a snapshot.
    async fn restore(&self, from: Golden, dir: &Path) -> Result<(Layer, Start), NotRestored> {
        let base = self.base(&from).await?;
        let snapshot = from.snapshot;
        let (golden, lease) = (snapshot.golden().to_owned(), snapshot.lease());
        let digest = hex(&snapshot.memory_digest());
        let target = dir.join(LAYER);
        let made = tokio::task::spawn_blocking(move || {
            let state = snapshot.state()?;
            let made = Layers::from_golden(&snapshot.layer_checked()?, &target)?;
            Ok::<_, erebus::ErebusError>((state, made.format))
        });
        let (state, format) = made.await.map_err(NotRestored::passing)??;
        let layer = Layer { path: dir.join(LAYER), format: disk_format(format) };
        let memory = Arc::clone(&**base);
        let from = Restore { memory, state };
        let (hold, files) = (Hold::on(base), Hold::on(lease));
        Ok((layer, Start::Snapshot { golden, memory: digest, from, hold, files }))
    }

    /// The layer for a cold boot: the golden one, where there is one, so that what the warm-up wrote is there.
    async fn cold_layer(&self, spec: &SandboxSpec, dir: &Path) -> Result<(Layer, Hold), CannotStart> {
        let golden = spec.golden.as_ref().filter(|_| spec.snapshot != SnapshotUse::Make);
        let snapshot = golden.and_then(|golden| self.snapshots.get(golden).ok().flatten());
        let files = snapshot.as_ref().map(|s| Hold::on(s.lease())).unwrap_or_default();
        let (layers, target, size) = (self.layers.clone(), dir.join(LAYER), spec.disk_mib);
        let made = blocking(move || match snapshot.as_ref().and_then(|s| s.layer_checked().ok()) {
            Some(golden) => Layers::from_golden(&golden, &target).map(|made| made.format),
            None => layers.make(size, &target).map(|made| made.format),
        });
        let format = made.await.map_err(CannotStart::retry)?;
        Ok((Layer { path: dir.join(LAYER), format: disk_format(format) }, files))
    }

    /// The memory of a snapshot, loaded and sealed.
    pub(crate) async fn base(&self, golden: &Golden) -> Result<Arc<Base>, BaseError> {
        let size = u64::from(golden.about.shape.memory_mib) * MIB;
        let (source, digest) = (golden.snapshot.clone(), golden.snapshot.memory_digest());
        let open = move || source.open_memory().map_err(std::io::Error::other);
        self.bases.get(golden.snapshot.golden(), size, digest, open).await
    }
}

fn disk_format(format: LayerFormat) -> DiskFormat {
    match format {
        LayerFormat::Raw => DiskFormat::Raw,
        LayerFormat::Qcow2 => DiskFormat::Qcow2,
    }
}

#[async_trait]
impl Workshop for HostStore {
    async fn machine(&self, spec: &SandboxSpec, dir: &Path) -> Result<Ready, CannotStart> {
        let gone = || CannotStart::never(format!("the image {} is not on this node: import it again", spec.image));
        let base = self.blobs.path(&spec.image).ok_or_else(gone)?;
        let (kernel, initramfs) = self.kernel(&spec.kernel).await?;
        let (driver, _) = self.choose(&spec.kernel, false).await?;
        let restored = match self.fitting(spec, &*driver) {
            Ok(golden) => {
                let name = golden.snapshot.golden().to_owned();
                let restored = self.restore(golden, dir).await;
                if let Err(NotRestored { why, damaged: true }) = &restored {
                    // It is not read again for each sandbox.
                    self.put_distrust(&name, why);
                }
                restored.map_err(|e| (e.why, !e.damaged))
            }
            Err(why) => Err((why, false)),
        };
        let (layer, start) = match restored {
            Ok(restored) => restored,
            Err((why, true)) if spec.snapshot == SnapshotUse::Require => {
                return Err(CannotStart::retry(format!(
                    "a snapshot is required, and it could not be loaded now: {why}"
                )));
            }
            Err((why, false)) if spec.snapshot == SnapshotUse::Require => {
                let advice = format!("`tartarus template rebuild {}` makes one", spec.template);
                return Err(CannotStart::never(format!("a snapshot is required: {why}; {advice}")));
            }
            Err((why, _)) => {
                // A restore that came half-way may have left its layer.
                let _ = std::fs::remove_file(dir.join(LAYER));
                let (layer, files) = self.cold_layer(spec, dir).await?;
                (layer, Start::Cold { why, files })
            }
        };
        let Shape { cpus, memory_mib } = shape(spec);
        let machine = Machine { dir: dir.to_owned(), cpus, memory_mib, kernel, initramfs, base, layer };
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
        let (layer, now) = (dir.join(LAYER), now());
        let kept = blocking(move || {
            let copy = draft.create_layer()?;
            copy_layer(&layer, &copy).map_err(|e| Refusal::internal(format!("copying the layer: {e}")))?;
            let snapshot = draft.commit(&about, now)?;
            Ok::<_, Refusal>(Golden { snapshot, about })
        });
        let made = kept.await.map_err(CannotStart::retry)?;
        self.bases.remove_others(&golden, made.snapshot.memory_digest()).await;
        self.trust(&golden);
        // Whoever is told that it is ready shall not have to wait for its memory. What does not fit now may fit later.
        if let Err(why) = self.base(&made).await {
            tracing::warn!(template = %spec.template, error = %why, "the snapshot's memory is not loaded yet");
        }
        Ok(())
    }

    fn distrust(&self, golden: &str, why: &str) {
        tracing::warn!(golden, why, "a restore failed; the snapshot is not used until it is made again");
        self.put_distrust(golden, why);
    }

    fn hold(&self, golden: &str, memory: &str) -> Hold {
        unhex(memory).and_then(|digest| self.bases.hold(golden, digest)).map(Hold::on).unwrap_or_default()
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
