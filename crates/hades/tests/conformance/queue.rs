use hades::{Candidate, NewSandbox, NodeRecord, Store, StoreError};
use tartarus_types::{Event, LeaseToken, NodeId, Outcome, Reason, SandboxId, State};

use super::*;

fn sized(memory_mib: u32) -> NewSandbox {
    NewSandbox { spec: spec(memory_mib), ..new() }
}

fn give_back(why: &str) -> Event {
    Event::GiveBack { tries_left: true, why: why.into() }
}

async fn reserved(s: &impl Store, node: &NodeId) -> (u64, u32) {
    let node = s.nodes().await.unwrap().into_iter().find(|n| n.id == *node).unwrap();
    (node.reserved_mib, node.starting)
}

pub(crate) async fn serves_the_oldest_that_is_chosen(s: &impl Store) {
    let node = join(s).await;
    refused!(s.lease(&NodeId::random(), oldest, T0).await, StoreError::NotFound("node", _));
    assert!(s.lease(&node, oldest, T0).await.unwrap().is_none());
    let mut ids = Vec::new();
    for memory in [100, 200, 300] {
        ids.push(accept(s, sized(memory), T0).await.id);
    }
    for (place, id) in (1..).zip(&ids) {
        assert_eq!(s.queue_position(id).await.unwrap(), Some(place));
    }
    // What is offered, in which order, and that nothing is leased when nothing is chosen.
    fn checks(_: &NodeRecord, offered: &[Candidate]) -> Option<usize> {
        assert_eq!(offered.iter().map(|c| (c.memory_mib, c.cpus)).collect::<Vec<_>>(), [(100, 1), (200, 1), (300, 1)]);
        None
    }
    assert!(s.lease(&node, checks, T0).await.unwrap().is_none());
    let middle = s.lease(&node, |_, _| Some(1), T0).await.unwrap().unwrap();
    assert_eq!(middle.record.id, ids[1]);
    assert_eq!(s.queue_position(&ids[2]).await.unwrap(), Some(2));
    assert_eq!(lease(s, &node, T0).await.record.id, ids[0]);
    assert_eq!(lease(s, &node, T0).await.record.id, ids[2]);
    assert!(s.lease(&node, oldest, T0).await.unwrap().is_none());
    assert_eq!(s.queue_position(&SandboxId::random()).await.unwrap(), None);
    assert!(s.lease(&node, |_, _| Some(7), T0).await.is_err(), "an index beyond what was offered");
}

pub(crate) async fn reserves_exactly(s: &impl Store) {
    let (one, two) = (join(s).await, join(s).await);
    let mut leases = Vec::new();
    for memory in [100, 200, 300] {
        accept(s, sized(memory), T0).await;
        leases.push(lease(s, &one, T0).await);
    }
    assert_eq!(reserved(s, &one).await, (630, 3));
    assert_eq!(reserved(s, &two).await, (0, 0));
    // The node as `choose` sees it.
    fn checks(node: &NodeRecord, offered: &[Candidate]) -> Option<usize> {
        assert_eq!((node.reserved_mib, node.starting, offered.len()), (630, 3, 0));
        None
    }
    s.lease(&one, checks, T0).await.unwrap();

    let apply = async |i: usize, event| s.apply(&leases[i].record.id, &leases[i].token, event, None, T0).await.unwrap();
    apply(0, Event::Prepare).await;
    assert_eq!(reserved(s, &one).await, (630, 3));
    apply(0, Event::Begin).await;
    assert_eq!(reserved(s, &one).await, (630, 2), "running, it holds no start slot");
    apply(0, Event::End(exited(0))).await;
    assert_eq!(reserved(s, &one).await, (520, 2));
    s.kill(&leases[1].record.id, TERM, false, T0).await.unwrap();
    assert_eq!(reserved(s, &one).await, (520, 1), "until it has ended its memory is taken");
    apply(1, give_back("w")).await;
    assert_eq!(reserved(s, &one).await, (310, 1));
    apply(2, give_back("w")).await;
    assert_eq!(reserved(s, &one).await, (0, 0));
    lease(s, &two, at(1_000)).await;
    assert_eq!((reserved(s, &one).await, reserved(s, &two).await), ((0, 0), (310, 1)));
}

