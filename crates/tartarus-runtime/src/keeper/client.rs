//! The agent's side of the keeper: reaches it, starts it where there is none, asks it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt::socket_peercred};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, BufReader, Interest};
use tokio::time::{sleep, timeout};

use super::{Answer, Ask, LAUNCH, LOCK, LOG, Launch, MAX_MESSAGE, SOCKET, receive, send};
use crate::supervisor::Program;

/// How long an answer may take: the keeper never waits for anything itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to reach one, and to start it.
const CONNECTING: Duration = Duration::from_secs(15);
/// How long one that ends right now may take to leave its folder, in steps of `STEP`.
const STEPS: u32 = 40;
const STEP: Duration = Duration::from_millis(50);

/// How to reach a keeper.
#[derive(Debug, Clone)]
pub struct Connector {
    /// Its folder.
    pub dir: PathBuf,
    /// Its program; the folder is appended.
    pub program: Program,
    /// How long it lives without a client, if it has to be started.
    pub alone: Duration,
}

/// A connection to a keeper. While one is open the keeper does not end by itself.
#[derive(Debug)]
pub struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connector {
    /// Connects to the keeper of the folder; starts it when there is none. The folder is made when it is missing.
    ///
    /// # Errors
    /// When it can neither be reached nor started.
    pub async fn connect(&self) -> io::Result<Connection> {
        timeout(CONNECTING, self.connect_or_start()).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
    }

    async fn connect_or_start(&self) -> io::Result<Connection> {
        std::fs::create_dir_all(&self.dir)?;
        for _ in 0..STEPS {
            if let Ok(connection) = Connection::open(&self.dir).await {
                return Ok(connection);
            }
            let lock = File::create(self.dir.join(LOCK))?;
            match lock.try_lock() {
                Ok(()) => {
                    self.start(lock).await?;
                    return Connection::open(&self.dir).await;
                }
                // It is about to end, or another agent is about to start it; neither can be waited for otherwise.
                Err(std::fs::TryLockError::WouldBlock) => sleep(STEP).await,
                Err(std::fs::TryLockError::Error(e)) => return Err(e),
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("the keeper in {} does not answer", self.dir.display())))
    }

    async fn start(&self, lock: File) -> io::Result<()> {
        let launch = Launch { alone_ms: u64::try_from(self.alone.as_millis()).unwrap_or(u64::MAX) };
        File::create(self.dir.join(LAUNCH))?.write_all(&serde_json::to_vec(&launch)?)?;
        let log = File::create(self.dir.join(LOG))?;
        let (first, rest) = self.program.0.split_first().ok_or_else(|| io::Error::other("no keeper"))?;
        let mut command = tokio::process::Command::new(first);
        command.args(rest).arg(&self.dir).env_clear().stdin(Stdio::from(lock)).stdout(Stdio::piped()).stderr(log);
        // Its own session from the first moment: a signal to this process's group must not reach it.
        // SAFETY: the closure only makes a system call.
        unsafe {
            command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from));
        }
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        let mut line = String::new();
        let read = timeout(PATIENCE, BufReader::new(stdout).read_line(&mut line)).await;
        let failed = match (read, serde_json::from_str(&line)) {
            (Ok(Ok(_)), Ok(Answer::Done)) => None,
            (Ok(Ok(_)), Ok(Answer::Refused(why))) => Some(why),
            _ => Some("it gave no word".to_owned()),
        };
        if let Some(why) = failed {
            let _ = child.kill().await;
            return Err(io::Error::other(format!("the keeper did not start: {why}")));
        }
        // Reaps it whenever it ends; while this process lives it is its child.
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }
}

impl Connection {
    /// Connects to the keeper that runs in `dir`.
    ///
    /// # Errors
    /// When there is none, or it is not this user's.
    pub async fn open(dir: &Path) -> io::Result<Self> {
        // Through the folder's descriptor: a whole path may be longer than an address holds.
        let folder = File::open(dir)?;
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        if socket_peercred(&socket)?.uid != rustix::process::geteuid() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user listens there"));
        }
        // SAFETY: it owns the descriptor, which stays open and the same for as long as it lives.
        let connection = Self { socket: unsafe { AsyncFd::register(socket) }? };
        // One that ends right now still accepts, and one that has too many clients closes at once.
        connection.names().await?;
        Ok(connection)
    }

    /// Gives it memory to hold.
    ///
    /// # Errors
    /// When it refuses, or is gone.
    pub async fn put(&self, name: &str, memory: BorrowedFd<'_>) -> io::Result<()> {
        match self.ask(&Ask::Put { name: name.to_owned() }, Some(memory)).await? {
            (Answer::Done, _) => Ok(()),
            (answer, _) => Err(unexpected(answer)),
        }
    }

    /// What it holds under that name.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn get(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        match self.ask(&Ask::Get { name: name.to_owned() }, None).await? {
            (Answer::Done, Some(memory)) => Ok(Some(memory)),
            (Answer::Absent, _) => Ok(None),
            (answer, _) => Err(unexpected(answer)),
        }
    }

    /// Has it let go of what has that name, if anything.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn drop(&self, name: &str) -> io::Result<()> {
        match self.ask(&Ask::Drop { name: name.to_owned() }, None).await? {
            (Answer::Done | Answer::Absent, _) => Ok(()),
            (answer, _) => Err(unexpected(answer)),
        }
    }

    /// All names that it holds, in order.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn names(&self) -> io::Result<Vec<String>> {
        match self.ask(&Ask::List, None).await? {
            (Answer::Names(names), _) => Ok(names),
            (answer, _) => Err(unexpected(answer)),
        }
    }

    /// Ends it. What machines have mapped stays as long as they do.
    ///
    /// # Errors
    /// When it is gone already.
    pub async fn quit(self) -> io::Result<()> {
        self.ask(&Ask::Quit, None).await.map(drop)
    }

    /// Waits until the keeper is gone. Nothing may be asked meanwhile.
    pub async fn lost(&self) {
        // It says nothing unasked; one that does is not to be trusted with the next answer either.
        let _ = self.answer().await;
    }

    async fn ask(&self, ask: &Ask, fd: Option<BorrowedFd<'_>>) -> io::Result<(Answer, Option<OwnedFd>)> {
        let exchange = async {
            self.socket.async_io(Interest::WRITABLE, |socket| send(socket.as_fd(), ask, fd)).await?;
            self.answer().await
        };
        timeout(PATIENCE, exchange).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
    }

    async fn answer(&self) -> io::Result<(Answer, Option<OwnedFd>)> {
        self.socket.async_io(Interest::READABLE, |socket| receive(socket.as_fd(), MAX_MESSAGE)).await
    }
}

fn unexpected(answer: Answer) -> io::Error {
    match answer {
        Answer::Refused(why) => io::Error::other(format!("the keeper refuses: {why}")),
        _ => io::Error::new(io::ErrorKind::InvalidData, "the keeper's answer does not fit"),
    }
}
