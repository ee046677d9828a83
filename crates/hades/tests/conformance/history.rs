//! Random histories against a model: after every step the store's answer, its records, reservations, queue positions
//! and next deadline are what the model says; at the end everything that was accepted has ended, once.

use std::collections::{HashMap, HashSet};

use hades::{Candidate, KillAsked, ListFilter, NewSandbox, NodeRecord, QueueRules, Record, Store, StoreError};
use proptest::prelude::*;
use tartarus_types::sandbox::Denied;
use tartarus_types::{Event, LeaseToken, NodeId, Outcome, Overcommit, Reason, SandboxId, State, Timestamp, step};

use super::{T0, exited, first_fit, new, node, spec};

pub(crate) const RULES: QueueRules = QueueRules { visibility_ms: 30, max_attempts: 2, retry_delay_ms: 10 };

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Accept { memory_mib: u32, name: Option<u8>, start_timeout_ms: u64 },
    Lease { node: usize },
    Report { of: usize, token: usize, event: usize },
    Kill { of: usize, hard: bool, remove: bool },
    Renew { node: usize },
    Pass { ms: u64 },
    Expire,
    Grace,
}

pub(crate) fn operations(max: usize) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        5 => (1..500u32, prop::option::of(0..3u8), 1..200u64)
            .prop_map(|(memory_mib, name, start_timeout_ms)| Op::Accept { memory_mib, name, start_timeout_ms }),
        6 => (0..2usize).prop_map(|node| Op::Lease { node }),
        12 => (0..16usize, 0..8usize, 0..EVENTS)
            .prop_map(|(of, token, event)| Op::Report { of, token, event }),
        2 => (0..16usize, any::<bool>(), any::<bool>()).prop_map(|(of, hard, remove)| Op::Kill { of, hard, remove }),
        2 => (0..2usize).prop_map(|node| Op::Renew { node }),
        4 => (0..40u64).prop_map(|ms| Op::Pass { ms }),
        3 => Just(Op::Expire),
        1 => Just(Op::Grace),
    ];
    prop::collection::vec(op, 1..max)
}

/// Weighted by repetition: most reports are the usual ones.
const EVENTS: usize = 15;

fn event(index: usize) -> Event {
    match index {
        0..3 => Event::Prepare,
        3..6 => Event::Begin,
        6 => Event::GiveBack { tries_left: true, why: "no disk".into() },
        7 => Event::GiveBack { tries_left: false, why: "no image".into() },
        8 => Event::LeaseLost { tries_left: true },
        9 => Event::End(exited(0)),
        10 => Event::End(Outcome::because(Reason::GuestDied, "it panicked")),
        11 => Event::Kill,
        12 => Event::Pause,
        13 => Event::Resume,
        _ => Event::StartTimeout,
    }
}

/// A sandbox as the model has it.
#[derive(Debug)]
struct Model {
    record: Record,
    token: Option<LeaseToken>,
    all_tokens: Vec<LeaseToken>,
    deadline: Timestamp,
    /// `Err`: delayed until then. Only while it is queued.
    visible: Result<(), Timestamp>,
    lease_until: Timestamp,
    failures: usize,
    ends: usize,
    removed: bool,
}

impl Model {
    fn live(&self) -> bool {
        !self.record.state.is_terminal()
    }

    fn held(&self) -> bool {
        self.live() && self.record.state != State::Queued
    }

    fn apply(&mut self, event: Event, now: Timestamp) -> Result<(), Denied> {
        let left = self.record.attempts < RULES.max_attempts;
        let event = match event {
            Event::GiveBack { tries_left, why } => Event::GiveBack { tries_left: tries_left && left, why },
            Event::LeaseLost { tries_left } => Event::LeaseLost { tries_left: tries_left && left },
            other => other,
        };
        let failed = match &event {
            Event::GiveBack { .. } | Event::LeaseLost { .. } => true,
            Event::End(o) => self.record.started_at.is_none() && o.state() == State::Failed,
            _ => false,
        };
        let begins = event == Event::Begin;
        let next = step(self.record.state, event)?;
        self.failures += usize::from(failed);
        self.record.state = next.state;
        if begins {
            self.record.started_at = Some(now);
        }
        if next.state == State::Queued {
            self.token = None;
            self.visible = Err(now.plus_ms(RULES.retry_delay_ms));
        }
        if next.state.is_terminal() {
            self.record.outcome = next.outcome;
            self.record.ended_at = Some(now);
            self.ends += 1;
            self.removed = self.record.remove;
        }
        Ok(())
    }
}

