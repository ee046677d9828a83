//! Calls about sandboxes and the processes in them.

use std::time::Duration;

use reqwest::{Method, Url};
use serde_json::json;
use tartarus_types::net::NetStatus;
use tartarus_types::{ErrorCode, ExecId, Refusal, State, id};

use super::repeat::Repeat;
use super::{ANSWER, Client, ClientError};
use crate::v1::{CreateExec, CreateSandbox, Exec, NetRequest, Sandbox, SandboxDetail};

/// How long one request waits for an end, ms; the next one follows at once.
const WAIT_MS: u64 = 30_000;
/// How often a removal is asked for again while the sandbox is being ended; each waits up to 20 s.
const REMOVALS: u32 = 6;

/// Between looks at a sandbox that is being started.
const STARTING: Duration = Duration::from_millis(200);

/// It runs, or may yet.
pub(super) fn may_run(state: State) -> bool {
    !state.is_terminal() && state != State::Terminating
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Also those that have ended.
    pub ended: bool,
    /// At most so many, newest first; the server's default when absent.
    pub limit: Option<u32>,
    /// Only those that have all of these labels.
    pub labels: Vec<(String, String)>,
}

/// A process that has output, and may take input and signals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Id, unique prefix or name of the sandbox.
    pub sandbox: String,
    /// The command started by `exec`; the main one when absent.
    pub exec: Option<ExecId>,
}

impl Process {
    /// The main command of a sandbox.
    pub fn main(sandbox: impl Into<String>) -> Self {
        Self { sandbox: sandbox.into(), exec: None }
    }

    /// A command started by `exec`.
    pub fn exec(exec: &Exec) -> Self {
        Self { sandbox: exec.sandbox.to_string(), exec: Some(exec.id.clone()) }
    }
}

impl Client {
    pub(super) fn process_path(&self, process: &Process, leaf: &str) -> Result<Url, ClientError> {
        match &process.exec {
            None => self.path(&["sandboxes", &process.sandbox, leaf]),
            Some(exec) => self.path(&["sandboxes", &process.sandbox, "execs", exec.as_str(), leaf]),
        }
    }

