//! What is answered to requests that a sandbox cannot serve.

use tartarus_types::{ErrorCode, Refusal};

use super::Request;

/// Answers `wrong_state`, with the reason.
pub(super) fn refuse(request: Request, why: &str) {
    let refusal = Refusal::new(ErrorCode::WrongState, format!("the sandbox cannot do that now: {why}"));
    // Whoever asked may have gone away.
    match request {
        Request::Exec { reply, .. }
        | Request::Signal { reply, .. }
        | Request::Pause { reply }
        | Request::Resume { reply } => drop(reply.send(Err(refusal))),
        Request::Net { reply } | Request::SetNet { reply, .. } => drop(reply.send(Err(refusal))),
        Request::ExecStatus { reply, .. } => drop(reply.send(Err(refusal))),
        Request::Stdin { reply, .. } => drop(reply.send(Err(refusal))),
        Request::Log { reply, .. } => drop(reply.send(None)),
        Request::Kill { .. } | Request::Abandon | Request::Leave => {}
    }
}
