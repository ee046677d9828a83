//! Snapshots on a real disk: what a crash, a hostile file or another caller leaves of them.

use std::cell::Cell;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{Small, noise};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

fn store() -> (tempfile::TempDir, Snapshots) {
    let root = tempfile::tempdir().unwrap();
    let store = Snapshots::open(root.path().join("golden")).unwrap();
    (root, store)
}

/// All files say which one it is.
fn draft(store: &Snapshots, golden: &str, which: u8) -> Draft {
    let draft = store.draft(golden).unwrap();
    draft.create_memory().unwrap().write_all(&[which; 10_000]).unwrap();
    draft.create_state().unwrap().write_all(&[which; 1_000]).unwrap();
    let layer = draft.create_layer().unwrap();
    layer.set_len(1 << 20).unwrap();
    layer.write_all_at(&[which; 4096], 8192).unwrap();
    draft
}

fn put(store: &Snapshots, golden: &str, which: u8) -> Snapshot {
    draft(store, golden, which).commit(&json!({"which": which}), NOW).unwrap()
}

/// Which one it is, when all its files and the manifest agree.
fn which(snapshot: &Snapshot) -> u8 {
    let meta: Value = snapshot.meta().unwrap();
    let which = meta["which"].as_u64().unwrap() as u8;
    let mut bytes = Vec::new();
    fs::File::from(snapshot.state().unwrap()).read_to_end(&mut bytes).unwrap();
    assert!(bytes == [which; 1_000]);
    bytes.clear();
    snapshot.open_memory().unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes == [which; 10_000]);
    assert_eq!(Digest::of(&bytes), snapshot.memory_digest());
    let layer = fs::File::open(snapshot.layer_checked().unwrap()).unwrap();
    let mut block = [0; 4096];
    layer.read_exact_at(&mut block, 8192).unwrap();
    assert!(block == [which; 4096]);
    which
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Nothing but these, each a folder of a snapshot.
fn only(store: &Snapshots, golden: &[&str]) {
    let names = entries(&store.0.root);
    let mut expected: Vec<_> = golden.iter().map(|&name| Some(name)).collect();
    expected.push(None);
    let found: Vec<_> = names.iter().map(|name| name.split_once('.').map(|(golden, _)| golden)).collect();
    assert_eq!(found, expected, "{names:?}");
    assert_eq!(entries(&store.0.staging), [""; 0]);
}

fn why(store: &Snapshots, golden: &str) -> String {
    let said = store.get(golden).unwrap_err().to_string();
    let list = store.list().unwrap();
    let listed = list.iter().find(|listed| listed.golden == golden).unwrap();
    assert!(said.contains(listed.unusable.as_ref().unwrap()), "{said} {listed:?}");
    said
}

#[test]
fn what_is_committed_is_found() {
    let (_root, store) = store();
    assert!(store.get(A).unwrap().is_none() && !store.remove(A).unwrap());
    let made = put(&store, A, 1);
    only(&store, &[A]);
    for snapshot in [made, store.get(A).unwrap().unwrap()] {
        assert_eq!(which(&snapshot), 1);
        assert_eq!((snapshot.golden(), snapshot.created_at()), (A, NOW));
        assert_eq!(snapshot.layer_data_bytes(), 4096);
        let size = |name| fs::metadata(snapshot.folder().join(name)).unwrap().len();
        assert_eq!((size("memory"), size("state"), size("layer")), (10_000, 1_000, 1 << 20));
        for (name, mode) in
            [("", 0o700), ("memory", 0o400), ("state", 0o400), ("layer", 0o400), ("manifest.json", 0o400)]
        {
            let meta = fs::metadata(snapshot.folder().join(name)).unwrap();
            assert_eq!(meta.mode() & 0o7777, mode, "{name}");
        }
    }
    assert_eq!(fs::metadata(&store.0.root).unwrap().mode() & 0o7777, 0o700);
    let store = Snapshots::open(&store.0.root).unwrap();
    assert_eq!(which(&store.get(A).unwrap().unwrap()), 1);
    let list = store.list().unwrap();
    assert!(list.len() == 1 && list[0].unusable.is_none() && list[0].made == Some((NOW, 4096)), "{list:?}");
    assert!((16_384..100_000).contains(&list[0].bytes), "{list:?}");
    assert!(store.remove(A).unwrap() && !store.remove(A).unwrap());
    only(&store, &[]);
}

