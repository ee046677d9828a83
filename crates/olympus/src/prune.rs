//! What takes how much space, what of it nothing needs any more, and deleting that. Judging is pure; deleting is done in
//! an order in which a crash leaves nothing on record that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hades::store::{ImageRecord, KernelRecord, Retention, TemplateRecord};
use tartarus_api::node::{ControlPlane, Node, NodeUsage};
use tartarus_api::v1::{DiskUsage, Logs, Prune, Pruned, PrunedFile, StoredFile};
use tartarus_types::{ErrorCode, Refusal, SandboxId, Timestamp};

use crate::Olympus;
use crate::golden::{golden, shapes};
use crate::refusal::refuse;

/// Records that one transaction deletes, so that others get their turn.
const BATCH: u32 = 256;
/// How often what ended too long ago is looked for.
const EVERY: Duration = Duration::from_secs(300);
/// Before another look when the store failed.
const RETRY: Duration = Duration::from_secs(10);

/// Sandboxes whose logs could not be deleted, and why.
type Stay = BTreeMap<SandboxId, Refusal>;

/// What is on record, for judging files.
#[derive(Debug, Default)]
struct OnRecord {
    images: Vec<ImageRecord>,
    kernels: Vec<KernelRecord>,
    templates: Vec<TemplateRecord>,
    /// Digests of images and kernels of sandboxes that have not ended.
    running: BTreeSet<String>,
    /// Sandboxes that are kept no longer, and such as have logs only.
    expired: BTreeSet<SandboxId>,
}

impl OnRecord {
    fn sandboxes_of(&self, digest: &str) -> Option<String> {
        self.running.contains(digest).then(|| "a sandbox that has not ended".to_owned())
    }

    fn users_of_image(&self, digest: &str) -> Vec<String> {
        let names = self.images.iter().filter(|image| image.digest == digest).map(|i| format!("image {}", i.name));
        let templates = self.templates.iter().filter(|template| template.spec.image == digest);
        let templates = templates.map(|template| format!("template {}", template.name));
        names.chain(templates).chain(self.sandboxes_of(digest)).collect()
    }

    fn users_of_kernel(&self, digest: &str) -> Vec<String> {
        let known = self.kernels.iter().filter(|kernel| kernel.digest == digest);
        known.map(|kernel| format!("kernel {}", kernel.release)).chain(self.sandboxes_of(digest)).collect()
    }

    fn users_of_snapshot(&self, name: &str) -> Vec<String> {
        let Some(kernel) = self.kernels.first() else { return Vec::new() };
        let has = |template: &&TemplateRecord| {
            let spec = &template.spec;
            shapes(spec).into_iter().any(|shape| golden(spec, &kernel.digest, shape).as_deref() == Some(name))
        };
        self.templates.iter().filter(has).map(|template| format!("template {}", template.name)).collect()
    }
}

/// The node's files, each with what needs it.
fn usage(node: &NodeUsage, record: &OnRecord) -> DiskUsage {
    let files = |files: &[(String, u64)], users: &dyn Fn(&str) -> Vec<String>| -> Vec<StoredFile> {
        files
            .iter()
            .map(|(name, bytes)| StoredFile { name: name.clone(), bytes: *bytes, used_by: users(name) })
            .collect()
    };
    let mut usage = DiskUsage {
        images: files(&node.images, &|digest| record.users_of_image(digest)),
        kernels: files(&node.kernels, &|digest| record.users_of_kernel(digest)),
        snapshots: files(&node.snapshots, &|name| record.users_of_snapshot(name)),
        logs: Logs {
            sandboxes: node.logs.len() as u64,
            bytes: node.logs.iter().map(|(_, bytes)| bytes).sum(),
            reclaimable: node.logs.iter().filter(|(id, _)| record.expired.contains(id)).map(|(_, bytes)| bytes).sum(),
        },
        sandboxes: node.sandboxes,
        empty_layers: node.empty_layers,
        loaded: node.loaded,
        loaded_limit: node.loaded_limit,
        disk_free: node.disk_free,
        disk_size: node.disk_size,
        ..DiskUsage::default()
    };
    let all = [&usage.images, &usage.kernels, &usage.snapshots];
    usage.reclaimable =
        all.into_iter().flat_map(|files| unused(files)).map(|file| file.bytes).sum::<u64>() + usage.logs.reclaimable;
    usage
}

/// The files that nothing needs.
fn unused(files: &[StoredFile]) -> Vec<PrunedFile> {
    let unused = files.iter().filter(|file| file.used_by.is_empty());
    unused.map(|file| PrunedFile { name: file.name.clone(), bytes: file.bytes }).collect()
}

