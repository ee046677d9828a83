//! What is sent to a command in a sandbox: signals, standard input.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use tartarus_api::node::Target;
use tartarus_api::v1::{SignalRequest, StdinTaken};

use super::App;
use super::execs::exec_id;
use super::extract::{Json, Path};
use super::failure::Failure;
use super::openapi::RawBytes;
use super::params::Params;
use super::sandbox_io::{Chunk, check_runs, signal_number};

/// Sends a signal to the command and what it started in its process group.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/execs/{exec}/signal", operation_id = "signal_exec", tag = "execs",
    request_body = SignalRequest,
    params(
        ("sandbox" = String, Path, description = "Id, unique prefix or name"),
        ("exec" = String, Path, description = "Id of the command")),
    responses((status = 204, description = "It was sent")))]
pub(super) async fn signal(
    State(app): State<App>,
    Path((reference, exec)): Path<(String, String)>,
    Json(request): Json<SignalRequest>,
) -> Result<StatusCode, Failure> {
    let number = signal_number(&request.signal)?;
    let target = Target::Exec(exec_id(&exec)?);
    let record = app.store.resolve(&reference).await?;
    check_runs(&record)?;
    app.node()?.signal(&record.id, &target, number).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives bytes to the command's standard input. A chunk may be repeated: what was taken already is skipped.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/execs/{exec}/stdin", operation_id = "feed_exec", tag = "execs",
    params(
        ("sandbox" = String, Path, description = "Id, unique prefix or name"),
        ("exec" = String, Path, description = "Id of the command"),
        ("offset" = u64, Query, description = "Position of the first byte sent"),
        ("eof" = Option<bool>, Query, description = "Nothing follows")),
    request_body(content = RawBytes, content_type = "application/octet-stream", description = "At most 1 MiB"),
    responses((status = 200, description = "How far it was taken", body = StdinTaken)))]
pub(super) async fn stdin(
    State(app): State<App>,
    Path((reference, exec)): Path<(String, String)>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<axum::Json<StdinTaken>, Failure> {
    let target = Target::Exec(exec_id(&exec)?);
    let chunk = Chunk::read(params, &headers, body).await?;
    let record = app.store.resolve(&reference).await?;
    check_runs(&record)?;
    chunk.give(&app, &record, &target).await
}
