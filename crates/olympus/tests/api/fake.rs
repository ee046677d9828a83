//! A node that runs nothing: it remembers what it was asked and answers what the test put in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tartarus_api::doctor::DoctorReport;
use tartarus_api::node::{
    Assignment, ByteStream, ControlPlane, ExecSpec, ImageMade, KernelMade, Live, Node, NodeUsage, OutputEvent,
    OutputRequest, OutputStream, Report, SnapshotInfo, Target,
};
use tartarus_types::net::{NetStatus, NetTotals};
use tartarus_types::{Contract, ErrorCode, ExecId, Outcome, Refusal, SandboxId};

#[derive(Default)]
pub(crate) struct FakeNode {
    pub(crate) kicks: AtomicU64,
    pub(crate) files: Mutex<BTreeSet<String>>,
    pub(crate) forgotten: Mutex<Vec<SandboxId>>,
    pub(crate) execs: Mutex<BTreeMap<ExecId, ExecSpec>>,
    pub(crate) signals: Mutex<Vec<(Target, i32)>>,
    pub(crate) stdin: Mutex<Vec<u8>>,
    pub(crate) output: Mutex<Vec<OutputEvent>>,
    pub(crate) live: Mutex<Option<Live>>,
    /// An output that is followed never ends.
    pub(crate) endless: Mutex<bool>,
    /// The attempt that `pause` and `resume` report about, and to whom.
    pub(crate) machine: Mutex<Option<(Arc<dyn ControlPlane>, Assignment)>>,
    pub(crate) snapshots: Mutex<Vec<SnapshotInfo>>,
    /// Snapshots are not told: the node does not answer.
    pub(crate) deaf: Mutex<bool>,
    pub(crate) removed_snapshots: Mutex<Vec<String>>,
    pub(crate) usage: Mutex<NodeUsage>,
    /// It has hands on this one for ever.
    pub(crate) holds: Mutex<Option<SandboxId>>,
    /// The network of those that it runs; a sandbox that is not here is not known.
    pub(crate) nets: Mutex<BTreeMap<SandboxId, NetStatus>>,
    pub(crate) totals: Mutex<NetTotals>,
}

