//! Templates.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use hades::store::TemplateRecord;
use tartarus_api::v1::{CreateTemplate, Template};
use tartarus_types::spec::check_name;
use tartarus_types::{ErrorCode, Refusal, Timestamp};

use super::App;
use super::extract::{Json, Path};
use super::failure::Failure;
use super::params::Params;
use crate::accept::template_spec;
use crate::net::ceiling;
use crate::snapshots::Eagerness;
use crate::view;

/// Makes a template, and queues the sandboxes that make its golden snapshots. It keeps the image that the name stands for
/// now. The same request again changes nothing, but makes what could not be made before.
#[utoipa::path(post, path = "/v1/templates", operation_id = "create_template", tag = "templates", request_body = CreateTemplate,
    responses(
        (status = 201, description = "The template", body = Template),
        (status = 200, description = "It was there already, the same", body = Template)))]
pub(super) async fn create(State(app): State<App>, Json(request): Json<CreateTemplate>) -> Result<Response, Failure> {
    let name = request.name.clone();
    check_name("name", &name)?;
    let image = app.store.images().await?.into_iter().find(|image| image.name == request.image);
    let image = image
        .ok_or_else(|| Refusal { field: Some("image".to_owned()), ..Refusal::not_found("image", &request.image) })?;
    let spec = template_spec(request, image.digest, &app.settings.limits, ceiling(&app.settings))?;
    // The same again takes no room.
    if app.store.template(&name).await?.is_none() {
        app.disk.check()?;
    }
    let created_at = app.now();
    let record = app.store.put_template(TemplateRecord { name, spec, created_at }).await?;
    // Should we be killed here, the reconciler does it at the next start.
    if let Err(refusal) = app.build(&record.name, Eagerness::Asked).await {
        // The template is on record; it is made ready later.
        tracing::warn!(template = record.name, "its golden snapshots are not made yet: {refusal}");
        app.builders.kick();
    }
    let status = if record.created_at == created_at { StatusCode::CREATED } else { StatusCode::OK };
    let location = format!("/v1/templates/{}", record.name);
    Ok((status, [(LOCATION, location)], axum::Json(shown(&app, record).await?)).into_response())
}

async fn shown(app: &App, record: TemplateRecord) -> Result<Template, Failure> {
    let known = app.known(std::slice::from_ref(&record)).await?;
    Ok(view::template(record, &known))
}

/// All templates by name.
#[utoipa::path(get, path = "/v1/templates", operation_id = "list_templates", tag = "templates",
    responses((status = 200, description = "The templates", body = [Template])))]
pub(super) async fn list(State(app): State<App>) -> Result<axum::Json<Vec<Template>>, Failure> {
    let records = app.store.templates().await?;
    let known = app.known(&records).await?;
    Ok(axum::Json(records.into_iter().map(|record| view::template(record, &known)).collect()))
}

/// One template.
#[utoipa::path(get, path = "/v1/templates/{template}", operation_id = "inspect_template", tag = "templates",
    params(("template" = String, Path, description = "Its name")),
    responses((status = 200, description = "The template", body = Template)))]
pub(super) async fn inspect(State(app): State<App>, Path(name): Path<String>) -> Result<axum::Json<Template>, Failure> {
    let record = app.store.template(&name).await?.ok_or_else(|| Refusal::not_found("template", &name))?;
    Ok(axum::Json(shown(&app, record).await?))
}

/// Makes a template's golden snapshots anew. Until then sandboxes start from those that there are.
#[utoipa::path(post, path = "/v1/templates/{template}/rebuild", operation_id = "rebuild_template", tag = "templates",
    params(("template" = String, Path, description = "Its name")),
    responses((status = 202, description = "They are being made: `snapshots` names the sandboxes", body = Template)))]
pub(super) async fn rebuild(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<(StatusCode, axum::Json<Template>), Failure> {
    let record = app.store.template(&name).await?.ok_or_else(|| Refusal::not_found("template", &name))?;
    if record.spec.cold {
        return Err(Refusal::new(ErrorCode::WrongState, format!("template {name} keeps no snapshots")).into());
    }
    if app.store.kernels().await?.is_empty() {
        let detail = "there is no guest kernel: add one with `tartarus kernel add`";
        return Err(Refusal::new(ErrorCode::NotReady, detail).into());
    }
    app.node()?.snapshots().await?;
    app.build(&name, Eagerness::Anew).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(shown(&app, record).await?)))
}

/// Removes a template, and those of its golden snapshots that no other shares. Sandboxes made from it go on.
#[utoipa::path(delete, path = "/v1/templates/{template}", operation_id = "remove_template", tag = "templates",
    params(
        ("template" = String, Path, description = "Its name"),
        ("created_at" = Option<i64>, Query,
            description = "Only the one that was created then, microseconds; another of that name is `name_taken`")),
    responses((status = 204, description = "It is gone")))]
pub(super) async fn remove(
    State(app): State<App>,
    Path(name): Path<String>,
    mut params: Params,
) -> Result<StatusCode, Failure> {
    let created_at = params.number("created_at")?.map(Timestamp);
    params.finish()?;
    app.drop_template(&name, created_at).await?;
    Ok(StatusCode::NO_CONTENT)
}
