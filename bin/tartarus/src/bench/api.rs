//! Sandboxes through the API: start one and read its output, as a program with a kept connection does.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use tartarus_api::doctor::DoctorReport;

use super::http::{Connection, Request};
use super::process::until;

/// How long any answer but an output stream may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Bytes of a frame's header; the format is in the module `output` of the product's crate `api`.
const HEADER: usize = 16;

/// What is read of `GET /v1/sandboxes/ID`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Detail {
    pub(super) state: String,
    pub(super) exit_status: Option<i32>,
    pub(super) driver: Option<String>,
    pub(super) hypervisor_pid: Option<u32>,
    #[serde(default)]
    pub(super) failures: Vec<String>,
    #[serde(default)]
    pub(super) phases: Vec<Phase>,
    #[serde(default)]
    pub(super) start: Option<StartedFrom>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) took_ms: f64,
}

/// How its machine came up.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub(super) enum StartedFrom {
    Snapshot { golden: String },
    ColdBoot { why: String },
}

impl Detail {
    fn ended(&self) -> bool {
        !matches!(self.state.as_str(), "queued" | "scheduled" | "preparing" | "running" | "paused" | "terminating")
    }
}

/// A connection to the server.
pub(super) struct Api(pub(super) Connection);

impl Api {
    /// Asks for a sandbox and reads its output to the end: what it printed on standard output.
    pub(super) fn run(&mut self, wanted: &Value, key: &str, patience: Duration) -> Result<String> {
        let request = Request { method: "POST", path: "/v1/sandboxes", body: Some(wanted), idempotency_key: Some(key) };
        let made = self.0.request(&request, ANSWER)?.json()?;
        let id = made.get("id").and_then(Value::as_str).context("the server's answer has no id")?;
        let output = self.0.request(&Request::get(&format!("/v1/sandboxes/{id}/output?follow=true")), patience)?;
        if output.status != 200 {
            output.json()?;
            bail!("the output was answered with {}", output.status);
        }
        let (stdout, stderr) = decode(&output.body)?;
        if !stderr.is_empty() {
            bail!("it said {}", String::from_utf8_lossy(&stderr).trim());
        }
        String::from_utf8(stdout).context("its output is no text")
    }

    /// What the server's machine can do.
    pub(super) fn doctor(&mut self, patience: Duration) -> Result<DoctorReport> {
        let answer = self.0.request(&Request::get("/v1/doctor"), patience)?.json()?;
        serde_json::from_value(answer).context("cannot read a report in JSON")
    }

    /// Asks for something small, so that the connection is open.
    pub(super) fn ping(&mut self) -> Result<()> {
        self.0.request(&Request::get("/v1/kernels"), ANSWER)?.json().map(drop)
    }

    /// All about a sandbox.
    pub(super) fn inspect(&mut self, sandbox: &str) -> Result<Detail> {
        let answer = self.0.request(&Request::get(&format!("/v1/sandboxes/{sandbox}")), ANSWER)?.json()?;
        serde_json::from_value(answer).context("cannot read a sandbox in JSON")
    }

    /// All about a sandbox once it has ended.
    pub(super) fn ended(&mut self, sandbox: &str, patience: Duration) -> Result<Detail> {
        until("the end of a sandbox", patience, || {
            let detail = self.inspect(sandbox)?;
            Ok(detail.ended().then_some(detail))
        })
    }

    /// All about a sandbox once it runs.
    pub(super) fn running(&mut self, sandbox: &str, patience: Duration) -> Result<Detail> {
        until("the start of a sandbox", patience, || {
            let detail = self.inspect(sandbox)?;
            if detail.ended() {
                bail!("{sandbox} is {}: {}", detail.state, detail.failures.join("; "));
            }
            Ok((detail.state == "running" && detail.hypervisor_pid.is_some()).then_some(detail))
        })
    }

    /// All about a sandbox that runs, once it is known from which golden snapshot; the record may say so a moment later
    /// than that it runs.
    pub(super) fn restored(&mut self, sandbox: &str, patience: Duration) -> Result<(Detail, String)> {
        self.running(sandbox, patience)?;
        until("the news of how a sandbox came up", patience, || {
            let detail = self.running(sandbox, patience)?;
            match detail.start.clone() {
                None => Ok(None),
                Some(StartedFrom::Snapshot { golden }) => Ok(Some((detail, golden))),
                Some(StartedFrom::ColdBoot { why }) => bail!("{sandbox} booted cold: {why}"),
            }
        })
    }

    /// Waits until every golden snapshot of a template is there.
    pub(super) fn snapshots(&mut self, template: &str, patience: Duration) -> Result<()> {
        until("the golden snapshot", patience, || {
            let answer = self.0.request(&Request::get(&format!("/v1/templates/{template}")), ANSWER)?.json()?;
            let Some(snapshots) = answer.get("snapshots").and_then(Value::as_array) else { return Ok(Some(())) };
            let states: Vec<_> = snapshots.iter().filter_map(|s| s.get("state")?.as_str()).collect();
            if states.iter().any(|state| ["failed", "unusable"].contains(state)) {
                bail!("the golden snapshot of {template} could not be made: {snapshots:?}");
            }
            Ok(states.iter().all(|state| ["ready", "outdated"].contains(state)).then_some(()))
        })
    }
}

/// Both streams out of the frames of an output that has ended.
fn decode(mut bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let Some(head) = bytes.get(..HEADER) else { bail!("the output was cut off") };
        let (kind, stream) = (head[0], head[1]);
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let payload = bytes.get(HEADER..HEADER.saturating_add(length)).context("the output was cut off")?;
        bytes = &bytes[HEADER + length..];
        match (kind, stream) {
            (1, 0) => stdout.extend_from_slice(payload),
            (1, 1) => stderr.extend_from_slice(payload),
            (2, _) => bail!("a part of the output was left out"),
            (3, _) => return Ok((stdout, stderr)),
            (4, _) => bail!("the output ended: {}", String::from_utf8_lossy(payload)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, stream, 0, 0];
        frame.extend((payload.len() as u32).to_le_bytes());
        frame.extend([0; 8]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn streams_are_put_together_and_must_have_an_end() {
        let parts = [frame(1, 0, b"49"), frame(5, 0, b""), frame(1, 1, b"e"), frame(1, 0, b"95"), frame(3, 0, b"")];
        assert_eq!(decode(&parts.concat()).unwrap(), (b"4995".to_vec(), b"e".to_vec()));
        assert!(decode(&parts[..4].concat()).is_err());
        assert!(decode(&[&frame(2, 0, &[9; 8])[..], &frame(3, 0, b"")[..]].concat()).is_err());
        assert!(decode(&frame(4, 0, b"no")).unwrap_err().to_string().contains("no"));
        assert!(decode(&frame(1, 0, b"long")[..18]).is_err());
    }

    #[test]
    fn how_it_came_up_is_read_where_the_server_says_so() {
        let text = r#"{"state":"succeeded","exit_status":0,"driver":"qemu-tcg","hypervisor_pid":null,"failures":[],
            "phases":[{"name":"leased","at":1,"took_ms":1.5}],"more":1}"#;
        let detail: Detail = serde_json::from_str(text).unwrap();
        assert!(detail.ended() && detail.start.is_none());
        let text = text.replace("\"more\"", r#""start":{"from":"cold_boot","why":"w"},"more""#);
        let detail: Detail = serde_json::from_str(&text).unwrap();
        assert_eq!(detail.start, Some(StartedFrom::ColdBoot { why: "w".to_owned() }));
    }
}
