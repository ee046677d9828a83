//! What a client sees of what the store keeps.

use hades::store::{ImageRecord, KernelRecord, Record, TemplateRecord};
use tartarus_api::node::{ExecSpec, Live, Progress};
use tartarus_api::v1::{Exec, Image, Kernel, Phase, Sandbox, SandboxDetail, Template};
use tartarus_types::net::NetStatus;
use tartarus_types::{Contract, Outcome, SandboxId, Timestamp};

use crate::snapshots::{Known, snapshots};

/// A sandbox, with its place in the queue where that is known.
pub(crate) fn sandbox(record: Record, queue_position: Option<u64>) -> Sandbox {
    let exit_status = record.outcome.as_ref().map(Outcome::exit_status);
    let spec = record.spec;
    Sandbox {
        id: record.id,
        name: record.name,
        state: record.state,
        template: spec.template,
        image: spec.image,
        kernel: spec.kernel,
        command: spec.command,
        labels: record.labels,
        cpus: spec.cpus,
        memory_mib: spec.memory_mib,
        disk_mib: spec.disk_mib,
        timeout_ms: spec.timeout_ms,
        created_at: record.created_at,
        started_at: record.started_at,
        ended_at: record.ended_at,
        attempts: record.attempts,
        node: record.node,
        outcome: record.outcome,
        exit_status,
        queue_position,
        has_code: spec.code.is_some(),
        net: Some(spec.net).filter(Contract::is_some),
    }
}

/// A sandbox with all that is known: `live` is what the node says now, and newer than what it reported.
pub(crate) fn detail(
    record: Record,
    queue_position: Option<u64>,
    failures: Vec<String>,
    live: Option<Live>,
    waiting: Option<String>,
    net: Option<NetStatus>,
) -> SandboxDetail {
    let reported = record.progress.as_deref().and_then(|json| serde_json::from_str(json).ok());
    let (hypervisor_pid, progress) = match live {
        Some(live) => (live.hypervisor_pid, live.progress),
        None => (None, reported.unwrap_or_default()),
    };
    let phases = phases(record.created_at, record.ended_at, &progress);
    let mut sandbox = sandbox(record, queue_position);
    if let Some(net) = &net {
        sandbox.net = Some(net.contract.clone()).filter(Contract::is_some);
    }
    SandboxDetail {
        phases,
        sandbox,
        hypervisor_pid,
        driver: progress.driver,
        guest_kernel: progress.guest_kernel,
        failures,
        start: progress.start,
        waiting,
        net_status: net,
    }
}

fn phases(accepted: Timestamp, ended: Option<Timestamp>, progress: &Progress) -> Vec<Phase> {
    let mut points = vec![("accepted".to_owned(), accepted)];
    points.extend(progress.moments.iter().map(|moment| (moment.phase.clone(), moment.at)));
    if let Some(at) = ended.filter(|_| points.iter().all(|(name, _)| name != "ended")) {
        points.push(("ended".to_owned(), at));
    }
    let mut before = accepted;
    let mut phase = |(name, at): (String, Timestamp)| {
        let took_us = at.0.saturating_sub(before.0).max(0);
        before = at;
        Phase { name, at, took_ms: took_us as f64 / 1000.0 }
    };
    points.into_iter().map(&mut phase).collect()
}

/// A command in a sandbox.
pub(crate) fn exec(sandbox: &SandboxId, spec: ExecSpec, outcome: Option<Outcome>) -> Exec {
    let exit_status = outcome.as_ref().map(Outcome::exit_status);
    let has_code = spec.code.is_some();
    Exec { id: spec.id, sandbox: sandbox.clone(), command: spec.command, outcome, exit_status, has_code }
}

/// An image.
pub(crate) fn image(record: ImageRecord) -> Image {
    let ImageRecord { name, digest, size, created_at } = record;
    Image { name, digest, size, created_at }
}

/// A guest kernel.
pub(crate) fn kernel(record: KernelRecord) -> Kernel {
    let KernelRecord { digest, release, size, created_at } = record;
    Kernel { digest, release, size, created_at }
}

/// A template, with where its snapshots stand.
pub(crate) fn template(record: TemplateRecord, known: &Known) -> Template {
    let snapshots = snapshots(&record, known);
    let TemplateRecord { name, spec, created_at } = record;
    Template { name, spec, created_at, snapshots }
}

#[cfg(test)]
mod tests {
    use tartarus_api::node::Moment;

    use super::*;

    #[test]
    fn phases_tell_what_each_took() {
        let moment = |phase: &str, at| Moment { phase: phase.into(), at: Timestamp(at) };
        let progress =
            Progress { moments: vec![moment("leased", 1_500), moment("disk_ready", 4_000)], ..Progress::default() };
        let found = phases(Timestamp(1_000), Some(Timestamp(3_000)), &progress);
        let found: Vec<_> = found.iter().map(|p| (p.name.as_str(), p.took_ms)).collect();
        // A clock that went back takes no time.
        assert_eq!(found, [("accepted", 0.0), ("leased", 0.5), ("disk_ready", 2.5), ("ended", 0.0)]);
    }
}
