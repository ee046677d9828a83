//! The HTTP API, version 1: one file per resource. A handler reads the request, calls one operation, and shapes the
//! answer; routes and their OpenAPI description come from the same list, so they cannot drift apart.

mod doctor;
mod exec_io;
mod execs;
mod extract;
mod failure;
mod guard;
mod health;
mod images;
mod kernels;
mod logs;
mod metrics;
mod net;
pub(crate) mod openapi;
mod output;
mod params;
mod sandbox_io;
mod sandboxes;
mod serve;
mod space;
mod templates;
mod upload;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use tartarus_types::{ErrorCode, Refusal};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::failure::Failure;
pub use self::serve::serve;
use crate::Olympus;

type App = Arc<Olympus>;

/// The routes that need no API key.
const PUBLIC: [&str; 2] = ["/healthz", "/readyz"];

/// Every route of the API, guarded: no request gets past a missing key, and no panic cuts a connection.
pub fn router(state: Arc<Olympus>) -> Router {
    let (router, _) = described().split_for_parts();
    router
        .fallback(no_such_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&state), guard::guard))
        .with_state(state)
}

fn described() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(metrics::metrics))
        .routes(routes!(sandboxes::create, sandboxes::list))
        .routes(routes!(sandboxes::inspect, sandboxes::remove))
        .routes(routes!(sandboxes::wait))
        .routes(routes!(sandbox_io::kill))
        .routes(routes!(sandbox_io::signal))
        .routes(routes!(sandbox_io::pause))
        .routes(routes!(sandbox_io::resume))
        .routes(routes!(sandbox_io::stdin))
        .routes(routes!(output::sandbox_output))
        .routes(routes!(logs::logs))
        .routes(routes!(net::show, net::replace))
        .routes(routes!(execs::create))
        .routes(routes!(execs::inspect))
        .routes(routes!(exec_io::signal))
        .routes(routes!(exec_io::stdin))
        .routes(routes!(output::exec_output))
        .routes(routes!(images::import, images::list))
        .routes(routes!(images::remove))
        .routes(routes!(kernels::import, kernels::list))
        .routes(routes!(kernels::remove))
        .routes(routes!(templates::create, templates::list))
        .routes(routes!(templates::inspect, templates::remove))
        .routes(routes!(templates::rebuild))
        .routes(routes!(space::df))
        .routes(routes!(space::prune))
        .routes(routes!(doctor::doctor))
        .routes(routes!(openapi::openapi))
}

async fn no_such_route(uri: Uri) -> Failure {
    let path: String = uri.path().chars().take(200).collect();
    Refusal::new(ErrorCode::NoSuchRoute, format!("there is no route {path:?}; GET /v1/openapi.json lists them")).into()
}

async fn method_not_allowed(method: Method, uri: Uri) -> Failure {
    let path: String = uri.path().chars().take(200).collect();
    Refusal::new(ErrorCode::MethodNotAllowed, format!("{path:?} does not take {method}")).into()
}
