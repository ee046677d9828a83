//! What the node's machine can do.

use axum::extract::State;
use tartarus_api::doctor::DoctorReport;

use super::App;
use super::failure::Failure;
use super::params::Params;

/// What the node's machine can do, found out with the guest kernel that new sandboxes would use.
#[utoipa::path(get, path = "/v1/doctor", tag = "doctor",
    params(("reprobe" = Option<bool>, Query, description = "Forget earlier probes; takes up to 10 s and more")),
    responses((status = 200, description = "What was found", body = DoctorReport)))]
pub(super) async fn doctor(State(app): State<App>, mut params: Params) -> Result<axum::Json<DoctorReport>, Failure> {
    let reprobe = params.flag("reprobe")?;
    params.finish()?;
    let kernel = app.store.kernels().await?.into_iter().next().map(|kernel| kernel.digest);
    Ok(axum::Json(app.node()?.doctor(kernel.as_deref(), reprobe).await?))
}
