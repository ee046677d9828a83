//! What can go wrong between client and server, and what may be tried again.

use reqwest::StatusCode;
use tartarus_types::{ErrorCode, Refusal};

use crate::v1::Problem;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server answered no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no server, or the connection to it broke.
    #[error("no server at {url} ({cause}): start one with `tartarus up`, or set TARTARUS_URL")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What the operating system said.
        cause: String,
    },
    /// Whatever answers there does not speak this protocol; or input could not be read.
    #[error("{0}")]
    Protocol(String),
}

impl ClientError {
    /// The server's stable code, when it was the server that said no.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Unreachable { .. } | Self::Protocol(_) => None,
        }
    }

    /// Waiting may help: nothing is wrong with the request.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused(refusal) => matches!(refusal.code, ErrorCode::NodeUnreachable | ErrorCode::Busy),
            Self::Protocol(_) => false,
        }
    }
}

/// An error, and whether the server can have seen the request.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: ClientError,
    pub(super) sent: bool,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self { error, sent: true }
    }
}

/// A request that got no whole answer.
pub(super) fn unreachable(url: &str, cause: &reqwest::Error) -> Failure {
    let sent = !cause.is_connect();
    // The innermost cause is the one that says what happened; those around it say that something did.
    let mut inner: &dyn std::error::Error = cause;
    while let Some(next) = inner.source() {
        inner = next;
    }
    let cause = if cause.is_timeout() { "it did not answer in time".to_owned() } else { inner.to_string() };
    Failure { error: ClientError::Unreachable { url: url.to_owned(), cause }, sent }
}

/// An answer that is no success.
pub(super) fn refused(url: &str, status: StatusCode, body: &[u8]) -> Failure {
    let error = match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => ClientError::Refused(problem.into()),
        Err(_) => ClientError::Protocol(format!("{url} answered {status}, but not as a Tartarus server does")),
    };
    error.into()
}
