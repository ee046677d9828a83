//! Every state of a snapshot, and what follows from it.

use tartarus_types::{NodeId, Overcommit, SandboxId, TemplateSpec, Timestamp};

use super::*;

fn template() -> TemplateRecord {
    let spec = TemplateSpec {
        image: "sha256:i".into(),
        cpus: 1,
        memory_mib: 512,
        disk_mib: 64,
        shapes: vec![Shape { cpus: 2, memory_mib: 4096 }],
        ..TemplateSpec::default()
    };
    TemplateRecord { name: "t".into(), spec, created_at: Timestamp(0) }
}

fn name() -> String {
    golden(&template().spec, "sha256:k", Shape { cpus: 1, memory_mib: 512 }).unwrap()
}

fn info() -> SnapshotInfo {
    SnapshotInfo {
        golden: name(),
        template: "t".into(),
        shape: Shape { cpus: 1, memory_mib: 512 },
        created_at: Timestamp(7),
        bytes: 100,
        layer_bytes: 10,
        unusable: None,
        outdated: None,
        loaded: false,
    }
}

fn maker(state: State, outcome: Option<Outcome>) -> Record {
    let shape = Shape { cpus: 1, memory_mib: 512 };
    Record {
        id: SandboxId::random(),
        name: None,
        labels: BTreeMap::new(),
        state,
        spec: maker_spec(&template(), "sha256:k", shape, name()),
        created_at: Timestamp(0),
        started_at: None,
        ended_at: None,
        attempts: 1,
        node: None,
        outcome,
        kill: None,
        remove: false,
        progress: None,
    }
}

fn known(stored: Option<Vec<SnapshotInfo>>, maker: Option<Record>) -> Known {
    let node = NodeRecord {
        id: NodeId::random(),
        memory_mib: 2048,
        overhead_mib: 96,
        overcommit: Overcommit::NEVER,
        start_slots: 2,
        max_cpus: 4,
        seen_at: Timestamp(0),
        reserved_mib: 0,
        starting: 0,
    };
    let kernel = KernelRecord { digest: "sha256:k".into(), release: "6.1".into(), size: 1, created_at: Timestamp(0) };
    let makers = maker.into_iter().map(|record| (name(), record)).collect();
    Known { kernel: Some(kernel), nodes: vec![node], stored, makers }
}

fn exited(code: i32) -> Outcome {
    Outcome { exit_code: Some(code), message: None, ..Outcome::because(Reason::Exited, "") }
}

#[test]
fn every_state() {
    use SnapshotState::{Building, Failed, Missing, Outdated, Ready, Unusable};
    let unusable = SnapshotInfo { unusable: Some("qemu 1, now 2".into()), ..info() };
    let outdated = SnapshotInfo { outdated: Some("agent 1".into()), ..info() };
    let failed = || Some(maker(State::Failed, Some(exited(3))));
    let succeeded = || Some(maker(State::Succeeded, Some(exited(0))));
    // Made by itself, because somebody made the template, because somebody wants them anew.
    for (stored, maker, state, made) in [
        (vec![], None, Missing, "yes yes yes"),
        (vec![], Some(maker(State::Queued, None)), Building, "no no no"),
        (vec![], Some(maker(State::Paused, None)), Building, "no no no"),
        (vec![], failed(), Failed, "yes yes yes"),
        (vec![], succeeded(), Missing, "yes yes yes"),
        (vec![info()], None, Ready, "no no yes"),
        (vec![info()], succeeded(), Ready, "no no yes"),
        (vec![info()], failed(), Ready, "no no yes"),
        (vec![info()], Some(maker(State::Running, None)), Building, "no no no"),
        (vec![unusable.clone()], None, Unusable, "yes yes yes"),
        (vec![unusable], failed(), Unusable, "yes yes yes"),
        (vec![outdated], None, Outdated, "yes no yes"),
    ] {
        let bytes = stored.first().map(|info| info.bytes);
        let id = maker.as_ref().map(|record| record.id.clone());
        let found = snapshots(&template(), &known(Some(stored), maker)).remove(0);
        assert_eq!(found.state, state, "{found:?}");
        assert_eq!((found.golden.as_deref(), found.bytes, &found.sandbox), (Some(name().as_str()), bytes, &id));
        let eager = [Eagerness::ByItself, Eagerness::Asked, Eagerness::Anew];
        let word = |wanted| if wanted { "yes" } else { "no" };
        let words = eager.map(|eager| word(wanted(&found, eager, 0, false)));
        assert_eq!(words.join(" "), made, "{found:?}");
        assert!(!wanted(&found, Eagerness::ByItself, 1, false), "once is enough");
    }
}

#[test]
fn what_failed_for_a_passing_reason_is_tried_a_few_times() {
    use Reason::{Exited, GuestDied, HypervisorDied, Killed, NodeLost, Shutdown, StartFailed, StartTimeout};
    let ended = |reason| maker(State::Failed, Some(Outcome::because(reason, "")));
    assert!([StartTimeout, StartFailed, NodeLost, Shutdown].into_iter().all(|reason| passing(&ended(reason))));
    assert!(![Exited, Killed, GuestDied, HypervisorDied].into_iter().any(|reason| passing(&ended(reason))));
    assert!(!passing(&maker(State::Queued, None)));
    let found = snapshots(&template(), &known(Some(vec![]), Some(ended(StartTimeout)))).remove(0);
    let again = |tries| wanted(&found, Eagerness::ByItself, tries, true);
    assert_eq!([0, 1, 2, 3, 4].map(again), [true, true, true, true, false]);
}

#[test]
fn the_cause_is_told() {
    let why = |known: &Known, index: usize| snapshots(&template(), known).remove(index).why;
    let failed = maker(State::Failed, Some(exited(3)));
    let id = failed.id.clone();
    let told = format!("the warm-up exited with 3; `tartarus logs {id}` has the output");
    assert_eq!(why(&known(Some(vec![]), Some(failed)), 0), Some(told));
    let late = maker(State::TimedOut, Some(Outcome { message: None, ..Outcome::because(Reason::Timeout, "") }));
    assert!(why(&known(Some(vec![]), Some(late)), 0).unwrap().starts_with("timed_out: timeout"));
    assert!(why(&known(Some(vec![]), Some(maker(State::Queued, None))), 0).unwrap().contains("waits"));
    assert!(why(&known(None, None), 0).unwrap().contains("cannot be asked"));
    assert!(why(&known(Some(vec![]), None), 1).unwrap().contains("4096 MiB asked for"), "no node is large enough");
    let no_kernel = Known { kernel: None, ..known(Some(vec![]), None) };
    let found = snapshots(&template(), &no_kernel).remove(0);
    assert!(found.golden.is_none() && found.why.unwrap().contains("kernel add"));
    let mut cold = template();
    cold.spec.cold = true;
    assert!(snapshots(&cold, &known(Some(vec![]), None)).is_empty());
}
