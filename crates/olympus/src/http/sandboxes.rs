//! Sandboxes: making, finding, waiting for and removing them.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use cerberus::Caller;
use hades::store::{Accepted, Idempotency, KillAsked, ListFilter, NewSandbox, Record};
use sha2::{Digest, Sha256};
use tartarus_api::node::SnapshotInfo;
use tartarus_api::v1::{CreateSandbox, Sandbox, SandboxDetail};
use tartarus_types::{ErrorCode, Refusal, SandboxId, SandboxSpec, SnapshotUse, State as Life};

use super::App;
use super::extract::{IdempotencyKey, Json, Path};
use super::failure::Failure;
use super::params::Params;
use crate::accept::{check_fits, sandbox_spec};
use crate::net::ceiling;
use crate::watch::Watched;
use crate::{view, waiting};

const LIST_DEFAULT: u32 = 100;
const LIST_MOST: u32 = 1000;
/// Sandboxes that are looked through for labels.
const LIST_SEARCHED: u32 = 10_000;
const WAIT_DEFAULT: Duration = Duration::from_secs(30);
/// Longest wait of one request; below what proxies cut.
pub(super) const WAIT_MOST: Duration = Duration::from_secs(60);
/// For the end of a sandbox that is removed.
const REMOVE_WAIT: Duration = Duration::from_secs(20);
/// For what is told of a sandbox's network beside the rest.
const NET_PATIENCE: Duration = Duration::from_secs(2);
const SIGKILL: i32 = 9;

/// Accepts a sandbox: it is durable and queued when this is answered.
///
/// With an `Idempotency-Key` the same request within 24 h is the same sandbox, and is given the same answer.
#[utoipa::path(post, path = "/v1/sandboxes", operation_id = "create_sandbox", tag = "sandboxes", request_body = CreateSandbox,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 128 visible ASCII characters")),
    responses((status = 202, description = "It is on record; where it is found is in `Location`", body = Sandbox)))]
pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    IdempotencyKey(key): IdempotencyKey,
    Json(request): Json<CreateSandbox>,
) -> Result<Response, Failure> {
    let idempotency = key.map(|key| Idempotency { caller: caller.name, key, request: fingerprint(&request) });
    if let Some(key) = &idempotency
        && let Some(record) = app.store.replay(key, app.now()).await?
    {
        // Also when its template or kernel is gone by now.
        return Ok(accepted(record));
    }
    let template = app.store.template(&request.template).await?.ok_or_else(|| Refusal {
        field: Some("template".to_owned()),
        ..Refusal::not_found("template", &request.template)
    })?;
    let (name, labels) = (request.name.clone(), request.labels.clone());
    let kernel = app.store.kernels().await?.into_iter().next().ok_or_else(|| {
        Refusal::new(ErrorCode::NotReady, "there is no guest kernel: add one with `tartarus kernel add`")
    })?;
    let spec = sandbox_spec(request, template, &kernel, &app.settings.limits, ceiling(&app.settings))?;
    check_fits(&app.store.nodes().await?, &spec)?;
    if spec.snapshot == SnapshotUse::Require {
        check_snapshot(&app, &spec).await?;
    }
    app.disk.check()?;
    let new = NewSandbox { id: SandboxId::random(), name, labels, spec, idempotency };
    let (Accepted::New(record) | Accepted::Replay(record)) = app.store.accept(new, app.now()).await?;
    app.kick();
    Ok(accepted(*record))
}

/// Says at once that there is no snapshot, where that is known already; whether it really fits only the node can tell.
async fn check_snapshot(app: &App, spec: &SandboxSpec) -> Result<(), Refusal> {
    let Ok(stored) = app.node()?.snapshots().await else { return Ok(()) };
    let found = stored.into_iter().find(|info| Some(&info.golden) == spec.golden.as_ref());
    let why = match found {
        Some(SnapshotInfo { unusable: None, .. }) => return Ok(()),
        Some(SnapshotInfo { unusable: Some(why), .. }) => format!("it cannot be used any more: {why}"),
        None => "there is none yet".to_owned(),
    };
    let advice = format!("`tartarus template inspect {}` tells more", spec.template);
    let refusal = Refusal::new(ErrorCode::SnapshotRequired, format!("no snapshot to start from: {why}; {advice}"));
    Err(Refusal { field: Some("require_snapshot".to_owned()), ..refusal })
}

fn accepted(record: Record) -> Response {
    let location = format!("/v1/sandboxes/{}", record.id);
    let body = axum::Json(view::sandbox(record, None));
    (StatusCode::ACCEPTED, [(LOCATION, location)], body).into_response()
}

/// The same for requests that mean the same, however their JSON was written.
fn fingerprint(request: &CreateSandbox) -> [u8; 32] {
    let canonical = serde_json::to_vec(request).expect("texts and numbers can always be written as JSON");
    Sha256::digest(canonical).into()
}

/// Sandboxes, newest first. Their places in the queue are told one by one only.
#[utoipa::path(get, path = "/v1/sandboxes", operation_id = "list_sandboxes", tag = "sandboxes",
    params(
        ("ended" = Option<bool>, Query, description = "Also those that have ended"),
        ("limit" = Option<u32>, Query, description = "At most so many; 100 when absent, up to 1000"),
        ("label" = Option<Vec<String>>, Query, description = "`KEY=VALUE`; repeated, all must match")),
    responses((status = 200, description = "The sandboxes", body = [Sandbox])))]
