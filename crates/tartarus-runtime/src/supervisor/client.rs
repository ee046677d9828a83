//! The agent's side of a supervisor: starts it, takes it over, gives it orders, hears of the end.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};

use super::peer::Peer;
use super::{CONTROL, Cause, Deadlines, EXIT, Hypervisor, LAUNCH, LOCK, Launch, Monitor, News, Order, Program, VmExit};
use crate::driver::{Adopted, Channel, RuntimeError, Vm};

/// How long a supervisor may take to start its hypervisor, or to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Orders under way; more than this means that the supervisor hangs, and orders wait.
const QUEUE: usize = 64;

/// A machine with a supervisor beside it.
pub struct SupervisedVm {
    pid: u32,
    /// How its hypervisor is spoken to.
    monitor: Box<dyn Monitor>,
    /// Its supervisor, when that is in a network namespace of the machine's.
    peer: Option<Peer>,
    orders: mpsc::Sender<(Order, Option<oneshot::Sender<()>>)>,
    exit: watch::Receiver<Option<VmExit>>,
}

impl SupervisedVm {
    /// Starts a supervisor, and with it the hypervisor, in `dir`.
    ///
    /// # Errors
    /// When the hypervisor does not run; the supervisor's word for why is in the error.
    pub async fn launch(program: &Program, dir: &Path, launch: &Launch) -> Result<Self, RuntimeError> {
        let fail = |what: &'static str| move |cause| RuntimeError::io(format!("{} {}", what, dir.display()), cause);
        let bytes = serde_json::to_vec(launch).map_err(|e| RuntimeError::Start(e.to_string()))?;
        // Under its name it is whole or not there: who takes the machine over reads it.
        let new = dir.join(format!("{LAUNCH}.new"));
        let written = std::fs::write(&new, &bytes).and_then(|()| std::fs::rename(new, dir.join(LAUNCH)));
        written.map_err(fail("writing launch.json in"))?;
        // What an earlier machine in this folder left would be taken for this one's.
        match std::fs::remove_file(dir.join(EXIT)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail("removing exit.json in")(e)),
            _ => {}
        }
        let errors = File::create(dir.join("supervisor.log")).map_err(fail("making supervisor.log in"))?;
        let lock = File::create(dir.join(LOCK)).map_err(fail("making supervisor.lock in"))?;
        lock.try_lock().map_err(|_| RuntimeError::Start("another supervisor has its folder".into()))?;
        let (first, rest) = program.0.split_first().ok_or_else(|| RuntimeError::Start("no supervisor".into()))?;
        let mut command = tokio::process::Command::new(first);
        command.args(rest).arg(dir).env_clear().stdin(Stdio::from(lock)).stdout(Stdio::piped()).stderr(errors);
        let inherited: Vec<RawFd> = launch.fds.iter().map(|(from, _)| *from).chain(launch.network).collect();
        if let Some(from) = inherited.iter().find(|from| **from < 3) {
            return Err(RuntimeError::Start(format!("descriptor {from} is a standard stream and cannot be passed on")));
        }
        // Its own session from the first moment: a signal to this process's group, such as Ctrl-C in a terminal, must
        // not reach machines.
        // SAFETY: the closure only makes system calls on numbers.
        unsafe {
            command.pre_exec(move || {
                for fd in &inherited {
                    // Only in the child: no other process that is started meanwhile may inherit it.
                    if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                rustix::process::setsid().map(drop).map_err(io::Error::from)
            });
        }
        let mut child = command.spawn().map_err(fail("starting the supervisor of"))?;
        let begun = Self::began(&mut child, dir, launch).await;
        if begun.is_err() {
            // It may still come up: it must not, and its end takes the hypervisor with it.
            let _ = child.kill().await;
        } else {
            // Reaps it whenever it ends; while this process lives it is its child.
            tokio::spawn(async move { child.wait().await });
        }
        begun
    }

