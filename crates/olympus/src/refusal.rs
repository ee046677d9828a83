//! The one place where failures of the store become answers to a client.

use hades::store::StoreError;
use tartarus_types::sandbox::Denied;
use tartarus_types::{ErrorCode, Refusal};

/// The answer for a failure of the store. Causes that only the operator can use go to the log, not to the client.
pub(crate) fn refuse(error: StoreError) -> Refusal {
    let detail = error.to_string();
    match error {
        StoreError::NameTaken(_) => {
            Refusal { field: Some("name".to_owned()), ..Refusal::new(ErrorCode::NameTaken, detail) }
        }
        StoreError::NotFound(what, name) => Refusal::not_found(what, &name),
        StoreError::Ambiguous(_) => Refusal::new(ErrorCode::Ambiguous, format!("{detail}: write more of the id")),
        StoreError::InUse(_) => Refusal::new(ErrorCode::InUse, detail),
        StoreError::Denied(Denied::Ended) => Refusal::new(ErrorCode::WrongState, "the sandbox has ended"),
        StoreError::Denied(Denied::Already | Denied::WrongState(_)) | StoreError::Fenced => {
            Refusal::new(ErrorCode::WrongState, detail)
        }
        StoreError::IdempotencyMismatch => {
            let advice = "repeat the same request, or choose another key";
            Refusal::new(ErrorCode::IdempotencyMismatch, format!("{detail}: {advice}"))
        }
        StoreError::DiskFull => {
            Refusal::new(ErrorCode::DiskFull, "the server's disk is full; nothing was changed: free some and repeat")
        }
        StoreError::Newer { .. } | StoreError::Engine(_) => {
            tracing::error!("{detail}");
            Refusal::new(ErrorCode::Internal, "the store failed; the server's log says why")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_our_own_failure_is_not_sent() {
        let refusal = refuse(StoreError::Engine("no such table: secrets".into()));
        assert_eq!(refusal.code, ErrorCode::Internal);
        assert!(!refusal.detail.contains("secrets"));
    }

    #[test]
    fn an_ended_sandbox_is_a_conflict() {
        assert_eq!(refuse(StoreError::Denied(Denied::Ended)).code.status(), 409);
        assert_eq!(refuse(StoreError::IdempotencyMismatch).code.status(), 422);
        assert_eq!(refuse(StoreError::DiskFull).code.status(), 507);
        assert_eq!(refuse(StoreError::NameTaken("a".into())).field.as_deref(), Some("name"));
    }
}
