//! What every engine must do: the semantics written on the traits, case by case, and histories against a model.
//!
//! An engine's own test file calls [`suite`] with a function that makes an empty store.

mod catalogue;
pub(crate) mod history;
mod queue;
mod runs;

use std::collections::BTreeMap;

use hades::{Accepted, Candidate, KillAsked, Leased, NewSandbox, NodeRecord, QueueRules, Record, Store};
use tartarus_types::{NodeId, Outcome, Overcommit, Reason, SandboxId, SandboxSpec, SnapshotUse, Timestamp};

/// The moment at which every case begins.
pub(crate) const T0: Timestamp = Timestamp(1_700_000_000_000_000);

pub(crate) const RULES: QueueRules = QueueRules { visibility_ms: 30_000, max_attempts: 3, retry_delay_ms: 1_000 };

/// Runs every case, each on a store of its own. The case that fails is the last one named.
pub(crate) async fn suite<S: Store>(make: impl AsyncFn(QueueRules) -> S) {
    macro_rules! cases {
        ($($module:ident::$case:ident,)*) => {
            $(
                println!("{}::{}", stringify!($module), stringify!($case));
                $module::$case(&make(RULES).await).await;
            )*
        };
    }
    cases! {
        runs::accepts_and_finds,
        runs::resolves,
        runs::names_are_free_again,
        runs::lists_newest_first,
        runs::replays_idempotent_requests,
        runs::runs_to_its_end,
        runs::fences_old_attempts,
        runs::kills_in_every_state,
        runs::a_kill_is_never_softened,
        runs::removes,
        runs::bounds_what_nodes_say,
        runs::publishes_news,
        runs::pauses_and_goes_on,
        runs::one_makes_a_snapshot,
        runs::keeps_the_newest_that_ended,
        runs::names_what_is_in_use,
        runs::counts_who_has_not_ended,
        queue::serves_the_oldest_that_is_chosen,
        queue::reserves_exactly,
        queue::refuses_to_oversell,
        queue::retries_in_the_old_place,
        queue::gives_up_after_the_last_attempt,
        queue::gives_up_when_retrying_is_useless,
        queue::a_lost_lease_before_and_after_begin,
        queue::renewed_leases_live,
        queue::a_node_that_starts_holds_what_it_says,
        queue::grace_after_an_absence,
        queue::start_deadlines,
        queue::names_the_next_deadline,
        queue::tells_nodes_of_kills,
        queue::many_wait,
        catalogue::images,
        catalogue::kernels,
        catalogue::templates,
        catalogue::keys,
        catalogue::nodes,
    }
}

pub(crate) fn at(ms: u64) -> Timestamp {
    T0.plus_ms(ms)
}

pub(crate) fn spec(memory_mib: u32) -> SandboxSpec {
    SandboxSpec {
        template: "python".into(),
        image: "sha256:image".into(),
        kernel: "sha256:kernel".into(),
        command: vec!["/bin/true".into(), "ä\"'\n".into()],
        env: BTreeMap::from([("A".into(), "b".into())]),
        user: Some("nobody".into()),
        cpus: 1,
        memory_mib,
        disk_mib: 64,
        timeout_ms: Some(1_000),
        start_timeout_ms: 60_000,
        attach: true,
        ..SandboxSpec::default()
    }
}

pub(crate) fn new() -> NewSandbox {
    let labels = BTreeMap::from([("team/a".into(), "x".into())]);
    NewSandbox { id: SandboxId::random(), name: None, labels, spec: spec(100), idempotency: None }
}

pub(crate) fn node() -> NodeRecord {
    NodeRecord {
        id: NodeId::random(),
        memory_mib: 1_000,
        overhead_mib: 10,
        overcommit: Overcommit::NEVER,
        start_slots: 100,
        max_cpus: 4,
        seen_at: T0,
        reserved_mib: 0,
        starting: 0,
    }
}

pub(crate) const TERM: KillAsked = KillAsked { signal: 15, grace_ms: 5_000 };

pub(crate) fn exited(code: i32) -> Outcome {
    Outcome { reason: Reason::Exited, exit_code: Some(code), signal: None, message: None, oom_kills: 0 }
}

/// Takes the oldest, whatever its size.
pub(crate) fn oldest(_: &NodeRecord, candidates: &[Candidate]) -> Option<usize> {
    (!candidates.is_empty()).then_some(0)
}

/// Takes the oldest that fits.
pub(crate) fn first_fit(node: &NodeRecord, candidates: &[Candidate]) -> Option<usize> {
    let free = node.memory_mib.saturating_sub(node.reserved_mib);
    let fits = |c: &Candidate| {
        node.overcommit.reserved_mib(c.memory_mib) + node.overhead_mib <= free && c.cpus <= node.max_cpus
    };
    if node.starting < node.start_slots { candidates.iter().position(fits) } else { None }
}

/// Accepts `new` and gives its record.
pub(crate) async fn accept(store: &impl Store, new: NewSandbox, now: Timestamp) -> Record {
    match store.accept(new, now).await.unwrap() {
        Accepted::New(record) => *record,
        Accepted::Replay(record) => panic!("a replay of {record:?}"),
    }
}

/// Makes a node known and gives its id.
pub(crate) async fn join(store: &impl Store) -> NodeId {
    let node = node();
    store.upsert_node(node.clone()).await.unwrap();
    node.id
}

/// Leases the oldest, which must exist.
pub(crate) async fn lease(store: &impl Store, node: &NodeId, now: Timestamp) -> Leased {
    store.lease(node, oldest, now).await.unwrap().expect("something is queued")
}

/// The next piece of news, which must come soon.
pub(crate) async fn heard(news: &mut tokio::sync::broadcast::Receiver<SandboxId>) -> SandboxId {
    tokio::time::timeout(std::time::Duration::from_secs(10), news.recv()).await.expect("news within 10 s").unwrap()
}

/// Asserts that an expression is an error of this pattern.
macro_rules! refused {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            other => panic!("expected {}, got {other:?}", stringify!($pattern)),
        }
    };
}
pub(crate) use refused;