    /// Waits for the supervisor's word.
    async fn began(child: &mut Child, dir: &Path, launch: &Launch) -> Result<Self, RuntimeError> {
        let stdout = child.stdout.take().ok_or_else(|| RuntimeError::Start("no pipe".into()))?;
        let mut line = String::new();
        let read = async { BufReader::new(stdout).read_line(&mut line).await };
        tokio::time::timeout(PATIENCE, read)
            .await
            .map_err(|_| RuntimeError::Start(format!("no word from its supervisor within {} s", PATIENCE.as_secs())))?
            .map_err(|cause| RuntimeError::io(format!("reading from the supervisor of {}", dir.display()), cause))?;
        match serde_json::from_str(&line) {
            Ok(News::Running { pid }) => match Self::connect(dir, &launch.hypervisor, launch.network.is_some()).await {
                Ok(vm) => Ok(vm),
                // It may have ended already; then its supervisor has as well, or is about to.
                Err(unreached) => match tokio::time::timeout(PATIENCE, child.wait()).await {
                    Ok(_) if let Some(exit) = read_exit(dir) => Ok(Self::ended(dir, pid, &launch.hypervisor, exit)),
                    _ => Err(unreached.into_error()),
                },
            },
            Ok(News::Failed { why }) => Err(RuntimeError::Start(why)),
            _ => {
                let log = std::fs::read_to_string(dir.join("supervisor.log")).unwrap_or_default();
                let log: String = log.chars().take(500).collect();
                Err(RuntimeError::Start(format!("its supervisor ended: {log}")))
            }
        }
    }

    /// Gives an order, and returns when the supervisor will read it, whatever becomes of this process; `None` when it is gone.
    async fn order(&self, order: Order) -> Option<()> {
        let (written, wait) = oneshot::channel();
        self.orders.send((order, Some(written))).await.ok()?;
        wait.await.ok()
    }

    /// One that has ended before it could be reached.
    fn ended(dir: &Path, pid: u32, hypervisor: &Hypervisor, exit: VmExit) -> Self {
        let (orders, _) = mpsc::channel(1);
        let (_, exit) = watch::channel(Some(exit));
        Self { pid, monitor: hypervisor.monitor(dir), peer: None, orders, exit }
    }

    /// What became of the machine in `dir`, whichever hypervisor it has.
    ///
    /// # Errors
    /// When its supervisor neither answers nor left a record.
    pub async fn adopt(dir: &Path) -> Result<Adopted, RuntimeError> {
        let (hypervisor, networked) = launched(dir);
        let unreached = match Self::connect(dir, &hypervisor, networked).await {
            Ok(vm) => return Ok(Adopted::Running(Box::new(vm))),
            Err(unreached) => unreached,
        };
        // That it cannot be reached does not mean that it is dead: it may be starting, or this process may be short of
        // descriptors. Only the lock tells.
        if !dead(dir).map_err(|e| RuntimeError::io(format!("looking at the lock in {}", dir.display()), e))? {
            return Err(unreached.into_error());
        }
        Ok(match read_exit(dir) {
            Some(exit) => Adopted::Ended(exit),
            None if dir.join(CONTROL).exists() => Adopted::Ended(supervisor_died()),
            None => Adopted::Absent,
        })
    }

    async fn connect(dir: &Path, hypervisor: &Hypervisor, networked: bool) -> Result<Self, Unreached> {
        let place = || dir.display().to_string();
        let unreached = |cause| Unreached { place: place(), cause };
        let socket = connect_in(dir, CONTROL).await.map_err(unreached)?;
        let peer = networked.then(|| Peer::of(&socket)).transpose().map_err(unreached)?;
        let (read, write) = socket.into_split();
        let mut lines = BufReader::new(read);
        let first = tokio::time::timeout(PATIENCE, next_news(&mut lines)).await;
        let pid = match first {
            Ok(Ok(News::Running { pid })) => pid,
            Ok(Ok(_)) => return Err(unreached(io::ErrorKind::InvalidData.into())),
            Ok(Err(cause)) => return Err(unreached(cause)),
            Err(_) => return Err(unreached(io::ErrorKind::TimedOut.into())),
        };
        let (orders, queue) = mpsc::channel(QUEUE);
        let (tell, exit) = watch::channel(None);
        tokio::spawn(send_orders(queue, write));
        let home = dir.to_owned();
        tokio::spawn(async move {
            let exit = loop {
                match next_news(&mut lines).await {
                    Ok(News::Ended(exit)) => break exit,
                    Ok(_) => {}
                    Err(_) => break read_exit(&home).unwrap_or_else(supervisor_died),
                }
            };
            let _ = tell.send(Some(exit));
        });
        let monitor = hypervisor.monitor(dir);
        Ok(Self { pid, monitor, peer, orders, exit })
    }
}

/// Writes orders in turn, and tells who waits that the supervisor will read its order, whatever becomes of this process.
async fn send_orders(mut queue: mpsc::Receiver<(Order, Option<oneshot::Sender<()>>)>, mut socket: OwnedWriteHalf) {
    while let Some((order, written)) = queue.recv().await {
        let mut line = serde_json::to_vec(&order).unwrap_or_default();
        line.push(b'\n');
        if socket.write_all(&line).await.is_err() {
            return;
        }
        if let Some(written) = written {
            let _ = written.send(());
        }
    }
}