#[test]
fn a_name_is_never_a_path() {
    let (_root, store) = store();
    let upper = A.to_uppercase();
    let long = format!("{A}a");
    for bad in ["", "..", "../x", "/etc", "staging", &A[1..], &upper, &long, &format!("../{}", &A[3..])] {
        assert!(matches!(store.draft(bad), Err(ErebusError::BadFile(_))), "{bad}");
        assert!(store.get(bad).unwrap().is_none() && !store.remove(bad).unwrap());
    }
    only(&store, &[]);
}

#[test]
fn a_dropped_or_refused_draft_leaves_nothing() {
    let (_root, store) = store();
    drop(draft(&store, A, 1));
    let refused = |draft: Draft, meta: Value| draft.commit(&meta, NOW).unwrap_err().to_string();
    let lacking = |name: &str| {
        let draft = draft(&store, A, 1);
        fs::remove_file(draft.staging.path().join(name)).unwrap();
        draft
    };
    for name in ["memory", "state", "layer"] {
        assert_eq!(refused(lacking(name), json!(1)), format!("the snapshot has no {name}"));
        let linked = lacking(name);
        symlink("/etc/passwd", linked.staging.path().join(name)).unwrap();
        assert!(refused(linked, json!(1)).contains("no regular file"));
    }
    let said = refused(draft(&store, A, 1), json!("x".repeat(64 * 1024)));
    assert!(said.contains("65536 at most"), "{said}");
    let large = draft(&store, A, 1);
    fs::OpenOptions::new().write(true).open(large.state_path()).unwrap().set_len(MAX_STATE + 1).unwrap();
    assert!(refused(large, json!(1)).contains("larger than 16 MiB"));
    let twice = draft(&store, A, 1);
    assert!(twice.create_memory().is_err() && twice.create_state().is_err() && twice.create_layer().is_err());
    drop(twice);
    only(&store, &[]);
    assert!(store.get(A).unwrap().is_none());
}

