//! Imports with the real `sqfstar`, judged by `unsquashfs`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, ReadBuf};

use super::*;
use crate::testing::{Small, noise, packed};

/// Adds an entry to a tar; the user's name is one that this machine has, with another number.
fn add(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, owner: (u64, u64), mode: u32, what: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_uid(owner.0);
    header.set_gid(owner.1);
    header.set_mode(mode);
    header.set_mtime(1_600_000_000);
    header.set_username("daemon").unwrap();
    header.set_groupname("daemon").unwrap();
    match kind {
        tar::EntryType::Symlink | tar::EntryType::Link => {
            header.set_size(0);
            tar.append_link(&mut header, path, what).unwrap();
        }
        tar::EntryType::Char | tar::EntryType::Block => {
            header.set_size(0);
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            tar.append_data(&mut header, path, io::empty()).unwrap();
        }
        _ => {
            header.set_size(what.len() as u64);
            tar.append_data(&mut header, path, what.as_bytes()).unwrap();
        }
    }
}

fn small_tar() -> Vec<u8> {
    use tar::EntryType as E;
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, E::Directory, "./", (1234, 1234), 0o700, "");
    add(&mut tar, E::Directory, "./dev/", (0, 0), 0o755, "");
    add(&mut tar, E::Char, "./dev/null", (0, 0), 0o666, "");
    add(&mut tar, E::Regular, "./proc/left-over", (0, 0), 0o644, "x");
    add(&mut tar, E::Directory, "./etc", (0, 0), 0o755, "");
    add(&mut tar, E::Regular, "./etc/shadow", (0, 42), 0o640, "root:*:\n");
    add(&mut tar, E::Regular, "./usr/bin/su", (0, 0), 0o4755, "#!/bin/sh\n");
    add(&mut tar, E::Link, "./usr/bin/sudo", (0, 0), 0o4755, "./usr/bin/su");
    add(&mut tar, E::Regular, "./home/user/notes", (1000, 3_000_000), 0o600, "mine\n");
    add(&mut tar, E::Directory, "./home/user", (1000, 1000), 0o750, "");
    add(&mut tar, E::Char, "./opt/null", (0, 0), 0o666, "");
    let up = "../".repeat(50) + "target";
    add(&mut tar, E::Symlink, "./home/user/up", (1000, 1000), 0o777, &up);
    add(&mut tar, E::Regular, &format!("./{}/deep", "long-name/".repeat(20)), (5, 6), 0o644, "deep\n");
    tar.append_pax_extensions([("SCHILY.xattr.user.note", &b"hello"[..])]).unwrap();
    add(&mut tar, E::Regular, "./noted", (7, 8), 0o644, "noted\n");
    tar.into_inner().unwrap()
}

/// Path to `mode owner/group … date`, as `unsquashfs` tells it, and the target of links.
fn listing(image: &Path) -> BTreeMap<String, String> {
    let output = Command::new("unsquashfs").args(["-lln", "-d", ""]).env("TZ", "UTC").arg(image).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| line.len() > 10 && "-dlbcps".contains(&line[..1]) && line.contains('/'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let date =
                words.iter().position(|word| word.len() == 10 && word.starts_with(['1', '2']) && word.contains('-'));
            let date = date.unwrap_or_else(|| panic!("no date in {line:?}"));
            let path = words.get(date + 2).copied().unwrap_or("/");
            let rest = words.get(date + 3..).unwrap_or_default().join(" ");
            (path.to_owned(), format!("{} {} {} {rest}", words[0], words[1], words[date]).trim().to_owned())
        })
        .collect()
}

fn cat(image: &Path, path: &str) -> Vec<u8> {
    Command::new("unsquashfs").arg("-cat").arg(image).arg(path).output().unwrap().stdout
}

fn staged(root: &Path) -> usize {
    std::fs::read_dir(root.join("staging")).unwrap().count()
}

fn store() -> (tempfile::TempDir, BlobStore) {
    let root = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(root.path()).unwrap();
    (root, blobs)
}

