//! An ordinary user runs it all: an account made for the test, with a subuid range, the built binary and a data folder
//! of its own. It is removed again.

use std::io::BufRead;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{BINARY, fixtures, output, signal, skip, wait};

const NAME: &str = "tartarus-test";

/// The account, removed when dropped.
struct Account {
    home: tempfile::TempDir,
}

fn root(args: &[&str]) -> std::process::Output {
    let mut command = Command::new(args[0]);
    command.args(&args[1..]).stdin(Stdio::null());
    output(command)
}

impl Account {
    fn make() -> Self {
        let home = tempfile::Builder::new().prefix("tartarus-user-").tempdir_in("/tmp").unwrap();
        let path = &home.path().to_str().unwrap().to_owned();
        let made = root(&["useradd", "--no-create-home", "--home-dir", path, "--shell", "/bin/sh", NAME]);
        assert!(made.status.success(), "{made:?}");
        let account = Self { home };
        let ranges = ["usermod", "--add-subuids", "200000-265535", "--add-subgids", "200000-265535", NAME];
        assert!(root(&ranges).status.success());
        std::fs::copy(BINARY, account.file("tartarus")).unwrap();
        assert!(root(&["chown", "-R", NAME, path]).status.success());
        account
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// A program run as the account, with nothing of root's environment.
    fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NAME, "--regid", NAME, "--init-groups", "--reset-env", "--"]).arg(program).args(args);
        command.current_dir(self.home.path()).stdin(Stdio::null());
        command
    }

    /// A server of the account's that is ready.
    fn up(&self, driver: &str) -> Child {
        let log = std::fs::File::options().append(true).create(true).open(self.file("up.log")).unwrap();
        let mut up = self.command(&self.file("tartarus"), &["up", "--listen", "127.0.0.1:0", "--driver", driver]);
        let mut up = up.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let (stdout, (say, said)) = (up.stdout.take().unwrap(), std::sync::mpsc::sync_channel(1));
        std::thread::spawn(move || say.send(std::io::BufReader::new(stdout).lines().next()));
        let first = said.recv_timeout(Duration::from_secs(60)).unwrap().unwrap().unwrap();
        let log = std::fs::read_to_string(self.file("up.log"));
        assert!(first.starts_with("Tartarus is ready at "), "{first} {log:?}");
        up
    }

    fn tartarus(&self, args: &[&str]) -> std::process::Output {
        output(self.command(&self.file("tartarus"), args))
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.tartarus(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // What a test that failed left running.
        let _ = root(&["pkill", "-KILL", "--uid", NAME]);
        let _ = root(&["userdel", "--force", NAME]);
    }
}