/// Like `cp -a`: what a kill at this moment would leave.
fn copied(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_the_new_or_none() {
    for replaced in [false, true] {
        let (root, store) = store();
        put(&store, B, 9);
        if replaced {
            put(&store, A, 1);
        }
        let mut moments = Vec::new();
        let meta = json!({"which": 2});
        draft(&store, A, 2)
            .commit_at(meta, NOW, &mut |moment| {
                copied(&store.0.root, &root.path().join(moment));
                moments.push(moment);
            })
            .unwrap();
        assert_eq!(which(&store.get(A).unwrap().unwrap()), 2);
        only(&store, &[A, B]);
        let steps = ["written", "synced", "manifest written", "folder synced", "renamed", "root synced"];
        assert_eq!(moments[..6], steps);
        assert_eq!(moments.len(), if replaced { 7 } else { 6 });
        for (n, moment) in moments.iter().enumerate() {
            let after = Snapshots::open(root.path().join(moment)).unwrap();
            let found = after.get(A).unwrap();
            let expected = if n >= 4 { Some(2) } else { replaced.then_some(1) };
            assert_eq!(found.as_ref().map(which), expected, "{moment}");
            only(&after, if expected.is_some() { &[A, B] } else { &[B] });
            assert_eq!(which(&after.get(B).unwrap().unwrap()), 9);
            // And it goes on from there.
            assert_eq!(which(&put(&after, A, 3)), 3, "{moment}");
            drop(found);
            only(&after, &[A, B]);
        }
    }
}

const KILLED: &str = "EREBUS_KILLED_FOLDER";

/// Makes and removes snapshots in a child until it is killed, again and again.
#[test]
fn kill_9_leaves_a_whole_one_or_none() {
    if let Some(root) = std::env::var_os(KILLED) {
        let store = Snapshots::open(root).unwrap();
        println!("open");
        for n in (1..=200).cycle() {
            put(&store, A, n);
            if n % 7 == 0 {
                assert!(store.remove(A).unwrap());
            }
        }
    }
    let root = tempfile::tempdir().unwrap();
    let (mut found, mut left) = (0, 0);
    for n in 0..60 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nyx::tests::kill_9_leaves_a_whole_one_or_none", "--nocapture"])
            .env(KILLED, root.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let said = std::io::BufReader::new(child.stdout.take().unwrap());
        assert!(std::io::BufRead::lines(said).any(|line| line.unwrap().ends_with("open")));
        std::thread::sleep(Duration::from_micros(1_000 + n * 197));
        child.kill().unwrap();
        child.wait().unwrap();
        left += usize::from(entries(root.path()).len() != 2 || !entries(&root.path().join("staging")).is_empty());
        let store = Snapshots::open(root.path()).unwrap();
        let snapshot = store.get(A).unwrap();
        found += usize::from(snapshot.as_ref().map(which).is_some());
        only(&store, if snapshot.is_some() { &[A] } else { &[] });
    }
    println!("of 60 kills {left} left something unfinished, and {found} a snapshot");
    assert!(left > 5 && found > 5);
}

/// The moments of a rename or removal that never was whole on the disk: some of the files are there.
#[test]
fn half_a_folder_is_collected() {
    for lost in ["memory", "state", "layer", "manifest.json"] {
        let (_root, store) = store();
        let dir = put(&store, A, 1).folder().to_owned();
        fs::remove_file(dir.join(lost)).unwrap();
        if lost != "manifest.json" {
            assert!(why(&store, A).contains(&format!("its {lost} is missing")));
            fs::remove_file(dir.join("manifest.json")).unwrap();
        }
        assert!(store.get(A).unwrap().is_none());
        let store = Snapshots::open(&store.0.root).unwrap();
        only(&store, &[]);
    }
    let (_root, store) = store();
    fs::create_dir(store.0.root.join(format!("{A}.0000000000000000"))).unwrap();
    fs::write(store.0.root.join(format!("{A}.0000000000000001")), "a file").unwrap();
    symlink("/etc", store.0.root.join(format!("{B}.0000000000000001"))).unwrap();
    fs::create_dir_all(store.0.staging.join("7/x")).unwrap();
    fs::write(store.0.staging.join("8"), "x").unwrap();
    only(&Snapshots::open(&store.0.root).unwrap(), &[]);
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn what_is_not_ours_stays() {
    let (_root, store) = store();
    let names = ["lost+found", &format!("{A}.1"), &format!("{A}.000000000000000G"), A];
    for name in names {
        fs::create_dir(store.0.root.join(name)).unwrap();
    }
    let store = Snapshots::open(&store.0.root).unwrap();
    assert!(store.list().unwrap().is_empty());
    assert!(names.iter().all(|name| store.0.root.join(name).is_dir()));
}

#[test]
fn a_damaged_manifest_is_never_used() {
    let (_root, store) = store();
    let manifest = put(&store, A, 1).folder().join("manifest.json");
    let good: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value = good.clone();
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    };
    let whole = with(&|_| ());
    let bad: [(&str, Vec<u8>, &str); 6] = [
        ("cut off", whole[..whole.len() / 2].to_vec(), "cannot be read"),
        ("empty", Vec::new(), "cannot be read"),
        ("no JSON", b"\xff\x00hello".to_vec(), "cannot be read"),
        ("another's", with(&|v| v["golden"] = json!(B)), "another snapshot"),
        ("large", vec![b' '; 10 << 20], "larger than"),
        ("of another size", with(&|v| v["files"]["memory"]["bytes"] = json!(9_999)), "has 10000 bytes"),
    ];
    for (what, bytes, said) in bad {
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, bytes).unwrap();
        let why = why(&store, A);
        assert!(why.contains(said), "{what}: {why}");
        // The manifest alone decides what the next open makes of it; sizes are told, not collected.
        let copy = tempfile::tempdir().unwrap();
        copied(&store.0.root, &copy.path().join("x"));
        let kept = Snapshots::open(copy.path().join("x")).unwrap().list().unwrap().len();
        assert_eq!(kept, usize::from(what == "of another size"), "{what}");
    }
    fs::remove_file(&manifest).unwrap();
    symlink("/etc/passwd", &manifest).unwrap();
    assert!(why(&store, A).contains("no regular file"));
    fs::remove_file(&manifest).unwrap();
    fs::create_dir(&manifest).unwrap();
    assert!(why(&store, A).contains("no regular file"));
    fs::remove_dir(&manifest).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&manifest).status().unwrap().success());
    assert!(why(&store, A).contains("no regular file"), "and it did not wait");
    only(&Snapshots::open(&store.0.root).unwrap(), &[]);
}

#[test]
fn a_newer_one_is_kept_told_and_can_be_replaced() {
    let (_root, store) = store();
    let manifest = put(&store, A, 1).folder().join("manifest.json");
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, r#"{"version": 2, "all": "different"}"#).unwrap();
    let store = Snapshots::open(&store.0.root).unwrap();
    assert!(why(&store, A).contains("newer Tartarus"));
    only(&store, &[A]);
    put(&store, A, 2);
    assert_eq!(which(&store.get(A).unwrap().unwrap()), 2);
    only(&store, &[A]);
}

