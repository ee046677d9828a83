//! Commands started beside the main one in a running sandbox.

use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use cerberus::Caller;
use sha2::{Digest, Sha256};
use tartarus_api::node::ExecSpec;
use tartarus_api::v1::{CreateExec, Exec};
use tartarus_types::{ErrorCode, ExecId, Refusal, SandboxId, State as Life};

use super::App;
use super::extract::{IdempotencyKey, Json, Path};
use super::failure::Failure;
use super::params::Params;
use super::sandboxes::WAIT_MOST;
use crate::accept::check_exec;
use crate::view;

/// Starts a command in a running sandbox; it is durable on the node when this is answered.
///
/// With an `Idempotency-Key` the same request is the same command, for as long as the sandbox lives.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/execs", operation_id = "create_exec", tag = "execs", request_body = CreateExec,
    params(
        ("sandbox" = String, Path, description = "Id, unique prefix or name"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 128 visible ASCII characters")),
    responses((status = 202, description = "It is started; where it is found is in `Location`", body = Exec)))]
pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(reference): Path<String>,
    IdempotencyKey(key): IdempotencyKey,
    Json(request): Json<CreateExec>,
) -> Result<Response, Failure> {
    let record = app.store.resolve(&reference).await?;
    check_exec(&request, &record.spec, &app.settings.limits)?;
    // In one that is paused the command starts when that is resumed.
    if !matches!(record.state, Life::Running | Life::Paused) {
        let detail = format!("sandbox {} is {}, not running", record.id, record.state.as_str());
        return Err(Refusal::new(ErrorCode::WrongState, detail).into());
    }
    let id = key.as_ref().map_or_else(ExecId::random, |key| derived_id(&caller, &record.id, key));
    if let Err(full) = app.disk.check() {
        // A repetition is no new work.
        let known = key.is_some() && app.node()?.exec_status(&record.id, &id, Duration::ZERO).await.is_ok();
        if !known {
            return Err(full.into());
        }
    }
    let CreateExec { command, env, workdir, user, stdin, attach, code } = request;
    let spec = ExecSpec { id, command, env, workdir, user, stdin, attach, code };
    let node = app.node()?;
    node.exec(&record.id, spec.clone()).await?;
    let outcome = match key {
        None => None,
        // The node starts nothing twice; whether it is the same command is told by what it has under the id.
        Some(_) => {
            let (stored, outcome) = node.exec_status(&record.id, &spec.id, Duration::ZERO).await?;
            if stored != spec {
                let detail = "the idempotency key was used for another command in this sandbox";
                return Err(Refusal::new(ErrorCode::IdempotencyMismatch, detail).into());
            }
            outcome
        }
    };
    let location = format!("/v1/sandboxes/{}/execs/{}", record.id, spec.id);
    let body = axum::Json(view::exec(&record.id, spec, outcome));
    Ok((StatusCode::ACCEPTED, [(LOCATION, location)], body).into_response())
}

/// The id of the command that a caller means by a key. NUL separates, since none of the three can hold one.
fn derived_id(caller: &Caller, sandbox: &SandboxId, key: &str) -> ExecId {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let hash = Sha256::digest(format!("{}\0{sandbox}\0{key}", caller.name));
    let text: String = hash[..16].iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect();
    format!("{}{text}", ExecId::PREFIX).parse().expect("the prefix and 16 characters of the alphabet are an id")
}

/// A command in a sandbox.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/execs/{exec}", operation_id = "inspect_exec", tag = "execs",
    params(
        ("sandbox" = String, Path, description = "Id, unique prefix or name"),
        ("exec" = String, Path, description = "Id of the command"),
        ("wait_ms" = Option<u64>, Query, description = "Waits for its end; 0 when absent, up to 60 s")),
    responses((status = 200, description = "The command as it is now", body = Exec)))]
pub(super) async fn inspect(
    State(app): State<App>,
    Path((reference, exec)): Path<(String, String)>,
    mut params: Params,
) -> Result<axum::Json<Exec>, Failure> {
    let wait = params.wait("wait_ms", Duration::ZERO, WAIT_MOST)?;
    params.finish()?;
    let exec = exec_id(&exec)?;
    let record = app.store.resolve(&reference).await?;
    let (spec, outcome) = app.node()?.exec_status(&record.id, &exec, wait).await?;
    Ok(axum::Json(view::exec(&record.id, spec, outcome)))
}

/// The id of a command in a path.
pub(super) fn exec_id(text: &str) -> Result<ExecId, Refusal> {
    text.parse().map_err(|_| Refusal::not_found("exec", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_means_one_command_of_one_caller_in_one_sandbox() {
        let (a, b) = (Caller { name: "a".into() }, Caller { name: "b".into() });
        let (one, two) = (SandboxId::random(), SandboxId::random());
        let id = derived_id(&a, &one, "key");
        assert_eq!(id, derived_id(&a, &one, "key"));
        for other in [derived_id(&b, &one, "key"), derived_id(&a, &two, "key"), derived_id(&a, &one, "key2")] {
            assert_ne!(id, other);
        }
    }
}
