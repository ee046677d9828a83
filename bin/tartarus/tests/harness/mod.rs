//! A server of its own for each test, made from a seed that holds a kernel, two images and their templates.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_tartarus");
/// No command of a test may take longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The folder of fixtures, which `cargo xtask test` makes.
pub(crate) fn fixtures() -> PathBuf {
    let dir = std::env::var_os("TARTARUS_FIXTURES").map(PathBuf::from);
    dir.unwrap_or_else(|| panic!("TARTARUS_FIXTURES is not set: run the tests with `cargo xtask test --only vm`"))
}

/// A server, and everything that belongs to it.
pub(crate) struct Server {
    child: Option<Child>,
    pub(crate) url: String,
    /// The data folder.
    pub(crate) data: PathBuf,
    root: tempfile::TempDir,
    args: Vec<String>,
    env: Vec<(&'static str, PathBuf)>,
    test: String,
    /// Lines of logs of earlier processes of this server.
    log: PathBuf,
}

impl Server {
    /// A server on a fresh copy of the seed, TCG forced, so that no test waits for a probe.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more arguments for `up`.
    pub(crate) fn start_with(args: &[&str]) -> Self {
        let server = Self::prepare(args, true);
        server.up()
    }

    /// A server without kernel and images.
    pub(crate) fn empty(args: &[&str]) -> Self {
        Self::prepare(args, false).up()
    }

    /// A server whose Firecracker is that program.
    pub(crate) fn start_with_firecracker(args: &[&str], program: &Path) -> Self {
        let mut server = Self::prepare(args, true);
        server.env.push(("TARTARUS_FIRECRACKER", program.to_owned()));
        server.up()
    }

    fn up(mut self) -> Self {
        self.spawn();
        self
    }

    fn prepare(args: &[&str], seeded: bool) -> Self {
        let root = tempfile::Builder::new().prefix("tartarus-vm-").tempdir().unwrap();
        let data = root.path().join("data");
        if seeded {
            copy_seed(&seed(), &data);
        }
        let driver = ["--driver", "qemu-tcg"].iter().filter(|_| !args.contains(&"--driver"));
        let args = driver.chain(args).map(|a| (*a).to_owned()).collect();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let (url, log) = (format!("http://127.0.0.1:{port}"), root.path().join("up.log"));
        Self { child: None, url, data, root, args, env: Vec::new(), test, log }
    }

    /// Starts the server's process on the same folder and port, and waits until it is ready.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().append(true).create(true).open(&self.log).unwrap();
        let mut child = Command::new(BINARY)
            .args(["up", "--data", self.data.to_str().unwrap(), "--listen", self.url.trim_start_matches("http://")])
            .args(&self.args)
            .env("HOME", self.root.path())
            .envs(self.env.iter().cloned())
            .env_remove("XDG_STATE_HOME")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().map(Result::unwrap);
        self.child = Some(child);
        let ready = first.as_deref() == Some(&format!("Tartarus is ready at {}", self.url));
        assert!(ready, "up said {first:?}; its log:\n{}", self.log());
    }

    /// What the server logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The server's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// A folder for the test's own files, removed with the server.
    pub(crate) fn scratch(&self) -> &Path {
        self.root.path()
    }

    /// The server's first API key.
    pub(crate) fn key(&self) -> String {
        std::fs::read_to_string(self.data.join("admin.key")).unwrap().trim().to_owned()
    }

