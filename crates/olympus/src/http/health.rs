//! Whether the server lives, and whether it can take work: for load balancers and service managers, without API key.

use axum::extract::State;
use tartarus_types::{ErrorCode, Refusal};

use super::App;
use super::failure::Failure;

/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()),
    responses((status = 200, description = "It lives", body = String, content_type = "text/plain")))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The store answers and a node is there to run sandboxes.
#[utoipa::path(get, path = "/readyz", tag = "health", security(()),
    responses((status = 200, description = "It takes work", body = String, content_type = "text/plain")))]
pub(super) async fn readyz(State(app): State<App>) -> Result<&'static str, Failure> {
    let nodes = app.store.nodes().await?;
    app.node()?;
    if nodes.is_empty() {
        return Err(Refusal::new(ErrorCode::NodeUnreachable, "no node has registered yet").into());
    }
    Ok("ready\n")
}
