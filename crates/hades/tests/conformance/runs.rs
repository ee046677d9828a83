use std::collections::BTreeMap;

use hades::{Accepted, Idempotency, KillAsked, ListFilter, NewSandbox, Retention, Store, StoreError};
use tartarus_types::sandbox::Denied;
use tartarus_types::{Event, LeaseToken, Outcome, Reason, SandboxId, State};

use super::*;

fn named(name: &str) -> NewSandbox {
    NewSandbox { name: Some(name.into()), ..new() }
}

fn with_id(text: &str) -> NewSandbox {
    NewSandbox { id: format!("sbx_{text}").parse().unwrap(), ..new() }
}

pub(crate) async fn accepts_and_finds(s: &impl Store) {
    let asked = NewSandbox { name: Some("a".into()), ..new() };
    let record = accept(s, asked.clone(), at(1)).await;
    let expected = Record {
        id: asked.id.clone(),
        name: asked.name,
        labels: asked.labels,
        state: State::Queued,
        spec: asked.spec,
        created_at: at(1),
        started_at: None,
        ended_at: None,
        attempts: 0,
        node: None,
        outcome: None,
        kill: None,
        remove: false,
        progress: None,
    };
    assert_eq!(record, expected);
    assert_eq!(s.get(&asked.id).await.unwrap(), Some(expected));
    assert_eq!(s.get(&SandboxId::random()).await.unwrap(), None);
    assert!(s.accept(NewSandbox { name: None, ..with_id(&asked.id.as_str()[4..]) }, at(2)).await.is_err(), "same id");
    assert_eq!(s.list(ListFilter { ended: true, limit: 9 }).await.unwrap().len(), 1);
}

pub(crate) async fn resolves(s: &impl Store) {
    let a = accept(s, with_id("aaaa000000000000"), T0).await;
    let b = accept(s, with_id("aaaa100000000000"), T0).await;
    let zz = accept(s, with_id("zzzzzzzzzzzzzzzz"), T0).await;
    // Names that look like ids: an exact name wins over a prefix, a whole id over a name.
    let with = |id: &str, name: &str| NewSandbox { name: Some(name.into()), ..with_id(id) };
    let short = accept(s, with("b000000000000000", "aaaa0"), T0).await;
    let impostor = accept(s, with("b100000000000000", b.id.as_str()), T0).await;

    let resolve = async |text: &str| s.resolve(text).await.map(|r| r.id);
    assert_eq!(resolve(a.id.as_str()).await.unwrap(), a.id);
    assert_eq!(resolve(b.id.as_str()).await.unwrap(), b.id);
    assert_eq!(resolve("sbx_aaaa0").await.unwrap(), a.id);
    assert_eq!(resolve("aaaa1").await.unwrap(), b.id);
    assert_eq!(resolve("aaaa0").await.unwrap(), short.id);
    assert_eq!(resolve("z").await.unwrap(), zz.id);
    assert_eq!(resolve("zzzzzzzzzzzzzzzz").await.unwrap(), zz.id);
    refused!(resolve("aaaa").await, StoreError::Ambiguous(_));
    refused!(resolve("sbx_aaaa").await, StoreError::Ambiguous(_));
    let long = "z".repeat(1 << 20);
    for nothing in
        ["", "sbx_", "%", "_", "*", "?", "aaaa%", "z~", "[a-z]", "aaaa0 ", "\0", "ä", "zzzzzzzzzzzzzzzzz", &long]
    {
        refused!(resolve(nothing).await, StoreError::NotFound("sandbox", _));
    }
    assert_ne!(impostor.id, b.id);
}

