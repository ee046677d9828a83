//! Sealed memory and its keeper, with real processes.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use support::roles::{BUDGET, SIZE, digest, get, inode, packed, raw, say};
use support::{AGENT, INTRUDER, STRANGER};
use tartarus_runtime::bases::{BaseError, Bases};
use tartarus_runtime::keeper::{ALONE, Connection, Connector};

const LIMIT: Duration = Duration::from_secs(20);
const NOBODY: u32 = 65_534;

/// A folder whose keeper ends with the test, however that ends.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    async fn bases(&self) -> Bases {
        Bases::open(self.path(), support::keeper(), BUDGET).await.unwrap()
    }

    async fn held(&self) -> Vec<String> {
        Connection::open(self.path()).await.unwrap().names().await.unwrap()
    }

    fn keeper_pid(&self) -> u32 {
        let pid = rustix::net::sockopt::socket_peercred(raw(self.path()).unwrap()).unwrap().pid;
        pid.as_raw_nonzero().get() as u32
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Ok(socket) = raw(self.path()) {
            say(&socket, b"\"quit\"");
        }
    }
}

fn run(role: &str, argument: &str, uid: Option<u32>) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([role, argument]);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command.output().unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !done().await {
        assert!(begin.elapsed() < LIMIT, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn eight_bases_outlive_an_agent_that_was_killed_one_copy_each() {
    let home = Home::new();
    let agent = run(AGENT, home.path().to_str().unwrap(), None);
    assert_eq!(agent.status.signal(), Some(libc::SIGKILL), "{}", text(&agent.stderr));
    let inodes: Vec<u64> = text(&agent.stdout).lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(inodes.len(), 8);
    for _ in 0..2 {
        let bases = home.bases().await;
        assert_eq!(bases.loaded().len(), 8);
        assert!(bases.loaded().iter().all(|(_, bytes, in_use)| *bytes == SIZE && !in_use));
        for (number, expected) in inodes.iter().enumerate() {
            let number = number as u8;
            let not_loaded = || Err(std::io::Error::other("it was loaded again"));
            let name = format!("base-{number}");
            let base = bases.get(&name, SIZE, digest(&packed(number)), not_loaded).await.unwrap();
            assert_eq!(inode(&base), *expected);
            let mut last = [0; 1];
            File::from(base.try_clone().unwrap()).read_exact_at(&mut last, SIZE - 1).unwrap();
            assert_eq!(last[0], number);
        }
    }
}

#[tokio::test]
async fn sealed_memory_cannot_be_changed_by_whoever_has_it() {
    let home = Home::new();
    let bases = home.bases().await;
    let base = get(&bases, home.path(), 7).await.unwrap();
    let uid = if is_root() {
        Some(NOBODY)
    } else {
        eprintln!("skipped: trying it as another user needs root; tried as the same one");
        None
    };
    let fd = base.as_raw_fd();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([INTRUDER, "110"]);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    // SAFETY: the closure only makes a system call.
    unsafe {
        command.pre_exec(move || if libc::dup2(fd, 110) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
    }
    let output = text(&command.output().unwrap().stdout);
    let tried: Vec<(&str, i32)> =
        output.lines().filter_map(|line| line.split_once(": ")).map(|(what, e)| (what, e.parse().unwrap())).collect();
    assert_eq!(tried.len(), 13, "{output}");
    for (what, error) in tried {
        match what {
            "uid" => assert!(uid.is_none_or(|uid| uid as i32 == error)),
            "open" | "map privately" => assert_eq!(error, 0, "{output}"),
            _ => assert!([libc::EPERM, libc::EACCES].contains(&error), "{what}: {output}"),
        }
    }
    let memory = File::from(base.try_clone().unwrap());
    let mut first = [0; 1];
    memory.read_exact_at(&mut first, 0).unwrap();
    assert_eq!((first[0], memory.metadata().unwrap().len()), (7, SIZE));
}

#[tokio::test]
async fn a_file_that_is_not_what_it_was_is_damaged_and_nothing_is_loaded() {
    let home = Home::new();
    let bases = home.bases().await;
    let good = packed(1);
    let flip = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let foreign = packed(2);
    let mut longer = good.clone();
    longer.push(0);
    let cases: [(&str, Vec<u8>); 10] = [
        ("empty", Vec::new()),
        ("truncated", good[..good.len() - 1].to_vec()),
        ("cut in the table", good[..50].to_vec()),
        ("longer", longer),
        ("flipped at the end", flip(good.len() - 1)),
        ("flipped in the table", flip(56)),
        ("of another size of memory", flip(18)),
        ("over a base", flip(24)),
        ("foreign", foreign),
        ("not one at all", b"#!/bin/sh\n".repeat(1000)),
    ];
    for (what, bytes) in cases {
        let path = home.path().join("packed");
        std::fs::write(&path, bytes).unwrap();
        let got = bases.get("it", SIZE, digest(&good), move || File::open(path)).await;
        let Err(error @ BaseError::Damaged { .. }) = got else { panic!("{what}: {got:?}") };
        let file = home.path().join("packed");
        assert!(error.to_string().contains(file.to_str().unwrap()), "{what}: {error}");
        assert_eq!((bases.loaded(), home.held().await), (Vec::new(), Vec::new()), "{what}");
    }
    let absent = bases.get("it", SIZE, digest(&good), || File::open("/nowhere/at/all")).await;
    assert!(matches!(absent, Err(BaseError::Failed { .. })), "{absent:?}");
    let odd = bases.get("it", 4097, digest(&good), || File::open("/dev/null")).await;
    assert!(matches!(odd, Err(BaseError::Failed { .. })), "{odd:?}");
    // Nothing of all that is in the way of the right one.
    assert!(get(&bases, home.path(), 1).await.is_ok());
}

#[tokio::test]
async fn many_who_want_the_same_base_load_it_once() {
    let home = Home::new();
    let bases = Arc::new(home.bases().await);
    let opened = Arc::new(AtomicU32::new(0));
    let path = home.path().join("packed");
    std::fs::write(&path, packed(1)).unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (bases, opened, path) = (bases.clone(), opened.clone(), path.clone());
            let open = move || {
                opened.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(100));
                File::open(path)
            };
            tokio::spawn(async move { bases.get("it", SIZE, digest(&packed(1)), open).await.unwrap() })
        })
        .collect();
    // One that nobody waits for goes on.
    tasks[3].abort();
    let mut inodes = Vec::new();
    for task in tasks {
        if let Ok(base) = task.await {
            inodes.push(inode(&base));
        }
    }
    assert!(inodes.len() >= 7 && inodes.iter().all(|one| *one == inodes[0]));
    assert_eq!(opened.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_is_not_in_use_makes_way_and_what_is_does_not() {
    let home = Home::new();
    let bases = Bases::open(home.path(), support::keeper(), 2 * SIZE).await.unwrap();
    let names = || bases.loaded().into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
    let one = get(&bases, home.path(), 1).await.unwrap();
    drop(get(&bases, home.path(), 2).await.unwrap());
    let three = get(&bases, home.path(), 3).await.unwrap();
    assert_eq!(names(), ["base-1", "base-3"]);
    assert_eq!(home.held().await.iter().map(|name| &name[..7]).collect::<Vec<_>>(), ["base-1@", "base-3@"]);
    let error = get(&bases, home.path(), 2).await.unwrap_err();
    let expected = "the memory of base-2 (64 MiB) does not fit: raise `tartarus up --snapshot-memory`, now 128 MiB; \
                    128 MiB are in use";
    assert_eq!(error.to_string(), expected);
    // What a snapshot is called on a node.
    let error = bases.get(&"0123456789abcdef".repeat(4), SIZE, [7; 32], || File::open("/dev/null")).await.unwrap_err();
    assert!(error.to_string().starts_with("the memory of 0123456789ab (64 MiB) does not fit"), "{error}");
    drop(one);
    let two = get(&bases, home.path(), 2).await.unwrap();
    assert_eq!(names(), ["base-2", "base-3"]);
    // A removed one that is in use takes its room until it is not.
    bases.remove("base-3").await;
    assert_eq!(bases.loaded(), [("base-2".to_owned(), SIZE, true), ("base-3".to_owned(), SIZE, true)]);
    assert!(matches!(get(&bases, home.path(), 1).await, Err(BaseError::NoRoom { .. })));
    drop(three);
    get(&bases, home.path(), 1).await.unwrap();
    assert_eq!(names(), ["base-1", "base-2"]);
    drop((two, bases));
    // With less to spend, the next agent keeps less, but what adopted machines map: so not before they had their say.
    let bases = Bases::open(home.path(), support::keeper(), SIZE).await.unwrap();
    assert_eq!((bases.loaded().len(), home.held().await.len()), (2, 2));
    // The least recently used one, which would have to go.
    let held = bases.hold("base-1", digest(&packed(1))).unwrap();
    assert!(matches!(get(&bases, home.path(), 3).await, Err(BaseError::NoRoom { .. })));
    drop(get(&bases, home.path(), 1).await.unwrap());
    assert_eq!(bases.loaded(), [("base-1".to_owned(), SIZE, true)]);
    assert_eq!(home.held().await.len(), 1);
    drop(held);
    get(&bases, home.path(), 3).await.unwrap();
}

/// Loads `packed(content)` under one and the same name.
async fn content(bases: &Bases, dir: &Path, content: u8) -> Arc<tartarus_runtime::bases::Base> {
    let path = dir.join(format!("content-{content}"));
    std::fs::write(&path, packed(content)).unwrap();
    bases.get("it", SIZE, digest(&packed(content)), move || File::open(path)).await.unwrap()
}

#[tokio::test]
async fn others_of_a_name_are_removed_and_the_one_to_keep_is_not() {
    let home = Home::new();
    let bases = home.bases().await;
    let (old, new) = (digest(&packed(1)), digest(&packed(2)));
    content(&bases, home.path(), 1).await;
    let kept = inode(&*content(&bases, home.path(), 2).await);
    get(&bases, home.path(), 3).await.unwrap();
    bases.remove_others("it", new).await;
    until("the removal", async || home.held().await.len() == 2).await;
    assert!(bases.hold("it", old).is_none());
    assert_eq!(bases.hold("it", new).map(|base| inode(&base)), Some(kept));
    assert!(bases.hold("base-3", digest(&packed(3))).is_some(), "another name is another matter");
    // One that is still on its way is kept or not in the same way.
    for (keep, stays) in [(new, true), (old, false)] {
        bases.remove("it").await;
        let (go, wait) = std::sync::mpsc::sync_channel::<()>(1);
        let path = home.path().join("content-2");
        let open = move || {
            let _ = wait.recv();
            File::open(path)
        };
        let loading = bases.get("it", SIZE, new, open);
        let removing = async {
            bases.remove_others("it", keep).await;
            go.send(()).unwrap();
        };
        let (base, ()) = tokio::join!(biased; loading, removing);
        drop(base.unwrap());
        let held = if stays { 2 } else { 1 };
        until("what becomes of it", async || home.held().await.len() == held).await;
        assert_eq!(bases.hold("it", new).is_some(), stays);
    }
}

#[tokio::test]
async fn a_machine_finds_what_it_maps_after_a_restart_although_that_was_removed() {
    let home = Home::new();
    let bases = home.bases().await;
    let (old, new) = (digest(&packed(1)), digest(&packed(2)));
    let mapped = content(&bases, home.path(), 1).await;
    let expected = inode(&mapped);
    bases.remove("it").await;
    drop(content(&bases, home.path(), 2).await);
    assert_eq!(bases.hold("it", old).map(|base| inode(&base)), Some(expected));
    // It takes its room under the new keeper as well.
    let keeper = home.keeper_pid();
    // SAFETY: a system call on numbers; it is this test's own keeper.
    unsafe { libc::kill(keeper as i32, libc::SIGKILL) };
    until("another keeper", async || match Connection::open(home.path()).await {
        Ok(keeper) => keeper.names().await.is_ok_and(|names| names.len() == 2),
        Err(_) => false,
    })
    .await;
    // An agent that ends lets go of everything, although the machines run on.
    bases.leave().await;
    drop(mapped);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(home.held().await.len(), 2);
    drop(bases);
    let bases = home.bases().await;
    let mapped = bases.hold("it", old).unwrap();
    assert_eq!(inode(&mapped), expected);
    assert!(bases.hold("it", [9; 32]).is_none() && bases.hold("that", old).is_none());
    bases.remove_others("it", new).await;
    assert_eq!(bases.loaded().len(), 2, "it is in use");
    // With its last machine it is gone, from the keeper too, without anybody asking for anything.
    drop(mapped);
    until("its end", async || home.held().await.len() == 1).await;
    assert_eq!(bases.loaded(), [("it".to_owned(), SIZE, false)]);
    assert!(bases.hold("it", old).is_none() && bases.hold("it", new).is_some());
}

#[tokio::test]
async fn a_new_content_of_the_same_name_is_another_base() {
    let home = Home::new();
    let bases = home.bases().await;
    let path = home.path().join("packed");
    let mut inodes = Vec::new();
    for content in [1, 2] {
        std::fs::write(&path, packed(content)).unwrap();
        let path = path.clone();
        let base = bases.get("it", SIZE, digest(&packed(content)), move || File::open(path)).await.unwrap();
        inodes.push(inode(&base));
    }
    assert_ne!(inodes[0], inodes[1]);
    bases.remove("it").await;
    // The task that loaded may hold it for a moment longer.
    until("its end", async || (bases.loaded().len(), home.held().await.len()) == (0, 0)).await;
}

#[tokio::test]
async fn a_keeper_that_was_killed_is_replaced_and_filled_again() {
    let home = Home::new();
    let bases = home.bases().await;
    let one = get(&bases, home.path(), 1).await.unwrap();
    let (expected, first) = (inode(&one), home.keeper_pid());
    // Twice, and each at once: also one that hardly lived is replaced, without anybody asking for anything.
    let mut last = first;
    for _ in 0..2 {
        // SAFETY: a system call on numbers; it is this test's own keeper.
        unsafe { libc::kill(last as i32, libc::SIGKILL) };
        until("another keeper", async || match Connection::open(home.path()).await {
            Ok(keeper) => keeper.names().await.is_ok_and(|names| names.len() == 1),
            Err(_) => false,
        })
        .await;
        assert_ne!(home.keeper_pid(), last);
        last = home.keeper_pid();
    }
    drop((bases, one));
    let bases = home.bases().await;
    let not_loaded = || Err(std::io::Error::other("it was loaded again"));
    let one = bases.get("base-1", SIZE, digest(&packed(1)), not_loaded).await.unwrap();
    assert_eq!(inode(&one), expected);
}

#[tokio::test]
async fn memory_that_is_not_what_it_is_called_is_not_taken_from_the_keeper() {
    let home = Home::new();
    let connector = Connector { dir: home.path().to_owned(), program: support::keeper(), alone: ALONE };
    let keeper = connector.connect().await.unwrap();
    let sealed = |name: &str| {
        let mut memory = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
        memory.write_all(&[9; 4096]).unwrap();
        memory.set_len(SIZE).unwrap();
        fcntl_add_seals(&memory, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).unwrap();
        OwnedFd::from(memory)
    };
    let hex: String = digest(&packed(1)).iter().map(|byte| format!("{byte:02x}")).collect();
    keeper.put(&format!("base-1@{hex}"), sealed("other").as_fd()).await.unwrap();
    keeper.put("nonsense", sealed("other").as_fd()).await.unwrap();
    let bases = home.bases().await;
    assert_eq!((bases.loaded().len(), home.held().await.len()), (0, 0));
    // One that comes later is found out as well.
    keeper.put(&format!("base-1@{hex}"), sealed(&format!("tartarus-base-{hex}x")).as_fd()).await.unwrap();
    let base = get(&bases, home.path(), 1).await.unwrap();
    let mut first = [0; 1];
    File::from(base.try_clone().unwrap()).read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first[0], 1);
}

#[tokio::test]
async fn a_keeper_ends_when_it_is_alone_and_not_before() {
    let home = Home::new();
    let alone = Duration::from_millis(300);
    let bases = Bases::open_with(home.path(), support::keeper(), BUDGET, alone).await.unwrap();
    get(&bases, home.path(), 1).await.unwrap();
    let pid = home.keeper_pid();
    tokio::time::sleep(3 * alone).await;
    assert_eq!(home.keeper_pid(), pid);
    drop(bases);
    until("its end", async || !Path::new(&format!("/proc/{pid}")).exists()).await;
    assert!(raw(home.path()).is_err() && !home.path().join("keeper.sock").exists());
}

#[tokio::test]
async fn a_folder_has_one_keeper_however_many_start_it() {
    let home = Home::new();
    let connector = Connector { dir: home.path().to_owned(), program: support::keeper(), alone: ALONE };
    let others = (0..6).map(|_| {
        let connector = connector.clone();
        tokio::spawn(async move { connector.connect().await })
    });
    let mut connections = Vec::new();
    for other in others.collect::<Vec<_>>() {
        connections.push(other.await.unwrap().unwrap());
    }
    let memory = memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    fcntl_add_seals(&memory, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).unwrap();
    connections[0].put("x", memory.as_fd()).await.unwrap();
    for connection in &connections {
        assert_eq!(connection.names().await.unwrap(), ["x"]);
    }
    let program = tartarus_runtime::supervisor::Program(vec!["/bin/false".into()]);
    let other = tempfile::tempdir().unwrap();
    let fails = Connector { dir: other.path().to_owned(), program, alone: ALONE }.connect().await.unwrap_err();
    assert!(fails.to_string().contains("did not start"), "{fails}");
}

#[tokio::test]
async fn without_a_keeper_bases_work_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let program = tartarus_runtime::supervisor::Program(vec!["/bin/false".into()]);
    let bases = Bases::open(dir.path(), program, BUDGET).await.unwrap();
    let one = get(&bases, dir.path(), 1).await.unwrap();
    assert_eq!(inode(&one), inode(&get(&bases, dir.path(), 1).await.unwrap()));
}