impl Olympus {
    /// Sandboxes that ended longer ago than this are kept no longer.
    fn ended_before(&self, older_than_ms: Option<u64>) -> Retention {
        let retain_ms = u64::try_from(self.settings.retain.as_millis()).unwrap_or(u64::MAX);
        let age_us = i64::try_from(older_than_ms.unwrap_or(retain_ms).saturating_mul(1000)).unwrap_or(i64::MAX);
        Retention { after: Timestamp(self.now().0.saturating_sub(age_us)), newest: u32::MAX }
    }

    async fn on_record(&self, rule: Retention) -> Result<OnRecord, Refusal> {
        Ok(OnRecord {
            images: self.store.images().await.map_err(refuse)?,
            kernels: self.store.kernels().await.map_err(refuse)?,
            templates: self.store.templates().await.map_err(refuse)?,
            running: self.store.digests_in_use().await.map_err(refuse)?,
            expired: self.store.expired(rule, u32::MAX).await.map_err(refuse)?.into_iter().collect(),
        })
    }

    /// What takes how much space.
    pub(crate) async fn disk_usage(&self) -> Result<DiskUsage, Refusal> {
        let node = self.node()?.usage().await?;
        let mut record = self.on_record(self.ended_before(None)).await?;
        record.expired.extend(self.orphans(&node).await?);
        Ok(DiskUsage { database: self.database_bytes(), min_free: self.disk.min_free(), ..usage(&node, &record) })
    }