pub(crate) async fn names_are_free_again(s: &impl Store) {
    let first = accept(s, named("a"), at(0)).await;
    refused!(s.accept(named("a"), at(1)).await, StoreError::NameTaken(name) if name == "a");
    assert_eq!(s.list(ListFilter { ended: true, limit: 9 }).await.unwrap().len(), 1, "nothing of it stayed");
    s.kill(&first.id, TERM, false, at(2)).await.unwrap();
    assert_eq!(s.resolve("a").await.unwrap().id, first.id, "the newest that had it");
    let second = accept(s, named("a"), at(3)).await;
    assert_eq!(s.resolve("a").await.unwrap().id, second.id);
    s.kill(&second.id, TERM, true, at(4)).await.unwrap();
    assert_eq!(s.resolve("a").await.unwrap().id, first.id);
}

pub(crate) async fn lists_newest_first(s: &impl Store) {
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(accept(s, new(), T0).await.id);
    }
    ids.reverse();
    s.kill(&ids[1], TERM, false, T0).await.unwrap();
    let list = async |ended, limit| -> Vec<SandboxId> {
        s.list(ListFilter { ended, limit }).await.unwrap().into_iter().map(|r| r.id).collect()
    };
    assert_eq!(list(true, 100).await, ids);
    assert_eq!(list(true, 2).await, ids[..2]);
    assert_eq!(list(false, 3).await, [&ids[..1], &ids[2..4]].concat());
    assert!(list(true, 0).await.is_empty());
}

pub(crate) async fn replays_idempotent_requests(s: &impl Store) {
    const DAY: u64 = 24 * 3600 * 1000;
    let keyed = |caller: &str, key: &str, request: u8| {
        let idempotency = Some(Idempotency { caller: caller.into(), key: key.into(), request: [request; 32] });
        NewSandbox { name: Some(format!("{caller}-{key}-{request}")), idempotency, ..new() }
    };
    let first = accept(s, keyed("me", "k", 1), at(0)).await;
    s.kill(&first.id, TERM, false, at(1)).await.unwrap();
    let replayed = |answer| match answer {
        Accepted::Replay(record) => *record,
        other => panic!("{other:?}"),
    };
    assert_eq!(replayed(s.accept(keyed("me", "k", 1), at(2)).await.unwrap()), first, "as it was when it was accepted");
    refused!(s.accept(keyed("me", "k", 2), at(3)).await, StoreError::IdempotencyMismatch);
    let key = |caller: &str, request: u8| keyed(caller, "k", request).idempotency.unwrap();
    assert_eq!(s.replay(&key("me", 1), at(3)).await.unwrap(), Some(first.clone()));
    assert_eq!(s.replay(&key("you", 1), at(3)).await.unwrap(), None, "another caller's");
    assert_eq!(s.replay(&key("me", 1), at(DAY)).await.unwrap(), None, "expired");
    refused!(s.replay(&key("me", 2), at(3)).await, StoreError::IdempotencyMismatch);
    accept(s, keyed("you", "k", 2), at(4)).await;
    accept(s, keyed("me", "l", 3), at(5)).await;
    s.kill(&first.id, TERM, true, at(6)).await.unwrap();
    assert_eq!(replayed(s.accept(keyed("me", "k", 1), at(DAY - 1)).await.unwrap()), first, "although it is gone");
    let again = accept(s, keyed("me", "k", 1), at(DAY)).await;
    assert_ne!(again.id, first.id, "keys live 24 h");

    // A request that was refused leaves no key.
    let mut taken = keyed("me", "m", 1);
    taken.name = again.name.clone();
    refused!(s.accept(taken, at(DAY)).await, StoreError::NameTaken(_));
    accept(s, keyed("me", "m", 2), at(DAY)).await;
}