async fn next_news(lines: &mut BufReader<OwnedReadHalf>) -> io::Result<News> {
    let mut line = String::new();
    if lines.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

/// A supervisor that did not answer.
struct Unreached {
    place: String,
    cause: io::Error,
}

impl Unreached {
    fn into_error(self) -> RuntimeError {
        RuntimeError::io(format!("reaching the supervisor in {}", self.place), self.cause)
    }
}

/// No supervisor lives in this folder, and none will come: its lock is free, or was never made.
fn dead(dir: &Path) -> io::Result<bool> {
    match File::open(dir.join(LOCK)) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(e)) => Err(e),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

/// Connects to a socket by its name in a folder: through the folder's descriptor, since a whole path may be longer
/// than the 107 bytes that an address holds.
pub(crate) async fn connect_in(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let folder = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    match UnixStream::connect(&path).await {
        // QEMU lets one client wait; the next must wait for a place to wait, which only a blocking call can.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            let stream = tokio::task::spawn_blocking(move || wait_for_place(&path, folder)).await??;
            UnixStream::from_std(stream)
        }
        done => done,
    }
}

/// Blocks until it is connected, at most for `PATIENCE`. The folder is open until then.
fn wait_for_place(path: &str, _folder: File) -> io::Result<std::os::unix::net::UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?).map_err(|e| match io::Error::from(e) {
        e if e.kind() == io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        e => e,
    })?;
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// QEMU refuses a descriptor that could be read from as well. The file is emptied.
pub(crate) fn for_writing_only(file: File) -> io::Result<File> {
    file.set_len(0)?;
    File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Which hypervisor was started in this folder, and whether with a network; any where none was, or where a power cut took
/// the file's content: nothing runs then, and nothing is asked of it.
fn launched(dir: &Path) -> (Hypervisor, bool) {
    let launch = std::fs::read(dir.join(LAUNCH)).ok().and_then(|bytes| serde_json::from_slice::<Launch>(&bytes).ok());
    launch.map(|launch| (launch.hypervisor, launch.network.is_some())).unwrap_or_default()
}

fn read_exit(dir: &Path) -> Option<VmExit> {
    serde_json::from_slice(&std::fs::read(dir.join(EXIT)).ok()?).ok()
}

fn supervisor_died() -> VmExit {
    let status = "its supervisor was killed, and it with it".to_owned();
    VmExit { cause: Cause::SupervisorDied, status, panicked: false, console: String::new() }
}

#[async_trait]
impl Vm for SupervisedVm {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn network(&self) -> Option<OwnedFd> {
        self.peer.as_ref()?.network()
    }

    async fn channel(&self) -> Result<Box<dyn Channel>, RuntimeError> {
        self.monitor.channel().await
    }

    async fn channel_while_paused(&self) -> Option<Box<dyn Channel>> {
        self.monitor.channel_while_paused().await
    }

    async fn set_deadlines(&self, deadlines: Deadlines) -> Result<(), RuntimeError> {
        self.order(Order::Deadlines(deadlines)).await.ok_or(RuntimeError::Ended)
    }

    fn touch(&self) {
        // A full queue holds orders that count as a sign of use themselves.
        let _ = self.orders.try_send((Order::Touch, None));
    }

    async fn pause(&self) -> Result<(), RuntimeError> {
        self.monitor.pause().await
    }

    async fn resume(&self) -> Result<(), RuntimeError> {
        self.monitor.resume().await
    }

    async fn is_paused(&self) -> Result<bool, RuntimeError> {
        self.monitor.is_paused().await
    }

    async fn save(&self, state: File, memory: File) -> Result<(), RuntimeError> {
        self.monitor.save(self.pid, state, memory).await
    }

    async fn kill(&self) {
        // A supervisor that is gone took its hypervisor along; one that is only deaf is found when its folder is to go.
        let _ = self.order(Order::Kill).await;
    }

    async fn wait(&self) -> VmExit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_else(supervisor_died),
            Err(_) => supervisor_died(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent was killed, or the power went, while it was written.
    #[tokio::test]
    async fn a_launch_that_cannot_be_read_is_of_no_machine() {
        let dir = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"{", &[0; 4096]] {
            std::fs::write(dir.path().join(LAUNCH), content).unwrap();
            assert!(matches!(SupervisedVm::adopt(dir.path()).await.unwrap(), Adopted::Absent));
        }
    }
}
