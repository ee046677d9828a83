//! What a person at a shell does with the command line: starts it and watches it, interrupts it, tries things inside.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::harness::{BINARY, PATIENCE, Server, signal, wait};

/// Makes a sandbox without command and waits until it runs; gives its id.
pub(crate) fn sandbox(server: &Server, args: &[&str]) -> String {
    let id = server.ok(&[&["create"], args].concat());
    server.until(&id, &["running"]);
    id
}

/// Runs a script in a sandbox; it must succeed. Gives what it printed.
pub(crate) fn sh(server: &Server, id: &str, script: &str) -> String {
    server.ok(&["exec", id, "--", "sh", "-c", script])
}

/// Runs the CLI with this standard input.
pub(crate) fn fed(server: &Server, args: &[&str], input: &[u8]) -> Output {
    let mut child = Running::start_with(server, args, Stdio::piped());
    let mut stdin = child.stdin();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        // A command that reads nothing closes it early.
        let _ = stdin.write_all(&input);
    });
    let output = child.output();
    feeder.join().unwrap();
    output
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A command line that still runs.
pub(crate) struct Running {
    child: Child,
    stdout: Receiver<Vec<u8>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    pub(crate) fn start(server: &Server, args: &[&str]) -> Self {
        Self::start_with(server, args, Stdio::null())
    }

    /// Its standard input is ours to write with [`Self::stdin`] when it is piped.
    pub(crate) fn start_with(server: &Server, args: &[&str], stdin: Stdio) -> Self {
        let cli = server.cli(args);
        // A test run in the background has its children ignore SIGINT, and one that is ignored stays so.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT,TERM,HUP", BINARY]).args(cli.get_args());
        command.envs(cli.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, stdout) = sync_channel(1024);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) && tell.send(line.split_off(0)).is_ok() {}
        });
        let mut err = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut all = Vec::new();
            let _ = err.read_to_end(&mut all);
            all
        });
        Self { child, stdout, stderr: Some(stderr) }
    }

    pub(crate) fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().expect("it is piped and not taken")
    }

    /// The next line of standard output, waited for, without its end.
    pub(crate) fn line(&mut self) -> String {
        match self.stdout.recv_timeout(PATIENCE) {
            Ok(line) => text(&line).trim_end_matches('\n').to_owned(),
            Err(error) => panic!("no line came ({error}); it is {:?}", self.child.try_wait()),
        }
    }

    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits for its end; gives what was not read of its output.
    pub(crate) fn output(mut self) -> Output {
        // Its output first: it cannot end while that is not taken.
        let end = std::time::Instant::now() + PATIENCE;
        let mut stdout = Vec::new();
        while let Ok(part) = self.stdout.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
            stdout.extend(part);
        }
        let status = wait(&mut self.child, PATIENCE);
        let stderr = self.stderr.take().expect("taken once").join().unwrap();
        Output { status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
