//! What is sent to a sandbox's command: its end, signals, standard input.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hades::store::{KillAsked, Record};
use serde::{Deserialize, Serialize};
use tartarus_api::node::Target;
use tartarus_api::v1::{Sandbox, SignalRequest, StdinTaken};
use tartarus_types::{ErrorCode, Refusal, State as Life, signal as signals};
use utoipa::ToSchema;

use super::App;
use super::extract::{Json, MAX_JSON, Path, media_type, parse_json, read_body};
use super::failure::Failure;
use super::openapi::RawBytes;
use super::params::Params;
use super::upload::check_octets;
use crate::view;
use crate::watch::{Watched, began};

const GRACE_MS: u64 = 5_000;
const MAX_GRACE_MS: u64 = 3_600_000;
/// Largest chunk of standard input, bytes.
const MAX_STDIN: usize = 1 << 20;
/// For the start of a command whose standard input is already there.
const STDIN_WAIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Ends a sandbox.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KillRequest {
    /// Sent to the command first: `TERM`, `SIGTERM` or `15`; `TERM` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signal: Option<String>,
    /// From the signal to the end of the microVM, ms; 5000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grace_ms: Option<u64>,
}

/// Asks for the end of a sandbox: a signal to its command, and the end of the microVM after the grace period.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/kill", operation_id = "kill_sandbox", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "Id, unique prefix or name")),
    request_body(content = Option<KillRequest>, description = "May be left out"),
    responses((status = 202, description = "Its end is on record as asked for", body = Sandbox)))]
pub(super) async fn kill(
    State(app): State<App>,
    Path(reference): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, axum::Json<Sandbox>), Failure> {
    let body = read_body(body, MAX_JSON).await?;
    let request = match (body.is_empty(), media_type(&headers).as_deref()) {
        (true, _) => KillRequest::default(),
        (false, Some("application/json")) => parse_json(&body)?,
        (false, _) => return Err(Refusal::new(ErrorCode::InvalidBody, "send the body as application/json").into()),
    };
    let signal = signal_number(request.signal.as_deref().unwrap_or("TERM"))?;
    let grace_ms = request.grace_ms.unwrap_or(GRACE_MS);
    if grace_ms > MAX_GRACE_MS {
        return Err(Refusal::field("grace_ms", format!("is at most {MAX_GRACE_MS}")).into());
    }
    let id = app.store.resolve(&reference).await?.id;
    let record = app.store.kill(&id, KillAsked { signal, grace_ms }, false, app.now()).await?;
    app.kick();
    let record = record.ok_or_else(|| Refusal::not_found("sandbox", &reference))?;
    Ok((StatusCode::ACCEPTED, axum::Json(view::sandbox(record, None))))
}

/// Sends a signal to the command and what it started in its process group.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/signal", operation_id = "signal_sandbox", tag = "sandboxes", request_body = SignalRequest,
    params(("sandbox" = String, Path, description = "Id, unique prefix or name")),
    responses((status = 204, description = "It was sent")))]
pub(super) async fn signal(
    State(app): State<App>,
    Path(reference): Path<String>,
    Json(request): Json<SignalRequest>,
) -> Result<StatusCode, Failure> {
    let number = signal_number(&request.signal)?;
    let record = app.store.resolve(&reference).await?;
    check_runs(&record)?;
    app.node()?.signal(&record.id, &Target::Main, number).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stops the sandbox's machine: nothing in it runs until it is resumed, and limits that count time wait as well. One that
/// is paused stays so.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/pause", operation_id = "pause_sandbox", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "Id, unique prefix or name")),
    responses((status = 200, description = "It stands still", body = Sandbox)))]
pub(super) async fn pause(
    State(app): State<App>,
    Path(reference): Path<String>,
) -> Result<axum::Json<Sandbox>, Failure> {
    let record = app.store.resolve(&reference).await?;
    check_stands_or_runs(&record)?;
    app.node()?.pause(&record.id).await?;
    now(&app, &record).await
}

/// Lets a paused sandbox go on. One that runs goes on running.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/resume", operation_id = "resume_sandbox", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "Id, unique prefix or name")),
    responses((status = 200, description = "It runs", body = Sandbox)))]
