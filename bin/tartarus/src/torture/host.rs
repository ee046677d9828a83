//! The server under attack: `tartarus up` in the world's node namespace, on a folder of its own, and the command line as any
//! user has it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::world::{DNS, World};

/// No command may take longer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Its own place on the node's loopback: nothing else is in that namespace.
const LISTEN: &str = "127.0.0.1:7423";
/// Memory of a guest, the least that boots everywhere.
const MEMORY: &str = "128M";
/// The template of all sandboxes.
pub(super) const TEMPLATE: &str = "torture";

/// The process of the server that runs, for whoever ends the suite in between; 0 when none does.
pub(super) static RUNNING: AtomicU32 = AtomicU32::new(0);

/// A server; ended when this is dropped.
pub(super) struct Host<'a> {
    world: &'a World,
    program: PathBuf,
    folder: PathBuf,
    driver: String,
    child: Option<Child>,
}

impl<'a> Host<'a> {
    /// None runs yet.
    ///
    /// # Errors
    /// When this program's own file is not known.
    pub(super) fn new(world: &'a World, folder: &Path, driver: &str) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program's own file")?;
        Ok(Self { world, program, folder: folder.to_owned(), driver: driver.to_owned(), child: None })
    }

    /// Starts the server, without one protective rule where it is named.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub(super) fn start(&mut self, without: Option<&str>) -> anyhow::Result<()> {
        let log = File::options().append(true).create(true).open(self.folder.join("up.log"))?;
        let mut command = self.world.node.command(self.program()?);
        command.args(["up", "--data"]).arg(self.folder.join("data"));
        command.args(["--listen", LISTEN, "--driver", &self.driver, "--net", "open", "--dns", &DNS.to_string()]);
        // Few, so that an attempt to have more is short.
        command.args(["--net-most-connections", "50"]);
        if let Some(guard) = without {
            command.args(["--torture-without", guard]);
        }
        self.environment(&mut command);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn()?;
        RUNNING.store(child.id(), Ordering::SeqCst);
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        self.child = Some(child);
        ensure!(line.starts_with("Tartarus is ready"), "the server did not start: {}", self.last_words());
        Ok(())
    }

    /// Ends it and all its sandboxes.
    ///
    /// # Errors
    /// When it does not end.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        terminate(child.id());
        let end = Instant::now() + Duration::from_secs(30);
        while child.try_wait()?.is_none() {
            if Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the server did not end: {}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        RUNNING.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// `kill -9`: its sandboxes go on.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("no server runs")?;
        child.kill()?;
        child.wait()?;
        RUNNING.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn program(&self) -> anyhow::Result<&str> {
        self.program.to_str().context("this program's own path is no text")
    }

    fn environment(&self, command: &mut Command) {
        command.env("HOME", &self.folder).env_remove("XDG_STATE_HOME").env_remove("XDG_DATA_HOME");
        command.env("TARTARUS_URL", format!("http://{LISTEN}"));
        let key = std::fs::read_to_string(self.folder.join("data/admin.key")).unwrap_or_default();
        command.env("TARTARUS_API_KEY", key.trim());
    }

    /// The end of the server's log.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("up.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Guests that came up so far, by the server's log.
    pub(super) fn guests(&self) -> usize {
        let log = std::fs::read_to_string(self.folder.join("up.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains("guest ready")).count()
    }

    /// A command line to it.
    pub(super) fn cli(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = self.world.node.command(self.program()?);
        command.args(args);
        self.environment(&mut command);
        Ok(command)
    }

    /// Runs a command line to its end; gives what it printed.
    ///
    /// # Errors
    /// When it fails or takes too long, with its last words.
    pub(super) fn ok(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = bounded(self.cli(args)?).with_context(|| format!("tartarus {}", args.join(" ")))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tartarus {}: {}\n{}", args.join(" "), said.trim(), self.last_words());
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Makes the template of all sandboxes; its golden snapshot is there when this returns.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn prepare(&self, kernel: &[&str], image: &Path) -> anyhow::Result<()> {
        self.ok(&[&["kernel", "add"], kernel].concat())?;
        let image = image.to_str().context("a folder for temporary files whose path is text")?;
        self.ok(&["image", "import", image, "--name", TEMPLATE])?;
        let template = ["template", "create", TEMPLATE, "--from", TEMPLATE, "--memory", MEMORY, "--disk", "64M"];
        self.ok(&template)?;
        Ok(())
    }

    /// A sandbox that runs; gives its id.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) fn create(&self, flags: &[&str]) -> anyhow::Result<String> {
        let id = self.ok(&[&["create", TEMPLATE], flags].concat())?;
        self.until_running(&id)?;
        Ok(id)
    }

    /// Waits until a sandbox runs.
    ///
    /// # Errors
    /// When it ends instead, or takes too long.
    pub(super) fn until_running(&self, id: &str) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let record: Value = serde_json::from_str(&self.ok(&["inspect", id, "--json"])?)?;
            match record["state"].as_str() {
                Some("running") => return Ok(()),
                Some("queued" | "scheduled" | "preparing") if Instant::now() < end => {}
                other => bail!("a sandbox is {other:?} and does not run: {}\n{}", record["outcome"], self.last_words()),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs the attacker in a sandbox; gives its lines.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(super) fn attack(&self, id: &str, words: &[String]) -> anyhow::Result<Vec<super::judge::Said>> {
        let mut args = vec!["exec", id, "--", "/attack"];
        args.extend(words.iter().map(String::as_str));
        let text = self.ok(&args)?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("the attacker said {line:?}")))
            .collect()
    }

    /// The network namespace of a sandbox, by the process beside its machine.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn namespace(&self, id: &str) -> anyhow::Result<File> {
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let is = words.get(1) == Some(&&b"supervise"[..])
                && words.get(2).is_some_and(|dir| dir.windows(id.len()).any(|part| part == id.as_bytes()));
            if is {
                return File::open(entry.path().join("ns/net")).context("the namespace of a sandbox");
            }
        }
        bail!("no process stands beside the machine of {id}: the suite cannot find its network")
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Asks a process to end.
pub(super) fn terminate(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may just have ended.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Runs a program to its end, or kills it.
fn bounded(mut command: Command) -> anyhow::Result<Output> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = child.id();
    let (done, waiting) = std::sync::mpsc::sync_channel::<()>(1);
    let guard = std::thread::spawn(move || {
        let late = waiting.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            terminate(pid);
        }
        late
    });
    let output = child.wait_with_output();
    let _ = done.send(());
    ensure!(!guard.join().unwrap_or(true), "took longer than {} s", PATIENCE.as_secs());
    Ok(output?)
}
