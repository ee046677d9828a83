//! The node's workbench: makes machines out of images, kernels, layers and golden snapshots, and snapshots out of
//! machines. The real [`Workshop`].

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use erebus::nyx::Snapshot;
use tartarus_runtime::{DiskFormat, Driver, Layer, Machine, Restore, Vm};
use tartarus_types::{MIB, SandboxSpec, Shape, SnapshotUse};

use crate::golden::{self, About};
use crate::store::{HostStore, blocking};
use crate::workshop::{CannotStart, Hold, Ready, Start, Workshop};

/// The layer's file in a machine's folder.
const LAYER: &str = "layer";

fn shape(spec: &SandboxSpec) -> Shape {
    Shape { cpus: spec.cpus, memory_mib: spec.memory_mib }
}

impl HostStore {
    /// The snapshot that a sandbox starts from, or why there is none.
    fn fitting(&self, spec: &SandboxSpec, driver: &dyn Driver) -> Result<Snapshot<About>, String> {
        let golden = golden::wanted(spec)?;
        if let Some(why) = self.distrusted(golden) {
            return Err(format!("the snapshot failed before: {why}"));
        }
        let found = self.snapshots.get::<About>(golden).map_err(|e| e.to_string())?;
        let snapshot = found.ok_or_else(|| golden::missing(spec, &self.shapes_of(&spec.template)))?;
        match snapshot.meta().unusable(&driver.fingerprint()) {
            Some(why) => Err(why),
            None => Ok(snapshot),
        }
    }

    /// Sizes that there are snapshots for.
    fn shapes_of(&self, template: &str) -> Vec<Shape> {
        let all = self.snapshots.list::<About>().unwrap_or_default();
        let of = all.into_iter().filter_map(|entry| entry.snapshot.ok()).filter(|s| s.meta().template == template);
        let mut shapes: Vec<Shape> = of.map(|s| s.meta().shape).collect();
        shapes.sort_unstable();
        shapes.dedup();
        shapes
    }

    /// Memory, devices and layer of a snapshot.
    async fn restore(&self, spec: &SandboxSpec, snapshot: Snapshot<About>, dir: &Path) -> Result<(Layer, Start), String> {
        let golden = snapshot.golden().to_owned();
        let lease = self.snapshots.lease(&golden);
        let base = self.base(&snapshot, spec.memory_mib).await?;
        let (layers, target) = (self.layers.clone(), dir.join(LAYER));
        let made = blocking(move || {
            let state = snapshot.state()?;
            let made = layers.from_golden(&snapshot.layer_checked()?, &target)?;
            Ok::<_, erebus::ErebusError>((state, made.format))
        });
        let (state, format) = made.await.map_err(|e| e.to_string())?;
        let layer = Layer { path: dir.join(LAYER), format: disk_format(format) };
        let memory = base.descriptor();
        let hold = Hold::on((base, lease));
        Ok((layer, Start::Snapshot { golden, from: Restore { memory, state }, hold }))
    }

    /// The layer for a cold boot: the golden one, where there is one, so that what the warm-up wrote is there.
    async fn cold_layer(&self, spec: &SandboxSpec, dir: &Path) -> Result<Layer, CannotStart> {
        let golden = spec.golden.as_ref().filter(|_| spec.snapshot != SnapshotUse::Make);
        let snapshot = golden.and_then(|golden| self.snapshots.get::<About>(golden).ok().flatten());
        let lease = snapshot.as_ref().map(|s| self.snapshots.lease(s.golden()));
        let (layers, target, size) = (self.layers.clone(), dir.join(LAYER), spec.disk_mib);
        let made = blocking(move || {
            let _lease = lease;
            match snapshot.and_then(|s| s.layer_checked().ok()) {
                Some(golden) => layers.from_golden(&golden, &target).map(|made| made.format),
                None => layers.make(size, &target).map(|_| erebus::lethe::Format::Raw),
            }
        });
        let format = made.await.map_err(CannotStart::retry)?;
        Ok(Layer { path: dir.join(LAYER), format: disk_format(format) })
    }

    /// The memory of a snapshot, loaded and sealed.
    pub(crate) async fn base(
        &self,
        snapshot: &Snapshot<About>,
        memory_mib: u32,
    ) -> Result<Arc<tartarus_runtime::bases::Base>, String> {
        let size = u64::from(memory_mib) * MIB;
        let source = snapshot.clone();
        let digest = snapshot.memory_digest();
        let loaded = self.bases.get(snapshot.golden(), size, digest, move || source.open_memory()).await;
        loaded.map_err(|e| e.to_string())
    }
}

fn disk_format(format: erebus::lethe::Format) -> DiskFormat {
    match format {
        erebus::lethe::Format::Raw => DiskFormat::Raw,
        erebus::lethe::Format::Qcow2 => DiskFormat::Qcow2,
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
            Ok(snapshot) => self.restore(spec, snapshot, dir).await,
            Err(why) => Err(why),
        };
        let (layer, start) = match restored {
            Ok(restored) => restored,
            Err(why) if spec.snapshot == SnapshotUse::Require => {
                let advice = format!("`tartarus template rebuild {}` makes one", spec.template);
                return Err(CannotStart::never(format!("a snapshot is required: {why}; {advice}")));
            }
            Err(why) => {
                // A restore that came half-way may have left its layer.
                let _ = std::fs::remove_file(dir.join(LAYER));
                (self.cold_layer(spec, dir).await?, Start::Cold { why })
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
        };
        vm.pause().await.map_err(CannotStart::retry)?;
        let draft = self.snapshots.draft(&golden).map_err(CannotStart::retry)?;
        let (state, memory) = draft.create_state_and_memory().map_err(CannotStart::retry)?;
        vm.save(state, memory).await.map_err(CannotStart::retry)?;
        let layer = dir.join(LAYER);
        let kept = blocking(move || {
            draft.copy_layer(&layer)?;
            draft.commit(&about)
        });
        let snapshot = kept.await.map_err(CannotStart::retry)?;
        self.trust(&golden);
        // Whoever is told that it is ready shall not have to wait for its memory. What does not fit now may fit later.
        if let Err(why) = self.base(&snapshot, spec.memory_mib).await {
            tracing::warn!(template = %spec.template, why, "the snapshot's memory is not loaded yet");
        }
        Ok(())
    }

    fn distrust(&self, golden: &str, why: &str) {
        tracing::warn!(golden, why, "a restore failed; the snapshot is not used until it is made again");
        self.put_distrust(golden, why);
    }

    async fn hold(&self, golden: &str) -> Hold {
        let Ok(Some(snapshot)) = self.snapshots.get::<About>(golden) else { return Hold::default() };
        match self.base(&snapshot, snapshot.meta().shape.memory_mib).await {
            Ok(base) => Hold::on(base),
            Err(_) => Hold::default(),
        }
    }

    async fn shred(&self, dir: &Path) -> std::io::Result<()> {
        let layer = dir.join(LAYER);
        tokio::task::spawn_blocking(move || erebus::lethe::shred(&layer)).await?.map(drop)
    }

    fn adopter(&self) -> Arc<dyn Driver> {
        self.chooser.adopter()
    }
}