pub(crate) async fn refuses_to_oversell(s: &impl Store) {
    let small = NodeRecord { start_slots: 2, ..node() };
    s.upsert_node(small.clone()).await.unwrap();
    for memory in [991, 700, 281, 1, 1] {
        accept(s, sized(memory), T0).await;
    }
    let take = async |choose| s.lease(&small.id, choose, T0).await.unwrap().map(|l| l.record.spec.memory_mib);
    assert_eq!(take(|_, _| Some(0)).await, None, "1 MiB more than the node has");
    assert_eq!(take(|_, _| Some(1)).await, Some(700));
    assert_eq!(take(|_, _| Some(1)).await, None, "1 MiB more than is left");
    assert_eq!(take(|_, _| Some(2)).await, Some(1));
    assert_eq!(take(|_, _| Some(2)).await, None, "no start slot");
    assert_eq!(reserved(s, &small.id).await, (721, 2));
}

pub(crate) async fn retries_in_the_old_place(s: &impl Store) {
    let node = join(s).await;
    let old = accept(s, new(), at(0)).await.id;
    let young = accept(s, new(), at(1)).await.id;
    let first = lease(s, &node, at(2)).await;
    assert_eq!(first.record.id, old);
    let record = s.apply(&old, &first.token, give_back("no disk"), None, at(10)).await.unwrap();
    assert_eq!((record.state, record.attempts, record.node), (State::Queued, 1, Some(node.clone())));
    assert_eq!(s.failures(&old).await.unwrap(), ["no disk"]);

    // Not visible before the delay has passed; after it, in front of what came later.
    assert_eq!(s.queue_position(&old).await.unwrap(), None);
    assert_eq!(s.queue_position(&young).await.unwrap(), Some(1));
    assert_eq!(s.next_deadline().await.unwrap(), Some(at(1_010)));
    fn one_offered(_: &NodeRecord, offered: &[Candidate]) -> Option<usize> {
        assert_eq!(offered.len(), 1);
        None
    }
    s.lease(&node, one_offered, at(1_009)).await.unwrap();
    let mut news = s.subscribe();
    assert!(s.expire(at(1_010)).await.unwrap().is_empty(), "becoming visible is no change of a record");
    assert_eq!(heard(&mut news).await, old, "but news to those who wait for work");
    assert_eq!(s.queue_position(&old).await.unwrap(), Some(1));
    assert_eq!(s.queue_position(&young).await.unwrap(), Some(2));
    let second = lease(s, &node, at(1_010)).await;
    assert_eq!((&second.record.id, second.record.attempts), (&old, 2));
    assert_ne!(second.token, first.token);
    assert_eq!(lease(s, &node, at(1_010)).await.record.id, young);

    // Without `expire` in between, the lease itself makes it visible.
    s.apply(&old, &second.token, give_back("again"), None, at(2_000)).await.unwrap();
    assert!(s.lease(&node, oldest, at(2_999)).await.unwrap().is_none());
    assert_eq!(lease(s, &node, at(3_000)).await.record.id, old);
    assert_eq!(s.failures(&old).await.unwrap(), ["no disk", "again"]);
}

pub(crate) async fn gives_up_after_the_last_attempt(s: &impl Store) {
    let node = join(s).await;
    let id = accept(s, new(), at(0)).await.id;
    for (attempt, why) in [(1, "one"), (2, "two"), (3, "three")] {
        let leased = lease(s, &node, at(2_000 * attempt)).await;
        assert_eq!(u64::from(leased.record.attempts), attempt);
        // Whatever the caller says, the store counts.
        let record = s.apply(&id, &leased.token, give_back(why), None, at(2_000 * attempt + 1)).await.unwrap();
        assert_eq!(record.state, if attempt < 3 { State::Queued } else { State::Failed });
    }
    let record = s.get(&id).await.unwrap().unwrap();
    assert_eq!(record.outcome, Some(Outcome::because(Reason::StartFailed, "three")));
    assert_eq!(s.failures(&id).await.unwrap(), ["one", "two", "three"]);
    let letters = s.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!((&letters[0].id, letters[0].at, letters[0].why.as_str()), (&id, at(6_001), "three"));
    assert!(s.lease(&node, oldest, at(50_000)).await.unwrap().is_none());
    assert_eq!(s.next_deadline().await.unwrap(), None);
}

