//! A server on a free port of loopback, with one template, one kernel, one key and a fake node.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cerberus::ApiKey;
use hades::Sqlite;
use hades::store::{Catalogue, QueueRules};
use olympus::{Olympus, Settings};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tartarus_api::node::{Assignment, ControlPlane, Node, NodeInfo, Progress, Report, Verdict};
use tartarus_types::{NodeId, Outcome, Overcommit, Reason, SandboxId, TemplateSpec, Timestamp, Warm};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fake::FakeNode;

pub(crate) const IMAGE: &str = "sha256:00000000000000000000000000000000000000000000000000000000000000aa";
pub(crate) const KERNEL: &str = "sha256:00000000000000000000000000000000000000000000000000000000000000bb";

pub(crate) struct Bench {
    pub(crate) olympus: Arc<Olympus>,
    pub(crate) store: Arc<Sqlite>,
    pub(crate) node: Arc<FakeNode>,
    pub(crate) node_id: NodeId,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: JoinHandle<()>,
    pub(crate) url: String,
    pub(crate) key: String,
    http: reqwest::Client,
    _dir: tempfile::TempDir,
}

pub(crate) fn now() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64)
}

/// The usual ones, on a disk of which nothing must be free.
pub(crate) fn settings() -> Settings {
    Settings { min_free: 0, ..Settings::default() }
}

impl Bench {
    /// What its node says of itself.
    pub(crate) fn node_info(&self) -> NodeInfo {
        NodeInfo {
            id: self.node_id.clone(),
            memory_mib: 2048,
            overhead_mib: 96,
            overcommit: Overcommit::NEVER,
            start_slots: 2,
            max_cpus: 4,
        }
    }

    /// With a kernel, image `debian`, template `python` that boots cold, and a node of 2048 MiB and 4 processors.
    pub(crate) async fn start() -> Self {
        Self::start_with(settings()).await
    }

    pub(crate) async fn start_with(settings: Settings) -> Self {
        let bench = Self::bare_with(settings).await;
        let size = 1;
        let created_at = now();
        let image = hades::store::ImageRecord { name: "debian".into(), digest: IMAGE.into(), size, created_at };
        bench.store.put_image(image).await.unwrap();
        let release = "6.1.0-test".to_owned();
        let kernel = hades::store::KernelRecord { digest: KERNEL.into(), release, size, created_at };
        bench.store.put_kernel(kernel).await.unwrap();
        bench.olympus.attach_node(bench.node.clone() as Arc<dyn Node>).ok().unwrap();
        bench.olympus.register(bench.node_info(), &[]).await.unwrap();
        let spec = TemplateSpec {
            image: IMAGE.into(),
            cpus: 1,
            memory_mib: 512,
            disk_mib: 1024,
            env: [("A".to_owned(), "template".to_owned())].into(),
            workdir: None,
            user: None,
            warm: Warm::default(),
            shapes: Vec::new(),
            cold: true,
            net: tartarus_types::Contract::default(),
        };
        let template = hades::store::TemplateRecord { name: "python".into(), spec, created_at };
        bench.store.put_template(template).await.unwrap();
        bench
    }

    /// With a key and nothing else.
    pub(crate) async fn bare() -> Self {
        Self::bare_with(settings()).await
    }

    async fn bare_with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rules = QueueRules { visibility_ms: 30_000, max_attempts: 3, retry_delay_ms: 50 };
        let store = Arc::new(Sqlite::open(&dir.path().join(olympus::DATABASE), rules).unwrap());
        let key = ApiKey::generate();
        store.put_key("admin", key.hash(), now()).await.unwrap();
        let olympus = Arc::new(Olympus::new(store.clone(), Some(dir.path()), settings, now));
        let shutdown = CancellationToken::new();
        tokio::spawn(olympus.clone().run(shutdown.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = olympus::http::router(olympus.clone());
        let server = tokio::spawn(olympus::http::serve(listener, router, shutdown.clone()));
        Self {
            olympus,
            store,
            node: Arc::default(),
            node_id: NodeId::random(),
            shutdown,
            server,
            url,
            key: key.reveal(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            _dir: dir,
        }
    }

    /// The control plane that comes after this one was killed, on the same store and node; it serves no HTTP.
    pub(crate) async fn successor(&self) -> Arc<Olympus> {
        self.shutdown.cancel();
        let next = Arc::new(Olympus::new(self.store.clone(), None, settings(), now));
        next.attach_node(self.node.clone() as Arc<dyn Node>).ok().unwrap();
        tokio::spawn(next.clone().run(CancellationToken::new()));
        next
    }

    pub(crate) fn request_without_key(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).timeout(Duration::from_secs(20))
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_without_key(method, path).bearer_auth(&self.key)
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let request = self.request(method, path);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        request.send().await.unwrap()
    }

    /// The JSON of an answer that must have this status; null when it has no body.
    pub(crate) async fn expect(&self, method: Method, path: &str, body: Option<Value>, status: u16) -> Value {
        let response = self.send(method, path, body).await;
        let found = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(found.as_u16(), status, "{path}: {text}");
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.expect(Method::GET, path, None, 200).await
    }

    /// A queued sandbox.
    pub(crate) async fn create(&self) -> SandboxId {
        let body = json!({"template": "python", "command": ["true"]});
        id(&self.expect(Method::POST, "/v1/sandboxes", Some(body), 202).await)
    }

    pub(crate) async fn lease(&self) -> Assignment {
        self.olympus.lease(&self.node_id, Duration::from_secs(5)).await.unwrap().expect("there is work")
    }

    pub(crate) async fn report(&self, attempt: &Assignment, report: Report) -> Verdict {
        self.olympus.report(&attempt.sandbox, &attempt.token, report).await.unwrap()
    }

    /// A sandbox whose command has begun.
    pub(crate) async fn running(&self) -> Assignment {
        self.create().await;
        let attempt = self.lease().await;
        assert_eq!(self.report(&attempt, Report::Preparing).await, Verdict::Go);
        assert_eq!(self.report(&attempt, Report::Begin).await, Verdict::Go);
        attempt
    }

    pub(crate) async fn end(&self, attempt: &Assignment, code: i32) -> Verdict {
        let mut outcome = Outcome::because(Reason::Exited, "");
        outcome.exit_code = Some(code);
        self.report(attempt, Report::Ended { outcome, progress: Progress::default() }).await
    }

    pub(crate) async fn state(&self, sandbox: &SandboxId) -> String {
        self.get(&format!("/v1/sandboxes/{sandbox}")).await["state"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn id(sandbox: &Value) -> SandboxId {
    sandbox["id"].as_str().unwrap().parse().unwrap()
}

/// Checks that an answer is a problem, as every error must be, and returns code and field.
pub(crate) async fn problem(response: Response) -> (String, Option<String>) {
    let status = response.status();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(response.headers().contains_key("x-request-id"));
    let challenge = response.headers().contains_key("www-authenticate");
    let text = response.text().await.unwrap();
    assert_eq!(kind, "application/problem+json", "{status}: {text}");
    assert_eq!(challenge, status == StatusCode::UNAUTHORIZED);
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(body["status"], status.as_u16(), "{text}");
    let code = body["code"].as_str().unwrap().to_owned();
    assert_eq!(body["type"], format!("urn:tartarus:error:{code}"));
    assert!(!body["title"].as_str().unwrap().is_empty() && !body["detail"].as_str().unwrap().is_empty());
    (code, body["field"].as_str().map(str::to_owned))
}
