//! Golden snapshots on a node, failed at every step: made whole or not at all, restored from or booted cold; and standing
//! still. The driver is `testkit`'s; real machines are in the tests of `bin/tartarus`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use support::{Node, assignment, final_report, node, node_with, reason};
use tartarus_api::node::{Action, Assignment, Directive, Report, StartedFrom};
use tartarus_types::{ErrorCode, Language, Reason, RunnerSpec, SnapshotUse, Warm};
use testkit::{FakeWorkshop, Step};

const GOLDEN: &str = "g0";

fn warm(command: &str) -> Warm {
    let runner = RunnerSpec { language: Language::Python, preload: vec!["json".into()] };
    Warm { command: Some(command.into()), runner: Some(runner) }
}

/// Makes the snapshot, by a warm-up that exits with `code`.
fn maker(code: i32) -> Assignment {
    let mut work = assignment(&[], 10_000);
    work.spec.golden = Some(GOLDEN.into());
    work.spec.snapshot = SnapshotUse::Make;
    work.spec.warm = warm(&format!("exit {code}"));
    work
}

/// Runs a command in a sandbox of the same template.
fn user(command: &[&str], snapshot: SnapshotUse) -> Assignment {
    let mut work = assignment(command, 10_000);
    work.spec.golden = Some(GOLDEN.into());
    work.spec.snapshot = snapshot;
    work.spec.warm = warm("exit 0");
    work
}

fn kept(node: &Node) -> bool {
    node.workshop.kept().contains(GOLDEN)
}