    /// Asks for a sandbox. Without a key of the caller's one is made up, so that a lost answer costs nothing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create(&self, wanted: &CreateSandbox, key: Option<&str>) -> Result<Sandbox, ClientError> {
        let url = self.path(&["sandboxes"])?;
        self.post_keyed(&url, wanted, key).await
    }

    /// Starts a command in a sandbox. One that is being started is waited for: it ends, at the latest, when its start
    /// timeout passes.
    ///
    /// # Errors
    /// [`ClientError`]; `wrong_state` when the sandbox has ended.
    pub async fn exec(&self, sandbox: &str, wanted: &CreateExec, key: Option<&str>) -> Result<Exec, ClientError> {
        let url = self.path(&["sandboxes", sandbox, "execs"])?;
        loop {
            match self.post_keyed(&url, wanted, key).await {
                Err(error) if error.code() == Some(ErrorCode::WrongState) => {
                    // Running here means that it came to run between the two questions.
                    if !may_run(self.inspect(sandbox).await?.sandbox.state) {
                        return Err(error);
                    }
                }
                result => return result,
            }
            tokio::time::sleep(STARTING).await;
        }
    }

    async fn post_keyed<T: serde::de::DeserializeOwned>(
        &self,
        url: &Url,
        body: &impl serde::Serialize,
        key: Option<&str>,
    ) -> Result<T, ClientError> {
        let key = key.map_or_else(|| id::random_text(26), str::to_owned);
        let key = reqwest::header::HeaderValue::from_str(&key)
            .map_err(|_| Refusal::field("idempotency_key", "1 to 128 visible ASCII characters"))?;
        let make = || {
            let request = self.request(Method::POST, url).header("idempotency-key", key.clone());
            request.json(body).timeout(ANSWER)
        };
        self.json(Repeat::Always, make).await
    }

    /// Sandboxes, newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self, listing: &Listing) -> Result<Vec<Sandbox>, ClientError> {
        let mut url = self.path(&["sandboxes"])?;
        url.query_pairs_mut().append_pair("ended", if listing.ended { "true" } else { "false" });
        if let Some(limit) = listing.limit {
            url.query_pairs_mut().append_pair("limit", &limit.to_string());
        }
        for (key, value) in &listing.labels {
            url.query_pairs_mut().append_pair("label", &format!("{key}={value}"));
        }
        self.get(&url).await
    }

    /// One sandbox, with what only its node knows.
    ///
    /// # Errors
    /// [`ClientError`]; `not_found`, `ambiguous`.
    pub async fn inspect(&self, sandbox: &str) -> Result<SandboxDetail, ClientError> {
        self.get(&self.path(&["sandboxes", sandbox])?).await
    }

    /// Waits, however long it takes, until the sandbox has ended.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn wait(&self, sandbox: &str) -> Result<Sandbox, ClientError> {
        let mut url = self.path(&["sandboxes", sandbox, "wait"])?;
        url.query_pairs_mut().append_pair("timeout_ms", &WAIT_MS.to_string());
        loop {
            let sandbox: Sandbox = self.get(&url).await?;
            if sandbox.state.is_terminal() {
                return Ok(sandbox);
            }
        }
    }

    /// Waits, however long it takes, until a command started by `exec` has ended.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn wait_exec(&self, exec: &Exec) -> Result<Exec, ClientError> {
        let mut url = self.path(&["sandboxes", exec.sandbox.as_str(), "execs", exec.id.as_str()])?;
        url.query_pairs_mut().append_pair("wait_ms", &WAIT_MS.to_string());
        loop {
            let exec: Exec = self.get(&url).await?;
            if exec.outcome.is_some() {
                return Ok(exec);
            }
        }
    }

    /// Sends `signal` to the command and ends the sandbox after `grace` (5 s when absent). Returns when that is on
    /// record, not when it has ended.
    ///
    /// # Errors
    /// [`ClientError`]; `wrong_state` when it has ended.
    pub async fn kill(&self, sandbox: &str, signal: &str, grace: Option<Duration>) -> Result<Sandbox, ClientError> {
        let url = self.path(&["sandboxes", sandbox, "kill"])?;
        let body = match grace {
            Some(grace) => {
                json!({ "signal": signal, "grace_ms": u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) })
            }
            None => json!({ "signal": signal }),
        };
        let make = || self.request(Method::POST, &url).json(&body).timeout(ANSWER);
        match self.send(Repeat::Always, make, |code| code == ErrorCode::WrongState).await? {
            Some(answer) => self.decode(&answer.body),
            None => Ok(self.inspect(sandbox).await?.sandbox),
        }
    }

    /// Stops a sandbox's machine until it is resumed; one that is stopped stays so.
    ///
    /// # Errors
    /// [`ClientError`]; `wrong_state` unless it runs.
    pub async fn pause(&self, sandbox: &str) -> Result<Sandbox, ClientError> {
        self.still(sandbox, "pause").await
    }

    /// Lets a stopped machine go on; one that runs goes on running.
    ///
    /// # Errors
    /// [`ClientError`]; `wrong_state` unless it is paused or runs.
    pub async fn resume(&self, sandbox: &str) -> Result<Sandbox, ClientError> {
        self.still(sandbox, "resume").await
    }

    async fn still(&self, sandbox: &str, leaf: &str) -> Result<Sandbox, ClientError> {
        let url = self.path(&["sandboxes", sandbox, leaf])?;
        self.json(Repeat::Always, || self.request(Method::POST, &url).timeout(ANSWER)).await
    }

    /// The network of a sandbox; of one that does not run, the contract that it was accepted with.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn net(&self, sandbox: &str) -> Result<NetStatus, ClientError> {
        self.get(&self.path(&["sandboxes", sandbox, "net"])?).await
    }

    /// Replaces the whole contract of a running sandbox.
    ///
    /// # Errors
    /// [`ClientError`]; `invalid_field` names what is wrong with it, `wrong_state` unless the sandbox runs.
    pub async fn set_net(&self, sandbox: &str, wanted: &NetRequest) -> Result<NetStatus, ClientError> {
        let url = self.path(&["sandboxes", sandbox, "net"])?;
        self.json(Repeat::Always, || self.request(Method::PUT, &url).json(wanted).timeout(ANSWER)).await
    }

    /// Sends a signal to a process and its group.
    ///
    /// # Errors
    /// [`ClientError`]; `wrong_state` unless it runs.
    pub async fn signal(&self, process: &Process, signal: &str) -> Result<(), ClientError> {
        let url = self.process_path(process, "signal")?;
        let body = json!({ "signal": signal });
        let make = || self.request(Method::POST, &url).json(&body).timeout(ANSWER);
        self.send(Repeat::Unsent, make, |_| false).await.map(drop)
    }

    /// Ends the sandbox at once and deletes its record and logs; returns when it is gone.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove(&self, sandbox: &str) -> Result<(), ClientError> {
        let url = self.path(&["sandboxes", sandbox])?;
        for _ in 0..REMOVALS {
            match self.delete(&url).await {
                Ok(Some(answer)) if answer.status == 202 => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        let why = "it is being ended, which takes unusually long; `tartarus doctor` may tell why";
        Err(Refusal::new(ErrorCode::WrongState, why).into())
    }
}
