//! The node's own record of what it runs: a folder per sandbox. It is what a restarted agent finds its machines by, and
//! what completions are reported from until the control plane has confirmed them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::net::Kept;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tartarus_api::node::{Assignment, Progress};
use tartarus_runtime::supervisor::LOCK;
use tartarus_types::{Outcome, SandboxId, Timestamp};

const ASSIGNMENT: &str = "assignment.json";
const BEGUN: &str = "begun";
const OUTCOME: &str = "outcome.json";
const PROGRESS: &str = "progress.json";
const RESTORED: &str = "restored.json";
const SAVING: &str = "saving";
const PAUSES: &str = "pauses.json";
const NET: &str = "net.json";

/// What a machine was restored from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestoredFrom {
    /// The snapshot's name.
    pub(crate) golden: String,
    /// The memory that the machine maps, also when the snapshot is another by now.
    pub(crate) memory: String,
}

/// How long a sandbox has stood still: its limits do not count that time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pauses {
    /// It stands still since then, or shall.
    pub(crate) since: Option<Timestamp>,
    /// All that is over, ms.
    pub(crate) total_ms: u64,
}

/// All sandboxes' folders.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    root: PathBuf,
}

/// One sandbox's folder.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    dir: PathBuf,
}

/// Writes a small file so that it is there whole or not at all, also after a power cut.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// The same for whoever looks while this host has power; [`sync`] makes it last beyond that.
fn write_soon(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec(value)?)?;
    fs::rename(&temporary, path)
}

/// Waits until a file and its name are on the disk.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_whole(path, &serde_json::to_vec(value)?)
}

/// `None` when the file is not there, or a power cut left nothing but its name.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A private folder, with its parents.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

impl Ledger {
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        make_dir(&root)?;
        Ok(Self { root })
    }

    /// Where the folders are.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a sandbox, whether or not it exists.
    pub(crate) fn home(&self, id: &SandboxId) -> Home {
        Home { dir: self.root.join(id.as_str()) }
    }

    /// Every sandbox that has a folder. Other entries are nobody's and are removed.
    pub(crate) fn sandboxes(&self) -> io::Result<Vec<SandboxId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            match entry.file_name().to_str().and_then(|n| n.parse().ok()) {
                Some(id) => found.push(id),
                None => {
                    let _ = fs::remove_dir_all(entry.path());
                }
            }
        }
        Ok(found)
    }
}

impl Home {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder, in which a restarted agent finds nothing yet.
    pub(crate) fn make(&self) -> io::Result<()> {
        make_dir(&self.dir)
    }

    /// Writes the assignment into the folder: from here on a restarted agent knows of it. No machine outlives a power cut,
    /// so it need not either before [`Home::sync_created`].
    pub(crate) fn create(&self, assignment: &Assignment) -> io::Result<()> {
        write_soon(&self.dir.join(ASSIGNMENT), assignment)
    }

