//! What every driver must do, seen with a guest of a few instructions.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use tartarus_runtime::pages::{self, Table};
use tartarus_runtime::{Adopted, Cause, Deadlines, Driver, Machine, Restore, RuntimeError, Vm};

use super::tiny::{MIB, letters, wait_for_letters};

pub(crate) const LIMIT: Duration = Duration::from_secs(30);
const BYTES: u64 = (MIB as u64) << 20;

/// A driver, and how a machine for it is made in a folder.
pub(crate) struct Subject<'a> {
    pub(crate) driver: &'a dyn Driver,
    pub(crate) machine: fn(&Path) -> Machine,
}

pub(crate) fn deadlines() -> Deadlines {
    // Should a test die, its machines do not outlive it for long.
    Deadlines { wall_ms: Some(60_000), ..Deadlines::default() }
}

fn following(letter: char) -> char {
    if letter == 'Z' { 'A' } else { (letter as u8 + 1) as char }
}

/// Every letter follows the one before it.
pub(crate) fn assert_in_order(text: &str) {
    assert!(text.chars().zip(text.chars().skip(1)).all(|(a, b)| following(a) == b), "{text:?}");
}

pub(crate) async fn save(vm: &dyn Vm, dir: &Path) -> Result<(), RuntimeError> {
    // One that can be read as well, and has old content: both must not matter.
    let open = |name: &str| File::options().create(true).truncate(false).read(true).write(true).open(dir.join(name));
    std::fs::write(dir.join("state"), vec![7; 1 << 20]).unwrap();
    vm.save(open("state").unwrap(), open("memory").unwrap()).await
}

pub(crate) fn sealed(packed: &Path) -> Arc<OwnedFd> {
    sealed_of(packed, BYTES)
}