pub(crate) async fn runs_to_its_end(s: &impl Store) {
    let node = join(s).await;
    let id = accept(s, new(), at(0)).await.id;
    assert_eq!(s.queue_position(&id).await.unwrap(), Some(1));
    let Leased { record, token } = lease(s, &node, at(10)).await;
    assert_eq!((record.state, record.attempts, record.node.as_ref()), (State::Scheduled, 1, Some(&node)));
    assert_eq!(s.queue_position(&id).await.unwrap(), None);
    assert_eq!(s.get(&id).await.unwrap(), Some(record));

    let apply =
        async |event, progress: Option<&str>, ms| s.apply(&id, &token, event, progress.map(Into::into), at(ms)).await;
    refused!(apply(Event::Begin, None, 11).await, StoreError::Denied(Denied::WrongState(State::Scheduled)));
    for event in [Event::Lease, Event::Kill, Event::StartTimeout] {
        refused!(apply(event, None, 11).await, StoreError::Denied(Denied::WrongState(State::Scheduled)));
    }
    assert_eq!(apply(Event::Prepare, None, 20).await.unwrap().state, State::Preparing);
    refused!(apply(Event::Prepare, Some("x"), 21).await, StoreError::Denied(Denied::Already));
    s.progress(&id, &token, "{\"a\":1}".into()).await.unwrap();
    let running = apply(Event::Begin, None, 30).await.unwrap();
    assert_eq!((running.state, running.started_at), (State::Running, Some(at(30))));
    assert_eq!(running.progress.as_deref(), Some("{\"a\":1}"));
    refused!(apply(Event::Begin, None, 31).await, StoreError::Denied(Denied::Already));
    assert_eq!(s.get(&id).await.unwrap().unwrap().started_at, Some(at(30)));
    let give_back = Event::GiveBack { tries_left: true, why: "w".into() };
    refused!(apply(give_back.clone(), None, 32).await, StoreError::Denied(Denied::WrongState(State::Running)));

    let ended = apply(Event::End(exited(3)), Some("{}"), 40).await.unwrap();
    assert_eq!((ended.state, ended.ended_at, &ended.outcome), (State::Failed, Some(at(40)), &Some(exited(3))));
    for event in [Event::End(exited(0)), Event::Begin, Event::Kill, give_back] {
        refused!(apply(event, Some("late"), 41).await, StoreError::Denied(Denied::Ended));
    }
    refused!(s.progress(&id, &token, "late".into()).await, StoreError::Denied(Denied::Ended));
    assert_eq!(s.get(&id).await.unwrap(), Some(ended), "written once");
    assert!(s.failures(&id).await.unwrap().is_empty(), "its command ran: no attempt failed");
    assert!(s.dead_letters().await.unwrap().is_empty());
    assert_eq!(s.next_deadline().await.unwrap(), None);
}

pub(crate) async fn fences_old_attempts(s: &impl Store) {
    let (one, two) = (join(s).await, join(s).await);
    let id = accept(s, new(), at(0)).await.id;
    let first = lease(s, &one, at(0)).await.token;
    let give_back = || Event::GiveBack { tries_left: true, why: "no disk".into() };
    assert_eq!(s.apply(&id, &first, give_back(), None, at(1)).await.unwrap().state, State::Queued);
    // Given back: nobody's, also while it waits.
    refused!(s.apply(&id, &first, give_back(), None, at(2)).await, StoreError::Fenced);
    refused!(s.apply(&id, &first, Event::Prepare, None, at(2)).await, StoreError::Fenced);

    let second = lease(s, &two, at(2_000)).await.token;
    for token in [&first, &LeaseToken::random()] {
        refused!(s.apply(&id, token, Event::Prepare, None, at(2_001)).await, StoreError::Fenced);
        refused!(s.apply(&id, token, Event::End(exited(0)), None, at(2_001)).await, StoreError::Fenced);
        refused!(s.progress(&id, token, "x".into()).await, StoreError::Fenced);
        let held = [(id.clone(), token.clone())];
        assert_eq!(s.renew(&one, &held, at(2_001)).await.unwrap(), held);
    }
    let record = s.apply(&id, &second, Event::Prepare, None, at(2_002)).await.unwrap();
    assert_eq!((record.attempts, record.node, record.progress), (2, Some(two), None));
    s.apply(&id, &second, Event::End(exited(0)), None, at(2_003)).await.unwrap();
    refused!(s.apply(&id, &first, Event::End(exited(1)), None, at(2_004)).await, StoreError::Fenced);
    refused!(s.apply(&id, &second, Event::End(exited(1)), None, at(2_004)).await, StoreError::Denied(Denied::Ended));
    let unknown = SandboxId::random();
    refused!(s.apply(&unknown, &second, Event::Begin, None, T0).await, StoreError::NotFound("sandbox", _));
    refused!(s.progress(&unknown, &second, "x".into()).await, StoreError::NotFound("sandbox", _));
}

