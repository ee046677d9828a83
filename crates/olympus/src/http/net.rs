//! The network of a sandbox: what it may reach, who reaches it, and what became of its packets.

use axum::extract::State;
use tartarus_api::v1::NetRequest;
use tartarus_types::State as Life;
use tartarus_types::net::NetStatus;

use super::App;
use super::extract::{Json, Path};
use super::failure::Failure;
use super::sandbox_io::check_stands_or_runs;
use crate::net::{ceiling, check_replacement};

/// The network of a sandbox: its contract, counters, and what was refused. One that does not run has the contract that it
/// was accepted with, and nothing else.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/net", operation_id = "sandbox_net", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "Id, unique prefix or name")),
    responses((status = 200, description = "Its network", body = NetStatus)))]
pub(super) async fn show(
    State(app): State<App>,
    Path(reference): Path<String>,
) -> Result<axum::Json<NetStatus>, Failure> {
    let record = app.store.resolve(&reference).await?;
    let status = match record.state {
        Life::Running | Life::Paused => app.node()?.net(&record.id).await?,
        _ => NetStatus { contract: record.spec.net, ..NetStatus::default() },
    };
    Ok(axum::Json(status))
}

/// Replaces the contract of a running sandbox, whole or not at all. Connections that the new one does not allow are cut, the
/// others go on. A sandbox that was started without a network can be given forwards and nothing else, and one with a network
/// keeps it.
///
/// Where a forward listens on port 0 the node chooses a port: the answer has it.
#[utoipa::path(put, path = "/v1/sandboxes/{sandbox}/net", operation_id = "replace_sandbox_net", tag = "sandboxes", request_body = NetRequest,
    params(("sandbox" = String, Path, description = "Id, unique prefix or name")),
    responses((status = 200, description = "It is in force", body = NetStatus)))]
pub(super) async fn replace(
    State(app): State<App>,
    Path(reference): Path<String>,
    Json(request): Json<NetRequest>,
) -> Result<axum::Json<NetStatus>, Failure> {
    let contract = request.check(ceiling(&app.settings))?;
    let record = app.store.resolve(&reference).await?;
    check_stands_or_runs(&record)?;
    check_replacement(&record, &contract)?;
    Ok(axum::Json(app.node()?.set_net(&record.id, contract).await?))
}
