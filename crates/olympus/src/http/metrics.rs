//! What the server counts, for Prometheus.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::App;
use super::failure::Failure;

/// Prometheus' text format, by its version.
const FORMAT: &str = "text/plain; version=0.0.4";

/// Metrics in Prometheus' text format: sandboxes by state, and what became of their packets, by reason.
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, Failure> {
    let live = app.store.population().await?;
    let net = match app.node() {
        Ok(node) => node.net_totals().await.ok(),
        Err(_) => None,
    };
    Ok(([(CONTENT_TYPE, FORMAT)], app.metrics.text(&live, net.as_ref())))
}