pub(crate) async fn kills_in_every_state(s: &impl Store) {
    let node = join(s).await;
    // Queued: it ends at once, and is never offered again.
    let queued = accept(s, new(), T0).await.id;
    let record = s.kill(&queued, TERM, false, at(1)).await.unwrap().unwrap();
    assert_eq!((record.state, record.ended_at, record.kill), (State::Killed, Some(at(1)), Some(TERM)));
    assert_eq!(s.queue_position(&queued).await.unwrap(), None);
    assert!(s.lease(&node, oldest, at(2)).await.unwrap().is_none());
    refused!(s.kill(&queued, TERM, false, at(2)).await, StoreError::Denied(Denied::Ended));
    refused!(s.kill(&SandboxId::random(), TERM, false, T0).await, StoreError::NotFound("sandbox", _));

    for begun in [vec![], vec![Event::Prepare], vec![Event::Prepare, Event::Begin]] {
        let id = accept(s, new(), T0).await.id;
        let token = lease(s, &node, at(10)).await.token;
        for event in begun.clone() {
            s.apply(&id, &token, event, None, at(11)).await.unwrap();
        }
        let record = s.kill(&id, TERM, false, at(12)).await.unwrap().unwrap();
        assert_eq!((record.state, record.kill), (State::Terminating, Some(TERM)));
        let refusal = s.apply(&id, &token, Event::Begin, None, at(13)).await;
        refused!(refusal, StoreError::Denied(Denied::WrongState(State::Terminating)));
        let why = "told to".to_owned();
        let ended = s.apply(&id, &token, Event::GiveBack { tries_left: true, why }, None, at(14)).await.unwrap();
        assert_eq!((ended.state, ended.attempts), (State::Killed, 1), "never tried again");
    }
    assert_eq!(s.nodes().await.unwrap()[0].reserved_mib, 0);
    assert!(s.dead_letters().await.unwrap().is_empty());
}

pub(crate) async fn a_kill_is_never_softened(s: &impl Store) {
    let node = join(s).await;
    let id = accept(s, new(), T0).await.id;
    lease(s, &node, T0).await;
    let kill = async |signal, grace_ms| {
        let record = s.kill(&id, KillAsked { signal, grace_ms }, false, T0).await.unwrap().unwrap();
        record.kill.map(|k| (k.signal, k.grace_ms)).unwrap()
    };
    assert_eq!(kill(2, 5_000).await, (2, 5_000));
    assert_eq!(kill(15, 9_000).await, (2, 5_000), "neither sooner nor harder");
    assert_eq!(kill(15, 1_000).await, (15, 1_000), "sooner");
    assert_eq!(kill(9, 2_000).await, (9, 1_000), "harder, and not later");
    assert_eq!(kill(15, 0).await, (9, 0), "sooner, and not softer");
    assert_eq!(s.get(&id).await.unwrap().unwrap().kill, Some(KillAsked { signal: 9, grace_ms: 0 }));
}

