//! The supervisor's process: one thread, one `poll`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::console::Console;
use super::spawn::{claim, enter_network, entry, hypervisor, open, spawn, take};
use super::{CONTROL, Cause, Deadlines, EXIT, Hypervisor, LAUNCH, Launch, News, Order, VmExit};
use crate::cell::{self, Layer};

/// Connections of agents at once: the living one, and one that just died.
const MAX_CLIENTS: usize = 4;
/// Longest order.
const MAX_LINE: usize = 4096;

/// Runs the supervisor for the machine in `dir`; returns the process's exit code.
pub fn main(dir: &Path) -> i32 {
    match start(dir) {
        Ok(mut supervisor) => {
            tell_parent(&News::Running { pid: supervisor.pid });
            supervisor.run();
            0
        }
        Err(why) => {
            tell_parent(&News::Failed { why: why.to_string() });
            1
        }
    }
}

/// The parent reads one line; afterwards nobody may read, so standard output must not be used again.
fn tell_parent(news: &News) {
    let _ = io::stdout().write_all(&line(news));
    let _ = io::stdout().flush();
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

struct Supervisor {
    child: Child,
    /// The hypervisor's process: the child itself, or one that ends with it.
    pid: u32,
    /// The child says with its exit code by which signal the hypervisor ended.
    stands_for: bool,
    pidfd: OwnedFd,
    output: Option<io::PipeReader>,
    console: Console,
    control: UnixListener,
    clients: Vec<Client>,
    limits: Limits,
    ordered: bool,
    group: Option<cell::Group>,
    /// Its user id in its cell, which is nobody else's as long as this lives.
    _uid: Option<cell::Uid>,
}

struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// Deadlines as moments.
struct Limits {
    wall: Option<Instant>,
    lease: Option<Instant>,
    idle_after: Option<Duration>,
    used_at: Instant,
}

impl Limits {
    fn new(deadlines: Deadlines, now: Instant) -> Self {
        let at = |ms: Option<u64>| ms.and_then(|ms| now.checked_add(Duration::from_millis(ms)));
        let idle_after = deadlines.idle_ms.map(Duration::from_millis);
        Self { wall: at(deadlines.wall_ms), lease: at(deadlines.lease_ms), idle_after, used_at: now }
    }

    fn next(&self) -> Option<(Instant, Cause)> {
        let idle = self.idle_after.and_then(|d| self.used_at.checked_add(d));
        let all = [(self.wall, Cause::Wall), (self.lease, Cause::Lease), (idle, Cause::Idle)];
        all.into_iter().filter_map(|(at, cause)| at.map(|at| (at, cause))).min_by_key(|(at, _)| *at)
    }
}

fn start(dir: &Path) -> io::Result<Supervisor> {
    std::env::set_current_dir(dir)?;
    let launch: Launch = serde_json::from_slice(&std::fs::read(LAUNCH)?)?;
    if launch.has(Layer::Descriptors) {
        // Whatever the server was started with must reach neither this process's children nor live on in them.
        close_all_at_exec()?;
    }
    let listen = |name: &str| {
        let _ = std::fs::remove_file(name);
        UnixListener::bind(name)
    };
    launch.network.map(enter_network).transpose()?;
    let inherited = take(&launch.fds)?;
    let control = listen(CONTROL)?;
    let sockets = launch.sockets.iter().map(|(name, fd)| Ok((listen(name)?, *fd))).collect::<io::Result<Vec<_>>>()?;
    let console = Console::create(Path::new("."))?;
    let files = launch.files.iter().map(open).collect::<io::Result<Vec<_>>>()?;
    let (uid, mut group) = claim(&launch)?;
    if uid.is_some() && launch.has(Layer::ProcessNamespace) {
        // For the child: it is the first process of a namespace, and all that it could start ends with it.
        // SAFETY: it does not touch the table of descriptors, which is what the function is unsafe for.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWPID) }?;
    }
    let entry = entry(&launch, uid.as_ref(), group.as_mut())?;
    let given = sockets.iter().map(|(socket, at)| (socket.as_raw_fd(), *at));
    let given = given.chain(inherited.iter().chain(&files).map(|(fd, at)| (fd.as_raw_fd(), *at))).collect();
    let (mut output, writer) = io::pipe()?;
    let child = spawn(&launch, given, (entry, uid.as_ref()), output.as_raw_fd(), writer).map_err(|error| {
        // Which step it was.
        let mut said = String::new();
        let _ = output.read_to_string(&mut said);
        io::Error::new(error.kind(), [said.trim(), &error.to_string()].join(if said.is_empty() { "" } else { ": " }))
    })?;
    // The hypervisor's memory must not outlive it because of its supervisor.
    drop((inherited, files));
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    control.set_nonblocking(true)?;
    rustix::io::ioctl_fionbio(&output, true)?;
    let limits = Limits::new(launch.deadlines, Instant::now());
    Ok(Supervisor {
        // One that has ended already was nobody else.
        pid: hypervisor(&launch, child.id()).unwrap_or(child.id()),
        stands_for: matches!(launch.hypervisor, Hypervisor::Firecracker(_)),
        child,
        pidfd,
        output: Some(output),
        console,
        control,
        clients: Vec::new(),
        limits,
        ordered: false,
        group,
        _uid: uid,
    })
}

/// Sets close-on-exec on all descriptors but the standard ones.
fn close_all_at_exec() -> io::Result<()> {
    // SAFETY: a system call on numbers; descriptors of this process only get another flag.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } == 0 {
        return Ok(());
    }
    // Kernels before 5.11 do not know the flag.
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number: Option<RawFd> = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(number) = number.filter(|number| *number > 2) {
            // SAFETY: as above; that of this very folder is closed anyhow.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

impl Supervisor {
    fn run(&mut self) {
        let cause = loop {
            if let Some(cause) = self.turn() {
                break cause;
            }
        };
        let _ = self.child.kill();
        let status = self.child.wait();
        self.read_output();
        self.finish(cause, status);
    }

    /// Waits for the next thing to happen; gives the cause of the end when it has come.
    fn turn(&mut self) -> Option<Cause> {
        let next = self.limits.next();
        if let Some((at, cause)) = next
            && at <= Instant::now()
        {
            return Some(cause);
        }
        let timeout = next
            .and_then(|(at, _)| rustix::time::Timespec::try_from(at.saturating_duration_since(Instant::now())).ok());
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN), PollFd::new(&self.control, PollFlags::IN)];
        fds.extend(self.clients.iter().map(|c| PollFd::new(&c.stream, PollFlags::IN)));
        if let Some(output) = &self.output {
            fds.push(PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN));
        }
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return None; // interrupted
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let (ended, knocks) = (ready[0], ready[1]);
        if self.output.is_some() && ready.last() == Some(&true) {
            self.read_output();
        }
        for index in (0..self.clients.len()).rev() {
            if ready[2 + index] && !self.listen_to(index) {
                self.clients.swap_remove(index);
            }
        }
        if knocks {
            self.accept();
        }
        if self.ordered {
            return Some(Cause::Ordered);
        }
        if self.console.halted() {
            return Some(Cause::Halted);
        }
        ended.then_some(Cause::Itself)
    }

    fn accept(&mut self) {
        let Ok((mut stream, _)) = self.control.accept() else { return };
        if self.clients.len() >= MAX_CLIENTS {
            self.clients.remove(0);
        }
        let hello = line(&News::Running { pid: self.pid });
        if stream.set_nonblocking(true).is_ok() && stream.write_all(&hello).is_ok() {
            self.clients.push(Client { stream, buffer: Vec::new() });
        }
    }

    /// Reads a client's orders; false when it is gone or talks nonsense.
    fn listen_to(&mut self, index: usize) -> bool {
        let mut bytes = [0; MAX_LINE];
        let client = &mut self.clients[index];
        match client.stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(n) => client.buffer.extend_from_slice(&bytes[..n]),
            Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
        }
        let mut orders = Vec::new();
        while let Some(end) = client.buffer.iter().position(|b| *b == b'\n') {
            match serde_json::from_slice::<Order>(&client.buffer[..end]) {
                Ok(order) => orders.push(order),
                Err(_) => return false,
            }
            client.buffer.drain(..=end);
        }
        let fine = client.buffer.len() < MAX_LINE;
        for order in orders {
            match order {
                Order::Deadlines(deadlines) => self.limits = Limits::new(deadlines, Instant::now()),
                Order::Touch => self.limits.used_at = Instant::now(),
                Order::Kill => self.ordered = true,
            }
        }
        fine
    }

    fn read_output(&mut self) {
        let mut bytes = [0; 16 * 1024];
        // Bounded per turn, so that a guest that floods its console does not keep deadlines from being seen.
        for _ in 0..16 {
            let Some(output) = &mut self.output else { return };
            match output.read(&mut bytes) {
                Ok(0) => self.output = None,
                Ok(n) => self.console.push(&bytes[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.output = None,
            }
        }
    }

    fn finish(&mut self, cause: Cause, status: io::Result<ExitStatus>) {
        let (console, panicked) = self.console.summary();
        let mut status = status.map_or_else(|e| e.to_string(), |status| in_words(status, self.stands_for));
        if self.group.take().is_some_and(|group| group.used_up()) {
            status.push_str(": it used up the memory that its cell may use");
        }
        let exit = VmExit { cause, status, panicked, console };
        let write = || -> io::Result<()> {
            let temporary = format!("{EXIT}.new");
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(&exit)?)?;
            file.sync_all()?;
            std::fs::rename(temporary, EXIT)?;
            File::open(".")?.sync_all()
        };
        // Without the file an agent that comes later still learns from the closed socket that it has ended.
        let _ = write();
        for client in &mut self.clients {
            let _ = client.stream.write_all(&line(&News::Ended(exit.clone())));
        }
    }
}

fn in_words(status: ExitStatus, stands_for: bool) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) if stands_for && code > cell::SIGNALLED => {
            format!("killed by {}", tartarus_types::signal::name(code - cell::SIGNALLED))
        }
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by {}", tartarus_types::signal::name(signal)),
        (None, None) => status.to_string(),
    }
}

fn line(news: &News) -> Vec<u8> {
    let mut line = serde_json::to_vec(news).unwrap_or_default();
    line.push(b'\n');
    line
}
