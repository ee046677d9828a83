//! Network namespaces of the suite. Each is held open by a helper that ends with this process: nothing is pinned, so all of
//! them are gone when the suite is, however it ended.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace.
pub(super) struct Space {
    name: &'static str,
    file: File,
    // Reads from a pipe that only this process writes to.
    helper: Child,
}

impl Space {
    /// A new one, in which there is only a loopback that is up.
    ///
    /// # Errors
    /// When it cannot be made: no leave, or no `unshare` (util-linux) or `ip` (iproute2).
    pub(super) fn new(name: &'static str) -> anyhow::Result<Self> {
        let mut helper = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "ip link set lo up && echo ready && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare (util-linux) could not be started")?;
        let mut line = String::new();
        if let Some(stdout) = helper.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let file = File::open(format!("/proc/{}/ns/net", helper.id()));
        if line != "ready\n" {
            let _ = helper.kill();
            let _ = helper.wait();
            bail!("a network namespace for {name} could not be made: is this root, with iproute2 and util-linux?");
        }
        Ok(Self { name, file: file.context("the new namespace")?, helper })
    }

    /// The process by which other programs name it.
    pub(super) fn pid(&self) -> u32 {
        self.helper.id()
    }

    /// A program in it.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid())).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a program in it; gives what it printed.
    ///
    /// # Errors
    /// When it fails, with its last words.
    pub(super) fn run(&self, line: &str) -> anyhow::Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        let output = command.args(words).output().with_context(|| format!("running {line:?}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "in the namespace of {}: {line}: {}", self.name, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// For [`enter`], on another thread.
    pub(super) fn file(&self) -> anyhow::Result<File> {
        Ok(self.file.try_clone()?)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}

/// Moves this thread, and no other one, into a network namespace.
pub(super) fn enter(namespace: &impl AsFd) -> std::io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}
