//! The binary as scripts see it: exit codes, what goes to which stream, and what is said when it goes wrong.

mod support;

use support::{Server, lock, script, tartarus, text};

#[test]
fn help_is_no_error_and_a_mistake_is_one() {
    for (args, code) in [
        (&["--help"][..], 0),
        (&["run", "--help"], 0),
        (&["--version"], 0),
        (&[], 2),
        (&["nonsense"], 2),
        (&["ps", "--nonsense"], 2),
        (&["run"], 125),
        (&["run", "t", "--nonsense", "--", "x"], 125),
        (&["-q", "run", "t", "x"], 125),
        (&["exec"], 125),
        (&["wait"], 125),
        (&["bench", "start", "--help"], 0),
        (&["bench", "start", "--only", "nonsense"], 2),
        (&["bench", "start", "--image", "/nowhere/x.tar"], 2),
    ] {
        let output = tartarus(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        let (told, other) = if code == 0 { (output.stdout, output.stderr) } else { (output.stderr, output.stdout) };
        assert!(!told.is_empty() && other.is_empty(), "{args:?}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (args, words) in [
        (&["run", "t"][..], &["tartarus: error: command: ", "after --"][..]),
        (&["run", "t", "--", ""], &["tartarus: error: command: ", "empty"]),
        (&["run", "t", "--memory", "-512M", "--", "x"], &["tartarus: error: memory: ", "512M"]),
        (&["run", "t", "--memory", "9999999T", "--", "x"], &["tartarus: error: memory: ", "out of range"]),
        (&["run", "t", "--start-timeout", "5", "--", "x"], &["tartarus: error: start_timeout: ", "30s"]),
        (&["run", "t", "--cpus", "-1", "--", "x"], &["tartarus: error: cpus: "]),
        (&["run", "t", "--env", "TARTARUS_TEST_UNSET", "--", "x"], &["tartarus: error: env.TARTARUS_TEST_UNSET: "]),
        (&["run", "t", "--", "x"], &["tartarus: error: ", "tartarus up", "TARTARUS_URL"]),
    ] {
        let output = tartarus(args).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{args:?}");
        let stderr = text(&output.stderr);
        assert!(words.iter().all(|word| stderr.contains(word)), "{args:?}: {stderr}");
        assert!(!stderr.contains('\x1b'), "no colour where nobody looks: {stderr}");
    }
    let output = tartarus(&["ps"]).env("TARTARUS_URL", "https://x").env("TARTARUS_API_KEY", "k").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("http only"), "{}", text(&output.stderr));
    let script = script();
    let server = Server::start(&script);
    let output = server.output(&["kill", "x", "--signal", "NOPE"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("tartarus: error: signal: "), "{}", text(&output.stderr));
    assert!(lock(&script).kills.is_empty());
}

#[test]
fn a_server_is_found_by_the_pointer_file() {
    let script = script();
    let server = Server::start(&script);
    let state = tempfile::tempdir().unwrap();
    let key = state.path().join("admin.key");
    std::fs::write(&key, "key\n").unwrap();
    std::fs::create_dir(state.path().join("tartarus")).unwrap();
    let pointer = serde_json::json!({ "url": server.url(), "key_file": key });
    std::fs::write(state.path().join("tartarus/server.json"), pointer.to_string()).unwrap();
    let run = |args: &[&str]| tartarus(args).env("XDG_STATE_HOME", state.path()).output().unwrap();

    let id = lock(&script).id.to_string();
    let output = run(&["run", "t", "--detach", "--", "x"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), format!("{id}\n")), "{}", text(&output.stderr));
    let output = run(&["ps"]);
    assert!(text(&output.stdout).starts_with("ID  ") && text(&output.stdout).contains(&id));
    let output = run(&["ps", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list[0]["id"], id.as_str());

    drop(server);
    let output = run(&["ps"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("tartarus up"), "{}", text(&output.stderr));
}

#[test]
fn rm_goes_on_after_a_failure() {
    let script = script();
    let server = Server::start(&script);
    let id = lock(&script).id.to_string();
    assert_eq!(server.output(&["rm", &id]).status.code(), Some(0));
    let output = server.output(&["rm", "absent\x1b[2J", &id]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("absent") && stderr.contains("ps --all") && !stderr.contains('\x1b'), "{stderr}");
    assert_eq!(stderr.matches("error").count(), 1, "{stderr}");
}

#[test]
fn an_image_comes_from_a_tar_a_folder_or_a_pipe() {
    let script = script();
    let server = Server::start(&script);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hello"), "content").unwrap();
    let tar = dir.path().with_extension("tar");
    std::fs::write(&tar, vec![7; 700_000]).unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();

    let output = server.output(&["image", "import", &path(&tar), "--name", "file"]);
    assert_eq!(text(&output.stdout), "file sha256:d\n", "{}", text(&output.stderr));
    assert_eq!(lock(&script).uploads["file"], vec![7; 700_000]);
    let mut piped = server.tartarus(&["image", "import", "-", "--name", "pipe"]);
    piped.stdin(std::fs::File::open(&tar).unwrap());
    assert!(piped.output().unwrap().status.success());
    assert_eq!(lock(&script).uploads["pipe"].len(), 700_000);
    std::fs::remove_file(&tar).unwrap();

    assert!(server.output(&["image", "import", &path(dir.path()), "--name", "dir"]).status.success());
    let uploaded = lock(&script).uploads["dir"].clone();
    let mut archive = tar::Archive::new(uploaded.as_slice());
    let names: Vec<_> = archive.entries().unwrap().map(|entry| path(&entry.unwrap().path().unwrap())).collect();
    assert_eq!(names, [".", "hello"].map(|name| if name == "." { "./".to_owned() } else { format!("./{name}") }));

    let output = server.output(&["image", "import", "/absent/root.tar", "--name", "n"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("source: /absent/root.tar"), "{}", text(&output.stderr));
}

#[test]
fn completion_and_manual_come_out_whole() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tartarus(&["completion", shell]).output().unwrap();
        assert!(output.status.success() && text(&output.stdout).contains("start-timeout"), "{shell}");
    }
    let output = tartarus(&["man"]).output().unwrap();
    let pages = text(&output.stdout);
    assert!(output.status.success() && pages.matches(".TH ").count() >= 15, "{}", pages.matches(".TH ").count());
    assert!(!pages.contains("supervise"), "what is hidden has no page");
    let dir = tempfile::tempdir().unwrap();
    let output = tartarus(&["man", "--dir", dir.path().to_str().unwrap()]).output().unwrap();
    assert!(output.status.success() && dir.path().join("tartarus-run.1").is_file(), "{}", text(&output.stderr));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = tartarus(&["completion", "bash"]).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}