#[tokio::test]
async fn nonsense_strangers_and_too_many_clients_do_a_keeper_no_harm() {
    let home = Home::new();
    let bases = home.bases().await;
    get(&bases, home.path(), 1).await.unwrap();
    for nonsense in [
        &b"{"[..],
        b"\"put\"",
        b"{\"get\":{\"name\":7}}",
        b"{\"get\":{\"name\":\"a\",\"x\":1}}",
        &[b'['; 1500],
        &[b' '; 9000],
    ] {
        assert_eq!(say(&raw(home.path()).unwrap(), nonsense), "", "{}", text(&nonsense[..nonsense.len().min(40)]));
    }
    let refused = say(&raw(home.path()).unwrap(), b"{\"put\":{\"name\":\"a\"}}");
    assert!(refused.contains("refused"), "{refused}");
    let crowd: Vec<OwnedFd> = (0..20).filter_map(|_| raw(home.path()).ok()).collect();
    let answered = crowd.iter().filter(|socket| say(socket, b"\"list\"").contains("base-1")).count();
    assert_eq!(answered, 7, "the eighth is the agent");
    drop(crowd);
    if is_root() {
        std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(home.path().join("keeper.sock"), PermissionsExt::from_mode(0o777)).unwrap();
        let argument = home.path().to_str().unwrap();
        let said = |uid| text(&run(STRANGER, argument, uid).stdout);
        assert!(said(None).contains("base-1"), "{}", said(None));
        assert_eq!(said(Some(NOBODY)), "65534 Ok(\"\")\n");
    } else {
        eprintln!("skipped: being another user needs root");
    }
    assert_eq!(home.held().await.len(), 1);
}
