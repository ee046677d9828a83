//! Reading requests: bodies with a limit and a deadline, JSON whose errors name the field, paths, and the idempotency
//! key. Whatever is wrong becomes a problem, never axum's own text.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tartarus_types::{ErrorCode, Refusal};
use tokio::time::timeout;

use super::failure::Failure;

/// Largest JSON body: twice what a command and its environment may have.
pub(super) const MAX_JSON: usize = 2 << 20;
/// A whole body must arrive within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of a body that is too large before the answer, and for how long: a client that still sends when the
/// connection closes would see a reset instead of the answer.
const DRAIN: (usize, Duration) = (32 << 20, Duration::from_secs(5));

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_body(body: Body, limit: usize) -> Result<Bytes, Failure> {
    let too_large = || Refusal::new(ErrorCode::TooLarge, format!("the body may have {limit} bytes at most"));
    let mut size = body.size_hint().lower();
    let mut chunks = body.into_data_stream();
    let mut whole = BytesMut::new();
    let reading = async {
        while size <= limit as u64 {
            let Some(chunk) = chunks.next().await else { return Ok(()) };
            let chunk = chunk.map_err(|_| Refusal::new(ErrorCode::InvalidBody, "the body was cut off"))?;
            size = (whole.len() + chunk.len()) as u64;
            whole.extend_from_slice(&chunk);
        }
        Err(too_large())
    };
    let late = || Refusal::new(ErrorCode::InvalidBody, "the body did not arrive within 30 s");
    let read = timeout(BODY_TIMEOUT, reading).await.unwrap_or_else(|_| Err(late()));
    match read {
        Ok(()) => Ok(whole.freeze()),
        Err(refusal) => {
            if refusal.code == ErrorCode::TooLarge {
                let mut left = DRAIN.0;
                let draining = async {
                    while let Some(Ok(chunk)) = chunks.next().await {
                        left = left.saturating_sub(chunk.len());
                        if left == 0 {
                            return;
                        }
                    }
                };
                // Only a courtesy: late or not, the answer is the same.
                let _ = timeout(DRAIN.1, draining).await;
            }
            Err(refusal.into())
        }
    }
}

/// A JSON body.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let kind = media_type(request.headers());
        if kind.as_deref() != Some("application/json") {
            let detail = "send the body as JSON, with `Content-Type: application/json`";
            return Err(Refusal::new(ErrorCode::InvalidBody, detail).into());
        }
        let body = read_body(request.into_body(), MAX_JSON).await?;
        Ok(Self(parse_json(&body)?))
    }
}

/// The media type in lower case, without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().unwrap_or("unreadable");
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// Reads JSON; errors name the field wherever there is one.
pub(super) fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        blame(&path, &error.into_inner())
    })?;
    reader.end().map_err(|error| blame(".", &error))?;
    Ok(value)
}

fn blame(path: &str, error: &serde_json::Error) -> Refusal {
    let text: String = error.to_string().chars().filter(|c| !c.is_control()).take(300).collect();
    match error.classify() {
        Category::Data => {}
        Category::Eof => return Refusal::new(ErrorCode::InvalidBody, format!("the JSON is cut off: {text}")),
        Category::Syntax | Category::Io => {
            return Refusal::new(ErrorCode::InvalidBody, format!("that is no JSON: {text}"));
        }
    }
    // A missing or unknown field has no path of its own yet; serde's text has its name.
    let named = ["missing field `", "unknown field `", "duplicate field `"]
        .iter()
        .find_map(|start| text.strip_prefix(start)?.split('`').next());
    let field = match (path, named) {
        (".", Some(name)) => name,
        (".", None) => return Refusal::new(ErrorCode::InvalidBody, text),
        (path, _) => path,
    };
    let field: String = field.chars().filter(|c| !c.is_control()).take(80).collect();
    Refusal::field(&field, text)
}

/// Path parameters.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(_) => Err(Refusal::new(ErrorCode::NotFound, "the path is not UTF-8 text").into()),
        }
    }
}

/// The header `Idempotency-Key`: the caller's name for this request.
pub(super) struct IdempotencyKey(pub(super) Option<String>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        let bytes = value.as_bytes();
        let ok = (1..=128).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic) && values.next().is_none();
        if !ok {
            return Err(Refusal::field("Idempotency-Key", "one key of 1 to 128 visible ASCII characters").into());
        }
        Ok(Self(value.to_str().ok().map(str::to_owned)))
    }
}

#[cfg(test)]
#[path = "extract_tests.rs"]
mod tests;
