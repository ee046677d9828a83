//! A server in the test's own hands, and the binary run against it. It knows sandboxes as scripts: what they put out,
//! how they end, and after how many bytes each connection breaks.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "clippy does not see that helpers of tests are tests")]

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde_json::{Value, json};
use tartarus_api::node::OutputEvent;
use tartarus_api::output::{encode, keepalive};
use tartarus_api::v1::Problem;
use tartarus_types::{ErrorCode, ExecId, Outcome, Reason, Refusal, SandboxId, State as Life};

/// What the server was told, and what it will say. Outlives the server, as a database would.
pub(crate) struct Script {
    pub(crate) id: SandboxId,
    pub(crate) streams: [Vec<u8>; 2],
    /// Bytes of a body after which a connection breaks, one for each connection; then none does.
    pub(crate) cuts: VecDeque<usize>,
    /// The command is still running, and ends when this is set.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) state: Life,
    /// Answers of `POST /v1/sandboxes` that get lost after the request was taken.
    pub(crate) lost_answers: usize,
    pub(crate) refusal: Option<Refusal>,
    /// Bytes of standard input that one request takes at most.
    pub(crate) appetite: usize,
    pub(crate) stdin: Vec<u8>,
    pub(crate) stdin_eof: bool,
    pub(crate) created: Vec<(String, Value)>,
    pub(crate) execs: Vec<Value>,
    pub(crate) signals: Vec<String>,
    pub(crate) kills: Vec<Value>,
    pub(crate) connections: usize,
    pub(crate) uploads: HashMap<String, Vec<u8>>,
    /// The template was there before.
    pub(crate) template_known: bool,
    /// Requests about templates, pauses and space: method, path and body.
    pub(crate) asked: Vec<(String, Value)>,
}

pub(crate) type Shared = Arc<Mutex<Script>>;

pub(crate) fn exited(code: i32) -> Outcome {
    Outcome { reason: Reason::Exited, exit_code: Some(code), signal: None, message: None, oom_kills: 0 }
}

pub(crate) fn script() -> Shared {
    Arc::new(Mutex::new(Script {
        id: SandboxId::random(),
        streams: Default::default(),
        cuts: VecDeque::new(),
        outcome: None,
        state: Life::Running,
        lost_answers: 0,
        refusal: None,
        appetite: usize::MAX,
        stdin: Vec::new(),
        stdin_eof: false,
        created: Vec::new(),
        execs: Vec::new(),
        signals: Vec::new(),
        kills: Vec::new(),
        connections: 0,
        uploads: HashMap::new(),
        template_known: false,
        asked: Vec::new(),
    }))
}

pub(crate) fn lock(script: &Shared) -> MutexGuard<'_, Script> {
    script.lock().unwrap()
}

