//! Connections: how many, how slow, and how they end. axum's own server sets no limit on any of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tartarus_types::{ErrorCode, Refusal};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::failure::Failure;

/// Connections at once; each carries one request at a time. More wait in the system's backlog.
const MAX_CONNECTIONS: usize = 4096;
/// A request's header must arrive within this, also after the request before on the same connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest header, bytes.
const MAX_HEADER: usize = 64 << 10;
/// After the shutdown signal: for handlers to answer, and for connections to close.
const HANDLER_GRACE: Duration = Duration::from_secs(2);
const CONNECTION_GRACE: Duration = Duration::from_secs(5);
/// Before the next try when no connection could be accepted, for want of file descriptors mostly.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until `shutdown`. Then no connection is accepted, streams end where they are (an output stream without end
/// frame, so its reader knows), other requests are given 2 s, and everything is closed after 5 s at the latest.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let closing = shutdown.clone();
    let router = router.layer(from_fn(move |request, next| ending(closing.clone(), request, next)));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let accept = async || -> io::Result<_> {
        let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = listener.accept().await?;
        Ok((stream, permit))
    };
    while let Some(accepted) = shutdown.run_until_cancelled(accept()).await {
        match accepted {
            Ok((stream, permit)) => {
                let serving = connection(stream, router.clone(), shutdown.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    // Output is sent as it comes; without it each small piece waits for the one before to be acknowledged.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("a connection is slower than it could be: {error}");
    }
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(CONNECTION_GRACE, serving).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}

/// Ends what would outlast the server: requests that wait, and bodies that go on.
async fn ending(shutdown: CancellationToken, request: Request, next: Next) -> Response {
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(HANDLER_GRACE).await;
    };
    let response = tokio::select! {
        response = next.run(request) => response,
        () = too_late => {
            return Failure(Refusal::new(ErrorCode::Busy, "the server is stopping")).into_response();
        }
    };
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(shutdown.cancelled_owned())))
}
