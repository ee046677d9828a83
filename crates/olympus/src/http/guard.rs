//! What every request passes before its handler: an id for the log, the API key, and a net under panics.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cerberus::{Caller, bearer};
use futures_util::FutureExt;
use tartarus_types::id::random_text;
use tartarus_types::{ErrorCode, Refusal};
use tracing::Instrument;

use super::failure::Failure;
use super::{App, PUBLIC};

pub(super) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let id = random_text(12);
    let span = tracing::info_span!("request", id, method = %request.method(), path = request.uri().path());
    let started = Instant::now();
    let mut response = caught(&id, authenticated(app, request, next)).instrument(span.clone()).await;
    span.in_scope(|| {
        let (status, ms) = (response.status().as_u16(), started.elapsed().as_millis() as u64);
        if response.status().is_server_error() {
            tracing::warn!(status, ms, "answered");
        } else {
            tracing::info!(status, ms, "answered");
        }
    });
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// The answer of a handler, also of one that panics. Going on is sound: handlers share nothing but the store, which
/// takes a whole change or none.
async fn caught(id: &str, answer: impl Future<Output = Response>) -> Response {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
        Failure(Refusal::internal(format!("request {id} failed; the server's log says why"))).into_response()
    })
}

async fn authenticated(app: App, mut request: Request, next: Next) -> Response {
    if !PUBLIC.contains(&request.uri().path()) {
        let header = request.headers().get(AUTHORIZATION).cloned();
        match caller(&app, header).await {
            Ok(caller) => request.extensions_mut().insert(caller),
            Err(failure) => return failure.into_response(),
        };
    }
    next.run(request).await
}

/// Whose key it is. The key is looked up by its hash, so the time it takes tells nothing about it.
async fn caller(app: &App, header: Option<HeaderValue>) -> Result<Caller, Failure> {
    let unauthenticated = |detail: String| Failure(Refusal::new(ErrorCode::Unauthenticated, detail));
    let header = header.as_ref().and_then(|value| value.to_str().ok());
    let key = bearer(header).map_err(|error| unauthenticated(error.to_string()))?;
    let name = app.store.find_key(key.hash()).await?;
    name.map(|name| Caller { name }).ok_or_else(|| unauthenticated("this server does not know the API key".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered() {
        let response = caught("abc", async { panic!("on purpose, in a test") }).await;
        assert_eq!(response.status().as_u16(), 500);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
}