/// For a guest with so many bytes of memory.
pub(crate) fn sealed_of(packed: &Path, bytes: u64) -> Arc<OwnedFd> {
    let memory = memfd_create("base", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let memory = File::from(memory);
    memory.set_len(bytes).unwrap();
    pages::load_into(File::open(packed).unwrap(), &memory).unwrap();
    fcntl_add_seals(&memory, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).unwrap();
    Arc::new(memory.into())
}

fn table(dir: &Path) -> Table {
    pages::read_table(&File::open(dir.join("memory")).unwrap(), BYTES).unwrap()
}

pub(crate) async fn end(vm: &dyn Vm) {
    vm.kill().await;
    assert_eq!(tokio::time::timeout(LIMIT, vm.wait()).await.unwrap().cause, Cause::Ordered);
}

impl Subject<'_> {
    pub(crate) async fn boot(&self, dir: &Path) -> Box<dyn Vm> {
        let vm = self.driver.boot(&(self.machine)(dir), deadlines()).await.unwrap();
        wait_for_letters(dir, 3).await;
        vm
    }

    /// A snapshot in `dir`, and the letter that comes next.
    pub(crate) async fn snapshot(&self, dir: &Path) -> (Arc<OwnedFd>, char) {
        let vm = self.boot(dir).await;
        vm.pause().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await; // the supervisor writes what came before
        save(&*vm, dir).await.unwrap();
        let next = following(letters(dir).chars().last().unwrap());
        end(&*vm).await;
        (sealed(&dir.join("memory")), next)
    }

    /// A machine from the snapshot in `from`, which does not run yet.
    pub(crate) async fn restore(&self, memory: &Arc<OwnedFd>, from: &Path, dir: &Path) -> Box<dyn Vm> {
        let state = File::open(from.join("state")).unwrap().into();
        let from = Restore { memory: memory.clone(), state };
        self.driver.restore(&(self.machine)(dir), from, deadlines()).await.unwrap()
    }

    pub(crate) async fn a_machine_is_paused_and_goes_on_also_for_who_takes_it_over(&self) {
        let dir = tempfile::tempdir().unwrap();
        let vm = self.boot(dir.path()).await;
        assert!(!vm.is_paused().await.unwrap());
        let running = save(&*vm, dir.path()).await.unwrap_err().to_string();
        assert!(running.contains("not paused"), "{running}");
        vm.pause().await.unwrap();
        vm.pause().await.unwrap();
        // A hypervisor may serve one after the other.
        let vm: Arc<dyn Vm> = vm.into();
        let many = (0..12).map(|_| {
            let vm = vm.clone();
            tokio::spawn(async move { vm.is_paused().await.unwrap() })
        });
        for one in many.collect::<Vec<_>>() {
            assert!(one.await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let frozen = letters(dir.path());
        let pid = vm.pid();
        drop(vm);
        let Adopted::Running(vm) = self.driver.adopt(dir.path()).await.unwrap() else { panic!("not adopted") };
        assert_eq!(vm.pid(), pid);
        assert!(vm.is_paused().await.unwrap());
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(letters(dir.path()), frozen, "it ran while it was paused");
        // Whether there can be one or not, nobody waits for a guest that stands still.
        let line = tokio::time::timeout(LIMIT, vm.channel_while_paused()).await.unwrap();
        vm.resume().await.unwrap();
        vm.resume().await.unwrap();
        drop(line);
        assert!(!vm.is_paused().await.unwrap());
        assert_in_order(&wait_for_letters(dir.path(), frozen.len() + 2).await);
        end(&*vm).await;
        assert!(matches!(vm.pause().await, Err(RuntimeError::Ended)));
        // Until its supervisor is gone as well it cannot be told.
        let begin = std::time::Instant::now();
        let exit = loop {
            match self.driver.adopt(dir.path()).await {
                Ok(Adopted::Ended(exit)) => break exit,
                Ok(_) => panic!("not ended"),
                Err(error) => assert!(begin.elapsed() < LIMIT, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(exit.cause, Cause::Ordered);
    }

    pub(crate) async fn clones_go_on_when_they_are_opened_and_are_saved_as_what_they_wrote(&self) {
        let fingerprint = self.driver.fingerprint();
        assert_eq!((fingerprint.driver.as_str(), fingerprint.mismatch(&fingerprint)), (self.driver.name(), None));
        let first = tempfile::tempdir().unwrap();
        let (memory, next) = self.snapshot(first.path()).await;
        let whole = table(first.path());
        assert!(!whole.over_base && whole.pages() > 1 && whole.file_bytes() < 16 << 20, "{} pages", whole.pages());
        let mut clones = Vec::new();
        for _ in 0..2 {
            let dir = tempfile::tempdir().unwrap();
            let clone = self.restore(&memory, first.path(), dir.path()).await;
            clones.push((dir, clone));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        for (dir, clone) in &clones {
            assert_eq!(letters(dir.path()), "", "it ran before anybody opened it");
            // This guest listens nowhere; that a channel was asked for is enough.
            let channel = tokio::time::timeout(Duration::from_millis(300), clone.channel()).await;
            let text = wait_for_letters(dir.path(), 3).await;
            assert_eq!(text.chars().next(), Some(next), "before {text:?}");
            assert_in_order(&text);
            clone.pause().await.unwrap();
            save(&**clone, dir.path()).await.unwrap();
            let delta = table(dir.path());
            assert!(delta.over_base && delta.pages() > 0 && delta.pages() < whole.pages(), "{} pages", delta.pages());
            // What it wrote since the base, not since the last time.
            clone.resume().await.unwrap();
            wait_for_letters(dir.path(), letters(dir.path()).len() + 2).await;
            clone.pause().await.unwrap();
            save(&**clone, dir.path()).await.unwrap();
            let later = table(dir.path());
            let holds = |page| later.runs.iter().any(|run| (run.first..run.first + run.count).contains(&page));
            let pages = delta.runs.iter().flat_map(|run| run.first..run.first + run.count);
            assert!(pages.into_iter().all(holds), "{:?} after {:?}", later.runs, delta.runs);
            drop(channel);
        }
        // What the clones wrote is theirs alone.
        let third = tempfile::tempdir().unwrap();
        let clone = self.restore(&memory, first.path(), third.path()).await;
        let _channel = tokio::time::timeout(Duration::from_millis(300), clone.channel()).await;
        assert_eq!(wait_for_letters(third.path(), 1).await.chars().next(), Some(next));
        for vm in clones.iter().map(|(_, vm)| vm).chain([&clone]) {
            end(&**vm).await;
        }
    }

    pub(crate) async fn a_machine_ends_at_its_deadline(&self) {
        let dir = tempfile::tempdir().unwrap();
        let vm = self.boot(dir.path()).await;
        vm.set_deadlines(Deadlines { wall_ms: Some(1), ..Deadlines::default() }).await.unwrap();
        let exit = tokio::time::timeout(LIMIT, vm.wait()).await.unwrap();
        assert_eq!(exit.cause, Cause::Wall);
        assert!(exit.status.contains("KILL"), "{exit:?}");
    }
}
