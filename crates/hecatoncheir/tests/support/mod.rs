//! A node with the fake driver and a control plane that writes down what it hears.

#![allow(dead_code, reason = "each test program uses its part")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hecatoncheir::{Agent, LogLimits, NetOptions, Networks, Parts, Stop};
use tartarus_api::node::{Assignment, ControlPlane, Directive, NodeInfo, Report, Verdict};
use tartarus_types::{LeaseToken, NodeId, Overcommit, Reason, Refusal, SandboxId, SandboxSpec, Timestamp};
use testkit::{FakeWorkshop, Step};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A control plane with one piece of work, which writes down what it hears.
#[derive(Default)]
pub(crate) struct Control {
    pub(crate) work: Mutex<Option<Assignment>>,
    pub(crate) reports: Mutex<Vec<Report>>,
    pub(crate) directives: Mutex<Vec<Directive>>,
    /// Refuse leave to begin.
    pub(crate) deny: bool,
    heard: Notify,
    given: Notify,
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
            let _ = tokio::time::timeout(wait, self.given.notified()).await;
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
    pub(crate) fn last(&self) -> Option<Report> {
        self.reports.lock().unwrap().iter().rfind(|r| !matches!(r, Report::Progress(_))).cloned()
    }

    pub(crate) fn begun(&self) -> bool {
        self.reports.lock().unwrap().contains(&Report::Begin)
    }

    /// One more piece of work.
    pub(crate) fn give(&self, work: Assignment) {
        *self.work.lock().unwrap() = Some(work);
        self.given.notify_one();
    }

    pub(crate) async fn until(&self, what: impl Fn(&Report) -> bool) -> Report {
        self.until_count(what, 1).await
    }

    /// Waits for so many such reports; gives the last of them.
    pub(crate) async fn until_count(&self, what: impl Fn(&Report) -> bool, count: usize) -> Report {
        tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let heard = self.heard.notified();
                if let Some(found) = self.reports.lock().unwrap().iter().filter(|r| what(r)).nth(count - 1).cloned() {
                    return found;
                }
                heard.await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("not heard within 20 s; heard {:?}", self.reports.lock().unwrap()))
    }
}

pub(crate) fn final_report(report: &Report) -> bool {
    matches!(report, Report::Ended { .. } | Report::GiveBack { .. })
}

pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp(since.as_micros() as i64)
}

pub(crate) fn assignment(command: &[&str], start_ms: u64) -> Assignment {
    Assignment {
        sandbox: SandboxId::random(),
        token: LeaseToken::random(),
        spec: SandboxSpec {
            template: "t".into(),
            image: "sha256:0".into(),
            kernel: "sha256:0".into(),
            command: command.iter().map(|c| (*c).to_owned()).collect(),
            cpus: 1,
            memory_mib: 64,
            disk_mib: 16,
            start_timeout_ms: start_ms,
            ..SandboxSpec::default()
        },
        start_deadline: now().plus_ms(start_ms),
        leased_at: now(),
    }
}

pub(crate) struct Node {
    pub(crate) control: Arc<Control>,
    pub(crate) workshop: FakeWorkshop,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    pub(crate) agent: Arc<Agent>,
}

pub(crate) fn node(work: Assignment, fail: Option<Step>, deny: bool) -> Node {
    let workshop = FakeWorkshop::default();
    workshop.fail_at(fail);
    node_with(workshop, work, deny)
}

/// A node on a workshop that may have made snapshots before.
pub(crate) fn node_with(workshop: FakeWorkshop, work: Assignment, deny: bool) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let control = Arc::new(Control { work: Mutex::new(Some(work)), deny, ..Control::default() });
    let agent = Agent::open(Parts {
        info: NodeInfo {
            id: NodeId::random(),
            memory_mib: 1024,
            overhead_mib: 0,
            overcommit: Overcommit::NEVER,
            start_slots: 2,
            max_cpus: 2,
        },
        control: control.clone(),
        workshop: Arc::new(workshop.clone()),
        networks: Arc::new(Networks::new(NetOptions::default(), now)),
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

pub(crate) fn entries(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

impl Node {
    /// Stops the node, and checks that nothing is left: no machine, no folder.
    pub(crate) async fn stopped_clean(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.running).await.expect("the node stops").unwrap();
        assert_eq!(self.workshop.running(), 0, "machines are left running");
        assert_eq!(entries(&self.dir.path().join("sandboxes")), Vec::<String>::new());
    }
}

pub(crate) fn reason(report: &Report) -> Option<Reason> {
    match report {
        Report::Ended { outcome, .. } => Some(outcome.reason),
        _ => None,
    }
}