    /// The assignment cannot be read because it never reached the disk whole: then no machine was here since, which would
    /// have left its lock later, and no command was told to begin.
    pub(crate) fn spoilt(&self, error: &io::Error) -> bool {
        let nonsense = matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof);
        nonsense && !self.begun() && !self.dir.join(LOCK).exists()
    }

    /// Waits until the assignment is on the disk.
    pub(crate) fn sync_created(&self) -> io::Result<()> {
        sync(&self.dir.join(ASSIGNMENT))?;
        sync_parent(&self.dir)
    }

    pub(crate) fn assignment(&self) -> io::Result<Option<Assignment>> {
        read_json(&self.dir.join(ASSIGNMENT))
    }

    /// The command may begin; written before it is told to, beside the question for leave.
    pub(crate) fn mark_begun(&self) -> io::Result<()> {
        // The name is all that it says.
        let path = self.dir.join(BEGUN);
        File::create(&path)?;
        sync_parent(&path)
    }

    pub(crate) fn begun(&self) -> bool {
        self.dir.join(BEGUN).exists()
    }

    /// Its machine comes from this snapshot. Not synced: no machine outlives a power cut.
    pub(crate) fn mark_restored(&self, from: &RestoredFrom) -> io::Result<()> {
        fs::write(self.dir.join(RESTORED), serde_json::to_vec(from)?)
    }

    /// A snapshot is made of its machine, which nobody may use for anything else from then on.
    pub(crate) fn mark_saving(&self) -> io::Result<()> {
        fs::write(self.dir.join(SAVING), b"")
    }

    pub(crate) fn saving(&self) -> bool {
        self.dir.join(SAVING).exists()
    }

    /// The snapshot that its machine came from.
    pub(crate) fn restored(&self) -> Option<RestoredFrom> {
        read_json(&self.dir.join(RESTORED)).ok().flatten()
    }

    pub(crate) fn put_progress(&self, progress: &Progress) -> io::Result<()> {
        write_json(&self.dir.join(PROGRESS), progress)
    }

    pub(crate) fn progress(&self) -> Progress {
        read_json(&self.dir.join(PROGRESS)).ok().flatten().unwrap_or_default()
    }

    pub(crate) fn put_pauses(&self, pauses: Pauses) -> io::Result<()> {
        write_json(&self.dir.join(PAUSES), &pauses)
    }

    /// An unreadable file counts as none: then the limits are a little tighter.
    pub(crate) fn pauses(&self) -> Pauses {
        read_json(&self.dir.join(PAUSES)).ok().flatten().unwrap_or_default()
    }

    pub(crate) fn put_net(&self, kept: &Kept) -> io::Result<()> {
        write_json(&self.dir.join(NET), kept)
    }

    /// The contract in force since it was last changed; `None` while it is what the sandbox was accepted with.
    pub(crate) fn net(&self) -> io::Result<Option<Kept>> {
        read_json(&self.dir.join(NET))
    }

    /// The end, written once: an earlier one wins. It lasts beyond a power cut after [`Home::sync_outcome`].
    pub(crate) fn put_outcome(&self, outcome: &Outcome) -> io::Result<()> {
        if self.outcome()?.is_some() {
            return Ok(());
        }
        write_soon(&self.dir.join(OUTCOME), outcome)
    }

    /// Waits until the end is on the disk.
    pub(crate) fn sync_outcome(&self) -> io::Result<()> {
        sync(&self.dir.join(OUTCOME))
    }

    pub(crate) fn outcome(&self) -> io::Result<Option<Outcome>> {
        read_json(&self.dir.join(OUTCOME))
    }

    /// Forgets the sandbox. Its machine must be gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let root = tempfile::tempdir().unwrap();
        let home = Ledger::open(root.path().join("sandboxes")).unwrap().home(&SandboxId::random());
        home.make().unwrap();
        (root, home)
    }

    #[test]
    fn what_a_power_cut_leaves_is_told_from_what_must_not_be_lost() {
        let (_root, home) = home();
        let path = home.dir().join(ASSIGNMENT);
        assert!(home.assignment().unwrap().is_none());
        fs::write(&path, b"").unwrap();
        assert!(home.assignment().unwrap().is_none(), "nothing but its name");
        for rubbish in [&b"{"[..], b"\0\0\0\0", b"{\"sandbox\": 7}"] {
            fs::write(&path, rubbish).unwrap();
            assert!(home.spoilt(&home.assignment().unwrap_err()), "{rubbish:?}");
        }
        let error = home.assignment().unwrap_err();
        assert!(!home.spoilt(&io::Error::from(io::ErrorKind::PermissionDenied)), "it may be whole");
        fs::write(home.dir().join(LOCK), b"").unwrap();
        assert!(!home.spoilt(&error), "a machine was started");
        fs::remove_file(home.dir().join(LOCK)).unwrap();
        home.mark_begun().unwrap();
        assert!(home.begun() && !home.spoilt(&error), "a command may have begun");
    }

    #[test]
    fn the_first_end_stays() {
        let (_root, home) = home();
        let end = |why| Outcome::because(tartarus_types::Reason::Killed, why);
        assert!(home.sync_outcome().is_err(), "there is none");
        home.put_outcome(&end("one")).unwrap();
        home.put_outcome(&end("two")).unwrap();
        home.sync_outcome().unwrap();
        assert_eq!(home.outcome().unwrap(), Some(end("one")));
    }
}