    /// Bytes of the database, its log included. Whatever is not there is not counted.
    fn database_bytes(&self) -> u64 {
        let Some(folder) = self.disk.folder() else { return 0 };
        let size = |entry: std::fs::DirEntry| {
            let ours = entry.file_name().to_string_lossy().starts_with(crate::DATABASE);
            ours.then(|| entry.metadata().map_or(0, |meta| meta.len()))
        };
        std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).filter_map(size).sum()
    }

    /// Deletes what nothing needs any more, or says what that would be.
    pub(crate) async fn prune(&self, wanted: &Prune) -> Result<Pruned, Refusal> {
        let node = self.node()?;
        let rule = self.ended_before(wanted.older_than_ms);
        let mut pruned = Pruned { dry_run: wanted.dry_run, ..Pruned::default() };
        if wanted.logs.unwrap_or(true) {
            let usage = node.usage().await?;
            let orphans = self.orphans(&usage).await?;
            let (mut gone, mut stay) = match wanted.dry_run {
                true => (self.store.expired(rule, u32::MAX).await.map_err(refuse)?, Stay::new()),
                false => self.forget_ended(rule).await?,
            };
            pruned.sandboxes = gone.len() as u64;
            if !wanted.dry_run {
                stay.extend(self.delete_logs(&orphans).await);
            }
            gone.extend(orphans);
            let logs: BTreeMap<SandboxId, u64> = usage.logs.into_iter().collect();
            pruned.log_bytes = gone.iter().filter(|id| !stay.contains_key(id)).filter_map(|id| logs.get(id)).sum();
            pruned.left.extend(stay.into_iter().map(|(id, refusal)| format!("logs of {id}: {refusal}")));
        }
        if wanted.images.unwrap_or(true) {
            // Whoever imports is about to record a file that nothing uses yet.
            match self.files.try_write() {
                Ok(_nothing_is_imported) => self.prune_files(&**node, rule, wanted.dry_run, &mut pruned).await?,
                Err(_) => pruned.left.push("images and kernels: one is being imported, try again then".to_owned()),
            }
        }
        if wanted.snapshots.unwrap_or(true) {
            let _turn = self.builders.turn.lock().await;
            for file in unused(&usage(&node.usage().await?, &self.on_record(rule).await?).snapshots) {
                if keep(&mut pruned.left, &file, wanted.dry_run, node.remove_snapshot(&file.name)).await {
                    pruned.snapshots.push(file);
                }
            }
        }
        let files = [&pruned.images, &pruned.kernels, &pruned.snapshots];
        pruned.bytes = files.into_iter().flatten().map(|file| file.bytes).sum::<u64>() + pruned.log_bytes;
        Ok(pruned)
    }

    async fn prune_files(
        &self,
        node: &dyn Node,
        rule: Retention,
        dry_run: bool,
        pruned: &mut Pruned,
    ) -> Result<(), Refusal> {
        let usage = usage(&node.usage().await?, &self.on_record(rule).await?);
        for file in unused(&usage.images) {
            if keep(&mut pruned.left, &file, dry_run, node.remove_image(&file.name)).await {
                pruned.images.push(file);
            }
        }
        for file in unused(&usage.kernels) {
            if keep(&mut pruned.left, &file, dry_run, node.remove_kernel(&file.name)).await {
                pruned.kernels.push(file);
            }
        }
        Ok(())
    }

    /// Sandboxes of which the node has logs, and that are not on record: their deletion was cut short. The logs were
    /// listed before the records are looked at, so that no new sandbox is among them.
    async fn orphans(&self, node: &NodeUsage) -> Result<Vec<SandboxId>, Refusal> {
        let logs: Vec<SandboxId> = node.logs.iter().map(|(id, _)| id.clone()).collect();
        let known: BTreeSet<SandboxId> = ControlPlane::on_record(self, &logs).await?.into_iter().collect();
        Ok(logs.into_iter().filter(|id| !known.contains(id)).collect())
    }

    /// Deletes the records of what is kept no longer, then their logs: should we be killed in between, the node deletes
    /// logs that are not on record when it starts. Tells which records are gone, and whose logs are not.
    async fn forget_ended(&self, rule: Retention) -> Result<(Vec<SandboxId>, Stay), Refusal> {
        let (mut all, mut stay) = (Vec::new(), Stay::new());
        loop {
            let expired = self.store.expired(rule, BATCH).await.map_err(refuse)?;
            let gone = self.store.forget(&expired).await.map_err(refuse)?;
            if gone.is_empty() {
                return Ok((all, stay));
            }
            stay.extend(self.delete_logs(&gone).await);
            all.extend(gone);
        }
    }

    /// Deletes logs, some beside each other, since each may have to wait for the node. Tells which stay.
    async fn delete_logs(&self, sandboxes: &[SandboxId]) -> Stay {
        let mut stay = Stay::new();
        for some in sandboxes.chunks(BATCH as usize) {
            let deleting: Vec<_> = some.iter().map(|id| (id, self.forget(id.clone()))).collect();
            for (id, deleting) in deleting {
                if let Err(refusal) = deleting.await.unwrap_or_else(|error| Err(Refusal::internal(error))) {
                    stay.insert(id.clone(), refusal);
                }
            }
        }
        stay
    }

    /// Forgets what ended too long ago, and what is too much. Never returns.
    pub(crate) async fn retain(&self) {
        loop {
            let rule = Retention { newest: self.settings.retain_count, ..self.ended_before(None) };
            let pause = match self.forget_ended(rule).await {
                Ok((gone, _)) => {
                    if !gone.is_empty() {
                        tracing::info!(sandboxes = gone.len(), "forgotten: they ended too long ago, or are too many");
                    }
                    EVERY
                }
                Err(refusal) => {
                    tracing::warn!("what ended long ago could not be forgotten, trying again: {refusal}");
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// Deletes a file unless this is only a look. False when it stays, which is then said in `left`.
async fn keep(
    left: &mut Vec<String>,
    file: &PrunedFile,
    dry_run: bool,
    delete: impl Future<Output = Result<(), Refusal>>,
) -> bool {
    if dry_run {
        return true;
    }
    match delete.await {
        Err(refusal) if refusal.code != ErrorCode::NotFound => {
            left.push(format!("{}: {refusal}", file.name));
            false
        }
        Ok(()) | Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use tartarus_types::{Shape, TemplateSpec};

    use super::*;

    #[test]
    fn only_what_nothing_needs_may_go() {
        let spec = TemplateSpec {
            image: "sha256:of-template".into(),
            cpus: 1,
            memory_mib: 512,
            disk_mib: 64,
            ..TemplateSpec::default()
        };
        let snapshot = golden(&spec, "sha256:k", Shape { cpus: 1, memory_mib: 512 }).unwrap();
        let (old, new) = (SandboxId::random(), SandboxId::random());
        let created_at = Timestamp(0);
        let record = OnRecord {
            images: vec![ImageRecord { name: "py".into(), digest: "sha256:named".into(), size: 1, created_at }],
            kernels: vec![KernelRecord { digest: "sha256:k".into(), release: "6.1".into(), size: 1, created_at }],
            templates: vec![TemplateRecord { name: "t".into(), spec, created_at }],
            running: ["sha256:running".to_owned()].into(),
            expired: [old.clone()].into(),
        };
        let file = |name: &str, bytes| (name.to_owned(), bytes);
        let node = NodeUsage {
            images: ["named", "of-template", "running", "nobody's"].map(|n| file(&format!("sha256:{n}"), 1)).into(),
            kernels: vec![file("sha256:k", 10), file("sha256:running", 10), file("sha256:old", 10)],
            snapshots: vec![file(&snapshot, 100), file("of an older kernel", 100)],
            logs: vec![(old, 1000), (new, 5000)],
            ..NodeUsage::default()
        };
        let found = usage(&node, &record);
        let names = |files: &[StoredFile]| unused(files).into_iter().map(|file| file.name).collect::<Vec<_>>();
        assert_eq!(names(&found.images), ["sha256:nobody's"]);
        assert_eq!(names(&found.kernels), ["sha256:old"]);
        assert_eq!(names(&found.snapshots), ["of an older kernel"]);
        assert_eq!(found.images[1].used_by, ["template t"]);
        assert_eq!(found.snapshots[0].used_by, ["template t"]);
        assert_eq!(found.logs, Logs { sandboxes: 2, bytes: 6000, reclaimable: 1000 });
        assert_eq!(found.reclaimable, 1111);
    }
}
