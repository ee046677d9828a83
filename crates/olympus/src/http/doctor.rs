//! What the node's machine can do.

use axum::extract::State;
use tartarus_api::doctor::{Check, DoctorReport, Status};
use tartarus_api::v1::SnapshotState;

use super::App;
use super::failure::Failure;
use super::params::Params;
use crate::snapshots::snapshots;

/// What the node's machine can do, found out with the guest kernel that new sandboxes would use.
#[utoipa::path(get, path = "/v1/doctor", tag = "doctor",
    params(("reprobe" = Option<bool>, Query, description = "Forget earlier probes; takes up to 10 s and more")),
    responses((status = 200, description = "What was found", body = DoctorReport)))]
pub(super) async fn doctor(State(app): State<App>, mut params: Params) -> Result<axum::Json<DoctorReport>, Failure> {
    let reprobe = params.flag("reprobe")?;
    params.finish()?;
    let kernel = app.store.kernels().await?.into_iter().next().map(|kernel| kernel.digest);
    let mut report = app.node()?.doctor(kernel.as_deref(), reprobe).await?;
    let templates = app.store.templates().await?;
    let known = app.known(&templates).await?;
    let found = templates.iter().flat_map(|template| {
        snapshots(template, &known).into_iter().map(|snapshot| (template.name.as_str(), snapshot.state))
    });
    report.checks.extend(check(&found.collect::<Vec<_>>()));
    Ok(axum::Json(report))
}

/// How many golden snapshots are in which state, and which templates need somebody to look.
fn check(found: &[(&str, SnapshotState)]) -> Option<Check> {
    use SnapshotState::{Building, Failed, Missing, Outdated, Ready, Unusable};
    if found.is_empty() {
        return None;
    }
    let count = |state: SnapshotState| match found.iter().filter(|(_, of)| *of == state).count() {
        0 => None,
        n => Some(format!("{n} {}", state.as_str())),
    };
    let counts = [Ready, Building, Missing, Failed, Outdated, Unusable].into_iter().filter_map(count);
    let named = |wrong: &dyn Fn(SnapshotState) -> bool| {
        let mut names: Vec<&str> = found.iter().filter(|(_, state)| wrong(*state)).map(|(name, _)| *name).collect();
        names.dedup();
        let name = *names.first()?;
        let others = if names.len() > 1 { format!(" (and of {} more)", names.len() - 1) } else { String::new() };
        Some((name, others))
    };
    let cold = named(&|state| matches!(state, Missing | Failed | Unusable)).map(|(name, others)| {
        format!(
            "sandboxes of {name}{others} boot cold; `tartarus template inspect {name}` tells why, `tartarus template \
             rebuild {name}` makes them anew"
        )
    });
    let old = named(&|state| state == Outdated).map(|(name, others)| {
        format!(
            "sandboxes of {name}{others} start from a snapshot that is outdated; `tartarus template inspect {name}` \
             tells why, `tartarus template rebuild {name}` makes it anew"
        )
    });
    let lines: Vec<String> = cold.into_iter().chain(old).collect();
    let advice = (!lines.is_empty()).then(|| lines.join("\n"));
    Some(Check {
        name: "snapshots".to_owned(),
        status: if advice.is_none() { Status::Ok } else { Status::Warn },
        found: counts.collect::<Vec<_>>().join(", "),
        advice,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_somebody_is_named() {
        use SnapshotState::{Building, Failed, Outdated, Ready};
        assert_eq!(check(&[]), None);
        let fine = check(&[("a", Ready), ("a", Building)]).unwrap();
        assert_eq!((fine.status, fine.found.as_str(), fine.advice), (Status::Ok, "1 ready, 1 building", None));
        let wrong = check(&[("a", Ready), ("b", Failed), ("b", Failed), ("c", Failed)]).unwrap();
        assert_eq!((wrong.status, wrong.found.as_str()), (Status::Warn, "1 ready, 3 failed"));
        assert!(wrong.advice.unwrap().contains("sandboxes of b (and of 1 more) boot cold"));
        let old = check(&[("a", Outdated)]).unwrap();
        let advice = old.advice.unwrap();
        assert!(old.status == Status::Warn && advice.contains("sandboxes of a start from") && !advice.contains("cold"));
    }
}
