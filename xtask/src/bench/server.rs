//! The benchmark's own `tartarus up`, with kernel, image and templates.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::api::Api;
use super::http::Connection;
use super::process::{self, Daemon, until};
use super::row::PROGRAM;
use super::scratch::Scratch;
use crate::demo::parse_ready;
use crate::{fixtures, sh};

/// From its start to the line that says it is ready.
const READY: Duration = Duration::from_secs(60);
/// Importing an image, making a template with its golden snapshot.
const MAKING: Duration = Duration::from_secs(300);
/// The template that everything is started from.
pub(super) const TEMPLATE: &str = "py";

/// Where the product is.
pub(super) struct Server {
    daemon: Daemon,
    binary: PathBuf,
    url: String,
    key: String,
    data: PathBuf,
    /// The options of `tartarus run`, as its help says.
    run_help: String,
}

impl Server {
    /// Starts it with these options and gives it kernel and image, but no template.
    pub(super) fn start(scratch: &Scratch, binary: &Path, tar: &Path, options: &[&str]) -> Result<Self> {
        let dir = scratch.folder("tartarus")?;
        let data = dir.join("data");
        let log_path = dir.join("log");
        let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
        let mut words = Command::new(binary);
        words.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(&data).args(options);
        let mut daemon = Daemon::spawn(&words, Duration::from_secs(60), |command| {
            command.env("XDG_STATE_HOME", dir.join("state")).stdout(Stdio::piped()).stderr(log);
        })?;
        let url = ready(&mut daemon).with_context(|| format!("the server's last words: {}", tail(&log_path)))?;
        let key_file = data.join("admin.key");
        let key = fs::read_to_string(&key_file).with_context(|| format!("cannot read {}", key_file.display()))?;
        let run_help = sh::output(Command::new(binary).args(["run", "--help"]))?;
        let server = Self { daemon, binary: binary.to_owned(), url, key: key.trim().to_owned(), data, run_help };
        server.add_kernel(scratch)?;
        server.read(&["image", "import", &tar.display().to_string(), "--name", TEMPLATE])?;
        Ok(server)
    }

    /// From the fixture of the tests where it was made, since that needs no network; else as `tartarus` does itself.
    fn add_kernel(&self, scratch: &Scratch) -> Result<()> {
        let tar = Path::new(fixtures::FOLDER).join("kernel.tar");
        if !tar.exists() {
            return self.read(&["kernel", "add"]).map(drop);
        }
        let dir = scratch.folder("kernel")?;
        let mut unpack = Command::new("tar");
        unpack.args(["--no-same-owner", "-xf"]).arg(&tar).arg("-C").arg(&dir).args(["./boot", "./lib/modules"]);
        process::run(&mut unpack, MAKING)?.text().context("cannot unpack the kernel")?;
        let kernel = only(&dir.join("boot"), "vmlinuz-")?;
        let modules = only(&dir.join("lib/modules"), "")?;
        self.read(&["kernel", "add", &kernel, "--modules", &modules])?;
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
    }

    /// Makes [`TEMPLATE`]: with a runner that has imported numpy where this binary has runners.
    pub(super) fn make_template(&self) -> Result<()> {
        self.template(TEMPLATE, "512M")
    }

    /// Makes a template and waits for its golden snapshot.
    pub(super) fn template(&self, name: &str, memory: &str) -> Result<()> {
        let mut args = vec!["template", "create", name, "--from", TEMPLATE, "--memory", memory];
        if self.can("--code") {
            args.extend(["--runner", "python", "--preload", "numpy"]);
        }
        self.read(&args)?;
        self.api().snapshots(name, MAKING)
    }

    /// `tartarus run` has this option.
    pub(super) fn can(&self, option: &str) -> bool {
        has_option(&self.run_help, option)
    }

    /// A command line against this server.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env("TARTARUS_URL", &self.url).env("TARTARUS_API_KEY", &self.key);
        command
    }

    /// Runs one and gives what it printed.
    pub(super) fn read(&self, args: &[&str]) -> Result<String> {
        let done = process::run(&mut self.command(args), MAKING)?;
        done.text().with_context(|| format!("`tartarus {}`", args.join(" ")))
    }

    /// A connection to it.
    pub(super) fn api(&self) -> Api {
        let address = self.url.strip_prefix("http://").unwrap_or(&self.url);
        Api(Connection::new(address, &self.key))
    }

    pub(super) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// Ends it.
    ///
    /// # Errors
    /// When SIGTERM does not end it, or leaves a process behind.
    pub(super) fn stop(mut self) -> Result<()> {
        if !self.daemon.stop() {
            bail!("the server did not end in time");
        }
        let left = until("the end of everything that the server started", Duration::from_secs(10), || {
            process::reap(&[]);
            let left = process::descendants().into_iter().filter(|p| process::is_hypervisor(&p.name));
            Ok((left.count() == 0).then_some(()))
        });
        left.context("a hypervisor outlived its server")
    }
}

/// The URL that the server prints. Its further output is read and dropped: a full pipe would block it.
fn ready(daemon: &mut Daemon) -> Result<String> {
    let stdout = daemon.child().stdout.take().context("the server has no standard output")?;
    let (tell, told) = mpsc::sync_channel(1);
    let read = move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(url) = parse_ready(&line) {
                // Nobody waits any more when it took too long.
                let _ = tell.try_send(url.to_owned());
            }
        }
    };
    std::thread::Builder::new().name("server".to_owned()).spawn(read).context("cannot start a thread")?;
    until("the server's start", READY, || match told.try_recv() {
        Ok(url) => Ok(Some(url)),
        Err(_) => daemon.runs().map(|()| None),
    })
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// An option is the first word of a line of the help, or the second after a short one.
fn has_option(help: &str, option: &str) -> bool {
    help.lines()
        .any(|line| line.split([' ', ',', '=']).filter(|word| word.starts_with('-')).take(2).any(|w| w == option))
}

/// The one file in a folder whose name begins so.
fn only(dir: &Path, start: &str) -> Result<String> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let name = names.find(|name| name.starts_with(start));
    let name = name.with_context(|| format!("{} has no {start}…", dir.display()))?;
    Ok(dir.join(name).display().to_string())
}

/// The arguments after `run TEMPLATE …` that run the program as a process of its own.
pub(super) const PROCESS: [&str; 4] = ["--", "python3", "-c", PROGRAM];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_from_the_help() {
        let help = "Options:\n      --code <SOURCE>  Source\n  -q, --quiet  No progress --no-snapshot\n      --code-file <F>\n";
        assert!(has_option(help, "--code") && has_option(help, "--quiet"));
        assert!(!has_option(help, "--cod") && !has_option(help, "--preload"));
    }
}