    /// `kill -9` of the server's process alone.
    pub(crate) fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM to the server's process alone; returns when it has ended.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(child.id(), "TERM");
            let status = wait(&mut child, Duration::from_secs(60));
            assert!(status.success(), "up ended with {status}; its log:\n{}", self.log());
        }
    }

    /// The CLI, pointed at this server.
    pub(crate) fn cli(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args).env("HOME", self.root.path()).env("TARTARUS_URL", &self.url);
        command.env("TARTARUS_API_KEY", self.key()).stdin(Stdio::null());
        command
    }

    /// Runs the CLI to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        output(self.cli(args))
    }

    /// Runs the CLI, which must succeed, and gives its standard output without the last line's end.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}: {errors}\nserver:\n{}", output.status, self.log());
        String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
    }

    /// Runs the CLI, which must succeed, and reads its JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(args);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?} is no JSON ({e}): {text}"))
    }

    /// Waits until a sandbox is in one of these states; gives its record.
    pub(crate) fn until(&self, id: &str, states: &[&str]) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let record = self.json(&["inspect", id, "--json"]);
            let state = record["state"].as_str().unwrap();
            if states.contains(&state) {
                return record;
            }
            assert!(Instant::now() < end, "{id} is {state}, waited for {states:?}; server:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Processes that belong to sandboxes of this server: supervisors and hypervisors, zombies left out.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let mut found = self.all_processes();
        found.retain(|(_, command)| !is_keeper(command));
        found
    }

    /// The process that holds the memory of golden snapshots.
    pub(crate) fn keeper(&self) -> Option<u32> {
        self.all_processes().into_iter().find(|(_, command)| is_keeper(command)).map(|(pid, _)| pid)
    }

    fn all_processes(&self) -> Vec<(u32, String)> {
        let data = self.data.canonicalize().unwrap_or_else(|_| self.data.clone());
        let data = data.to_str().unwrap().to_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            // A hypervisor is handed its files open, and knows no path.
            let holds = || {
                let open = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
                let mut links = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
                links.any(|link| link.to_str().is_some_and(|link| link.contains(&data)))
            };
            let ours = cmdline.contains(&data) || cmdline.contains("qemu-system") && holds();
            if ours && Some(pid) != self.child.as_ref().map(Child::id) {
                found.push((pid, cmdline));
            }
        }
        found
    }

    /// Waits until nothing of any sandbox is left: no process, no folder.
    pub(crate) fn nothing_left(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let processes = self.processes();
            let folders: Vec<_> = std::fs::read_dir(self.data.join("sandboxes"))
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path())
                .collect();
            if processes.is_empty() && folders.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left: {processes:?} {folders:?}; server:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let guests = self.log().lines().filter(|l| l.contains("guest ready")).count();
        report(&serde_json::json!({ "test": self.test, "guests": guests }));
        if std::thread::panicking() {
            if let Some(mut child) = self.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            for (pid, _) in self.all_processes() {
                signal(pid, "KILL");
            }
            return;
        }
        if self.args.iter().any(|a| a == "--leave-running") {
            self.stop();
        }
        if self.child.is_none() && !self.all_processes().is_empty() {
            // A test that left machines running, or their shared memory, has its server put them away.
            self.args.retain(|a| a != "--leave-running");
            self.spawn();
        }
        self.stop();
        self.nothing_left();
        // The keeper ends when it sees that its last client has.
        let end = Instant::now() + Duration::from_secs(10);
        while !self.all_processes().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.all_processes(), [], "left by the server that ended");
    }
}

fn is_keeper(command: &str) -> bool {
    command.split_whitespace().nth(1) == Some("keep")
}

/// Appends a line to the report that the floor of guests is held against.
fn report(line: &Value) {
    let Some(dir) = std::env::var_os("TARTARUS_VM_REPORT").map(PathBuf::from) else { return };
    let path = dir.join(format!("{}.jsonl", std::process::id()));
    let mut file = File::options().append(true).create(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}

/// Says why a test does not run here, in one line.
pub(crate) fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    eprintln!("skipped: {test}: {why}");
    report(&serde_json::json!({ "test": test, "skipped": why }));
}

/// Runs a command to its end, within [`PATIENCE`].
pub(crate) fn output(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (done, waiting) = std::sync::mpsc::sync_channel::<()>(1);
    let killer = std::thread::spawn(move || {
        if waiting.recv_timeout(PATIENCE).is_err() {
            signal(pid, "KILL");
            return true;
        }
        false
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    assert!(!killer.join().unwrap(), "{command:?} took longer than {} s: {output:?}", PATIENCE.as_secs());
    output
}

/// Waits for a child's end.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> std::process::ExitStatus {
    let end = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "process {} did not end within {patience:?}", child.id());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal to one process of this test.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status();
    assert!(status.is_ok());
}