struct World {
    now: Timestamp,
    nodes: Vec<NodeRecord>,
    /// In the order of acceptance.
    sandboxes: Vec<Model>,
    tokens: HashSet<LeaseToken>,
}

impl World {
    fn promote(&mut self) {
        for s in &mut self.sandboxes {
            if s.visible.is_err_and(|at| at <= self.now) {
                s.visible = Ok(());
            }
        }
    }

    fn node(&self, index: usize) -> NodeRecord {
        let mut node = self.nodes[index].clone();
        for s in self.sandboxes.iter().filter(|s| s.held() && s.record.node.as_ref() == Some(&node.id)) {
            node.reserved_mib += node.overcommit.reserved_mib(s.record.spec.memory_mib) + node.overhead_mib;
            node.starting += u32::from(matches!(s.record.state, State::Scheduled | State::Preparing));
        }
        assert!(node.reserved_mib <= node.memory_mib && node.starting <= node.start_slots, "oversold: {node:?}");
        node
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        let times = self.sandboxes.iter().filter(|s| s.live()).flat_map(|s| match s.record.state {
            State::Queued => vec![s.deadline, s.visible.err().unwrap_or(s.deadline)],
            _ => vec![s.lease_until],
        });
        times.min()
    }

    async fn run(&mut self, store: &impl Store, op: &Op) {
        let now = self.now;
        match *op {
            Op::Pass { ms } => self.now = now.plus_ms(ms),
            Op::Accept { memory_mib, name, start_timeout_ms } => {
                let mut asked = NewSandbox { name: name.map(|n| format!("name-{n}")), spec: spec(memory_mib), ..new() };
                asked.spec.start_timeout_ms = start_timeout_ms;
                let taken =
                    asked.name.is_some() && self.sandboxes.iter().any(|s| s.live() && s.record.name == asked.name);
                match store.accept(asked, now).await {
                    Err(StoreError::NameTaken(_)) => assert!(taken),
                    Ok(hades::Accepted::New(record)) => {
                        assert!(!taken);
                        let deadline = now.plus_ms(start_timeout_ms);
                        self.sandboxes.push(Model {
                            record: *record,
                            token: None,
                            all_tokens: Vec::new(),
                            deadline,
                            visible: Ok(()),
                            lease_until: now,
                            failures: 0,
                            ends: 0,
                            removed: false,
                        });
                    }
                    other => panic!("{other:?}"),
                }
            }
            Op::Lease { node } => self.lease(store, node).await,
            Op::Report { of, token, event: index } => {
                if !self.sandboxes.is_empty() {
                    self.report(store, of, token, event(index)).await;
                }
            }
            Op::Kill { of, hard, remove } => {
                if !self.sandboxes.is_empty() {
                    self.kill(store, of, hard, remove).await;
                }
            }
            Op::Renew { node } => self.renew(store, node).await,
            Op::Expire => self.expire(store).await,
            Op::Grace => {
                store.grace(now).await.unwrap();
                for s in self.sandboxes.iter_mut().filter(|s| s.held()) {
                    s.lease_until = now.plus_ms(RULES.visibility_ms);
                }
            }
        }
    }

    async fn lease(&mut self, store: &impl Store, index: usize) {
        let now = self.now;
        self.promote();
        let offered: Vec<usize> = (0..self.sandboxes.len())
            .filter(|i| {
                let s = &self.sandboxes[*i];
                s.record.state == State::Queued && s.visible.is_ok() && s.deadline > now
            })
            .take(64)
            .collect();
        let candidates: Vec<_> = offered
            .iter()
            .map(|i| &self.sandboxes[*i].record)
            .map(|r| Candidate { id: r.id.clone(), memory_mib: r.spec.memory_mib, cpus: r.spec.cpus })
            .collect();
        let node = self.node(index);
        let expected = first_fit(&node, &candidates).map(|i| offered[i]);
        let got = store.lease(&node.id, first_fit, now).await.unwrap();
        let (Some(i), Some(leased)) = (expected, &got) else {
            assert!(expected.is_none() && got.is_none(), "{expected:?} {got:?}");
            return;
        };
        assert!(self.tokens.insert(leased.token.clone()), "a token twice");
        let s = &mut self.sandboxes[i];
        s.record.attempts += 1;
        s.record.node = Some(node.id);
        s.record.progress = None;
        s.token = Some(leased.token.clone());
        s.all_tokens.push(leased.token.clone());
        s.lease_until = now.plus_ms(RULES.visibility_ms);
        s.apply(Event::Lease, now).unwrap();
        assert_eq!(leased.record, s.record);
    }

