//! The reader against tars of the `tar` crate, against itself, and against rubbish.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { entries: 100, bytes: 1 << 20 };

/// All entries with their content.
fn read_with(bytes: &[u8], limits: Limits) -> Result<Vec<(Entry, Vec<u8>)>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut tar = Tar::new(bytes, limits);
        let mut all = Vec::new();
        while let Some(entry) = tar.next().await.map_err(|e| e.to_string())? {
            let (mut content, mut chunk) = (Vec::new(), [0; 700]);
            loop {
                match tar.read(&mut chunk).await.map_err(|e| e.to_string())? {
                    0 => break,
                    n => content.extend_from_slice(&chunk[..n]),
                }
            }
            all.push((entry, content));
        }
        Ok(all)
    })
}

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, String> {
    read_with(bytes, LIMITS)
}

fn entry(kind: Kind, path: &str) -> Entry {
    Entry { kind, path: path.into(), mode: 0o640, uid: 1000, gid: 100, mtime: 1_600_000_000, xattrs: Vec::new() }
}

/// A tar of these entries, written by [`write`].
fn tar_of(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (entry, content) in entries {
        out.extend(write::header(entry));
        out.extend_from_slice(content);
        out.extend_from_slice(write::padding(content.len() as u64));
    }
    out.extend_from_slice(&write::END);
    out
}

fn sample() -> Vec<(Entry, Vec<u8>)> {
    let file = |path: &str, content: &[u8]| (entry(Kind::File(content.len() as u64), path), content.to_vec());
    let mut capable = file("bin/ping", b"\x7fELF");
    capable.0.xattrs = vec![(b"security.capability".to_vec(), b"\x01\0\0\x02=\n".to_vec())];
    capable.0.uid = 4_000_000_000;
    let long = "d/".repeat(120);
    vec![
        (entry(Kind::Dir, "etc"), vec![]),
        file("etc/passwd", b"root:x:0:0\n"),
        capable,
        file(&format!("{long}file"), &[7; 1500]),
        (entry(Kind::Symlink("../".repeat(60).into()), "link"), vec![]),
        (entry(Kind::Hardlink(format!("{long}file").into()), "hard"), vec![]),
        (entry(Kind::Char(5, 1), "console"), vec![]),
        (entry(Kind::Block(259, 300), "disk"), vec![]),
        (entry(Kind::Fifo, "pipe"), vec![]),
        file("empty", b""),
    ]
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(read(&tar_of(&sample())).unwrap(), sample());
}

#[test]
fn tars_of_the_tar_crate_are_read() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(5);
    header.set_mode(0o755);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(9);
    builder.append_pax_extensions([("SCHILY.xattr.user.a", &b"b"[..]), ("path", "./ü/ñ".as_bytes())]).unwrap();
    builder.append_data(&mut header.clone(), "ignored", &b"hello"[..]).unwrap();
    let mut gnu = tar::Header::new_gnu();
    gnu.set_size(5);
    builder.append_data(&mut gnu, format!("./{}", "x/".repeat(200) + "f"), &b"world"[..]).unwrap();
    let all = read(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(all.len(), 2);
    let (entry, content) = &all[0];
    assert_eq!((&entry.path[..], &content[..]), ("ü/ñ".as_bytes(), &b"hello"[..]));
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (0o755, 7, 8, 9));
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"b".to_vec())]);
    assert_eq!(all[1].0.path, ("x/".repeat(200) + "f").into_bytes());
}

#[test]
fn old_directories_end_with_a_slash() {
    let mut header = tar::Header::new_old();
    header.as_old_mut().name[..5].copy_from_slice(b"etc//");
    header.set_size(0);
    header.set_cksum();
    let tar = [header.as_bytes(), &write::END[..]].concat();
    assert_eq!(read(&tar).unwrap()[0].0.kind, Kind::Dir);
}

