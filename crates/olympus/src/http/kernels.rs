//! Guest kernels.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hades::store::KernelRecord;
use tartarus_api::v1::Kernel;
use tartarus_types::{ErrorCode, Refusal};

use super::App;
use super::extract::Path;
use super::failure::Failure;
use super::openapi::RawBytes;
use super::upload::{bytes, check_octets};
use crate::refusal::refuse;
use crate::view;

/// Adds a guest kernel from a tar with `boot/vmlinuz-RELEASE` and `lib/modules/RELEASE`. New sandboxes use the one that
/// was added last.
#[utoipa::path(post, path = "/v1/kernels", operation_id = "add_kernel", tag = "kernels",
    request_body(content = RawBytes, content_type = "application/octet-stream", description = "A tar, of any length"),
    responses((status = 201, description = "The kernel", body = Kernel)))]
pub(super) async fn import(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, axum::Json<Kernel>), Failure> {
    let upload = bytes(body);
    check_octets(&headers)?;
    app.disk.check()?;
    let node = app.node()?;
    let _importing = app.files.read().await;
    let made = node.import_kernel(upload).await?;
    let record = KernelRecord { digest: made.digest, release: made.release, size: made.size, created_at: app.now() };
    app.store.put_kernel(record.clone()).await?;
    // Golden snapshots go with a kernel.
    app.builders.kick();
    Ok((StatusCode::CREATED, axum::Json(view::kernel(record))))
}

/// All guest kernels, newest first.
#[utoipa::path(get, path = "/v1/kernels", operation_id = "list_kernels", tag = "kernels",
    responses((status = 200, description = "The kernels", body = [Kernel])))]
pub(super) async fn list(State(app): State<App>) -> Result<axum::Json<Vec<Kernel>>, Failure> {
    Ok(axum::Json(app.store.kernels().await?.into_iter().map(view::kernel).collect()))
}

/// Removes a guest kernel. Refused while a sandbox that has not ended needs it.
#[utoipa::path(delete, path = "/v1/kernels/{kernel}", operation_id = "remove_kernel", tag = "kernels",
    params(("kernel" = String, Path, description = "Digest, unique prefix of it, or release")),
    responses((status = 204, description = "It is gone")))]
pub(super) async fn remove(State(app): State<App>, Path(reference): Path<String>) -> Result<StatusCode, Failure> {
    let removed = app.store.remove_kernel(&reference).await?;
    let deleting = tokio::spawn(delete_files(Arc::clone(&app), removed.digest));
    match deleting.await {
        Ok(Ok(())) => {}
        // The record is gone, which is what was asked for; the files only take room.
        Ok(Err(refusal)) => tracing::warn!("the files of a removed kernel stay on the node: {refusal}"),
        Err(error) => tracing::error!("the files of a removed kernel stay on the node: {error}"),
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes a kernel's files, once no import is under way: one may have added the same kernel again.
async fn delete_files(app: App, digest: String) -> Result<(), Refusal> {
    let _nothing_is_imported = app.files.write().await;
    if app.store.kernels().await.map_err(refuse)?.iter().any(|kernel| kernel.digest == digest) {
        return Ok(());
    }
    match app.node()?.remove_kernel(&digest).await {
        Err(refusal) if refusal.code == ErrorCode::NotFound => Ok(()),
        other => other,
    }
}
