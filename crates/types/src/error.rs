//! Error codes: stable words that scripts may branch on, each with its HTTP status.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// A stable code of an error. The set grows; a code's meaning never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl ErrorCode {
            /// Every code, for the docs and their test.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }

            /// The HTTP status it is answered with.
            pub fn status(self) -> u16 {
                match self { $(ErrorCode::$name => $status,)* }
            }

            /// What happened, in a few words that never change.
            pub fn title(self) -> &'static str {
                match self { $(ErrorCode::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// A field is missing, malformed or out of range.
    InvalidField = "invalid_field", 400, "A field of the request is not valid";
    /// The body is no JSON, or not of the expected shape.
    InvalidBody = "invalid_body", 400, "The request's body could not be read";
    /// No API key was sent, or an unknown one.
    Unauthenticated = "unauthenticated", 401, "An API key is needed";
    /// The thing named does not exist.
    NotFound = "not_found", 404, "There is no such thing";
    /// No route has this path.
    NoSuchRoute = "no_such_route", 404, "There is no such route";
    /// The route exists, not for this method.
    MethodNotAllowed = "method_not_allowed", 405, "The route does not take this method";
    /// A name is taken by something else.
    NameTaken = "name_taken", 409, "The name is taken";
    /// A prefix or name matches several.
    Ambiguous = "ambiguous", 409, "More than one matches";
    /// It is still in use.
    InUse = "in_use", 409, "It is still in use";
    /// The sandbox is not in a state that allows it.
    WrongState = "wrong_state", 409, "The sandbox's state does not allow it";
    /// The body is larger than the limit.
    TooLarge = "too_large", 413, "The request is too large";
    /// The idempotency key was used with another body.
    IdempotencyMismatch = "idempotency_mismatch", 422, "The idempotency key was used for another request";
    /// No node is large enough.
    NeverFits = "never_fits", 422, "No node is large enough";
    /// Something that the request needs was not set up yet, such as a kernel.
    NotReady = "not_ready", 409, "Something needed is not set up yet";
    /// A golden snapshot was asked for and there is none that fits.
    SnapshotRequired = "snapshot_required", 409, "There is no snapshot to start from";
    /// The file is not what it should be.
    BadFile = "bad_file", 422, "The file could not be used";
    /// The queue or a limit is full.
    Busy = "busy", 503, "Too busy now, try again";
    /// The node that runs the sandbox cannot be reached.
    NodeUnreachable = "node_unreachable", 503, "The node cannot be reached";
    /// The disk is full.
    DiskFull = "disk_full", 507, "The disk is full";
    /// Our own failure.
    Internal = "internal", 500, "Tartarus failed";
}

/// An error as every layer passes it on: code, what happened to what, and the field to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{}{detail}", field.as_deref().map(|f| format!("{f}: ")).unwrap_or_default())]
pub struct Refusal {
    /// What scripts branch on.
    pub code: ErrorCode,
    /// What a person reads: what happened, to what, what to do.
    pub detail: String,
    /// The field of the request that is to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl Refusal {
    /// A refusal that blames no field.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), field: None }
    }

    /// `invalid_field` for `field`.
    pub fn field(field: &str, detail: impl Into<String>) -> Self {
        Self { code: ErrorCode::InvalidField, detail: detail.into(), field: Some(field.to_owned()) }
    }

    /// `not_found`: `what` and the name it was looked for under.
    pub fn not_found(what: &str, name: &str) -> Self {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
        Self::new(ErrorCode::NotFound, format!("there is no {what} {shown:?}"))
    }

    /// `internal`, with the cause.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::Internal, cause.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_round_trip() {
        let words: std::collections::HashSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(words.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{}\"", code.as_str()));
            assert_eq!(serde_json::from_str::<ErrorCode>(&json).unwrap(), *code);
            assert!((400..=599).contains(&code.status()));
        }
    }
}