pub(crate) async fn removes(s: &impl Store) {
    let node = join(s).await;
    let now = KillAsked { signal: 9, grace_ms: 0 };
    // Queued, and ended: gone at once.
    let queued = accept(s, new(), T0).await.id;
    assert_eq!(s.kill(&queued, now.clone(), true, T0).await.unwrap(), None);
    let ended = accept(s, new(), T0).await.id;
    s.kill(&ended, now.clone(), false, T0).await.unwrap();
    assert_eq!(s.kill(&ended, now.clone(), true, T0).await.unwrap(), None);
    for id in [&queued, &ended] {
        assert_eq!(s.get(id).await.unwrap(), None);
        refused!(s.kill(id, now.clone(), true, T0).await, StoreError::NotFound("sandbox", _));
    }

    // Leased: gone when it ends, by a report or by a lost lease, with its failures and its dead letter.
    for by_report in [true, false] {
        let id = accept(s, new(), T0).await.id;
        let first = lease(s, &node, T0).await.token;
        s.apply(&id, &first, Event::GiveBack { tries_left: true, why: "w".into() }, None, T0).await.unwrap();
        let token = lease(s, &node, at(1_000)).await.token;
        let marked = s.kill(&id, now.clone(), true, at(1_001)).await.unwrap().unwrap();
        assert!(marked.remove && marked.state == State::Terminating);
        assert_eq!(s.failures(&id).await.unwrap(), ["w"]);
        // A later wish without `remove` does not take it back.
        assert!(s.kill(&id, now.clone(), false, at(1_002)).await.unwrap().unwrap().remove);
        let last = if by_report {
            s.apply(&id, &token, Event::End(exited(0)), Some("{}".into()), at(1_003)).await.unwrap()
        } else {
            let mut changed = s.expire(at(40_000)).await.unwrap();
            assert_eq!(changed.len(), 1);
            changed.remove(0)
        };
        assert!(last.state.is_terminal() && last.outcome.is_some());
        assert_eq!(s.get(&id).await.unwrap(), None);
        assert!(s.failures(&id).await.unwrap().is_empty());
        refused!(s.apply(&id, &token, Event::End(exited(0)), None, at(2)).await, StoreError::NotFound("sandbox", _));
    }
    assert!(s.list(ListFilter { ended: true, limit: 9 }).await.unwrap().is_empty());
    assert!(s.dead_letters().await.unwrap().is_empty());
    assert_eq!(s.next_deadline().await.unwrap(), None);
}

pub(crate) async fn bounds_what_nodes_say(s: &impl Store) {
    let node = join(s).await;
    let id = accept(s, NewSandbox { labels: BTreeMap::new(), ..new() }, T0).await.id;
    let token = lease(s, &node, T0).await.token;
    let huge = "ä".repeat(1 << 20);
    assert!(s.progress(&id, &token, huge.clone()).await.is_err());
    assert!(s.apply(&id, &token, Event::Prepare, Some(huge.clone()), T0).await.is_err());
    assert_eq!(s.get(&id).await.unwrap().unwrap().state, State::Scheduled);
    let ended = s.apply(&id, &token, Event::End(Outcome::because(Reason::StartFailed, huge)), None, T0).await.unwrap();
    let kept = ended.outcome.unwrap().message.unwrap();
    assert!(!kept.is_empty() && kept.len() <= 4096);
    assert_eq!(s.failures(&id).await.unwrap(), [kept]);
}

pub(crate) async fn publishes_news(s: &impl Store) {
    let node = join(s).await;
    let mut news = s.subscribe();
    let id = accept(s, new(), T0).await.id;
    assert_eq!(heard(&mut news).await, id);
    let token = lease(s, &node, T0).await.token;
    assert_eq!(heard(&mut news).await, id);
    assert_eq!(s.get(&id).await.unwrap().unwrap().state, State::Scheduled, "news come after the change");
    s.progress(&id, &token, "{}".into()).await.unwrap();
    assert_eq!(heard(&mut news).await, id);
    s.kill(&id, TERM, true, T0).await.unwrap();
    assert_eq!(heard(&mut news).await, id);
    s.kill(&id, KillAsked { signal: 9, grace_ms: 0 }, true, T0).await.unwrap();
    assert_eq!(heard(&mut news).await, id);
    s.apply(&id, &token, Event::End(exited(0)), None, T0).await.unwrap();
    assert_eq!(heard(&mut news).await, id);
    // What changes nothing is no news.
    s.apply(&id, &token, Event::End(exited(0)), None, T0).await.unwrap_err();
    s.lease(&node, oldest, T0).await.unwrap();
    s.expire(T0).await.unwrap();
    assert!(news.try_recv().is_err());
}

