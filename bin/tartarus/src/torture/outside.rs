//! The outer half of the suite: starts the inner one in namespaces of its own and waits. Whatever happens to either, the
//! other one notices: the inner by the end of a pipe, the outer by the end of its child.

use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::INTERRUPTED;

/// Puts a shell first, which is init there and takes the dead in: the suite waits for its own children only.
const INIT: &str = "exec 3<&0; \"$@\" <&3 3<&- & exec 3<&-; wait $!";

pub(super) fn run() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(start())
}

async fn start() -> anyhow::Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("tartarus-torture-").tempdir().context("a temporary folder")?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net", "--", "sh", "-c", INIT, "sh"]);
    command.arg(std::env::current_exe().context("this program's own file")?);
    command.args(std::env::args_os().skip(1)).arg("--within").arg(folder.path());
    // Ctrl-C is for this process alone, which then lets the other one clean up.
    command.process_group(0).kill_on_drop(true).stdin(Stdio::piped());
    let mut child = command.spawn().context("unshare (util-linux) could not be started")?;
    let pipe = child.stdin.take();
    let status = tokio::select! {
        status = child.wait() => Some(status?),
        _ = term.recv() => None,
        _ = int.recv() => None,
    };
    let Some(status) = status else {
        drop(pipe);
        if tokio::time::timeout(Duration::from_secs(15), child.wait()).await.is_err() {
            // Its end is the end of everything in there.
            child.kill().await?;
        }
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
