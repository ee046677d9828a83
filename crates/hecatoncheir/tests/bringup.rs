//! A sandbox's course on a node, failed at every step: it always ends in one way that the control plane hears of, and
//! nothing of it is left. The driver is `testkit`'s; real machines are in the tests of `bin/tartarus`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it is skipped")]

mod support;

use std::time::Duration;

use support::{assignment, entries, final_report, node, reason};
use tartarus_api::node::{Action, Directive, Report};
use tartarus_types::{Outcome, Reason, State};
use testkit::Step;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_fails() {
    let node = node(assignment(&["echo", "hello"], 10_000), None, false);
    let report = node.control.until(final_report).await;
    let Report::Ended { outcome, progress } = report else { panic!("{report:?}") };
    assert_eq!(outcome.exit_status(), 0);
    let phases: Vec<_> = progress.moments.iter().map(|m| m.phase.as_str()).collect();
    assert_eq!(phases, ["leased", "disk_ready", "vm_started", "guest_ready", "command_started", "ended"]);
    let logs = node.dir.path().join("logs");
    let sandbox = logs.join(&entries(&logs)[0]);
    assert_eq!(std::fs::read(sandbox.join("main/stdout.00000000000000000000")).unwrap(), b"hello\n");
    node.stopped_clean().await;
}

/// The steps before the command may begin give the sandbox back; those after it end it, as Tartarus's failure.
#[tokio::test(flavor = "multi_thread")]
async fn every_step_fails_and_unwinds() {
    for step in Step::OF_A_COLD_START {
        let patience = if step == Step::Silence { 700 } else { 20_000 };
        let node = node(assignment(&["sleep"], patience), Some(step), false);
        let report = node.control.until(final_report).await;
        let begun = node.control.begun();
        match step {
            Step::Driver | Step::Fault | Step::Nonsense => {
                assert!(matches!(report, Report::GiveBack { retry: false, .. }), "{step:?}: {report:?}");
            }
            Step::Machine | Step::Boot | Step::Channel | Step::DieEarly => {
                assert!(matches!(report, Report::GiveBack { retry: true, .. }), "{step:?}: {report:?}");
            }
            Step::Silence => assert_eq!(reason(&report), Some(Reason::StartTimeout), "{report:?}"),
            Step::DieLate => assert_eq!(reason(&report), Some(Reason::HypervisorDied), "{report:?}"),
            Step::Lies => assert_eq!(reason(&report), Some(Reason::GuestDied), "{report:?}"),
            other => panic!("{other:?} is no step of a cold start"),
        }
        assert_eq!(begun, matches!(step, Step::DieLate | Step::Lies), "{step:?}");
        node.stopped_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leave_to_begin_nothing_is_started() {
    let node = node(assignment(&["echo", "hello"], 10_000), None, true);
    node.control.until(|r| *r == Report::Begin).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(node.control.last(), Some(Report::Begin), "an abandoned attempt has nothing to report");
    assert_eq!(entries(&node.dir.path().join("logs")), Vec::<String>::new(), "a command was started");
    node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_signals_the_command_and_is_its_outcome() {
    let work = assignment(&["sleep"], 10_000);
    let kill = Directive {
        sandbox: work.sandbox.clone(),
        token: work.token.clone(),
        action: Action::Kill { signal: 15, grace_ms: 5_000 },
    };
    let node = node(work, None, false);
    node.control.until(|r| matches!(r, Report::Progress(_))).await;
    *node.control.directives.lock().unwrap() = vec![kill];
    node.agent.wake();
    let report = node.control.until(final_report).await;
    let Report::Ended { outcome, .. } = report else { panic!("{report:?}") };
    assert_eq!((outcome.state(), outcome.exit_status()), (State::Killed, 143));
    node.stopped_clean().await;
}

/// Nobody waits for the hypervisor's death to hear of the end; the next machine does, and the folder.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_told_while_the_hypervisor_dies_and_the_next_one_waits() {
    let first = assignment(&["echo", "hello"], 10_000);
    let home = first.sandbox.clone();
    let node = node(first, Some(Step::SlowDeath), false);
    let report = node.control.until(final_report).await;
    assert_eq!(reason(&report), Some(Reason::Exited));
    let folder = node.dir.path().join("sandboxes").join(home.as_str());
    assert!(folder.exists() && node.workshop.running() == 1, "it is still there");
    let handed = std::time::Instant::now();
    node.control.give(assignment(&["echo", "hello"], 10_000));
    node.control.until_count(|r| *r == Report::Preparing, 2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.workshop.booted(), 1, "a second machine was started beside one that dies");
    node.workshop.fail_at(None);
    node.control.until_count(final_report, 2).await;
    assert!(handed.elapsed() < Duration::from_secs(4), "it waited for a machine that was gone");
    assert_eq!(node.workshop.booted(), 2);
    node.stopped_clean().await;
}

/// One that never dies holds up the next one for a while, and none after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_hypervisor_that_cannot_be_killed_does_not_stop_the_node() {
    let node = node(assignment(&["echo", "hello"], 10_000), Some(Step::SlowDeath), false);
    node.control.until(final_report).await;
    node.control.give(assignment(&["echo", "hello"], 20_000));
    let began = std::time::Instant::now();
    node.control.until_count(|r| *r == Report::Begin, 2).await;
    assert!(began.elapsed() >= Duration::from_secs(4), "it was not waited for");
    // So that what is left of the second is not in the way of the third; the first stays.
    node.control.until_count(final_report, 2).await;
    node.control.give(assignment(&["echo", "hello"], 20_000));
    node.control.until_count(|r| *r == Report::Begin, 3).await;
    assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
    node.workshop.fail_at(None);
    node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_node_ends_its_sandboxes() {
    let node = node(assignment(&["sleep"], 10_000), None, false);
    node.control.until(|r| matches!(r, Report::Progress(_))).await;
    let control = node.control.clone();
    node.stopped_clean().await;
    let Some(Report::Ended { outcome: Outcome { reason, .. }, .. }) = control.last() else { panic!() };
    assert_eq!(reason, Reason::Shutdown);
}