    async fn report(&mut self, store: &impl Store, of: usize, token: usize, event: Event) {
        let (now, count) = (self.now, self.sandboxes.len());
        let s = &mut self.sandboxes[of % count];
        // Mostly the newest token, at times an older one or one of nobody.
        let older = s.all_tokens.get(token).cloned();
        let token = s.token.clone().filter(|_| token < 6).or(older).unwrap_or_else(LeaseToken::random);
        let progress = format!("{{\"at\":{}}}", now.0);
        let got = store.apply(&s.record.id, &token, event.clone(), Some(progress.clone()), now).await;
        if s.removed {
            assert!(matches!(got, Err(StoreError::NotFound(..))), "{got:?}");
        } else if s.token.as_ref() != Some(&token) {
            assert!(matches!(got, Err(StoreError::Fenced)), "{got:?}");
        } else {
            let of_holder = !matches!(event, Event::Kill | Event::StartTimeout);
            let state = s.record.state;
            let expected = match state.is_terminal() {
                true => Err(Denied::Ended),
                false if !of_holder => Err(Denied::WrongState(state)),
                false => s.apply(event, now),
            };
            match (expected, got) {
                (Ok(()), Ok(record)) => {
                    s.record.progress = Some(progress);
                    assert_eq!(record, s.record);
                }
                (Err(denied), Err(StoreError::Denied(got))) => assert_eq!(got, denied),
                (expected, got) => panic!("{expected:?} {got:?}"),
            }
        }
    }

    async fn kill(&mut self, store: &impl Store, of: usize, hard: bool, remove: bool) {
        let (now, count) = (self.now, self.sandboxes.len());
        let s = &mut self.sandboxes[of % count];
        let asked = if hard { KillAsked { signal: 9, grace_ms: 0 } } else { super::TERM };
        let got = store.kill(&s.record.id, asked.clone(), remove, now).await;
        if s.removed {
            assert!(matches!(got, Err(StoreError::NotFound(..))), "{got:?}");
            return;
        }
        if s.record.state.is_terminal() {
            s.removed = remove;
            match got {
                Ok(None) => assert!(remove),
                Err(StoreError::Denied(Denied::Ended)) => assert!(!remove),
                other => panic!("{other:?}"),
            }
            return;
        }
        s.record.remove |= remove;
        if s.record.kill.is_none() || hard {
            s.record.kill = Some(asked);
        }
        let _ = s.apply(Event::Kill, now); // already ending: nothing more
        assert_eq!(got.unwrap(), (!s.removed).then(|| s.record.clone()));
    }

    async fn renew(&mut self, store: &impl Store, index: usize) {
        let node = self.nodes[index].id.clone();
        let of_node = |s: &Model| s.record.node.as_ref() == Some(&node);
        let named: Vec<(SandboxId, LeaseToken)> = self
            .sandboxes
            .iter()
            .flat_map(|s| s.all_tokens.iter().map(|token| (s.record.id.clone(), token.clone())))
            .collect();
        let held: HashSet<_> = self
            .sandboxes
            .iter()
            .filter(|s| s.held() && of_node(s))
            .map(|s| (s.record.id.clone(), s.token.clone().unwrap()))
            .collect();
        let expected: Vec<_> = named.iter().filter(|pair| !held.contains(*pair)).cloned().collect();
        assert_eq!(store.renew(&node, &named, self.now).await.unwrap(), expected);
        self.nodes[index].seen_at = self.now;
        let until = self.now.plus_ms(RULES.visibility_ms);
        for s in self.sandboxes.iter_mut().filter(|s| s.held() && of_node(s)) {
            s.lease_until = until;
        }
    }

    async fn expire(&mut self, store: &impl Store) {
        let now = self.now;
        self.promote();
        let mut expected = HashMap::new();
        for s in &mut self.sandboxes {
            let mut changed = false;
            if s.held() && s.lease_until <= now {
                s.apply(Event::LeaseLost { tries_left: true }, now).unwrap();
                changed = true;
            }
            if s.record.state == State::Queued && s.deadline <= now {
                s.apply(Event::StartTimeout, now).unwrap();
                changed = true;
            }
            if changed {
                expected.insert(s.record.id.clone(), s.record.clone());
            }
        }
        let got = store.expire(now).await.unwrap();
        assert_eq!(got.len(), expected.len());
        assert_eq!(got.into_iter().map(|r| (r.id.clone(), r)).collect::<HashMap<_, _>>(), expected);
    }