/// Paused, it keeps its lease and its reservation, and the moment it began at; it may be ended and lost like one that runs.
pub(crate) async fn pauses_and_goes_on(s: &impl Store) {
    let node = join(s).await;
    let begun = async |ms| {
        let id = accept(s, new(), at(ms)).await.id;
        let token = lease(s, &node, at(ms)).await.token;
        for event in [Event::Prepare, Event::Begin, Event::Pause] {
            s.apply(&id, &token, event, None, at(ms)).await.unwrap();
        }
        (id, token)
    };
    let (id, token) = begun(0).await;
    let apply = async |event, ms| s.apply(&id, &token, event, None, at(ms)).await;
    let paused = s.get(&id).await.unwrap().unwrap();
    assert_eq!((paused.state, paused.started_at), (State::Paused, Some(at(0))));
    refused!(apply(Event::Pause, 5).await, StoreError::Denied(Denied::Already));
    refused!(apply(Event::Begin, 5).await, StoreError::Denied(Denied::Already));
    let held = [(id.clone(), token.clone())];
    assert!(s.renew(&node, &held, at(20_000)).await.unwrap().is_empty());
    assert!(s.expire(at(40_000)).await.unwrap().is_empty());
    assert_eq!(s.nodes().await.unwrap()[0].reserved_mib, 110);
    let resumed = apply(Event::Resume, 41_000).await.unwrap();
    assert_eq!((resumed.state, resumed.started_at), (State::Running, Some(at(0))), "it began once");
    refused!(apply(Event::Resume, 42_000).await, StoreError::Denied(Denied::Already));
    assert_eq!(apply(Event::End(exited(0)), 43_000).await.unwrap().state, State::Succeeded);

    let (id, token) = begun(50_000).await;
    let record = s.kill(&id, TERM, false, at(50_001)).await.unwrap().unwrap();
    assert_eq!(record.state, State::Terminating);
    assert_eq!(s.kills(&node).await.unwrap(), [(id.clone(), token.clone(), TERM)]);
    refused!(
        s.apply(&id, &token, Event::Resume, None, at(50_002)).await,
        StoreError::Denied(Denied::WrongState(State::Terminating))
    );
    s.apply(&id, &token, Event::End(exited(0)), None, at(50_003)).await.unwrap();

    let (id, _) = begun(60_000).await;
    let lost = s.expire(at(90_001)).await.unwrap();
    assert_eq!(lost.iter().map(|r| (&r.id, r.state)).collect::<Vec<_>>(), [(&id, State::Lost)]);
    assert_eq!(s.nodes().await.unwrap()[0].reserved_mib, 0);
}

