//! A sandbox's course on a node, failed at every step: it always ends in one way that the control plane hears of, and
//! nothing of it is left. The driver is `testkit`'s; real machines are in the tests of `bin/tartarus`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it is skipped")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hecatoncheir::{Agent, LogLimits, Parts, Stop};
use tartarus_api::node::{Action, Assignment, ControlPlane, Directive, NodeInfo, Report, Verdict};
use tartarus_types::{LeaseToken, NodeId, Outcome, Reason, Refusal, SandboxId, SandboxSpec, State, Timestamp};
use testkit::{FakeWorkshop, Step};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A control plane with one piece of work, which writes down what it hears.
#[derive(Default)]
struct Control {
    work: Mutex<Option<Assignment>>,
    reports: Mutex<Vec<Report>>,
    directives: Mutex<Vec<Directive>>,
    /// Refuse leave to begin.
    deny: bool,
    heard: Notify,
}

#[async_trait]
impl ControlPlane for Control {
    async fn register(&self, _node: NodeInfo, _held: &[(SandboxId, LeaseToken)]) -> Result<(), Refusal> {
        Ok(())
    }

    async fn on_record(&self, sandboxes: &[SandboxId]) -> Result<Vec<SandboxId>, Refusal> {
        Ok(sandboxes.to_vec())
    }

    async fn lease(&self, _node: &NodeId, wait: Duration) -> Result<Option<Assignment>, Refusal> {
        let work = self.work.lock().unwrap().take();
        if work.is_none() {
            tokio::time::sleep(wait).await;
        }
        Ok(work)
    }

    async fn sync(&self, _node: &NodeId, _held: &[(SandboxId, LeaseToken)]) -> Result<Vec<Directive>, Refusal> {
        Ok(self.directives.lock().unwrap().clone())
    }

    async fn report(&self, _sandbox: &SandboxId, _token: &LeaseToken, report: Report) -> Result<Verdict, Refusal> {
        let denied = self.deny && report == Report::Begin;
        self.reports.lock().unwrap().push(report);
        self.heard.notify_waiters();
        Ok(if denied { Verdict::Abandon } else { Verdict::Go })
    }
}

impl Control {
    fn last(&self) -> Option<Report> {
        self.reports.lock().unwrap().iter().rfind(|r| !matches!(r, Report::Progress(_))).cloned()
    }

    fn begun(&self) -> bool {
        self.reports.lock().unwrap().contains(&Report::Begin)
    }

    async fn until(&self, what: impl Fn(&Report) -> bool) -> Report {
        tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let heard = self.heard.notified();
                if let Some(found) = self.reports.lock().unwrap().iter().find(|r| what(r)).cloned() {
                    return found;
                }
                heard.await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("not heard within 20 s; heard {:?}", self.reports.lock().unwrap()))
    }
}

fn final_report(report: &Report) -> bool {
    matches!(report, Report::Ended { .. } | Report::GiveBack { .. })
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp(since.as_micros() as i64)
}

fn assignment(command: &[&str], start_ms: u64) -> Assignment {
    Assignment {
        sandbox: SandboxId::random(),
        token: LeaseToken::random(),
        spec: SandboxSpec {
            template: "t".into(),
            image: "sha256:0".into(),
            kernel: "sha256:0".into(),
            command: command.iter().map(|c| (*c).to_owned()).collect(),
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            cpus: 1,
            memory_mib: 64,
            disk_mib: 16,
            timeout_ms: None,
            start_timeout_ms: start_ms,
            idle_timeout_ms: None,
            stdin: false,
            attach: false,
        },
        start_deadline: now().plus_ms(start_ms),
        leased_at: now(),
    }
}

struct Node {
    control: Arc<Control>,
    workshop: FakeWorkshop,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    agent: Arc<Agent>,
}

fn node(work: Assignment, fail: Option<Step>, deny: bool) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let workshop = FakeWorkshop::default();
    workshop.fail_at(fail);
    let control = Arc::new(Control { work: Mutex::new(Some(work)), deny, ..Control::default() });
    let agent = Agent::open(Parts {
        info: NodeInfo { id: NodeId::random(), memory_mib: 1024, overhead_mib: 0, start_slots: 2, max_cpus: 2 },
        control: control.clone(),
        workshop: Arc::new(workshop.clone()),
        sandboxes: dir.path().join("sandboxes"),
        logs: dir.path().join("logs"),
        limits: LogLimits::default(),
        clock: now,
    })
    .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(agent.clone().run(stop.clone(), Stop::EndSandboxes));
    Node { control, workshop, dir, stop, running, agent }
}

fn entries(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

impl Node {
    /// Stops the node, and checks that nothing is left: no machine, no folder.
    async fn stopped_clean(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.running).await.expect("the node stops").unwrap();
        assert_eq!(self.workshop.running(), 0, "machines are left running");
        assert_eq!(entries(&self.dir.path().join("sandboxes")), Vec::<String>::new());
    }
}

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
    for step in Step::ALL {
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
        }
        assert_eq!(begun, matches!(step, Step::DieLate | Step::Lies), "{step:?}");
        node.stopped_clean().await;
    }
}

fn reason(report: &Report) -> Option<Reason> {
    match report {
        Report::Ended { outcome, .. } => Some(outcome.reason),
        _ => None,
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

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_node_ends_its_sandboxes() {
    let node = node(assignment(&["sleep"], 10_000), None, false);
    node.control.until(|r| matches!(r, Report::Progress(_))).await;
    let control = node.control.clone();
    node.stopped_clean().await;
    let Some(Report::Ended { outcome: Outcome { reason, .. }, .. }) = control.last() else { panic!() };
    assert_eq!(reason, Reason::Shutdown);
}