    async fn compare(&self, store: &impl Store) {
        let kept = || self.sandboxes.iter().rev().filter(|s| !s.removed).map(|s| &s.record);
        let all = store.list(ListFilter { ended: true, limit: 1_000 }).await.unwrap();
        assert!(all.iter().eq(kept()), "{all:#?} {:#?}", kept().collect::<Vec<_>>());
        let live = store.list(ListFilter { ended: false, limit: 1_000 }).await.unwrap();
        assert!(live.iter().eq(kept().filter(|r| !r.state.is_terminal())));
        assert_eq!(store.next_deadline().await.unwrap(), self.next_deadline());
        let mut place = 0;
        for s in self.sandboxes.iter().filter(|s| s.live()) {
            let waits = s.record.state == State::Queued && s.visible.is_ok();
            place += u64::from(waits);
            assert_eq!(store.queue_position(&s.record.id).await.unwrap(), waits.then_some(place));
        }
        for node in store.nodes().await.unwrap() {
            let index = self.nodes.iter().position(|n| n.id == node.id).unwrap();
            assert_eq!(node, self.node(index));
        }
    }

    async fn compare_the_rest(&self, store: &impl Store) {
        for s in &self.sandboxes {
            let failures = store.failures(&s.record.id).await.unwrap();
            assert_eq!(failures.len(), if s.removed { 0 } else { s.failures });
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let expected: HashSet<(SandboxId, i32)> = self
                .sandboxes
                .iter()
                .filter(|s| s.held() && s.record.node.as_ref() == Some(&self.nodes[index].id))
                .filter_map(|s| Some((s.record.id.clone(), s.record.kill.as_ref()?.signal)))
                .collect();
            let kills = store.kills(&node.id).await.unwrap();
            assert_eq!(kills.into_iter().map(|(id, _, kill)| (id, kill.signal)).collect::<HashSet<_>>(), expected);
        }
        let given_up = |s: &&Model| {
            let reason = s.record.outcome.as_ref().map(|o| o.reason);
            let by_end = s.record.outcome.as_ref().and_then(|o| o.message.as_deref()) == Some("it panicked");
            !s.removed && !by_end && matches!(reason, Some(Reason::StartFailed | Reason::NodeLost))
        };
        let expected: HashSet<_> = self.sandboxes.iter().filter(given_up).map(|s| s.record.id.clone()).collect();
        let letters = store.dead_letters().await.unwrap();
        assert!(letters.windows(2).all(|w| w[0].at >= w[1].at));
        assert_eq!(letters.into_iter().map(|l| l.id).collect::<HashSet<_>>(), expected);
    }

    /// Lets everything that still lives run to its end.
    async fn drain(&mut self, store: &impl Store) {
        for _ in 0..10_000 {
            let Some(next) = self.next_deadline() else { return };
            for node in 0..self.nodes.len() {
                self.lease(store, node).await;
            }
            match (0..self.sandboxes.len()).find(|i| self.sandboxes[*i].held()) {
                Some(of) => self.report(store, of, 0, Event::End(exited(0))).await,
                None => self.now = self.now.max(next),
            }
            self.expire(store).await;
        }
        panic!("it does not come to an end");
    }
}

/// Runs `ops` on an empty store made with [`RULES`]; `check` looks at what the traits do not show, after every step.
pub(crate) async fn run(store: &impl Store, ops: &[Op], check: impl Fn()) {
    let large = NodeRecord { start_slots: 3, ..node() };
    let overcommit = Overcommit::from_hundredths(130).unwrap();
    let small = NodeRecord { id: NodeId::random(), memory_mib: 400, start_slots: 1, overcommit, ..node() };
    let nodes = vec![large, small];
    for node in &nodes {
        store.upsert_node(node.clone()).await.unwrap();
    }
    let mut world = World { now: T0, nodes, sandboxes: Vec::new(), tokens: HashSet::new() };
    for op in ops {
        world.run(store, op).await;
        world.compare(store).await;
        check();
    }
    world.compare_the_rest(store).await;
    world.drain(store).await;
    world.compare(store).await;
    world.compare_the_rest(store).await;
    check();
    assert!(world.sandboxes.iter().all(|s| s.ends == 1), "everything accepted ends, once");
}
