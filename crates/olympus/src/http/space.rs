//! The server's disk: what takes how much, and deleting what nothing needs.

use axum::extract::State;
use tartarus_api::v1::{DiskUsage, Prune, Pruned};

use super::App;
use super::extract::Json;
use super::failure::Failure;

/// What takes how much space, and what of it `prune` would free.
#[utoipa::path(get, path = "/v1/df", operation_id = "disk_usage", tag = "space",
    responses((status = 200, description = "All of it", body = DiskUsage)))]
pub(super) async fn df(State(app): State<App>) -> Result<axum::Json<DiskUsage>, Failure> {
    Ok(axum::Json(app.disk_usage().await?))
}

/// Deletes what nothing needs any more: records and logs of sandboxes that ended longer ago than the retention, images
/// and kernels without name, golden snapshots that belong to no template and kernel.
#[utoipa::path(post, path = "/v1/prune", operation_id = "prune", tag = "space", request_body = Prune,
    responses((status = 200, description = "What was deleted, or would be", body = Pruned)))]
pub(super) async fn prune(State(app): State<App>, Json(request): Json<Prune>) -> Result<axum::Json<Pruned>, Failure> {
    // In a task of its own: a client that goes away shall not stop it half-way.
    let pruning = tokio::spawn(async move { app.prune(&request).await });
    let pruned = pruning.await.map_err(tartarus_types::Refusal::internal)??;
    Ok(axum::Json(pruned))
}