pub(super) async fn resume(
    State(app): State<App>,
    Path(reference): Path<String>,
) -> Result<axum::Json<Sandbox>, Failure> {
    let record = app.store.resolve(&reference).await?;
    check_stands_or_runs(&record)?;
    app.node()?.resume(&record.id).await?;
    now(&app, &record).await
}

pub(super) fn check_stands_or_runs(record: &Record) -> Result<(), Refusal> {
    match record.state {
        Life::Running | Life::Paused => Ok(()),
        state => Err(Refusal::new(
            ErrorCode::WrongState,
            format!("sandbox {} is {}, neither running nor paused", record.id, state.as_str()),
        )),
    }
}

async fn now(app: &App, record: &Record) -> Result<axum::Json<Sandbox>, Failure> {
    let gone = || Refusal::not_found("sandbox", record.id.as_str());
    let record = app.store.get(&record.id).await?.ok_or_else(gone)?;
    Ok(axum::Json(view::sandbox(record, None)))
}

/// Gives bytes to the command's standard input. A chunk may be repeated: what was taken already is skipped.
///
/// Before the command has started this waits for it, 30 s at most; then it is `wrong_state`, and may be sent again.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/stdin", operation_id = "feed_sandbox", tag = "sandboxes",
    params(
        ("sandbox" = String, Path, description = "Id, unique prefix or name"),
        ("offset" = u64, Query, description = "Position of the first byte sent"),
        ("eof" = Option<bool>, Query, description = "Nothing follows")),
    request_body(content = RawBytes, content_type = "application/octet-stream", description = "At most 1 MiB"),
    responses((status = 200, description = "How far it was taken", body = StdinTaken)))]
pub(super) async fn stdin(
    State(app): State<App>,
    Path(reference): Path<String>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<axum::Json<StdinTaken>, Failure> {
    let chunk = Chunk::read(params, &headers, body).await?;
    let record = app.store.resolve(&reference).await?;
    let record = match app.watch(&record.id, STDIN_WAIT, |r| began(r) || r.state.is_terminal()).await? {
        Watched::Reached(record) | Watched::Late(record) => record,
        Watched::Gone => return Err(Refusal::not_found("sandbox", &reference).into()),
    };
    check_runs(&record)?;
    chunk.give(&app, &record, &Target::Main).await
}

/// A piece of standard input.
pub(super) struct Chunk {
    offset: u64,
    eof: bool,
    bytes: bytes::Bytes,
}

impl Chunk {
    pub(super) async fn read(mut params: Params, headers: &HeaderMap, body: Body) -> Result<Self, Failure> {
        let offset = params.number("offset")?;
        let eof = params.flag("eof")?;
        params.finish()?;
        let offset =
            offset.ok_or_else(|| Refusal::field("offset", "is missing: the position of the first byte sent"))?;
        check_octets(headers)?;
        Ok(Self { offset, eof, bytes: read_body(body, MAX_STDIN).await? })
    }

    pub(super) async fn give(
        self,
        app: &App,
        record: &Record,
        target: &Target,
    ) -> Result<axum::Json<StdinTaken>, Failure> {
        let taken = app.node()?.stdin(&record.id, target, self.offset, self.bytes, self.eof).await?;
        Ok(axum::Json(StdinTaken { taken }))
    }
}

/// The number of a signal's name.
pub(super) fn signal_number(text: &str) -> Result<i32, Refusal> {
    signals::number(text).ok_or_else(|| Refusal::field("signal", "there is no such signal: write TERM, SIGTERM or 15"))
}

/// Refuses what only a sandbox whose command may run can be asked.
pub(super) fn check_runs(record: &Record) -> Result<(), Refusal> {
    match record.state {
        // What is sent to one that is paused waits there.
        Life::Running | Life::Paused => Ok(()),
        // On its way out it still reads and handles signals.
        Life::Terminating if began(record) => Ok(()),
        state => Err(Refusal::new(
            ErrorCode::WrongState,
            format!("sandbox {} is {}, not running", record.id, state.as_str()),
        )),
    }
}