pub(crate) async fn gives_up_when_retrying_is_useless(s: &impl Store) {
    let node = join(s).await;
    let mut ids = Vec::new();
    for i in 0..3 {
        let id = accept(s, new(), T0).await.id;
        let token = lease(s, &node, T0).await.token;
        let event = Event::GiveBack { tries_left: false, why: format!("bad image {i}") };
        assert_eq!(s.apply(&id, &token, event, None, at(i)).await.unwrap().state, State::Failed);
        ids.push(id);
    }
    ids.reverse();
    let letters: Vec<_> = s.dead_letters().await.unwrap().into_iter().map(|l| l.id).collect();
    assert_eq!(letters, ids, "newest first");
    // An end before the command began is a failed attempt too.
    let id = accept(s, new(), T0).await.id;
    let token = lease(s, &node, T0).await.token;
    let outcome = Outcome::because(Reason::HypervisorDied, "it was killed");
    s.apply(&id, &token, Event::End(outcome), None, T0).await.unwrap();
    assert_eq!(s.failures(&id).await.unwrap(), ["it was killed"]);
}

/// As `a_lost_lease_before_and_after_begin`, at once, and for nothing that is held.
pub(crate) async fn a_node_that_starts_holds_what_it_says(s: &impl Store) {
    let (node, other) = (join(s).await, join(s).await);
    let mut leases = Vec::new();
    for holder in [&node, &node, &node, &other] {
        accept(s, new(), T0).await;
        leases.push(lease(s, holder, T0).await);
    }
    for lease in &leases[1..3] {
        s.apply(&lease.record.id, &lease.token, Event::Prepare, None, T0).await.unwrap();
        s.apply(&lease.record.id, &lease.token, Event::Begin, None, T0).await.unwrap();
    }
    let held = [(leases[1].record.id.clone(), leases[1].token.clone())];
    let changed = s.reclaim(&node, &held, at(1)).await.unwrap();
    assert_eq!(changed.len(), 2);
    let state = async |i: usize| s.get(&leases[i].record.id).await.unwrap().unwrap().state;
    assert_eq!(state(0).await, State::Queued, "its command never began");
    assert_eq!(state(1).await, State::Running, "it is held");
    assert_eq!(state(2).await, State::Lost, "its command may have run");
    assert_eq!(state(3).await, State::Scheduled, "it is another node's");
    assert_eq!(reserved(s, &node).await, (110, 0));
    assert!(s.reclaim(&node, &held, at(2)).await.unwrap().is_empty(), "again is nothing new");
    // The right sandbox with an old token is not held.
    let stale = [(leases[1].record.id.clone(), LeaseToken::random())];
    assert_eq!(s.reclaim(&node, &stale, at(3)).await.unwrap().len(), 1);
    assert_eq!(state(1).await, State::Lost);
}

pub(crate) async fn a_lost_lease_before_and_after_begin(s: &impl Store) {
    let node = join(s).await;
    let early = accept(s, new(), at(0)).await.id;
    let late = accept(s, new(), at(0)).await.id;
    let ending = accept(s, new(), at(0)).await.id;
    let tokens =
        [lease(s, &node, at(0)).await.token, lease(s, &node, at(0)).await.token, lease(s, &node, at(0)).await.token];
    s.apply(&early, &tokens[0], Event::Prepare, None, at(1)).await.unwrap();
    s.apply(&late, &tokens[1], Event::Prepare, None, at(1)).await.unwrap();
    s.apply(&late, &tokens[1], Event::Begin, None, at(1)).await.unwrap();
    s.kill(&ending, TERM, false, at(1)).await.unwrap();

    assert!(s.expire(at(29_999)).await.unwrap().is_empty());
    let changed = s.expire(at(30_000)).await.unwrap();
    assert_eq!(changed.len(), 3);
    let state = async |id| s.get(id).await.unwrap().unwrap().state;
    assert_eq!(state(&early).await, State::Queued, "its command never began: tried again");
    assert_eq!(state(&late).await, State::Lost, "its command may have run: not again");
    assert_eq!(state(&ending).await, State::Killed);
    for record in &changed {
        assert_eq!(s.get(&record.id).await.unwrap().as_ref(), Some(record));
    }
    assert_eq!(reserved(s, &node).await, (0, 0));
    for id in [&early, &late, &ending] {
        assert_eq!(s.failures(id).await.unwrap().len(), 1);
    }
    let letters = s.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].id, late);

    // The node comes back: its token counts no more.
    refused!(s.apply(&early, &tokens[0], Event::Begin, None, at(30_001)).await, StoreError::Fenced);
    let refusal = s.apply(&late, &tokens[1], Event::End(exited(0)), None, at(30_001)).await;
    refused!(refusal, StoreError::Denied(tartarus_types::sandbox::Denied::Ended));
    assert!(s.expire(at(30_001)).await.unwrap().is_empty(), "once");

    // Lost for the third time, one is given up.
    s.kill(&early, TERM, true, at(30_001)).await.unwrap();
    let patient = NewSandbox { spec: SandboxSpec { start_timeout_ms: 3_600_000, ..spec(1) }, ..new() };
    let id = accept(s, patient, at(0)).await.id;
    for attempt in 1..=3 {
        let now = 40_000 * attempt;
        lease(s, &node, at(now)).await;
        let changed = s.expire(at(now + 30_000)).await.unwrap();
        assert_eq!(changed.len(), 1);
        assert_eq!(changed[0].state, if attempt < 3 { State::Queued } else { State::Failed });
    }
    assert_eq!(s.failures(&id).await.unwrap().len(), 3);
    assert_eq!(s.dead_letters().await.unwrap()[0].id, id);
}