/// A data folder with a kernel, the images and their templates; made once per build of the binary.
fn seed() -> PathBuf {
    let fixtures = fixtures();
    let lock = File::create(fixtures.join("seed.lock")).unwrap();
    lock.lock().unwrap();
    let meta = std::fs::metadata(BINARY).unwrap();
    let built = meta.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let seed = fixtures.join(format!("seed-{built}-{}", meta.len()));
    if seed.exists() {
        return seed;
    }
    for old in std::fs::read_dir(&fixtures).unwrap().flatten() {
        if old.file_name().to_str().is_some_and(|n| n.starts_with("seed-")) {
            std::fs::remove_dir_all(old.path()).unwrap();
        }
    }
    let mut server = Server::empty(&[]);
    let path = |name: &str| fixtures.join(name).to_str().unwrap().to_owned();
    add_kernel(&server, &fixtures);
    let runner = ["--runner", "python", "--preload", "numpy"];
    for (name, memory, more) in [("busybox", "128M", &[][..]), ("python", "512M", &runner)] {
        server.ok(&["image", "import", &path(&format!("{name}.tar")), "--name", name]);
        let create = ["template", "create", name, "--from", name, "--memory", memory, "--disk", "256M"];
        server.ok(&create.iter().chain(more).copied().collect::<Vec<_>>());
    }
    // Makes the initramfs and the empty layer, so that no test pays for them.
    server.ok(&["run", "busybox", "--name", "first", "--", "true"]);
    // No test shall find what made the seed.
    for record in server.json(&["ps", "--all", "--json"]).as_array().unwrap() {
        server.ok(&["rm", record["id"].as_str().unwrap()]);
    }
    server.stop();
    let new = seed.with_extension("new");
    copy(&server.data, &new).unwrap();
    // A lock on a linked file would be shared between servers, and so would the keeper's.
    std::fs::remove_file(new.join("lock")).unwrap();
    std::fs::remove_dir_all(new.join("keeper")).unwrap();
    std::fs::rename(new, &seed).unwrap();
    seed
}

/// Adds the fixture's kernel the way `kernel add` does: the fixture is what `dpkg-deb` would print.
pub(crate) fn add_kernel(server: &Server, fixtures: &Path) {
    let tar = std::fs::read(fixtures.join("kernel.tar")).unwrap();
    let answer = server.http("POST", "/v1/kernels", &[("content-type", "application/octet-stream")], &tar);
    assert_eq!(answer.status, 201, "{}", answer.text());
}

/// An answer over HTTP.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl Server {
    /// One request with the server's key. Written out by hand, since tests also send what no client would.
    pub(crate) fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let key = format!("Bearer {}", self.key());
        let mut all = vec![("authorization", key.as_str())];
        all.extend(headers);
        self.http_raw(method, path, &all, body)
    }

    /// One request without any header but its length.
    pub(crate) fn http_raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let address = self.url.trim_start_matches("http://");
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        stream.write_all(head.as_bytes()).unwrap();
        // A server that has seen enough may close before it read all.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let read = std::io::Read::read_to_end(&mut stream, &mut answer);
        assert!(!answer.is_empty(), "no answer to {method} {path} ({read:?}); server:\n{}", self.log());
        parse_answer(&answer)
    }

    /// A JSON request with the server's key.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.http("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }
}

fn parse_answer(bytes: &[u8]) -> Answer {
    let split = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer");
    let head = String::from_utf8_lossy(&bytes[..split]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).expect("a status");
    let headers: Vec<_> =
        lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect();
    let mut body = bytes[split + 4..].to_vec();
    if headers.iter().any(|(n, v)| n == "transfer-encoding" && v == "chunked") {
        let mut rest = body.as_slice();
        let mut whole = Vec::new();
        while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
            let size = usize::from_str_radix(&String::from_utf8_lossy(&rest[..end]), 16).unwrap_or(0);
            let from = end + 2;
            whole.extend_from_slice(&rest[from..(from + size).min(rest.len())]);
            if size == 0 || rest.len() < from + size + 2 {
                break;
            }
            rest = &rest[from + size + 2..];
        }
        body = whole;
    }
    Answer { status, headers, body }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let status = Command::new("cp").args(["-a", from.to_str().unwrap(), to.to_str().unwrap()]).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other("cp failed")) }
}

/// Big files never change: they are linked. The database does: it is copied.
fn copy_seed(seed: &Path, data: &Path) {
    let status = Command::new("cp").args(["-al", seed.to_str().unwrap(), data.to_str().unwrap()]).status().unwrap();
    if !status.success() {
        let _ = std::fs::remove_dir_all(data);
        copy(seed, data).unwrap();
        return;
    }
    for file in std::fs::read_dir(seed).unwrap().flatten().filter(|f| f.file_type().unwrap().is_file()) {
        let target = data.join(file.file_name());
        std::fs::remove_file(&target).unwrap();
        std::fs::copy(file.path(), &target).unwrap();
    }
}

/// Reports guests that were booted by a server of the test's own making.
pub(crate) fn count_guests(test: &str, guests: u32) {
    report(&serde_json::json!({ "test": test, "guests": guests }));
}