#[test]
fn an_altered_file_is_never_used() {
    let (_root, store) = store();
    let snapshot = put(&store, A, 1);
    let write = |name: &str, at: u64, bytes: &[u8]| {
        let path = snapshot.folder().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
    };
    // Longer or shorter: told at once.
    for (name, len) in [("memory", 10_000), ("state", 1_000), ("layer", 1 << 20)] {
        write(name, len, b"x");
        assert!(why(&store, A).contains(&format!("its {name} has {} bytes", len + 1)));
        let file = fs::OpenOptions::new().write(true).open(snapshot.folder().join(name)).unwrap();
        file.set_len(len - 1).unwrap();
        assert!(why(&store, A).contains(&format!("its {name} has {} bytes", len - 1)));
        file.set_len(len).unwrap();
        file.write_all_at(&[if name == "layer" { 0 } else { 1 }], len - 1).unwrap();
        assert_eq!(which(&store.get(A).unwrap().unwrap()), 1);
    }
    // Of the right length: told when it is read.
    let found = store.get(A).unwrap().unwrap();
    write("state", 10, b"x");
    assert!(found.state().unwrap_err().to_string().contains("its state was altered"));
    write("layer", 8192, b"x");
    assert!(found.layer_checked().unwrap_err().to_string().contains("its layer was altered"));
    write("layer", 8192, &[1]);
    found.layer_checked().unwrap();
    write("layer", 0, b"x");
    assert!(found.layer_checked().is_err(), "where a hole was");
    write("memory", 0, b"x");
    let mut bytes = Vec::new();
    found.open_memory().unwrap().read_to_end(&mut bytes).unwrap();
    assert_ne!(Digest::of(&bytes), found.memory_digest());
    for name in ["memory", "state", "layer"] {
        fs::remove_file(snapshot.folder().join(name)).unwrap();
        symlink("/etc/passwd", snapshot.folder().join(name)).unwrap();
        assert!(why(&store, A).contains("no regular file"));
    }
    assert!(found.state().is_err() && found.open_memory().is_err() && found.layer_checked().is_err());
}

#[test]
fn the_layer_is_read_once_per_process() {
    let (_root, store) = store();
    let draft = draft(&store, A, 1);
    let layer = fs::OpenOptions::new().write(true).open(draft.layer_path()).unwrap();
    let content = noise(64 << 20);
    layer.write_all_at(&content, 0).unwrap();
    draft.commit(&json!({"which": 1}), NOW).unwrap();
    let time = |store: &Snapshots| {
        let snapshot = store.get(A).unwrap().unwrap();
        let start = Instant::now();
        snapshot.layer_checked().unwrap();
        start.elapsed()
    };
    // The best of some: the machine may be busy with something else.
    let best = |store: &Snapshots| (0..9).map(|_| time(store)).min().unwrap();
    let after_commit = best(&store);
    let store = Snapshots::open(&store.0.root).unwrap();
    let (first, second) = (time(&store), best(&store));
    println!("a layer of 64 MiB: {after_commit:?} after the commit, first {first:?}, then {second:?}");
    assert!(second < Duration::from_millis(1) && after_commit < Duration::from_millis(1) && second < first);
}

#[test]
fn the_state_is_sealed() {
    let (_root, store) = store();
    let snapshot = put(&store, A, 1);
    let mut state = fs::File::from(snapshot.state().unwrap());
    let mut bytes = Vec::new();
    state.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 1_000, "it was at its start");
    state.seek(SeekFrom::Start(0)).unwrap();
    assert!(state.write_all(b"x").is_err() && state.set_len(0).is_err() && state.set_len(2_000).is_err());
}

#[test]
fn removal_waits_for_the_last_lease() {
    let (_root, store) = store();
    put(&store, A, 1);
    let snapshot = store.get(A).unwrap().unwrap();
    let (lease, second) = (snapshot.lease(), store.get(A).unwrap().unwrap().lease());
    assert!(store.remove(A).unwrap());
    assert!(store.get(A).unwrap().is_none() && store.list().unwrap().is_empty());
    // Whoever has it goes on, under the same paths.
    assert_eq!(which(&snapshot), 1);
    let dir = snapshot.folder().to_owned();
    // A kill now: the next process does not find it.
    let copy = tempfile::tempdir().unwrap();
    copied(&store.0.root, &copy.path().join("x"));
    only(&Snapshots::open(copy.path().join("x")).unwrap(), &[]);
    // A new one of the same name is another.
    put(&store, A, 2);
    assert_eq!((which(&snapshot), which(&store.get(A).unwrap().unwrap())), (1, 2));
    drop(lease);
    drop(snapshot);
    assert!(dir.is_dir());
    drop(second);
    assert!(!dir.exists());
    only(&store, &[A]);
}

