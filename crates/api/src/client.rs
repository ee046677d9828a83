//! The typed client of `/v1`, for the CLI and for programs in Rust.
//!
//! It outlives its server: whatever may be repeated is repeated until the server is back, and output goes on at the
//! byte where it broke off. It refuses to know terminals, files of the user and where a server is found.

mod catalogue;
mod error;
mod feed;
mod follow;
mod repeat;
mod sandboxes;

pub use error::ClientError;
pub use sandboxes::{Listing, Process};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;
use tartarus_types::{ErrorCode, Refusal};

use error::{Failure, refused, unreachable};
use repeat::{Backoff, Repeat};

/// How long to wait for a server to take a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// How long an ordinary answer may take.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a server may be away, once it was there.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest answer that is read, bytes.
const MAX_ANSWER: usize = 256 << 20;

/// A server, and the key to it. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: HeaderValue,
    patience: Duration,
    /// The server took a connection once. Before that an absent server is a mistake to report, afterwards one to sit out.
    met: Arc<AtomicBool>,
}

/// A whole answer.
struct Answer {
    body: Bytes,
    status: u16,
}

impl Client {
    /// A client of the server at `url`, such as `http://127.0.0.1:7423`. Nothing is sent yet.
    ///
    /// # Errors
    /// When the URL is none, or not `http`, or the key cannot be a key.
    pub fn new(url: &str, key: &str) -> Result<Self, ClientError> {
        let blame = |detail: String| ClientError::Refused(Refusal::field("url", detail));
        let base: Url = url.parse().map_err(|cause| blame(format!("{url:?} is not a URL: {cause}")))?;
        match base.scheme() {
            "http" if base.has_host() => {}
            "https" => {
                return Err(blame(format!(
                    "{url:?}: this build speaks http only; use http:// on the same machine or through a tunnel"
                )));
            }
            _ => return Err(blame(format!("{url:?} is not the URL of a server: write http://HOST:PORT"))),
        }
        let mut key = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| ClientError::Refused(Refusal::field("api_key", "holds characters that no key has")))?;
        key.set_sensitive(true);
        // A proxy or a redirect would be handed the key.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_keepalive(Duration::from_secs(15))
            .build()
            .map_err(|cause| ClientError::Protocol(format!("the http client could not be made: {cause}")))?;
        Ok(Self { http, base, key, patience: PATIENCE, met: Arc::default() })
    }

    /// The same, with another patience for a server that was there and is away: 60 s unless told.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The server's URL.
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The URL of a path below `/v1`.
    ///
    /// # Errors
    /// `not_found` for a segment that would change the path instead of naming something.
    fn path(&self, segments: &[&str]) -> Result<Url, ClientError> {
        if let Some(bad) = segments.iter().find(|s| matches!(**s, "" | "." | "..")) {
            return Err(ClientError::Refused(Refusal::not_found("thing named", bad)));
        }
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| ClientError::Protocol(format!("{} can have no path", self.base)))?
            .pop_if_empty()
            .push("v1")
            .extend(segments);
        Ok(url)
    }

    /// A request with the key. The caller sets its time limit.
    fn request(&self, method: Method, url: &Url) -> RequestBuilder {
        self.http.request(method, url.clone()).header(AUTHORIZATION, self.key.clone())
    }

    /// Sends once; a success comes back with its body unread.
    async fn open(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|cause| unreachable(self.url(), &cause));
        if response.as_ref().map_or_else(|failure| failure.sent, |_| true) {
            self.met.store(true, Ordering::Relaxed);
        }
        let response = response?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.read(response).await?;
        Err(refused(self.url(), status, &body))
    }

    async fn read(&self, mut response: Response) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|cause| unreachable(self.url(), &cause))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                let why = format!("{} answered with more than {MAX_ANSWER} bytes", self.url());
                return Err(ClientError::Protocol(why).into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    async fn once(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        let response = self.open(request).await?;
        let status = response.status().as_u16();
        Ok(Answer { status, body: self.read(response).await? })
    }

    /// Sends until it is answered, as `repeat` allows. Gives `settled` the error of a repetition: the answer to the
    /// first try may have been lost, so "already so" can mean that it had worked.
    async fn send(
        &self,
        repeat: Repeat,
        make: impl Fn() -> RequestBuilder,
        settled: impl Fn(ErrorCode) -> bool,
    ) -> Result<Option<Answer>, ClientError> {
        let mut backoff = Backoff::new(self.patience);
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match self.once(make()).await {
                Ok(answer) => return Ok(Some(answer)),
                Err(failure) => failure,
            };
            if tries > 1 && failure.error.code().is_some_and(&settled) {
                return Ok(None);
            }
            if !repeat.allows(&failure, self.met.load(Ordering::Relaxed)) {
                return Err(failure.error);
            }
            backoff.pause(failure.error).await?;
        }
    }

    /// [`Client::send`] for an answer in JSON.
    async fn json<T: DeserializeOwned>(
        &self,
        repeat: Repeat,
        make: impl Fn() -> RequestBuilder,
    ) -> Result<T, ClientError> {
        let answer = self.send(repeat, make, |_| false).await?;
        let body = answer.map(|answer| answer.body).unwrap_or_default();
        self.decode(&body)
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|cause| {
            ClientError::Protocol(format!("{} gave an answer that makes no sense: {cause}", self.url()))
        })
    }

    async fn get<T: DeserializeOwned>(&self, url: &Url) -> Result<T, ClientError> {
        self.json(Repeat::Always, || self.request(Method::GET, url).timeout(ANSWER)).await
    }

    /// Deletes; a repetition that finds nothing has found its own work.
    async fn delete(&self, url: &Url) -> Result<Option<Answer>, ClientError> {
        let make = || self.request(Method::DELETE, url).timeout(ANSWER);
        self.send(Repeat::Always, make, |code| code == ErrorCode::NotFound).await
    }
}
