//! Base images.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hades::store::ImageRecord;
use tartarus_api::v1::Image;
use tartarus_types::spec::check_name;
use tartarus_types::{ErrorCode, Refusal};

use super::App;
use super::extract::Path;
use super::failure::Failure;
use super::openapi::RawBytes;
use super::params::Params;
use super::upload::{bytes, check_octets};
use crate::view;

/// Makes a base image of the tar of a root file system, as it comes. A name that exists moves to the new image.
#[utoipa::path(post, path = "/v1/images", operation_id = "import_image", tag = "images",
    params(("name" = String, Query, description = "Its name")),
    request_body(content = RawBytes, content_type = "application/octet-stream", description = "A tar, of any length"),
    responses((status = 201, description = "The image", body = Image)))]
pub(super) async fn import(
    State(app): State<App>,
    mut params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, axum::Json<Image>), Failure> {
    let upload = bytes(body);
    let name = params.text("name")?.ok_or_else(|| Refusal::field("name", "is missing: the name of the image"))?;
    params.finish()?;
    check_name("name", &name)?;
    check_octets(&headers)?;
    app.disk.check()?;
    let node = app.node()?;
    let importing = app.files.read().await;
    let made = node.import_image(upload).await?;
    let record = ImageRecord { name, digest: made.digest, size: made.size, created_at: app.now() };
    let unused = app.store.put_image(record.clone()).await?;
    drop(importing);
    delete_file(&app, unused).await;
    Ok((StatusCode::CREATED, axum::Json(view::image(record))))
}

/// All images by name.
#[utoipa::path(get, path = "/v1/images", operation_id = "list_images", tag = "images",
    responses((status = 200, description = "The images", body = [Image])))]
pub(super) async fn list(State(app): State<App>) -> Result<axum::Json<Vec<Image>>, Failure> {
    Ok(axum::Json(app.store.images().await?.into_iter().map(view::image).collect()))
}

/// Removes an image. Refused while a template or a sandbox that has not ended needs it.
#[utoipa::path(delete, path = "/v1/images/{image}", operation_id = "remove_image", tag = "images",
    params(("image" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone")))]
pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    let unused = app.store.remove_image(&name).await?;
    delete_file(&app, unused).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes the file of a digest that nothing on record uses, once no import is under way: one may be about to record
/// the same digest. In a task of its own, so that a client that goes away stops nothing.
async fn delete_file(app: &App, unused: Option<String>) {
    let Some(digest) = unused else { return };
    let app = Arc::clone(app);
    let deleting = tokio::spawn(async move {
        let _nothing_is_imported = app.files.write().await;
        match app.store.images().await {
            Ok(images) if images.iter().any(|image| image.digest == digest) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(crate::refusal::refuse(error)),
        }
        match app.node()?.remove_image(&digest).await {
            Err(refusal) if refusal.code == ErrorCode::NotFound => Ok(()),
            other => other,
        }
    });
    match deleting.await {
        Ok(Ok(())) => {}
        // The name is gone, which is what was asked for; the file only takes room.
        Ok(Err(refusal)) => tracing::warn!("the file of an unused image stays on the node: {refusal}"),
        Err(error) => tracing::error!("the file of an unused image stays on the node: {error}"),
    }
}
