//! What the server counts, for Prometheus.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::App;
use super::failure::Failure;

/// OpenMetrics' text format, by its version.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics in OpenMetrics' text format, for Prometheus: sandboxes by state, and what became of their packets, by reason.
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, description = "Metrics", body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, Failure> {
    let live = app.store.population().await?;
    let net = match app.node() {
        Ok(node) => node.net_totals().await.ok(),
        Err(_) => None,
    };
    Ok(([(CONTENT_TYPE, FORMAT)], app.metrics.text(live, net)))
}
