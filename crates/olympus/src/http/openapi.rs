//! The OpenAPI description, made from the routes and types themselves.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use tartarus_api::v1::Problem;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{Modify, OpenApi};

const ERROR: &str = "Problem";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tartarus",
        version = "1",
        description = "Runs commands that nobody trusts in microVMs. Every route but /healthz and /readyz needs an API key. \
            Every error is an RFC 9457 problem with a stable `code`. Fields are only ever added.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")),
    security(("api_key" = [])),
    modifiers(&Parts),
    components(schemas(Problem)))]
struct Base;

/// Plain bytes.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "stands for bytes in the description; nothing is ever made of it")]
pub(super) struct RawBytes(Vec<u8>);

struct Parts;

impl Modify for Parts {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API key: tt_ and 56 characters"))
            .build();
        components.add_security_scheme("api_key", SecurityScheme::Http(scheme));
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(ERROR))).build();
        let response = ResponseBuilder::new()
            .description("Any error; its status goes with its `code`")
            .content("application/problem+json", content)
            .build();
        components.responses.insert(ERROR.to_owned(), RefOr::T(response));
    }
}

/// The description without routes.
pub(super) fn base() -> utoipa::openapi::OpenApi {
    Base::openapi()
}

/// The OpenAPI 3.1 description of the API as JSON, with a line feed at its end: what `openapi/v1.json` holds.
///
/// # Panics
/// Never: the description is made of texts.
pub fn openapi_json() -> String {
    let (_, mut api) = super::described().split_for_parts();
    for item in api.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.post, &mut item.put, &mut item.delete, &mut item.patch, &mut item.head];
        for operation in operations.into_iter().flatten() {
            let error: RefOr<Response> = RefOr::Ref(Ref::from_response_name(ERROR));
            operation.responses.responses.insert("default".to_owned(), error);
        }
    }
    let mut text = api.to_pretty_json().expect("a description made of texts can always be written as JSON");
    text.push('\n');
    text
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "openapi",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], openapi_json())
}