#[tokio::test]
async fn an_image_is_what_the_tar_says() {
    let (root, blobs) = store();
    let made = import(&blobs, &small_tar()[..]).await.unwrap();
    let image = blobs.path(&made.digest).unwrap();
    assert_eq!(std::fs::metadata(&image).unwrap().len(), made.size);
    assert_eq!(staged(root.path()), 0);
    let list = listing(&image);
    let expected = [
        ("/", "drwxr-xr-x 0/0 1970-01-01"),
        ("/dev", "drwxr-xr-x 0/0 1970-01-01"),
        ("/etc", "drwxr-xr-x 0/0 2020-09-13"),
        ("/etc/shadow", "-rw-r----- 0/42 2020-09-13"),
        ("/home", "drwxr-xr-x 0/0 1970-01-01"),
        ("/home/user", "drwxr-x--- 1000/1000 2020-09-13"),
        ("/home/user/notes", "-rw------- 1000/3000000 2020-09-13"),
        ("/noted", "-rw-r--r-- 7/8 2020-09-13"),
        ("/opt", "drwxr-xr-x 0/0 1970-01-01"),
        ("/opt/null", "crw-rw-rw- 0/0 2020-09-13"),
        ("/proc", "drwxr-xr-x 0/0 1970-01-01"),
        ("/sys", "drwxr-xr-x 0/0 1970-01-01"),
        ("/usr", "drwxr-xr-x 0/0 1970-01-01"),
        ("/usr/bin", "drwxr-xr-x 0/0 1970-01-01"),
        ("/usr/bin/su", "-rwsr-xr-x 0/0 2020-09-13"),
        ("/usr/bin/sudo", "-rwsr-xr-x 0/0 2020-09-13"),
    ];
    for (path, says) in expected {
        assert_eq!(list.get(path).map(String::as_str), Some(says), "{path} in {list:#?}");
    }
    let up = "../".repeat(50) + "target";
    assert_eq!(list["/home/user/up"], format!("lrwxrwxrwx 1000/1000 2020-09-13 -> {up}"));
    let deep = format!("/{}", "long-name/".repeat(20));
    assert_eq!(list[&format!("{deep}deep")], "-rw-r--r-- 5/6 2020-09-13");
    // Those, the link, the deep file and the 20 folders above it, and nothing else.
    assert_eq!(list.len(), expected.len() + 2 + 20, "{list:#?}");
    assert_eq!(cat(&image, "usr/bin/sudo"), b"#!/bin/sh\n");
    assert_eq!(cat(&image, "noted"), b"noted\n");
    let folder = root.path().join("unpacked");
    let mut unsquashfs = Command::new("unsquashfs");
    let unpacked =
        unsquashfs.args(["-q", "-n", "-user-xattrs", "-d"]).args([&folder, &image]).arg("noted").output().unwrap();
    let mut value = [0; 16];
    match rustix::fs::getxattr(folder.join("noted"), "user.note", &mut value) {
        Ok(n) => assert_eq!(&value[..n], b"hello", "{unpacked:?}"),
        Err(rustix::io::Errno::OPNOTSUPP) => println!("skipped: the file system here has no attributes"),
        Err(e) => panic!("{e}: {unpacked:?}"),
    }
}

#[tokio::test]
async fn the_same_tar_gives_the_same_digest() {
    let (_root, blobs) = store();
    let first = import(&blobs, &small_tar()[..]).await.unwrap();
    // What `sqfstar` stamps with the present would differ now.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(import(&blobs, &small_tar()[..]).await.unwrap(), first);
    for program in ["gzip", "xz", "zstd"] {
        let packed = packed(program, &small_tar());
        assert_eq!(import(&blobs, &packed[..]).await.unwrap(), first, "{program}");
        let error = import(&blobs, &packed[..packed.len() / 2]).await.unwrap_err();
        assert!(matches!(error, ErebusError::BadFile(_)) && error.to_string().contains(program), "{error}");
    }
    assert_eq!(blobs.list().unwrap().len(), 1);
}

#[tokio::test]
async fn bad_files_are_refused_and_leave_nothing() {
    let (root, blobs) = store();
    let whole = small_tar();
    let with = |kind, path: &str, what: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        add(&mut tar, tar::EntryType::Regular, "etc/passwd", (0, 0), 0o644, "x");
        add(&mut tar, kind, path, (0, 0), 0o644, what);
        tar.into_inner().unwrap()
    };
    let mut up = tar::Header::new_gnu();
    up.as_old_mut().name[..13].copy_from_slice(b"../etc/shadow");
    up.set_size(0);
    up.set_cksum();
    let mut nothing = tar::Builder::new(Vec::new());
    add(&mut nothing, tar::EntryType::Directory, "etc", (0, 0), 0o755, "");
    for (tar, word) in [
        (Vec::new(), "empty"),
        (b"hello, world".to_vec(), "no tar"),
        (vec![b'x'; 100_000], "no tar"),
        (vec![0; 10_240], "no files"),
        (nothing.into_inner().unwrap(), "no files"),
        (whole[..whole.len() / 2].to_vec(), "cut off"),
        (whole[..whole.len() - 1024].to_vec(), "cut off"),
        (up.as_bytes().to_vec(), "goes up"),
        (with(tar::EntryType::Link, "out", "/etc/hostname"), "hard link"),
        (with(tar::EntryType::Regular, "etc/passwd", "y"), "twice"),
        (with(tar::EntryType::Regular, "etc/passwd/x", "y"), "no directory"),
    ] {
        let error = import(&blobs, &tar[..]).await.unwrap_err();
        assert!(matches!(&error, ErebusError::BadFile(detail) if detail.contains(word)), "{error} should say {word:?}");
    }
    assert_eq!(staged(root.path()), 0);
    assert!(blobs.list().unwrap().is_empty());
}

