//! The benchmark's own `tartarus up`, with kernel, image and templates.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tartarus_api::doctor::{Check, DoctorReport, Status};

use super::api::Api;
use super::http::Connection;
use super::process::{self, Daemon, tail, until};
use super::row::PROGRAM;
use super::scratch::Scratch;
use super::tree;

/// From its start to the line that says it is ready.
const READY: Duration = Duration::from_secs(60);
/// Fetching a kernel, probing, importing an image, making a template with its golden snapshot.
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
    /// For temporary files of every command: so they go with the rest, also when the command is killed.
    temporary: PathBuf,
}

impl Server {
    /// Starts this program with these options. It has nothing yet.
    ///
    /// # Errors
    /// When it does not start, with the last words of its log.
    pub(super) fn start(scratch: &Scratch, options: &[&str]) -> Result<Self> {
        let binary = std::env::current_exe().context("this program's own file")?;
        let dir = scratch.folder("tartarus")?;
        let data = dir.join("data");
        let temporary = scratch.folder("tmp")?;
        let log_path = dir.join("log");
        let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
        let mut words = Command::new(&binary);
        // Without networks: what of them is the machine's is the user's own server's.
        words.args(["up", "--listen", "127.0.0.1:0", "--net", "none", "--data"]).arg(&data).args(options);
        let mut daemon = Daemon::spawn(&words, Duration::from_secs(60), |command| {
            // The file by which the command line finds the user's own server is not ours to write.
            command.env("XDG_STATE_HOME", dir.join("state")).env("TMPDIR", &temporary);
            command.stdout(Stdio::piped()).stderr(log);
        })?;
        let url = ready(&mut daemon)
            .map_err(|why| anyhow!("the server did not start: {why:#}; its last words: {}", tail(&log_path)))?;
        let key_file = data.join("admin.key");
        let key = fs::read_to_string(&key_file).with_context(|| format!("cannot read {}", key_file.display()))?;
        Ok(Self { daemon, binary, url, key: key.trim().to_owned(), data, temporary })
    }

    /// Gives it a kernel, by flags of `kernel add`.
    pub(super) fn add_kernel(&self, flags: &[String]) -> Result<()> {
        let flags = flags.iter().map(String::as_str);
        self.read(&["kernel", "add"].into_iter().chain(flags).collect::<Vec<_>>()).map(drop)
    }

    /// Looks whether sandboxes can run at all, before anything costly is made for them, and gives their driver.
    ///
    /// # Errors
    /// When they cannot; the text says what is missing.
    pub(super) fn fit(&self) -> Result<String> {
        let report = self.api().doctor(MAKING)?;
        match unfit(&report) {
            None => Ok(report.driver),
            Some(why) => bail!("sandboxes cannot run here: {why}"),
        }
    }

    /// Gives it the image that [`TEMPLATE`] is made from.
    pub(super) fn import(&self, tar: &Path) -> Result<()> {
        let tar = tar.to_str().with_context(|| format!("{} is no text", tar.display()))?;
        self.read(&["image", "import", tar, "--name", TEMPLATE]).map(drop)
    }

    /// Makes [`TEMPLATE`], with a runner that has imported numpy.
    pub(super) fn make_template(&self) -> Result<()> {
        let needs = "the template could not be made; what --image names must hold python3 and numpy, and without --image \
                     such a root file system is made";
        self.template(TEMPLATE, "512M").context(needs)
    }

    /// Makes a template and waits for its golden snapshot.
    pub(super) fn template(&self, name: &str, memory: &str) -> Result<()> {
        let args = ["template", "create", name, "--from", TEMPLATE, "--memory", memory];
        self.read(&[&args[..], &["--runner", "python", "--preload", "numpy"]].concat())?;
        self.api().snapshots(name, MAKING)
    }

    /// A command line against this server.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env("TMPDIR", &self.temporary);
        command.env("TARTARUS_URL", &self.url).env("TARTARUS_API_KEY", &self.key);
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
            tree::reap(&[]);
            let left = tree::descendants().into_iter().filter(|p| tree::is_hypervisor(&p.name));
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

/// The URL in `Tartarus is ready at http://…`.
fn parse_ready(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("Tartarus is ready at ")?;
    rest.split_whitespace().next().filter(|url| url.starts_with("http://"))
}

/// Opens packages, and the kernel is there by then.
const FOR_KERNELS: &str = "dpkg-deb";

/// Why no sandbox can run, if so. That there is no KVM is a reason only where nothing else will do.
fn unfit(report: &DoctorReport) -> Option<String> {
    let driver = |check: &Check| check.name == "driver";
    let counts = |check: &&Check| check.status == Status::Fail && check.name != FOR_KERNELS;
    let fails: Vec<&Check> = report.checks.iter().filter(counts).collect();
    let no_driver = fails.iter().any(|check| driver(check));
    let kvm = report.checks.iter().filter(|check| no_driver && check.name == "kvm" && check.status != Status::Ok);
    let told = |check: &Check| match &check.advice {
        _ if driver(check) => report.why.clone(),
        Some(advice) => format!("{}: {} ({advice})", check.name, check.found),
        None => format!("{}: {}", check.name, check.found),
    };
    // What was asked for first.
    let (first, others): (Vec<&Check>, Vec<&Check>) = fails.into_iter().partition(|check| driver(check));
    let told: Vec<String> = first.into_iter().chain(kvm).chain(others).map(told).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// The arguments after `run TEMPLATE …` that run the program as a process of its own.
pub(super) const PROCESS: [&str; 4] = ["--", "python3", "-c", PROGRAM];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_found_in_the_line_that_says_ready() {
        assert_eq!(parse_ready("Tartarus is ready at http://127.0.0.1:4711"), Some("http://127.0.0.1:4711"));
        for bad in ["", "Tartarus is ready at ", "listening at http://127.0.0.1:1", "Tartarus is ready at soon"] {
            assert_eq!(parse_ready(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_missing_is_told_and_what_is_not_needed_is_not() {
        let check = |name: &str, status, found: &str, advice: Option<&str>| Check {
            name: name.to_owned(),
            status,
            found: found.to_owned(),
            advice: advice.map(str::to_owned),
        };
        let kvm = || check("kvm", Status::Warn, "no such file", Some("turn it on"));
        let fine = check("driver", Status::Ok, "qemu-tcg: TCG was asked for", None);
        let mut report = DoctorReport {
            driver: "qemu-tcg".to_owned(),
            why: "TCG was asked for".to_owned(),
            checks: vec![kvm(), fine, check("dpkg-deb", Status::Fail, "not found", None)],
        };
        assert_eq!(unfit(&report), None);
        let none = check("driver", Status::Fail, "none: firecracker was asked for", None);
        let mke2fs = check("mke2fs", Status::Fail, "not found", Some("install it"));
        report = DoctorReport {
            driver: "none".to_owned(),
            why: "firecracker was asked for".to_owned(),
            checks: vec![kvm(), mke2fs, none],
        };
        let expected = "firecracker was asked for; kvm: no such file (turn it on); mke2fs: not found (install it)";
        assert_eq!(unfit(&report).as_deref(), Some(expected));
    }
}
