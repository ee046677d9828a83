//! One output stream of a sandbox as plain bytes: for `curl`, and for people.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tartarus_api::node::{OutputEvent, OutputRequest, OutputStream};
use tartarus_types::Refusal;

use super::App;
use super::extract::Path;
use super::failure::Failure;
use super::openapi::RawBytes;
use super::output::main_output;
use super::params::Params;

/// The log of one stream, as the command wrote it. Where the stored log has a gap there is a line that says so.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/logs", operation_id = "sandbox_logs", tag = "output",
    params(
        ("sandbox" = String, Path, description = "Id, unique prefix or name"),
        ("stream" = Option<String>, Query, description = "`stdout` or `stderr`; `stdout` when absent"),
        ("follow" = Option<bool>, Query, description = "Go on until the command has ended")),
    responses((status = 200, description = "The bytes", body = RawBytes, content_type = "application/octet-stream")))]
pub(super) async fn logs(
    State(app): State<App>,
    Path(reference): Path<String>,
    mut params: Params,
) -> Result<Response, Failure> {
    let wanted = params.stream()?.unwrap_or(0);
    let follow = params.flag("follow")?;
    params.finish()?;
    let from = [0, 1].map(|stream| (stream == wanted).then_some(0));
    let record = app.store.resolve(&reference).await?;
    let events = main_output(app, record, OutputRequest { from, follow }).await?;
    let mut response = Response::new(Body::from_stream(plain(events)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// The bytes of events. An error ends the body before its time, which the client sees.
fn plain(events: OutputStream) -> impl Stream<Item = Result<Bytes, Refusal>> {
    let mut at_line_start = true;
    events.filter_map(move |event| {
        let bytes = match event {
            Ok(OutputEvent::Data { bytes, .. }) => Some(Ok(bytes)),
            Ok(OutputEvent::Gap { length, .. }) => {
                let before = if at_line_start { "" } else { "\n" };
                Some(Ok(Bytes::from(format!("{before}[tartarus: {length} bytes left out here]\n"))))
            }
            Ok(OutputEvent::End) => None,
            Err(refusal) => Some(Err(refusal)),
        };
        if let Some(Ok(bytes)) = &bytes
            && let Some(last) = bytes.last()
        {
            at_line_start = *last == b'\n';
        }
        std::future::ready(bytes)
    })
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn a_gap_is_a_line_of_its_own() {
        let data = |bytes: &'static [u8]| OutputEvent::Data { stream: 0, offset: 0, bytes: Bytes::from_static(bytes) };
        let gap = || OutputEvent::Gap { stream: 0, offset: 1, length: 9 };
        let events = [gap(), data(b"a\xff"), gap(), data(b"b\n"), gap(), data(b""), OutputEvent::End];
        let found: Vec<_> = plain(stream::iter(events.map(Ok)).boxed()).map(Result::unwrap).collect().await;
        let line = b"[tartarus: 9 bytes left out here]\n";
        assert_eq!(found.concat(), [line, &b"a\xff\n"[..], line, b"b\n", line].concat());
    }
}