#[test]
fn an_ordinary_user_imports_a_tar_and_runs_a_command() {
    if !is_root() {
        return skip("making an account needs root");
    }
    let account = Account::make();
    let mut up = account.up("qemu-tcg");
    let log = || std::fs::read_to_string(account.file("up.log")).unwrap_or_default();
    let doctor: serde_json::Value = serde_json::from_str(&account.ok(&["doctor", "--json"])).unwrap();
    let check = |name: &str| doctor["checks"].as_array().unwrap().iter().find(|c| c["name"] == name).cloned().unwrap();
    assert_eq!(check("privileges")["status"], "warn", "{doctor}");
    assert!(check("privileges")["advice"].as_str().unwrap().contains("cgroup"), "{doctor}");
    assert_eq!(check("cell")["status"], "warn", "{doctor}");
    for open in ["files", "processes", "network"] {
        assert!(check("cell")["advice"].as_str().unwrap().contains(open), "{doctor}");
    }
    assert_eq!(check("subuid")["status"], "ok", "{doctor}");
    let device =
        std::fs::metadata("/dev/kvm").map(|device| std::os::unix::fs::PermissionsExt::mode(&device.permissions()));
    let closed = device.is_ok_and(|mode| mode & 0o006 == 0);
    if closed {
        assert_eq!(check("kvm")["status"], "warn", "{doctor}");
        assert!(check("kvm")["found"].as_str().unwrap().contains("Permission denied"), "{doctor}");
        assert!(check("kvm")["advice"].as_str().unwrap().contains("usermod -aG kvm"), "{doctor}");
    }

    let kernel = account.file("kernel");
    let unpacked = Command::new("tar")
        .args(["-xf", fixtures().join("kernel.tar").to_str().unwrap(), "--one-top-level=kernel"])
        .current_dir(account.home.path())
        .status();
    assert!(unpacked.unwrap().success());
    assert!(root(&["chown", "-R", NAME, kernel.to_str().unwrap()]).status.success());
    let entry = |dir: &str, prefix: &str| {
        let mut entries = std::fs::read_dir(kernel.join(dir)).unwrap().map(|e| e.unwrap().path());
        let found = entries.find(|p| p.file_name().unwrap().to_str().unwrap().starts_with(prefix));
        found.unwrap().to_str().unwrap().to_owned()
    };
    account.ok(&["kernel", "add", &entry("boot", "vmlinuz"), "--modules", &entry("lib/modules", "")]);
    let tar = account.file("busybox.tar");
    std::fs::copy(fixtures().join("busybox.tar"), &tar).unwrap();
    assert!(root(&["chown", NAME, tar.to_str().unwrap()]).status.success());
    account.ok(&["image", "import", tar.to_str().unwrap(), "--name", "busybox"]);
    account.ok(&["template", "create", "busybox", "--from", "busybox", "--memory", "128M"]);
    let run = account.tartarus(&["run", "busybox", "--", "sh", "-c", "id -u; stat -c %u /home/app; exit 4"]);
    assert_eq!(String::from_utf8_lossy(&run.stdout), "0\n1000\n", "{run:?} {}", log());
    assert_eq!(run.status.code(), Some(4));
    assert!(log().contains("guest ready"));
    let refused =
        account.tartarus(&["run", "--net", "allow", "--allow-cidr", "198.51.100.0/24", "busybox", "--", "true"]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("root"), "{refused:?}");
    let id = account.ok(&["create", "busybox"]);
    let running = || {
        let record: serde_json::Value = serde_json::from_str(&account.ok(&["inspect", id.trim(), "--json"])).unwrap();
        (record["state"] == "running").then(|| record["hypervisor_pid"].as_u64().unwrap())
    };
    let hypervisor = (0..600).find_map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        running()
    });
    let proc = std::path::PathBuf::from(format!("/proc/{}", hypervisor.unwrap()));
    for namespace in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let of = |proc: &Path| std::fs::read_link(proc.join("ns").join(namespace)).unwrap();
        assert_eq!(of(&proc), of(Path::new("/proc/self")), "{namespace}: only root makes one");
    }
    let uid = String::from_utf8(root(&["id", "-u", NAME]).stdout).unwrap();
    let uids = format!("Uid:\t{0}\t{0}\t{0}\t{0}", uid.trim());
    let threads = std::fs::read_dir(proc.join("task")).unwrap();
    // One of those for disks ends when it has nothing to do; the first one stays.
    let statuses: Vec<String> =
        threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")).ok()).collect();
    assert!(!statuses.is_empty());
    for status in statuses {
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t2", "CapEff:\t0000000000000000", &uids] {
            assert!(status.lines().any(|l| l == line), "{line}: {status}");
        }
    }
    account.ok(&["rm", id.trim()]);
    crate::harness::count_guests("ordinary_user", 2);

    signal(up.id(), "TERM");
    assert!(wait(&mut up, Duration::from_secs(30)).success(), "{}", log());
    if closed {
        let mut up = account.up("qemu-kvm");
        let refused = account.tartarus(&["run", "busybox", "--", "true"]);
        assert_eq!(refused.status.code(), Some(125), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("/dev/kvm") && said.contains("Permission denied"), "{said}");
        signal(up.id(), "TERM");
        assert!(wait(&mut up, Duration::from_secs(30)).success(), "{}", log());
    } else {
        skip("what a user is told who may not open /dev/kvm: there is none, or everybody may");
    }
    // What has ended is a zombie until PID 1 takes note.
    let left = root(&["pgrep", "-u", NAME, "-a", "--runstates", "DIRSTt"]);
    assert!(left.stdout.is_empty(), "left: {}", String::from_utf8_lossy(&left.stdout));
}

#[test]
fn a_missing_subuid_range_is_reported_with_the_line_that_adds_it() {
    // `nobody` never has a range.
    if !is_root() {
        return skip("becoming another user needs root");
    }
    let dir = tempfile::Builder::new().prefix("tartarus-nobody-").tempdir_in("/tmp").unwrap();
    assert!(root(&["chown", "nobody", dir.path().to_str().unwrap()]).status.success());
    let binary = dir.path().join("tartarus");
    std::fs::copy(BINARY, &binary).unwrap();
    let data = dir.path().join("data");
    let nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--"]).arg(&binary).args(args);
        command.env("HOME", dir.path()).env_remove("XDG_STATE_HOME").stdin(Stdio::null());
        command
    };
    let mut up = nobody(&["up", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = String::new();
    std::io::BufReader::new(up.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("Tartarus is ready at "), "{first}");
    let doctor = output(nobody(&["doctor"]));
    let text = String::from_utf8_lossy(&doctor.stdout);
    assert!(text.contains("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 nobody"), "{doctor:?}");
    signal(up.id(), "TERM");
    assert!(wait(&mut up, Duration::from_secs(30)).success());
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|l| l.starts_with("Uid:")).is_some_and(|l| l.split_whitespace().nth(2) == Some("0"))
}
