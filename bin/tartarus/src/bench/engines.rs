//! Docker and Podman, each with images and state of its own that nobody else sees.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::process::{self, Daemon, until};
use super::programs;
use super::row::{Kind, PROGRAM, Ran, Row, Run, Work};
use super::scratch::Scratch;

/// Where a containerd of the machine has its socket, which dockerd would use, and its shims theirs; and where plugins of the
/// machine's Docker are.
const HIDDEN: [&str; 2] = ["/run/containerd", "/run/docker"];
/// Hides the folders of the first word, and becomes the others. Only in a mount namespace that is not the machine's.
const HIDE: &str = "for dir in $0; do mount -t tmpfs -o mode=711 tartarus-bench $dir || exit; done; exec \"$@\"";
/// Reading the root file system as an image.
const IMPORT: Duration = Duration::from_secs(300);
const ANSWER: Duration = Duration::from_secs(30);
/// From the daemon's start to its first answer.
const READY: Duration = Duration::from_secs(30);
const IMAGE: &str = "tartarus-bench:1";

/// A command line with an environment.
struct Line {
    words: Vec<String>,
    env: Vec<(&'static str, PathBuf)>,
}

impl Line {
    fn new(program: &Path, env: Vec<(&'static str, PathBuf)>) -> Self {
        Self { words: vec![program.display().to_string()], env }
    }

    fn with(&self, words: &[&str]) -> Self {
        let words = self.words.iter().cloned().chain(words.iter().map(|word| (*word).to_owned())).collect();
        Self { words, env: self.env.clone() }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).envs(self.env.iter().map(|(name, value)| (*name, value)));
        command
    }

    fn read(&self, words: &[&str], patience: Duration) -> Result<String> {
        let mut command = self.with(words).command();
        let shown = process::line(&command);
        process::run(&mut command, patience)?.text().with_context(|| format!("`{shown}`"))
    }
}

impl Work for Line {
    fn run(&self, run: Run<'_>) -> Result<Ran> {
        Ok(Ran { output: process::run(&mut self.command(), run.patience)?.text()?, ms: None })
    }
}

/// `docker run`, against a daemon of the benchmark's own, which lives as long as what is returned beside the row.
pub(super) fn docker(scratch: &Scratch, tar: &Path) -> (Row, Option<Daemon>) {
    let row = Row::new("docker", Kind::Baseline, "docker run --rm --network none IMAGE python3 -c …");
    let (Some(client), Some(daemon)) = (programs::find("docker"), programs::find("dockerd")) else {
        return (row, None);
    };
    if !scratch.is_roots() {
        return (row.needs_root(), None);
    }
    match start_docker(scratch, tar, &client, &daemon) {
        Ok((line, version, daemon)) => (row.version(version).work(Ok(Box::new(line))), Some(daemon)),
        Err(error) => (row.work(Err(error)), None),
    }
}

fn start_docker(scratch: &Scratch, tar: &Path, client: &Path, daemon: &Path) -> Result<(Line, String, Daemon)> {
    let dir = scratch.folder("docker")?;
    let host = format!("unix://{}", dir.join("docker.sock").display());
    let mut words = apart(scratch, daemon)?;
    for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
        words.arg(flag).arg(dir.join(name));
    }
    words.args(["--host", &host, "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
    words.args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", &scratch.cgroup()]);
    // Neither the machine's configuration nor the user's.
    let config = dir.join("daemon.json");
    fs::write(&config, "{}").with_context(|| format!("cannot write {}", config.display()))?;
    words.arg("--config-file").arg(&config);
    let log_path = dir.join("log");
    let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let err = log.try_clone()?;
    let mut daemon = Daemon::spawn(&words, Duration::from_secs(20), |command| {
        command.stdout(log).stderr(err);
    })?;
    let line = Line::new(client, vec![("DOCKER_HOST", host.into()), ("DOCKER_CONFIG", dir.join("config"))]);
    let version = until("dockerd's first answer", READY, || {
        daemon.runs().with_context(|| format!("dockerd: {}", last_line(&log_path)))?;
        Ok(line.read(&["version", "--format", "{{.Server.Version}}, client {{.Client.Version}}"], ANSWER).ok())
    })?;
    line.read(&["import", &tar.display().to_string(), IMAGE], IMPORT)?;
    let line = line.with(&["run", "--rm", "--network", "none", IMAGE, "python3", "-c", PROGRAM]);
    Ok((line, version.trim().to_owned(), daemon))
}

/// dockerd where it meets neither the machine's network, whose `docker0` it would remove, nor its containerd, and where what
/// it mounts ends with it. Nothing stands between: a signal to this command is dockerd's.
fn apart(scratch: &Scratch, daemon: &Path) -> Result<Command> {
    // Also where there is none: dockerd would make it, and leave it.
    HIDDEN.into_iter().try_for_each(|dir| scratch.borrow(Path::new(dir)))?;
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--propagation", "private", "--", "sh", "-c", HIDE, &HIDDEN.join(" ")])
        .arg(daemon);
    Ok(command)
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().next_back().unwrap_or_default().chars().take(500).collect()
}

/// `podman run`.
pub(super) fn podman(scratch: &Scratch, tar: &Path) -> Row {
    let row = Row::new("podman", Kind::Baseline, "podman run --rm --network none IMAGE python3 -c …");
    let Some(podman) = programs::find("podman") else { return row };
    if !scratch.is_roots() {
        return row.needs_root();
    }
    match start_podman(scratch, tar, &podman) {
        Ok((line, version)) => row.version(version).work(Ok(Box::new(line))),
        Err(error) => row.work(Err(error)),
    }
}

fn start_podman(scratch: &Scratch, tar: &Path, podman: &Path) -> Result<(Line, String)> {
    let dir = scratch.folder("podman")?;
    let Some(runtime) = ["runc", "crun"].into_iter().find_map(programs::find) else { bail!("it needs runc or crun") };
    // Locks in files, since those in shared memory belong to every podman of the machine.
    let config = dir.join("containers.conf");
    fs::write(&config, "[engine]\nlock_type = \"file\"\n")
        .with_context(|| format!("cannot write {}", config.display()))?;
    let mut line = Line::new(podman, vec![("CONTAINERS_CONF", config)]);
    for (flag, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
        line = line.with(&[flag, &dir.join(name).display().to_string()]);
    }
    let runtime = runtime.display().to_string();
    line = line.with(&["--cgroup-manager", "cgroupfs", "--runtime", &runtime, "--events-backend", "none"]);
    let version = line.read(&["--version"], ANSWER)?;
    line.read(&["import", &tar.display().to_string(), IMAGE], IMPORT)?;
    // Its defaults raise limits, which root without CAP_SYS_RESOURCE may not.
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"];
    let group = scratch.cgroup();
    let run = ["run", "--rm", "--network", "none", "--cgroup-parent", &group];
    let line = line.with(&run).with(&limits).with(&[IMAGE, "python3", "-c", PROGRAM]);
    Ok((line, programs::number(&version)))
}