/// A header with this flag and size, with its checksum.
fn raw(flag: u8, path: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkflag = [flag];
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn what_is_not_understood_is_refused() {
    let global = [raw(b'g', "g", 11), format!("{:\0<512}", "11 size=99\n").into_bytes()].concat();
    let harmless = [raw(b'g', "g", 17), format!("{:\0<512}", "17 comment=hello\n").into_bytes()].concat();
    for (tar, word) in [
        (raw(b'S', "sparse", 0), "--sparse"),
        (raw(b'M', "volume", 0), "unknown kind"),
        (raw(b'?', "what", 0), "unknown kind"),
        (raw(b'0', "dir-with-content/", 512), "unknown kind"),
        (raw(b'0', "a/../../etc/passwd", 0), "goes up"),
        (raw(b'1', "no-target", 0), ""),
        (raw(b'2', "no-target", 0), "target"),
        (raw(b'L', "long", 1 << 30), "path of"),
        (raw(b'x', "pax", 1 << 30), "extended header"),
        (raw(b'0', "huge", 1 << 40), "larger than 1 MiB"),
        (raw(b'0', "huger", u64::MAX >> 1), "larger than 1 MiB"),
        (global, "all of its entries"),
        ([raw(b'L', "dangling", 3), [b'x'; 512].to_vec()].concat(), "tar"),
    ] {
        let whole = [&tar[..], &write::END].concat();
        let answer = read(&whole);
        if word.is_empty() {
            assert_eq!(answer.unwrap()[0].0.kind, Kind::Hardlink(Vec::new()));
            continue;
        }
        let error = answer.unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(read(&[&harmless[..], &write::END].concat()).unwrap(), []);
    assert_eq!(read(&[&raw(b'V', "label", 0)[..], &write::END].concat()).unwrap(), []);
}

#[test]
fn what_is_no_tar_says_so() {
    assert_eq!(read(b"").unwrap_err(), "the file is empty");
    assert_eq!(read(b"hello").unwrap_err(), "the file is no tar");
    assert_eq!(read(&[b'x'; 5000]).unwrap_err(), "the file is no tar");
    assert_eq!(read(&[0; 10240]).unwrap(), []);
}

#[test]
fn only_zeros_may_follow() {
    let mut tar = tar_of(&sample());
    tar.extend_from_slice(&[0; 20_000]);
    assert_eq!(read(&tar).unwrap(), sample());
    tar.push(1);
    assert!(read(&tar).unwrap_err().contains("follows the end"));
}

#[test]
fn limits_hold() {
    let tar = tar_of(&sample());
    let count = sample().len() as u64;
    assert!(read_with(&tar, Limits { entries: count, bytes: tar.len() as u64 }).is_ok());
    assert!(read_with(&tar, Limits { entries: count - 1, bytes: 1 << 20 }).unwrap_err().contains("entries"));
    assert!(read_with(&tar, Limits { entries: count, bytes: tar.len() as u64 - 1 }).unwrap_err().contains("larger"));
}

#[test]
fn every_cut_is_found() {
    let tar = tar_of(&sample());
    let end = tar.len() - write::END.len();
    for cut in 0..end + BLOCK {
        let error = read(&tar[..cut]).unwrap_err();
        assert!(["cut off", "no tar", "empty"].iter().any(|word| error.contains(word)), "{cut}: {error}");
    }
    // One block of zeros is enough.
    assert_eq!(read(&tar[..end + BLOCK]).unwrap(), sample());
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[a-zä.]{1,60}", 1..6)
        .prop_map(|names| names.join("/"))
        .prop_filter("clean", |path| path.split('/').all(|name| !matches!(name, "." | "..")))
}

fn any_entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let content = prop::collection::vec(any::<u8>(), 0..1100);
    let kind = prop_oneof![
        content.prop_map(|content| (Kind::File(content.len() as u64), content)),
        Just((Kind::Dir, vec![])),
        "[a-z./]{1,300}".prop_map(|target| (Kind::Symlink(target.into()), vec![])),
        path().prop_map(|target| (Kind::Hardlink(target.into()), vec![])),
        (0_u32..4096, 0_u32..1 << 20).prop_map(|(major, minor)| (Kind::Char(major, minor), vec![])),
    ];
    let xattrs = prop::collection::btree_map("user\\.[a-z]{1,20}", prop::collection::vec(any::<u8>(), 0..300), 0..3);
    (kind, path(), 0_u32..0o10000, any::<[u32; 3]>(), xattrs).prop_map(|((kind, content), path, mode, ids, xattrs)| {
        let xattrs = match kind {
            Kind::Hardlink(_) => Vec::new(),
            _ => xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
        };
        let [uid, gid, mtime] = ids;
        (Entry { kind, path: path.into(), mode, uid, gid, mtime, xattrs }, content)
    })
}

proptest! {
    #[test]
    fn every_entry_survives_the_round_trip(entries in prop::collection::vec(any_entry(), 0..6)) {
        prop_assert_eq!(read(&tar_of(&entries)).unwrap(), entries);
    }

    #[test]
    fn changes_are_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10),
        cut: prop::sample::Index,
    ) {
        let mut tar = tar_of(&sample());
        for (at, to) in changes {
            let at = at.index(tar.len());
            tar[at] = to;
        }
        let _ = read(&tar);
        let _ = read(&tar[..cut.index(tar.len())]);
    }

    #[test]
    fn rubbish_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert!(read(&bytes).is_err());
    }
}