pub(crate) async fn renewed_leases_live(s: &impl Store) {
    let (one, two) = (join(s).await, join(s).await);
    let mut held: Vec<(SandboxId, LeaseToken)> = Vec::new();
    for _ in 0..3 {
        let id = accept(s, new(), T0).await.id;
        held.push((id, lease(s, &one, T0).await.token));
    }
    assert!(s.renew(&one, &held[..2], at(20_000)).await.unwrap().is_empty());
    assert_eq!(s.nodes().await.unwrap().into_iter().find(|n| n.id == one).unwrap().seen_at, at(20_000));
    let changed = s.expire(at(30_000)).await.unwrap();
    assert_eq!(changed.iter().map(|r| &r.id).collect::<Vec<_>>(), [&held[2].0]);
    assert_eq!(s.renew(&one, &held, at(31_000)).await.unwrap(), held[2..], "lost is lost");
    assert_eq!(s.renew(&two, &held, at(31_000)).await.unwrap(), held, "another node's");
    let mixed = [(held[0].0.clone(), held[1].1.clone()), (SandboxId::random(), held[0].1.clone())];
    assert_eq!(s.renew(&one, &mixed, at(31_000)).await.unwrap(), mixed);
    s.apply(&held[0].0, &held[0].1, Event::End(exited(0)), None, at(31_000)).await.unwrap();
    assert_eq!(s.renew(&one, &held[..2], at(32_000)).await.unwrap(), held[..1], "ended");
    assert!(s.renew(&one, &[], at(32_000)).await.unwrap().is_empty());
    let changed = s.expire(at(61_999)).await.unwrap();
    assert_eq!(changed.iter().map(|r| (&r.id, r.state)).collect::<Vec<_>>(), [(&held[2].0, State::Failed)]);
    assert_eq!(s.expire(at(62_000)).await.unwrap().len(), 1, "a lease lives for a visibility timeout from its renewal");
}

pub(crate) async fn grace_after_an_absence(s: &impl Store) {
    let node = join(s).await;
    let id = accept(s, new(), T0).await.id;
    let token = lease(s, &node, T0).await.token;
    let waiting = accept(s, NewSandbox { spec: spec(5_000), ..new() }, T0).await.id;
    s.grace(at(100_000)).await.unwrap();
    let changed = s.expire(at(129_999)).await.unwrap();
    assert_eq!(changed.len(), 1, "grace is for leases, not for those who wait");
    assert_eq!(changed[0].id, waiting);
    assert!(s.renew(&node, &[(id.clone(), token)], at(129_999)).await.unwrap().is_empty());
    s.grace(at(200_000)).await.unwrap();
    let changed = s.expire(at(230_000)).await.unwrap();
    assert_eq!(changed.iter().map(|r| &r.id).collect::<Vec<_>>(), [&id]);
}

pub(crate) async fn start_deadlines(s: &impl Store) {
    let node = join(s).await;
    let id = accept(s, new(), at(0)).await.id;
    let started = accept(s, new(), at(0)).await.id;
    let token = s.lease(&node, |_, _| Some(1), at(0)).await.unwrap().unwrap().token;
    s.renew(&node, &[(started.clone(), token.clone())], at(59_000)).await.unwrap();
    assert!(s.expire(at(59_999)).await.unwrap().is_empty());
    // Too late to be offered, also before `expire` has run.
    assert!(s.lease(&node, oldest, at(60_000)).await.unwrap().is_none());
    let changed = s.expire(at(60_000)).await.unwrap();
    assert_eq!(changed.len(), 1, "what holds a lease is its node's to time");
    assert_eq!((&changed[0].id, changed[0].state, changed[0].ended_at), (&id, State::Failed, Some(at(60_000))));
    assert_eq!(changed[0].outcome.as_ref().unwrap().reason, Reason::StartTimeout);
    assert!(s.dead_letters().await.unwrap().is_empty());

    // Given back after its deadline: it waits no more. Lost after it: told once, in its last state.
    s.apply(&started, &token, give_back("slow"), None, at(61_000)).await.unwrap();
    let changed = s.expire(at(61_000)).await.unwrap();
    assert_eq!(changed.iter().map(|r| r.state).collect::<Vec<_>>(), [State::Failed]);
    let id = accept(s, new(), at(70_000)).await.id;
    lease(s, &node, at(70_000)).await;
    let changed = s.expire(at(200_000)).await.unwrap();
    assert_eq!(changed.len(), 1);
    assert_eq!((&changed[0].id, changed[0].outcome.as_ref().unwrap().reason), (&id, Reason::StartTimeout));
    assert_eq!(s.failures(&id).await.unwrap().len(), 1);
}