#[async_trait]
impl Node for FakeNode {
    fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::SeqCst);
    }

    async fn exec(&self, _: &SandboxId, spec: ExecSpec) -> Result<(), Refusal> {
        self.execs.lock().unwrap().entry(spec.id.clone()).or_insert(spec);
        Ok(())
    }

    async fn exec_status(
        &self,
        _: &SandboxId,
        exec: &ExecId,
        _: Duration,
    ) -> Result<(ExecSpec, Option<Outcome>), Refusal> {
        let execs = self.execs.lock().unwrap();
        execs.get(exec).map(|spec| (spec.clone(), None)).ok_or_else(|| Refusal::not_found("exec", exec.as_str()))
    }

    async fn signal(&self, _: &SandboxId, target: &Target, signal: i32) -> Result<(), Refusal> {
        if signal == 64 {
            panic!("on purpose, in a test");
        }
        self.signals.lock().unwrap().push((target.clone(), signal));
        Ok(())
    }

    async fn stdin(&self, _: &SandboxId, _: &Target, offset: u64, bytes: Bytes, _: bool) -> Result<u64, Refusal> {
        let mut taken = self.stdin.lock().unwrap();
        let known = taken.len().checked_sub(offset as usize).ok_or_else(|| Refusal::field("offset", "a gap"))?;
        taken.extend_from_slice(bytes.get(known..).unwrap_or_default());
        Ok(taken.len() as u64)
    }

    async fn output(&self, _: &SandboxId, _: &Target, request: OutputRequest) -> Result<OutputStream, Refusal> {
        let events = self.output.lock().unwrap().clone();
        let wanted = move |event: &OutputEvent| match event {
            OutputEvent::Data { stream, .. } | OutputEvent::Gap { stream, .. } => request.from[*stream].is_some(),
            OutputEvent::End => true,
        };
        let events = stream::iter(events.into_iter().filter(wanted).map(Ok));
        if request.follow && *self.endless.lock().unwrap() {
            return Ok(events.chain(stream::pending()).boxed());
        }
        Ok(events.chain(stream::iter([Ok(OutputEvent::End)])).boxed())
    }

    async fn live(&self, _: &SandboxId) -> Option<Live> {
        self.live.lock().unwrap().clone()
    }

    async fn pause(&self, _: &SandboxId) -> Result<(), Refusal> {
        self.tell(Report::Paused).await
    }

    async fn resume(&self, _: &SandboxId) -> Result<(), Refusal> {
        self.tell(Report::Resumed).await
    }

    async fn net(&self, sandbox: &SandboxId) -> Result<NetStatus, Refusal> {
        let nets = self.nets.lock().unwrap();
        nets.get(sandbox).cloned().ok_or_else(|| Refusal::not_found("running sandbox", sandbox.as_str()))
    }

    async fn set_net(&self, sandbox: &SandboxId, mut contract: Contract) -> Result<NetStatus, Refusal> {
        for (forward, port) in contract.forwards.iter_mut().zip(40_000..).filter(|(f, _)| f.listen.port() == 0) {
            forward.listen.set_port(port);
        }
        let status = NetStatus { contract, ..NetStatus::default() };
        self.nets.lock().unwrap().insert(sandbox.clone(), status.clone());
        Ok(status)
    }

    async fn net_totals(&self) -> Result<NetTotals, Refusal> {
        Ok(self.totals.lock().unwrap().clone())
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, Refusal> {
        if *self.deaf.lock().unwrap() {
            return Err(Refusal::new(ErrorCode::NodeUnreachable, "it is deaf"));
        }
        Ok(self.snapshots.lock().unwrap().clone())
    }

    async fn remove_snapshot(&self, golden: &str) -> Result<(), Refusal> {
        self.snapshots.lock().unwrap().retain(|info| info.golden != golden);
        self.removed_snapshots.lock().unwrap().push(golden.to_owned());
        Ok(())
    }

    async fn usage(&self) -> Result<NodeUsage, Refusal> {
        Ok(self.usage.lock().unwrap().clone())
    }

    async fn forget(&self, sandbox: &SandboxId) -> Result<(), Refusal> {
        if self.holds.lock().unwrap().as_ref() == Some(sandbox) {
            return Err(Refusal::new(ErrorCode::Busy, "it is being put away"));
        }
        self.forgotten.lock().unwrap().push(sandbox.clone());
        Ok(())
    }

    async fn import_image(&self, tar: ByteStream) -> Result<ImageMade, Refusal> {
        let (digest, size) = self.take(tar).await?;
        Ok(ImageMade { digest, size })
    }

    async fn remove_image(&self, digest: &str) -> Result<(), Refusal> {
        self.files.lock().unwrap().remove(digest);
        Ok(())
    }

    async fn import_kernel(&self, tar: ByteStream) -> Result<KernelMade, Refusal> {
        let (digest, size) = self.take(tar).await?;
        Ok(KernelMade { digest, release: "6.1.0-test".into(), size })
    }

    async fn remove_kernel(&self, digest: &str) -> Result<(), Refusal> {
        self.files.lock().unwrap().remove(digest);
        Ok(())
    }

    async fn doctor(&self, kernel: Option<&str>, reprobe: bool) -> Result<DoctorReport, Refusal> {
        let why = format!("kernel {} reprobe {reprobe}", kernel.unwrap_or("none"));
        Ok(DoctorReport { driver: "qemu-tcg".into(), why, checks: vec![] })
    }
}

impl FakeNode {
    async fn tell(&self, report: Report) -> Result<(), Refusal> {
        let (control, attempt) = self.machine.lock().unwrap().clone().expect("the test said which machine it is");
        control.report(&attempt.sandbox, &attempt.token, report).await.map(drop)
    }

    /// The "digest" of an upload tells its content, so that a test can tell two apart.
    async fn take(&self, tar: ByteStream) -> Result<(String, u64), Refusal> {
        let bytes: Vec<u8> = tar
            .try_fold(Vec::new(), |mut whole, chunk| async move {
                whole.extend_from_slice(&chunk);
                Ok(whole)
            })
            .await
            .map_err(|error| Refusal::new(ErrorCode::BadFile, error.to_string()))?;
        let sum: u64 = bytes.iter().map(|b| u64::from(*b)).sum();
        let digest = format!("sha256:{:032x}{sum:032x}", bytes.len());
        self.files.lock().unwrap().insert(digest.clone());
        Ok((digest, bytes.len() as u64))
    }
}