pub(super) async fn list(State(app): State<App>, mut params: Params) -> Result<axum::Json<Vec<Sandbox>>, Failure> {
    let ended = params.flag("ended")?;
    let limit = params.number("limit")?.unwrap_or(LIST_DEFAULT);
    if !(1..=LIST_MOST).contains(&limit) {
        return Err(Refusal::field("limit", format!("is 1 to {LIST_MOST}")).into());
    }
    let labels = labels(&params.all("label"))?;
    params.finish()?;
    let searched = if labels.is_empty() { limit } else { LIST_SEARCHED };
    let found = app.store.list(ListFilter { ended, limit: searched }).await?;
    let matching = found.into_iter().filter(|record| labels.iter().all(|(k, v)| record.labels.get(k) == Some(v)));
    Ok(axum::Json(matching.take(limit as usize).map(|record| view::sandbox(record, None)).collect()))
}

fn labels(given: &[String]) -> Result<BTreeMap<String, String>, Refusal> {
    let split = |text: &String| {
        let (key, value) = text.split_once('=').ok_or_else(|| Refusal::field("label", "looks like KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    given.iter().map(split).collect()
}

/// One sandbox, of an id, a unique prefix of one, or a name, with all that is known of it.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}", operation_id = "inspect_sandbox", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "Id, unique prefix or name")),
    responses((status = 200, description = "The sandbox", body = SandboxDetail)))]
pub(super) async fn inspect(
    State(app): State<App>,
    Path(reference): Path<String>,
) -> Result<axum::Json<SandboxDetail>, Failure> {
    let record = app.store.resolve(&reference).await?;
    let position = position(&app, &record).await?;
    let failures = app.store.failures(&record.id).await?;
    let live = match app.node() {
        Ok(node) if !record.state.is_terminal() => node.live(&record.id).await,
        Ok(_) | Err(_) => None,
    };
    let net = match (app.node(), record.state) {
        // Where it cannot be told, or not soon, the rest is told all the same: `GET …/net` says why.
        (Ok(node), Life::Running | Life::Paused) => {
            tokio::time::timeout(NET_PATIENCE, node.net(&record.id)).await.ok().and_then(Result::ok)
        }
        _ => None,
    };
    let waiting = match record.state {
        Life::Queued => {
            let failed = failures.last().map(String::as_str);
            waiting::why(&app.store.nodes().await?, position, &record.spec, failed)
        }
        _ => None,
    };
    Ok(axum::Json(view::detail(record, position, failures, live, waiting, net)))
}

async fn position(app: &App, record: &Record) -> Result<Option<u64>, Failure> {
    match record.state {
        Life::Queued => Ok(app.store.queue_position(&record.id).await?),
        _ => Ok(None),
    }
}

/// Waits for the end of a sandbox. Answers when it has ended or the time is up, whichever is first: look at `state`.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/wait", operation_id = "wait_sandbox", tag = "sandboxes",
    params(
        ("sandbox" = String, Path, description = "Id, unique prefix or name"),
        ("timeout_ms" = Option<u64>, Query, description = "30 s when absent, up to 60 s")),
    responses((status = 200, description = "The sandbox as it is now", body = Sandbox)))]
pub(super) async fn wait(
    State(app): State<App>,
    Path(reference): Path<String>,
    mut params: Params,
) -> Result<axum::Json<Sandbox>, Failure> {
    let limit = params.wait("timeout_ms", WAIT_DEFAULT, WAIT_MOST)?;
    params.finish()?;
    let id = app.store.resolve(&reference).await?.id;
    match app.watch(&id, limit, |record| record.state.is_terminal()).await? {
        Watched::Reached(record) | Watched::Late(record) => {
            let position = position(&app, &record).await?;
            Ok(axum::Json(view::sandbox(*record, position)))
        }
        Watched::Gone => Err(Refusal::not_found("sandbox", &reference).into()),
    }
}

/// Ends a sandbox at once and deletes its record and logs.
#[utoipa::path(delete, path = "/v1/sandboxes/{sandbox}", operation_id = "remove_sandbox", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "Id, unique prefix or name")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 202, description = "It is being ended, and goes when it has", body = Sandbox)))]
pub(super) async fn remove(State(app): State<App>, Path(reference): Path<String>) -> Result<Response, Failure> {
    let id = app.store.resolve(&reference).await?.id;
    let kill = KillAsked { signal: SIGKILL, grace_ms: 0 };
    if app.store.kill(&id, kill, true, app.now()).await?.is_some() {
        app.kick();
        if let Watched::Late(record) | Watched::Reached(record) = app.watch(&id, REMOVE_WAIT, |_| false).await? {
            return Ok((StatusCode::ACCEPTED, axum::Json(view::sandbox(*record, None))).into_response());
        }
    }
    // Gone means that its logs are as well; a failure is logged there, and there is nothing more to be done about it.
    let _ = app.forget(id).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}