/// While one makes a golden snapshot no second one is taken on for it, whoever asks.
pub(crate) async fn one_makes_a_snapshot(s: &impl Store) {
    let making = |golden: &str, snapshot| NewSandbox {
        spec: SandboxSpec { golden: Some(golden.into()), snapshot, ..spec(100) },
        ..new()
    };
    assert_eq!(s.maker("a").await.unwrap(), None);
    accept(s, making("a", SnapshotUse::Prefer), T0).await;
    assert_eq!(s.maker("a").await.unwrap(), None, "it only starts from one");
    let first = accept(s, making("a", SnapshotUse::Make), T0).await;
    let other = accept(s, making("b", SnapshotUse::Make), T0).await;
    match s.accept(making("a", SnapshotUse::Make), at(1)).await.unwrap() {
        Accepted::Replay(record) => assert_eq!(record.id, first.id),
        Accepted::New(record) => panic!("a second one: {record:?}"),
    }
    assert_eq!(s.list(ListFilter { ended: true, limit: 10 }).await.unwrap().len(), 3);
    s.kill(&first.id, TERM, false, at(2)).await.unwrap();
    let ended = s.get(&first.id).await.unwrap();
    assert_eq!(s.maker("a").await.unwrap(), ended, "also when it has ended");
    let second = accept(s, making("a", SnapshotUse::Make), at(3)).await;
    assert_eq!(s.maker("a").await.unwrap().unwrap().id, second.id);
    assert_eq!(s.maker("b").await.unwrap().unwrap().id, other.id);
}

pub(crate) async fn keeps_the_newest_that_ended(s: &impl Store) {
    let mut ids = Vec::new();
    for ms in [10, 20, 30, 40] {
        let id = accept(s, new(), at(0)).await.id;
        s.kill(&id, TERM, false, at(ms)).await.unwrap();
        ids.push(id);
    }
    let live = accept(s, new(), at(0)).await.id;
    let expired = async |ms, newest| s.expired(Retention { after: at(ms), newest }, 100).await.unwrap();
    assert!(expired(9, 4).await.is_empty());
    assert_eq!(expired(20, 100).await, ids[..2], "too old");
    assert_eq!(expired(0, 1).await, ids[..3], "too many");
    assert_eq!(expired(20, 1).await, ids[..3]);
    assert_eq!(expired(30, 3).await, ids[..3]);
    assert_eq!(expired(99, 0).await, ids, "never one that has not ended");
    assert_eq!(s.expired(Retention { after: at(99), newest: 0 }, 2).await.unwrap(), ids[..2]);

    let asked = [ids[0].clone(), live.clone(), SandboxId::random(), ids[1].clone()];
    assert_eq!(s.forget(&asked).await.unwrap(), [ids[0].clone(), ids[1].clone()]);
    assert!(s.forget(&asked).await.unwrap().is_empty());
    assert!(s.get(&live).await.unwrap().is_some());
    assert_eq!(s.get(&ids[0]).await.unwrap(), None);
    assert_eq!(expired(99, 0).await, ids[2..]);
}

pub(crate) async fn names_what_is_in_use(s: &impl Store) {
    assert!(s.digests_in_use().await.unwrap().is_empty());
    let id = accept(s, new(), T0).await.id;
    accept(s, NewSandbox { spec: SandboxSpec { image: "sha256:other".into(), ..spec(1) }, ..new() }, T0).await;
    let words = async || s.digests_in_use().await.unwrap().into_iter().collect::<Vec<_>>();
    assert_eq!(words().await, ["sha256:image", "sha256:kernel", "sha256:other"]);
    s.kill(&id, TERM, false, T0).await.unwrap();
    assert_eq!(words().await, ["sha256:kernel", "sha256:other"]);
}

pub(crate) async fn counts_who_has_not_ended(s: &impl Store) {
    assert_eq!(s.population().await.unwrap(), []);
    for _ in 0..3 {
        accept(s, new(), T0).await;
    }
    let node = join(s).await;
    let id = lease(s, &node, at(1)).await.record.id;
    assert_eq!(s.population().await.unwrap(), [(State::Queued, 2), (State::Scheduled, 1)]);
    s.kill(&id, TERM, false, at(2)).await.unwrap();
    assert_eq!(s.population().await.unwrap(), [(State::Queued, 2), (State::Terminating, 1)]);
    let queued = s.list(ListFilter { limit: 1, ..ListFilter::default() }).await.unwrap().remove(0).id;
    s.kill(&queued, TERM, false, at(3)).await.unwrap();
    assert_eq!(s.population().await.unwrap(), [(State::Queued, 1), (State::Terminating, 1)]);
}
