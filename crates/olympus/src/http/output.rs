//! Output of commands as frames (`application/vnd.tartarus.output.v1`), stored or as it comes.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use hades::store::Record;
use tartarus_api::node::{OutputEvent, OutputRequest, OutputStream, Target};
use tartarus_api::output::{MAX_PAYLOAD, MEDIA_TYPE, encode, keepalive};
use tartarus_types::Refusal;
use tokio::time::timeout;

use super::App;
use super::execs::exec_id;
use super::extract::Path;
use super::failure::Failure;
use super::openapi::RawBytes;
use super::params::Params;
use crate::refusal::refuse;
use crate::watch::{Watched, began};

/// After so long without output a frame that says nothing shows that the connection lives.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Longer than any sandbox: its record changes or goes before.
const FOREVER: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// Output of the sandbox's command. Without `follow` what there is, with it until the command has ended.
///
/// The body is a row of frames; a body without end frame was cut off, and is taken up again at the byte after the last.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/output", tag = "output",
    params(
        ("sandbox" = String, Path, description = "Id, unique prefix or name"),
        ("follow" = Option<bool>, Query, description = "Go on until the command has ended"),
        ("stdout_from" = Option<u64>, Query, description = "First byte wanted of standard output; 0 when absent"),
        ("stderr_from" = Option<u64>, Query, description = "First byte wanted of standard error; 0 when absent"),
        ("stream" = Option<String>, Query, description = "`stdout` or `stderr`; both when absent")),
    responses((status = 200, description = "Frames", body = RawBytes, content_type = "application/vnd.tartarus.output.v1")))]
pub(super) async fn sandbox_output(
    State(app): State<App>,
    Path(reference): Path<String>,
    params: Params,
) -> Result<Response, Failure> {
    let request = request(params)?;
    let record = app.store.resolve(&reference).await?;
    Ok(framed(main_output(app, record, request).await?))
}

/// Output of a command in a sandbox, the same way.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/execs/{exec}/output", tag = "output",
    params(
        ("sandbox" = String, Path, description = "Id, unique prefix or name"),
        ("exec" = String, Path, description = "Id of the command"),
        ("follow" = Option<bool>, Query, description = "Go on until the command has ended"),
        ("stdout_from" = Option<u64>, Query, description = "First byte wanted of standard output; 0 when absent"),
        ("stderr_from" = Option<u64>, Query, description = "First byte wanted of standard error; 0 when absent"),
        ("stream" = Option<String>, Query, description = "`stdout` or `stderr`; both when absent")),
    responses((status = 200, description = "Frames", body = RawBytes, content_type = "application/vnd.tartarus.output.v1")))]
pub(super) async fn exec_output(
    State(app): State<App>,
    Path((reference, exec)): Path<(String, String)>,
    params: Params,
) -> Result<Response, Failure> {
    let request = request(params)?;
    let target = Target::Exec(exec_id(&exec)?);
    let record = app.store.resolve(&reference).await?;
    Ok(framed(app.node()?.output(&record.id, &target, request).await?))
}

fn request(mut params: Params) -> Result<OutputRequest, Refusal> {
    let follow = params.flag("follow")?;
    let from = [params.number("stdout_from")?.unwrap_or(0), params.number("stderr_from")?.unwrap_or(0)];
    let stream = params.stream()?;
    params.finish()?;
    let wanted = |index: usize| stream.is_none_or(|only| only == index).then_some(from[index]);
    Ok(OutputRequest { from: [wanted(0), wanted(1)], follow })
}

/// Output of a sandbox's command, whatever state it is in: one that follows a queued sandbox waits for its start, and a
/// sandbox that never ran its command has none.
pub(super) async fn main_output(app: App, record: Record, request: OutputRequest) -> Result<OutputStream, Refusal> {
    if began(&record) {
        return app.node()?.output(&record.id, &Target::Main, request).await;
    }
    let nothing = || stream::iter([Ok(OutputEvent::End)]).boxed();
    if record.state.is_terminal() || !request.follow {
        return Ok(nothing());
    }
    let started = async move {
        match app.watch(&record.id, FOREVER, |r| began(r) || r.state.is_terminal()).await {
            Ok(Watched::Reached(record)) if began(&record) => match app.node() {
                Ok(node) => node.output(&record.id, &Target::Main, request).await,
                Err(refusal) => Err(refusal),
            },
            Ok(_) => Ok(nothing()),
            Err(error) => Err(refuse(error)),
        }
        .unwrap_or_else(|refusal| stream::iter([Err(refusal)]).boxed())
    };
    Ok(stream::once(started).flatten().boxed())
}

fn framed(events: OutputStream) -> Response {
    let mut response = Response::new(Body::from_stream(frames(events, KEEPALIVE)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    // Proxies that store or gather would hold back what should be seen at once.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The frames of events; nothing follows an end or an error.
fn frames(events: OutputStream, silence: Duration) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let events = events.flat_map(|event| stream::iter(fitting(event)));
    stream::unfold(Some(Box::pin(events)), move |events| async move {
        let mut events = events?;
        match timeout(silence, events.next()).await {
            Err(_) => Some((Ok(keepalive()), Some(events))),
            Ok(None) => None,
            Ok(Some(event)) => {
                let last = matches!(event, Ok(OutputEvent::End) | Err(_));
                Some((Ok(encode(&event)), (!last).then_some(events)))
            }
        }
    })
}

/// An event in pieces that fit a frame.
fn fitting(event: Result<OutputEvent, Refusal>) -> Vec<Result<OutputEvent, Refusal>> {
    match event {
        Ok(OutputEvent::Data { stream, offset, mut bytes }) if bytes.len() > MAX_PAYLOAD => {
            let mut pieces = Vec::new();
            let mut at = offset;
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(MAX_PAYLOAD));
                let next = at + piece.len() as u64;
                pieces.push(Ok(OutputEvent::Data { stream, offset: at, bytes: piece }));
                at = next;
            }
            pieces
        }
        other => vec![other],
    }
}

#[cfg(test)]
mod tests {
    use tartarus_api::output::Decoder;

    use super::*;

    #[tokio::test]
    async fn silence_is_filled_and_the_end_is_last() {
        let silence = Duration::from_millis(200);
        let big = Bytes::from(vec![7; MAX_PAYLOAD + 5]);
        let first = stream::iter([Ok(OutputEvent::Data { stream: 1, offset: 3, bytes: big })]);
        let late = stream::once(async move {
            tokio::time::sleep(silence * 2 + silence / 2).await;
            Ok(OutputEvent::End)
        });
        let beyond = stream::iter([Ok(OutputEvent::End)]);
        let found: Vec<_> =
            frames(first.chain(late).chain(beyond).boxed(), silence).map(Result::unwrap).collect().await;
        assert_eq!(found.iter().filter(|frame| **frame == keepalive()).count(), 2);
        let mut decoder = Decoder::default();
        found.iter().for_each(|frame| decoder.push(frame));
        let events: Vec<_> = std::iter::from_fn(|| decoder.next_event()).map(Result::unwrap).collect();
        assert_eq!(events.len(), 3);
        assert!(matches!(&events[1], OutputEvent::Data { offset, bytes, .. }
            if *offset == 3 + MAX_PAYLOAD as u64 && bytes.len() == 5));
        assert_eq!(events[2], OutputEvent::End);
    }
}