/// Waits until `seen` holds, or fails.
pub(crate) fn until(script: &Shared, what: &str, seen: impl Fn(&Script) -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !seen(&lock(script)) {
        assert!(Instant::now() < end, "{what} did not happen within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server; dropping it is `kill -9`: every connection breaks where it is.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    pub(crate) fn start(script: &Shared) -> Self {
        Self::start_at(script, "127.0.0.1:0".parse().unwrap())
    }

    pub(crate) fn start_at(script: &Shared, addr: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind(addr).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let router = router(Arc::clone(script));
        runtime.spawn(async move { axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await });
        Self { addr, runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The binary, with this server in its environment and nothing else of ours.
    pub(crate) fn tartarus(&self, args: &[&str]) -> Command {
        let mut command = tartarus(args);
        command.env("TARTARUS_URL", self.url()).env("TARTARUS_API_KEY", "key");
        command
    }

    pub(crate) fn output(&self, args: &[&str]) -> Output {
        self.tartarus(args).output().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // On a thread of its own, since the test itself may be async.
        let runtime = self.runtime.take();
        let stop = move || runtime.map(|runtime| runtime.shutdown_timeout(Duration::from_secs(5)));
        std::thread::spawn(stop).join().unwrap();
    }
}

/// The binary, knowing no server.
pub(crate) fn tartarus(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tartarus"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["TARTARUS_URL", "TARTARUS_API_KEY", "TARTARUS_DATA", "XDG_STATE_HOME", "HOME"] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn signal(child: &Child, name: &str) {
    let kill = format!("kill -{name} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn router(script: Shared) -> Router {
    Router::new()
        .route("/v1/sandboxes", post(create).get(list))
        .route("/v1/sandboxes/{id}", get(inspect).delete(remove))
        .route("/v1/sandboxes/{id}/wait", get(wait))
        .route("/v1/sandboxes/{id}/output", get(output))
        .route("/v1/sandboxes/{id}/stdin", post(stdin))
        .route("/v1/sandboxes/{id}/signal", post(signalled))
        .route("/v1/sandboxes/{id}/kill", post(killed))
        .route("/v1/sandboxes/{id}/execs", post(exec))
        .route("/v1/sandboxes/{id}/execs/{exec}", get(exec_status))
        .route("/v1/sandboxes/{id}/execs/{exec}/output", get(exec_output))
        .route("/v1/sandboxes/{id}/execs/{exec}/stdin", post(exec_stdin))
        .route("/v1/sandboxes/{id}/execs/{exec}/signal", post(signalled))
        .route("/v1/images", post(import))
        .route("/v1/templates", post(template_made))
        .route("/v1/templates/{name}", get(template_shown).delete(template_gone))
        .route("/v1/templates/{name}/rebuild", post(template_rebuilt))
        .route("/v1/sandboxes/{id}/pause", post(stood))
        .route("/v1/sandboxes/{id}/resume", post(stood))
        .route("/v1/df", get(space))
        .route("/v1/prune", post(pruned))
        .with_state(script)
}

pub(crate) fn problem(refusal: Refusal) -> Response {
    let problem = Problem::from(refusal);
    (StatusCode::from_u16(problem.status).unwrap(), Json(problem)).into_response()
}

fn sandbox(script: &Script) -> Value {
    let outcome = script.outcome.as_ref();
    let state = outcome.map_or(script.state, Outcome::state);
    json!({
        "id": script.id, "name": null, "state": state, "template": "t", "image": "sha256:i", "kernel": "sha256:k",
        "command": ["c"], "labels": {}, "cpus": 1, "memory_mib": 512, "disk_mib": 64, "timeout_ms": null,
        "created_at": 1, "started_at": null, "ended_at": null, "attempts": 1, "node": null, "outcome": outcome,
        "exit_status": outcome.map(Outcome::exit_status), "phases": [], "hypervisor_pid": null, "driver": null,
        "guest_kernel": null, "failures": [],
    })
}

async fn create(State(script): State<Shared>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if headers.get("authorization").is_none_or(|value| value != "Bearer key") {
        return problem(Refusal::new(ErrorCode::Unauthenticated, "the key is unknown"));
    }
    let mut script = lock(&script);
    if let Some(refusal) = script.refusal.clone() {
        return problem(refusal);
    }
    let key = headers.get("idempotency-key").unwrap().to_str().unwrap().to_owned();
    script.created.push((key, body));
    if script.lost_answers > 0 {
        script.lost_answers -= 1;
        return broken(Vec::new());
    }
    (StatusCode::ACCEPTED, Json(sandbox(&script))).into_response()
}

/// A template with one snapshot, which the script's sandbox makes.
fn template(script: &Script) -> Value {
    let state = match script.outcome.as_ref().map(Outcome::state) {
        None => "building",
        Some(Life::Succeeded) => "ready",
        Some(_) => "failed",
    };
    let shape = json!({ "cpus": 1, "memory_mib": 512 });
    json!({
        "name": "t", "image": "sha256:i", "cpus": 1, "memory_mib": 512, "disk_mib": 64, "env": {}, "workdir": null,
        "user": null, "created_at": 1, "snapshots": [{ "shape": shape, "golden": "g", "state": state,
        "sandbox": script.id, "why": null, "bytes": null, "layer_bytes": null, "created_at": null }],
    })
}

fn asked(script: &Shared, what: &str, body: Value) {
    lock(script).asked.push((what.to_owned(), body));
}

async fn template_made(State(script): State<Shared>, Json(body): Json<Value>) -> Response {
    asked(&script, "create", body);
    let script = lock(&script);
    let status = if script.template_known { StatusCode::OK } else { StatusCode::CREATED };
    (status, Json(template(&script))).into_response()
}

async fn template_shown(State(script): State<Shared>) -> Response {
    Json(template(&lock(&script))).into_response()
}

async fn template_rebuilt(State(script): State<Shared>, Path(name): Path<String>) -> Response {
    asked(&script, "rebuild", json!(name));
    (StatusCode::ACCEPTED, Json(template(&lock(&script)))).into_response()
}

async fn template_gone(State(script): State<Shared>, Path(name): Path<String>) -> Response {
    asked(&script, "remove", json!(name));
    StatusCode::NO_CONTENT.into_response()
}

async fn stood(State(script): State<Shared>, Path(id): Path<String>, uri: axum::http::Uri) -> Response {
    asked(&script, uri.path().rsplit('/').next().unwrap(), json!(id));
    Json(sandbox(&lock(&script))).into_response()
}

async fn space() -> Response {
    Json(json!(tartarus_api::v1::DiskUsage { reclaimable: 3 << 20, ..Default::default() })).into_response()
}

async fn pruned(State(script): State<Shared>, Json(body): Json<Value>) -> Response {
    asked(&script, "prune", body.clone());
    let dry_run = body["dry_run"] == true;
    let pruned = tartarus_api::v1::Pruned { dry_run, sandboxes: 2, bytes: 5 << 10, ..Default::default() };
    Json(json!(pruned)).into_response()
}

async fn list(State(script): State<Shared>) -> Response {
    Json(json!([sandbox(&lock(&script))])).into_response()
}

async fn inspect(State(script): State<Shared>) -> Response {
    Json(sandbox(&lock(&script))).into_response()
}

async fn remove(State(script): State<Shared>, Path(id): Path<String>) -> Response {
    if id == lock(&script).id.as_str() {
        return StatusCode::NO_CONTENT.into_response();
    }
    problem(Refusal::not_found("sandbox", &id))
}

async fn ended(script: &Shared) {
    while lock(script).outcome.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn wait(State(script): State<Shared>) -> Response {
    ended(&script).await;
    Json(sandbox(&lock(&script))).into_response()
}

type Params = Query<HashMap<String, String>>;

async fn exec_output(state: State<Shared>, query: Params) -> Response {
    output(state, query).await
}

async fn output(State(script): State<Shared>, Query(query): Params) -> Response {
    lock(&script).connections += 1;
    if query["follow"] == "true" {
        ended_or_cut(&script).await;
    }
    let mut script = lock(&script);
    let mut body = keepalive().to_vec();
    // Frames of odd sizes, the two streams in turn.
    let mut at = [0, 1].map(|stream| {
        let name = ["stdout", "stderr"][stream];
        let skipped = query.get("stream").is_some_and(|only| only != name);
        let from = query.get(&format!("{name}_from")).map_or(0, |text| text.parse().unwrap());
        if skipped { script.streams[stream].len() } else { from }
    });
    while at[0] < script.streams[0].len() || at[1] < script.streams[1].len() {
        for (stream, at) in at.iter_mut().enumerate() {
            let rest = &script.streams[stream][*at..];
            let piece = &rest[..rest.len().min(7 + 60_000 * usize::from(rest.len() > 100_000))];
            let bytes = Bytes::copy_from_slice(piece);
            body.extend_from_slice(&encode(&Ok(OutputEvent::Data { stream, offset: *at as u64, bytes })));
            *at += piece.len();
        }
    }
    if let Some(cut) = script.cuts.pop_front() {
        body.truncate(cut);
        return broken(body);
    }
    body.extend_from_slice(&encode(&Ok(OutputEvent::End)));
    Body::from(body).into_response()
}

async fn ended_or_cut(script: &Shared) {
    if lock(script).cuts.is_empty() {
        ended(script).await;
    }
}

/// A body that breaks off instead of ending.
fn broken(body: Vec<u8>) -> Response {
    let parts = [Ok(Bytes::from(body)), Err(std::io::Error::other("cut"))];
    Body::from_stream(stream::iter(parts)).into_response()
}

async fn exec_stdin(state: State<Shared>, query: Params, bytes: Bytes) -> Response {
    stdin(state, query, bytes).await
}

async fn stdin(State(script): State<Shared>, Query(query): Params, bytes: Bytes) -> Response {
    let mut script = lock(&script);
    if script.state != Life::Running {
        return problem(Refusal::new(ErrorCode::WrongState, "it does not run"));
    }
    let offset: usize = query["offset"].parse().unwrap();
    let taken = script.stdin.len();
    assert!(offset <= taken, "a gap");
    let fresh = &bytes[(taken - offset).min(bytes.len())..];
    let fresh = &fresh[..fresh.len().min(script.appetite)];
    script.stdin.extend_from_slice(fresh);
    script.stdin_eof |= query["eof"] == "true" && script.stdin.len() == offset + bytes.len();
    Json(json!({ "taken": script.stdin.len() })).into_response()
}

async fn signalled(State(script): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut script = lock(&script);
    script.signals.push(body["signal"].as_str().unwrap().to_owned());
    StatusCode::NO_CONTENT.into_response()
}

async fn killed(State(script): State<Shared>, Json(body): Json<Value>) -> Response {
    {
        let mut script = lock(&script);
        script.kills.push(body);
        script.outcome = Some(Outcome::because(Reason::Killed, ""));
    }
    // The end itself is heard of before this answer.
    tokio::time::sleep(Duration::from_millis(100)).await;
    (StatusCode::ACCEPTED, Json(sandbox(&lock(&script)))).into_response()
}

fn exec_of(script: &Script) -> Value {
    let id: ExecId = format!("exe_{}", &script.id.as_str()[4..]).parse().unwrap();
    let status = script.outcome.as_ref().map(Outcome::exit_status);
    json!({ "id": id, "sandbox": script.id, "command": ["c"], "outcome": script.outcome, "exit_status": status })
}

async fn exec(State(script): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut script = lock(&script);
    if script.state != Life::Running {
        return problem(Refusal::new(ErrorCode::WrongState, "it does not run"));
    }
    script.execs.push(body);
    (StatusCode::ACCEPTED, Json(exec_of(&script))).into_response()
}

async fn exec_status(State(script): State<Shared>) -> Response {
    ended(&script).await;
    Json(exec_of(&lock(&script))).into_response()
}

async fn import(State(script): State<Shared>, Query(query): Params, bytes: Bytes) -> Response {
    let name = query["name"].clone();
    let size = bytes.len();
    lock(&script).uploads.insert(name.clone(), bytes.to_vec());
    let image = json!({ "name": name, "digest": "sha256:d", "size": size, "created_at": 1 });
    (StatusCode::CREATED, Json(image)).into_response()
}