pub(crate) async fn names_the_next_deadline(s: &impl Store) {
    let node = join(s).await;
    let next = async || s.next_deadline().await.unwrap();
    assert_eq!(next().await, None);
    let id = accept(s, new(), at(0)).await.id;
    assert_eq!(next().await, Some(at(60_000)), "its start deadline");
    let token = lease(s, &node, at(10)).await.token;
    assert_eq!(next().await, Some(at(30_010)), "its lease");
    accept(s, NewSandbox { spec: SandboxSpec { start_timeout_ms: 500, ..spec(1) }, ..new() }, at(10)).await;
    assert_eq!(next().await, Some(at(510)));
    s.expire(at(510)).await.unwrap();
    s.renew(&node, &[(id.clone(), token.clone())], at(600)).await.unwrap();
    assert_eq!(next().await, Some(at(30_600)));
    s.apply(&id, &token, give_back("w"), None, at(700)).await.unwrap();
    assert_eq!(next().await, Some(at(1_700)), "it becomes visible");
    s.expire(at(1_700)).await.unwrap();
    assert_eq!(next().await, Some(at(60_000)));
    s.kill(&id, TERM, false, at(2_000)).await.unwrap();
    assert_eq!(next().await, None);
    // The end of time is no overflow.
    accept(s, NewSandbox { spec: SandboxSpec { start_timeout_ms: u64::MAX, ..spec(1) }, ..new() }, T0).await;
    assert_eq!(next().await, Some(Timestamp(i64::MAX)));
}

pub(crate) async fn tells_nodes_of_kills(s: &impl Store) {
    let (one, two) = (join(s).await, join(s).await);
    let id = accept(s, new(), T0).await.id;
    let token = lease(s, &one, T0).await.token;
    assert!(s.kills(&one).await.unwrap().is_empty());
    s.kill(&id, TERM, false, T0).await.unwrap();
    assert_eq!(s.kills(&one).await.unwrap(), [(id.clone(), token.clone(), TERM)]);
    assert_eq!(s.kills(&one).await.unwrap().len(), 1, "until it has ended");
    assert!(s.kills(&two).await.unwrap().is_empty());
    s.apply(&id, &token, Event::End(exited(0)), None, T0).await.unwrap();
    assert!(s.kills(&one).await.unwrap().is_empty());
}

/// More than one offer, one group commit or one round of `expire` holds; nothing is skipped or done twice.
pub(crate) async fn many_wait(s: &impl Store) {
    let node = NodeRecord { memory_mib: 1 << 20, start_slots: 1_000, ..node() };
    s.upsert_node(node.clone()).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..300 {
        ids.push(accept(s, new(), T0).await.id);
    }
    assert_eq!(s.queue_position(&ids[299]).await.unwrap(), Some(300));
    fn sixty_four(_: &NodeRecord, offered: &[Candidate]) -> Option<usize> {
        assert_eq!(offered.len(), 64);
        Some(0)
    }
    for id in &ids[..140] {
        assert_eq!(&s.lease(&node.id, sixty_four, T0).await.unwrap().unwrap().record.id, id);
    }
    let lost = s.expire(at(30_000)).await.unwrap();
    assert_eq!(lost.len(), 140);
    assert!(lost.iter().all(|r| r.state == State::Queued));
    assert_eq!(reserved(s, &node.id).await, (0, 0));
    let late = s.expire(at(60_000)).await.unwrap();
    assert_eq!(late.len(), 300);
    assert!(late.iter().all(|r| r.state == State::Failed));
    assert_eq!(s.next_deadline().await.unwrap(), None);
}