/// Gives some bytes, then an error, or nothing for ever.
struct Breaks(&'static [u8], bool);

impl AsyncRead for Breaks {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return if self.1 { Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())) } else { Poll::Pending };
        }
        let n = self.0.len().min(buf.remaining());
        buf.put_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Poll::Ready(Ok(()))
    }
}

/// Whether a process has this path among its arguments.
fn somebody_writes(path: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let path = path.as_os_str().as_encoded_bytes();
    lines.any(|line| line.windows(path.len()).any(|window| window == path))
}

#[tokio::test]
async fn a_broken_upload_leaves_nothing() {
    let (root, blobs) = store();
    let tar: &'static [u8] = small_tar().leak();
    let error = import(&blobs, Breaks(&tar[..3000], true)).await.unwrap_err();
    assert!(matches!(error, ErebusError::Upload(_)), "{error}");
    assert_eq!(staged(root.path()), 0);

    let waiting = import(&blobs, Breaks(&tar[..3000], false));
    let mut waiting = Box::pin(waiting);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut waiting).await.is_err());
    assert!(somebody_writes(root.path()), "sqfstar runs");
    drop(waiting);
    assert_eq!(staged(root.path()), 0);
    let start = Instant::now();
    while somebody_writes(root.path()) {
        assert!(start.elapsed() < Duration::from_secs(5), "sqfstar still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(staged(root.path()), 0);
    assert!(blobs.list().unwrap().is_empty());
}

#[tokio::test]
async fn a_full_disk_is_told_and_left_as_it_was() {
    let Some(small) = Small::mount("size=1m") else {
        return println!("skipped: only root can mount a small file system");
    };
    let blobs = BlobStore::open(small.path()).unwrap();
    let noise = noise(3_000_000);
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(noise.len() as u64);
    tar.append_data(&mut header, "noise", &noise[..]).unwrap();
    let error = import(&blobs, &tar.into_inner().unwrap()[..]).await.unwrap_err();
    assert!(matches!(error, ErebusError::DiskFull), "{error}");
    assert_eq!(staged(small.path()), 0);
    assert!(import(&blobs, &small_tar()[..]).await.is_ok(), "there is space again");
}

/// Runs itself as another user: same list, and nothing of that user's in the image.
#[tokio::test]
async fn an_ordinary_user_gets_the_same_image() {
    const FOLDER: &str = "EREBUS_TEST_IMPORT_INTO";
    if let Some(folder) = std::env::var_os(FOLDER) {
        let blobs = BlobStore::open(Path::new(&folder)).unwrap();
        import(&blobs, &small_tar()[..]).await.unwrap();
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: already an ordinary user");
    }
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for (path, mode) in [(folder.path(), 0o777), (&program, 0o755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let output = Command::new("setpriv")
        .args(["--reuid=54321", "--regid=54321", "--clear-groups"])
        .arg(&program)
        .args(["--exact", "images::tests::an_ordinary_user_gets_the_same_image"])
        .env(FOLDER, folder.path().join("blobs"))
        .current_dir("/")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let theirs = BlobStore::open(folder.path().join("blobs")).unwrap();
    let theirs = theirs.path(&theirs.list().unwrap()[0].digest).unwrap();
    let (_root, blobs) = store();
    let ours = blobs.path(&import(&blobs, &small_tar()[..]).await.unwrap().digest).unwrap();
    let list = listing(&theirs);
    assert_eq!(list, listing(&ours));
    assert!(list.values().all(|line| !line.contains("54321")), "{list:#?}");
}

#[tokio::test]
async fn many_owners_and_a_deep_tree_keep_the_root_in_place() {
    // Several blocks of inodes and of ids: the root's inode is last, and id 0 is anywhere.
    let mut tar = tar::Builder::new(Vec::new());
    for n in 0..5000_u64 {
        add(
            &mut tar,
            tar::EntryType::Regular,
            &format!("d{}/f{n}", n % 50),
            (n + 1, n + 10_000),
            0o644,
            &n.to_string(),
        );
    }
    let tar = tar.into_inner().unwrap();
    let (_root, blobs) = store();
    let made = import(&blobs, &tar[..]).await.unwrap();
    let list = listing(&blobs.path(&made.digest).unwrap());
    assert_eq!(list["/"], "drwxr-xr-x 0/0 1970-01-01");
    assert_eq!(list["/d7/f4907"], "-rw-r--r-- 4908/14907 2020-09-13");
}

#[tokio::test]
async fn the_future_can_be_sent() {
    fn sendable<T: Send>(value: T) -> T {
        value
    }
    let (_root, blobs) = store();
    let reader = io::Cursor::new(small_tar());
    assert!(tokio::spawn(sendable(async move { import(&blobs, reader.take(u64::MAX)).await })).await.unwrap().is_ok());
}
