//! The demo's own `tartarus up`: started on a free port, found by the line it prints, ended with SIGTERM.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::product::BINARY;
use crate::sh;

/// From its start to the line that says it is ready.
const READY: Duration = Duration::from_secs(60);
/// From SIGTERM to its end: it gives every sandbox 5 s.
const STOP: Duration = Duration::from_secs(30);

pub(super) const NO_SETPRIV: &str = "cannot start setpriv (package util-linux)";

/// Shows a command line of the binary that was built, and gives it ready to be started. It runs through setpriv, which
/// becomes it: should the demo be killed outright, the kernel ends what it started.
pub(super) fn tartarus(args: &[&str]) -> Command {
    sh::show(sh::command(&[BINARY]).args(args));
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", BINARY]).args(args).kill_on_drop(true);
    command
}

/// A running server.
pub(super) struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    data: PathBuf,
    log: PathBuf,
}

/// What a client needs.
pub(super) struct Access {
    /// `http://127.0.0.1:PORT`.
    pub(super) url: String,
    /// The first API key.
    pub(super) key: String,
}

impl Server {
    /// Starts it. Its log goes beside the data folder, so that it can be shown should it not become ready.
    pub(super) fn spawn(data: &Path) -> Result<Self> {
        std::fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
        let data = std::path::absolute(data)?;
        let log = data.with_extension("log");
        let log_file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let shown = data.to_str().context("the path of the data folder is not UTF-8")?;
        let mut command = tartarus(&["up", "--listen", "127.0.0.1:0", "--data", shown]);
        // The pointer file with which the command line finds its server is not the demo's to overwrite.
        command.env("XDG_STATE_HOME", data.join("state"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::from(log_file));
        // Ctrl-C in a terminal goes to the whole group; the server is to be told by us, once.
        command.process_group(0);
        let mut child = command.spawn().context(NO_SETPRIV)?;
        let stdout = child.stdout.take().context("the server has no standard output")?;
        Ok(Self { child, lines: BufReader::new(stdout).lines(), data, log })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it ends before, or says nothing within [`READY`]; the text ends with the last lines of its log.
    pub(super) async fn ready(&mut self) -> Result<Access> {
        let url = match timeout(READY, self.read_url()).await {
            Ok(Ok(Some(url))) => url,
            Ok(Ok(None)) => bail!("the server ended before it was ready; its last words:\n{}", self.last_words()),
            Ok(Err(error)) => return Err(error),
            Err(_) => bail!("the server was not ready within {READY:?}; its last words:\n{}", self.last_words()),
        };
        let key_file = self.data.join("admin.key");
        let key = std::fs::read_to_string(&key_file).with_context(|| format!("cannot read {}", key_file.display()))?;
        Ok(Access { url, key: key.trim().to_owned() })
    }

    async fn read_url(&mut self) -> Result<Option<String>> {
        while let Some(line) = self.lines.next_line().await.context("cannot read the server's output")? {
            println!("{line}");
            if let Some(url) = parse_ready(&line) {
                return Ok(Some(url.to_owned()));
            }
        }
        Ok(None)
    }

    /// The server's further output, for as long as it is polled: a full pipe would block it.
    pub(super) async fn drain(&mut self) -> Result<()> {
        while let Some(line) = self.lines.next_line().await.context("cannot read the server's output")? {
            println!("{line}");
        }
        bail!("the server ended; its last words:\n{}", self.last_words())
    }

    /// Ends it: SIGTERM, and SIGKILL when it does not end in time, which is an error.
    pub(super) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            println!("{}", sh::dim(&format!("$ kill -TERM {}", pid.as_raw_nonzero())));
            // It may have ended by itself meanwhile; then waiting says how.
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = timeout(STOP, async {
            let (status, _) =
                tokio::join!(self.child.wait(), async { while let Ok(Some(_)) = self.lines.next_line().await {} });
            status
        });
        let Ok(status) = ended.await else {
            self.child.kill().await.context("cannot kill the server")?;
            bail!("the server did not end within {STOP:?} of SIGTERM; its last words:\n{}", self.last_words());
        };
        let status = status.context("cannot wait for the server")?;
        if !status.success() {
            bail!("the server ended with {status}; its last words:\n{}", self.last_words());
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        format!("{tail}\n(all of it: {})", self.log.display())
    }
}

/// The URL in `Tartarus is ready at http://…`.
fn parse_ready(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("Tartarus is ready at ")?;
    let url = rest.split_whitespace().next()?;
    url.starts_with("http://").then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_found_in_the_line_that_says_ready() {
        assert_eq!(parse_ready("Tartarus is ready at http://127.0.0.1:4711"), Some("http://127.0.0.1:4711"));
        assert_eq!(parse_ready("Tartarus is ready at http://127.0.0.1:4711 (key in x)"), Some("http://127.0.0.1:4711"));
        for bad in ["", "Tartarus is ready at ", "listening at http://127.0.0.1:1", "Tartarus is ready at soon"] {
            assert_eq!(parse_ready(bad), None, "{bad}");
        }
    }
}
