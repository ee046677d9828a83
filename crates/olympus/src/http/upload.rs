//! Uploads: bytes handed on to the node as they come, of any length, as long as they keep coming.

use std::io;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::HeaderMap;
use futures_util::{StreamExt, stream};
use tartarus_api::node::ByteStream;
use tartarus_types::{ErrorCode, Refusal};
use tokio::time::timeout;

use super::extract::media_type;

/// Longest pause between two pieces of an upload.
const STALL: Duration = Duration::from_secs(60);
/// How long the rest of an upload is read on after it was refused.
const DRAIN: Duration = Duration::from_secs(10);

/// Refuses a body that says it is something else than plain bytes or a tar.
pub(super) fn check_octets(headers: &HeaderMap) -> Result<(), Refusal> {
    match media_type(headers).as_deref() {
        None | Some("application/octet-stream" | "application/x-tar" | "application/tar") => Ok(()),
        Some(_) => {
            let detail = "send the bytes as they are, with `Content-Type: application/octet-stream`";
            Err(Refusal::new(ErrorCode::InvalidBody, detail))
        }
    }
}

/// A body that is read on for a while when whoever wanted it has seen enough: a client that is cut off in the middle of
/// an upload gets a broken pipe instead of the answer that says why.
struct Upload(Option<BodyDataStream>);

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut rest) = self.0.take() {
            tokio::spawn(timeout(DRAIN, async move { while let Some(Ok(_)) = rest.next().await {} }));
        }
    }
}

/// The body's bytes; an upload that stalls or is cut off ends in an error, never in an end. Taken before anything is
/// checked, since it also sees to it that the answer arrives.
pub(super) fn bytes(body: Body) -> ByteStream {
    bytes_unless(body, STALL)
}

fn bytes_unless(body: Body, stall: Duration) -> ByteStream {
    stream::unfold(Upload(Some(body.into_data_stream())), move |mut upload| async move {
        let chunk = timeout(stall, upload.0.as_mut()?.next()).await;
        if !matches!(chunk, Ok(Some(Ok(_)))) {
            upload.0 = None;
        }
        match chunk {
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), upload)),
            Ok(Some(Err(error))) => Some((Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)), upload)),
            Err(_) => {
                let detail = format!("nothing of the upload came for {} s", stall.as_secs());
                Some((Err(io::Error::new(io::ErrorKind::TimedOut, detail)), upload))
            }
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stall_and_a_cut_are_errors_and_the_last_thing() {
        let stalled = stream::iter([Ok::<_, io::Error>("a")]).chain(stream::pending());
        let found: Vec<_> = bytes_unless(Body::from_stream(stalled), Duration::from_millis(50)).collect().await;
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].as_ref().unwrap_err().kind(), io::ErrorKind::TimedOut);
        let cut = stream::iter([Ok("a"), Err(io::Error::other("gone")), Ok("b")]);
        let found: Vec<_> = bytes(Body::from_stream(cut)).collect().await;
        assert_eq!((found.len(), found[1].is_err()), (2, true));
    }
}