#[test]
fn replacing_keeps_what_is_leased() {
    let (_root, store) = store();
    let first = put(&store, A, 1);
    let lease = first.lease();
    let second = put(&store, A, 2);
    assert_eq!((which(&first), which(&second)), (1, 2));
    assert_eq!(lease.golden(), A);
    drop((first, lease));
    only(&store, &[A]);
    assert_eq!(which(&second), 2);
}

#[test]
fn two_drafts_at_once_are_both_whole() {
    let (_root, store) = store();
    let (first, second) = (draft(&store, A, 1), draft(&store, A, 2));
    second.commit(&json!({"which": 2}), NOW).unwrap();
    first.commit(&json!({"which": 1}), NOW).unwrap();
    assert_eq!(which(&store.get(A).unwrap().unwrap()), 1, "the later one");
    only(&store, &[A]);
    // Many at once, and readers beside them: one whole one at each moment.
    let rounds = Cell::new(0);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=4)
            .map(|n| {
                let store = store.clone();
                scope.spawn(move || (0..10).for_each(|_| drop(put(&store, A, n))))
            })
            .collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            let snapshot = store.get(A).unwrap().expect("there is one all the time");
            assert!((1..=4).contains(&which(&snapshot)));
            rounds.set(rounds.get() + 1);
        }
    });
    assert!(rounds.get() > 0);
    only(&store, &[A]);
    which(&Snapshots::open(&store.0.root).unwrap().get(A).unwrap().unwrap());
}

#[test]
fn a_full_disk_keeps_the_old_one() {
    let Some(small) = Small::mount("size=1m") else {
        return println!("skipped: only root can mount a small file system");
    };
    let store = Snapshots::open(small.path().join("golden")).unwrap();
    put(&store, A, 1);
    // Each file meets the full disk once; and so does the manifest.
    let ballast = small.path().join("ballast");
    let mut refused = 0;
    for free in (0..80).step_by(4) {
        let _ = fs::remove_file(&ballast);
        let room = (1 << 20) - disk_usage(&store.0.root).unwrap() - 4096;
        fs::write(&ballast, vec![1; (room - free * 1024) as usize]).unwrap();
        let written = || -> Result<Snapshot, ErebusError> {
            let draft = store.draft(A)?;
            let put = |file: fs::File, bytes: &[u8]| file.write_all_at(bytes, 0).map_err(ErebusError::io("write"));
            put(draft.create_memory()?, &[2; 10_000])?;
            put(draft.create_state()?, &[2; 1_000])?;
            let layer = draft.create_layer()?;
            layer.set_len(1 << 20).map_err(ErebusError::io("write"))?;
            layer.write_all_at(&[2; 4096], 8192).map_err(ErebusError::io("write"))?;
            draft.commit(&json!({"which": 2}), NOW)
        };
        match written() {
            Ok(snapshot) => {
                assert_eq!(which(&snapshot), 2);
                only(&store, &[A]);
                println!("refused {refused} times, then there was space");
                assert!(refused > 4);
                return;
            }
            Err(ErebusError::DiskFull) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        assert_eq!(which(&store.get(A).unwrap().unwrap()), 1);
        only(&store, &[A]);
    }
    panic!("there was never enough space");
}

#[test]
fn getting_is_quick() {
    let (_root, store) = store();
    put(&store, A, 1);
    let mut times: Vec<Duration> = (0..201)
        .map(|_| {
            let start = Instant::now();
            store.get(A).unwrap().unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("get: median {:?}, worst {:?}", times[100], times[200]);
    assert!(times[100] < Duration::from_millis(1), "{times:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_manifest_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (_root, store) = store();
        let manifest = put(&store, A, 1).folder().join("manifest.json");
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, bytes).unwrap();
        prop_assert!(store.get(A).is_err());
        only(&Snapshots::open(&store.0.root).unwrap(), &[]);
    }

    #[test]
    fn only_its_own_name_parses(name in "[ab0-9.+]{60,90}|a{64}\\.[0-9a-f+]{14,17}") {
        if let Some(parsed) = FolderName::parse(&name) {
            let folder = Folder::new(Path::new("/x"), parsed);
            prop_assert_eq!(&folder.dir, &Path::new("/x").join(name));
        }
    }
}