async fn exit_status(node: &Node) -> i32 {
    match node.control.until(final_report).await {
        Report::Ended { outcome, .. } => outcome.exit_status(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_made_once_its_warm_up_went_well() {
    let node = node(maker(0), None, false);
    let Report::Ended { outcome, progress } = node.control.until(final_report).await else { panic!() };
    assert_eq!(outcome.exit_status(), 0, "{outcome:?}");
    let phases: Vec<_> = progress.moments.iter().map(|m| m.phase.as_str()).collect();
    assert_eq!(phases[5..], ["frozen", "snapshot_made", "ended"], "{phases:?}");
    assert!(kept(&node));
    node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_warm_up_it_is_made_of_what_booted() {
    let mut work = maker(0);
    work.spec.warm = Warm::default();
    let node = node(work, None, false);
    assert_eq!(exit_status(&node).await, 0);
    assert!(kept(&node));
    node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_up_that_fails_makes_none() {
    let node = node(maker(3), None, false);
    assert_eq!(exit_status(&node).await, 3);
    assert!(!kept(&node));
    node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_making_one_fails_and_makes_none() {
    for step in Step::OF_A_SNAPSHOT.into_iter().filter(|step| *step != Step::Restore).chain([Step::Pause]) {
        let node = node(maker(0), Some(step), false);
        let report = node.control.until(final_report).await;
        match step {
            Step::Runner => {
                let Report::GiveBack { why, retry: false } = &report else { panic!("{step:?}: {report:?}") };
                assert!(why.contains("planned: no module"), "{why}");
            }
            _ => assert_eq!(reason(&report), Some(Reason::NodeFailed), "{step:?}: {report:?}"),
        }
        assert!(!kept(&node), "{step:?}");
        node.stopped_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fitting_snapshot_is_used_and_the_record_says_so() {
    let maker = node(maker(0), None, false);
    assert_eq!(exit_status(&maker).await, 0);
    let workshop = maker.workshop.clone();
    maker.stopped_clean().await;

    for (snapshot, restored) in [(SnapshotUse::Prefer, true), (SnapshotUse::Require, true), (SnapshotUse::Never, false)]
    {
        let node = node_with(workshop.clone(), user(&["echo", "hi"], snapshot), false);
        let Report::Ended { outcome, progress } = node.control.until(final_report).await else { panic!() };
        assert_eq!(outcome.exit_status(), 0);
        let from = progress.start.unwrap();
        assert_eq!(matches!(from, StartedFrom::Snapshot { .. }), restored, "{snapshot:?}: {from:?}");
        node.stopped_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_snapshot_that_is_not_there_gives_the_sandbox_back_for_good() {
    let node = node(user(&["echo", "hi"], SnapshotUse::Require), None, false);
    let report = node.control.until(final_report).await;
    assert!(matches!(report, Report::GiveBack { retry: false, .. }), "{report:?}");
    node.stopped_clean().await;
}

/// The next attempt boots cold instead of failing the same way again.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_a_guest_died_in_is_not_tried_again() {
    for step in [Step::Restore, Step::DieEarly, Step::Channel] {
        let first = node(maker(0), None, false);
        assert_eq!(exit_status(&first).await, 0);
        let workshop = first.workshop.clone();
        first.stopped_clean().await;

        workshop.fail_at(Some(step));
        let node = node_with(workshop.clone(), user(&["echo", "hi"], SnapshotUse::Prefer), false);
        let report = node.control.until(final_report).await;
        assert!(matches!(report, Report::GiveBack { retry: true, .. }), "{step:?}: {report:?}");
        assert!(workshop.distrusted().contains(GOLDEN), "{step:?}");
        node.stopped_clean().await;

        workshop.fail_at(None);
        let node = node_with(workshop, user(&["echo", "hi"], SnapshotUse::Prefer), false);
        let Report::Ended { outcome, progress } = node.control.until(final_report).await else { panic!() };
        assert_eq!(outcome.exit_status(), 0);
        assert!(matches!(progress.start, Some(StartedFrom::ColdBoot { .. })));
        node.stopped_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_boot_runs_the_warm_up_first_and_its_failure_is_no_command() {
    let node = node(user(&["echo", "hi"], SnapshotUse::Never), None, false);
    assert_eq!(exit_status(&node).await, 0);
    node.stopped_clean().await;

    let mut work = user(&["echo", "hi"], SnapshotUse::Never);
    work.spec.warm = warm("exit 4");
    let node = support::node(work, None, false);
    let Report::GiveBack { why, retry: false } = node.control.until(final_report).await else { panic!() };
    assert!(why.contains("exited with 4"), "{why}");
    assert!(!node.control.begun(), "the command must not begin");
    node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_stands_still_and_goes_on_and_its_limit_waits() {
    let mut work = assignment(&["sleep"], 10_000);
    work.spec.timeout_ms = Some(1_500);
    let id = work.sandbox.clone();
    let node = node(work, None, false);
    node.control.until(|r| matches!(r, Report::Progress(_))).await;
    node.agent.pause(&id).await.unwrap();
    node.agent.pause(&id).await.unwrap();
    assert_eq!(node.control.last(), Some(Report::Paused));
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(node.control.last(), Some(Report::Paused), "its limit ran on while it stood still");
    node.agent.resume(&id).await.unwrap();
    node.agent.resume(&id).await.unwrap();
    assert_eq!(node.control.last(), Some(Report::Resumed));
    assert_eq!(reason(&node.control.until(final_report).await), Some(Reason::Timeout));
    node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stands_still_can_be_ended_at_once() {
    let work = assignment(&["sleep"], 10_000);
    let (id, token) = (work.sandbox.clone(), work.token.clone());
    let node = node(work, None, false);
    node.control.until(|r| matches!(r, Report::Progress(_))).await;
    node.agent.pause(&id).await.unwrap();
    let action = Action::Kill { signal: 15, grace_ms: 60_000 };
    *node.control.directives.lock().unwrap() = vec![Directive { sandbox: id, token, action }];
    node.agent.wake();
    let report = tokio::time::timeout(Duration::from_secs(10), node.control.until(final_report)).await.unwrap();
    assert_eq!(reason(&report), Some(Reason::Killed));
    node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_stop_or_go_on_is_an_error_and_changes_nothing() {
    let work = assignment(&["sleep"], 10_000);
    let id = work.sandbox.clone();
    let node = node(work, None, false);
    node.control.until(|r| matches!(r, Report::Progress(_))).await;
    node.workshop.fail_at(Some(Step::Pause));
    assert_eq!(node.agent.pause(&id).await.unwrap_err().code, ErrorCode::Internal);
    node.workshop.fail_at(None);
    node.agent.pause(&id).await.unwrap();
    node.workshop.fail_at(Some(Step::Resume));
    assert_eq!(node.agent.resume(&id).await.unwrap_err().code, ErrorCode::Internal);
    node.workshop.fail_at(None);
    node.agent.resume(&id).await.unwrap();
    assert_eq!(node.control.last(), Some(Report::Resumed));
    node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_makes_a_snapshot_neither_stands_still_nor_runs_anything_else() {
    let mut work = maker(0);
    work.spec.warm.command = Some("sleep".into());
    let id = work.sandbox.clone();
    let workshop = FakeWorkshop::default();
    let node = node_with(workshop, work, false);
    // It may have ended by then: either way it is refused.
    let refused = node.agent.pause(&id).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::WrongState);
    node.control.until(final_report).await;
    node.stopped_clean().await;
}
