//! The server roles of the binary: `up`, which is control plane and node in one process, and the supervisor.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use hecatoncheir::{
    Agent, HostOptions, HostStore, LocalNode, LogLimits, NetOptions, Networks, OVERHEAD_MIB, Parts, Stop, Wanted,
};
use olympus::{Olympus, Settings};
use tartarus_api::node::NodeInfo;
use tartarus_types::net::NetLimits;
use tartarus_types::{Limits, NodeId, Overcommit, Timestamp};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::{DriverChoice, NetChoice, UpArgs};
use crate::pointer::{self, Pointer};

/// The guest agent, static; `build.rs` made it.
static AGENT: &[u8] = include_bytes!(env!("TARTARUS_GUEST_AGENT_FILE"));

/// How long `up` waits for its own node before it says that it is ready.
const REGISTER: Duration = Duration::from_secs(5);

/// Control plane and node in one process.
pub(crate) fn up(args: UpArgs) -> anyhow::Result<ExitCode> {
    hermes::init(args.log_json);
    if !args.listen.ip().is_loopback() && !args.insecure {
        bail!(
            "--listen {} is beyond loopback, and this version does not speak TLS: whoever reads the traffic has the \
             key. Put a TLS proxy in front of a loopback address, or accept it with --insecure",
            args.listen
        );
    }
    if let Some(guard) = args.torture_without {
        only_in_a_suite(guard)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(args));
    // Nothing is left to wait for; a blocking read of a slow disk must not hold up the end.
    runtime.shutdown_background();
    result
}

/// The machine's own namespace of processes; the number is a constant of Linux (`PROC_PID_INIT_INO`).
const OF_THE_MACHINE: &str = "pid:[4026531836]";

/// Rules are left out only where nothing but an attack suite is: among processes that are not the machine's, and in a network
/// namespace that is not their first one's.
fn only_in_a_suite(guard: hecatoncheir::Guard) -> anyhow::Result<()> {
    let of = |process: &str, kind: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}"));
    let own = of("self", "net").context("/proc/self/ns/net")?;
    let apart = of("self", "pid").is_ok_and(|pid| pid != Path::new(OF_THE_MACHINE));
    if apart && of("1", "net").is_ok_and(|first| first != own) {
        return Ok(());
    }
    bail!(
        "--torture-without {guard} takes protection away, and is for `tartarus torture net` alone: it is refused here"
    )
}

/// What the server starts itself as, with a folder: the process beside a VM, or the one that holds the memory of golden
/// snapshots. `None` for a command line. It is told apart before that is looked at, which takes as long as the rest of
/// a supervisor's start, and neither makes a runtime.
pub(crate) fn role(args: &[OsString]) -> Option<ExitCode> {
    let [_, role, dir] = args else { return None };
    let code = match role.to_str()? {
        "supervise" => hecatoncheir::supervise(Path::new(dir)),
        "keep" => hecatoncheir::keep(Path::new(dir)),
        _ => return None,
    };
    Some(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Prints the API's description.
#[allow(clippy::print_stdout, reason = "it is the command's output")]
pub(crate) fn openapi() {
    print!("{}", olympus::openapi_json());
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

async fn serve(args: UpArgs) -> anyhow::Result<ExitCode> {
    raise_descriptors();
    let memory = memory_mib()?;
    let loaded_mib = args.snapshot_memory.map_or(memory / 4, u64::from);
    let sandbox_mib = sandbox_memory(memory, loaded_mib)?;
    let data = data_dir(args.data.clone())?;
    let _lock = lock(&data)?;
    let stop = stop_signal()?;
    let settings = Settings {
        limits: Limits::default(),
        retain: args.retain,
        retain_count: args.retain_count,
        min_free: mib(args.min_free),
        net: args.net.into(),
        public_ports: args.public_ports,
        net_limits: NetLimits {
            mbit: args.net_most_mbit,
            packets: args.net_most_packets,
            connections: args.net_most_connections,
        },
    };
    let folder = data.clone();
    let open = move || Olympus::open(&folder, settings, now);
    let control = Arc::new(tokio::task::spawn_blocking(open).await??);
    let key_file = data.join("admin.key");
    control.admin_key(&key_file).await?;

    let wanted = match args.driver {
        DriverChoice::Auto => Wanted::Auto,
        DriverChoice::Firecracker => Wanted::Firecracker,
        DriverChoice::QemuKvm => Wanted::QemuKvm,
        DriverChoice::QemuTcg => Wanted::QemuTcg,
    };
    let options = HostOptions {
        wanted,
        program: "/proc/self/exe".into(),
        agent: AGENT,
        loaded_limit: loaded_mib.saturating_mul(tartarus_types::MIB),
        clock: now,
    };
    let host = HostStore::open(&data, options).await?;
    if let Some(guard) = args.torture_without {
        tracing::warn!(%guard, "a protective rule of networks is left out: an attack suite looks whether it is missed");
    }
    let networks = Arc::new(Networks::new(
        NetOptions {
            range: args.net_range,
            pool: args.net_pool as usize,
            connections: args.net_most_connections,
            dns: args.dns.clone(),
            without: args.torture_without,
            off: args.net == NetChoice::None,
        },
        now,
    ));
    let agent = Agent::open(Parts {
        networks: networks.clone(),
        info: node_info(&data, sandbox_mib, args.overcommit, args.start_slots)?,
        control: control.clone(),
        workshop: host.clone(),
        sandboxes: data.join("sandboxes"),
        logs: data.join("logs"),
        limits: LogLimits { head: mib(args.log_head), tail: mib(args.log_tail) },
        clock: now,
    })?;
    control.attach_node(Arc::new(LocalNode { agent: agent.clone(), store: host.clone() }))?;

    let kernel = control.newest_kernel().await?;
    let listener = bind(args.listen).await?;
    let address = listener.local_addr()?;
    let (node_stop, http_stop) = (CancellationToken::new(), CancellationToken::new());
    let stop_mode = if args.leave_running { Stop::LeaveRunning } else { Stop::EndSandboxes };
    let mut reconciler = tokio::spawn(control.clone().run(http_stop.clone()));
    let mut node = tokio::spawn(agent.clone().run(node_stop.clone(), stop_mode));
    let router = olympus::http::router(control.clone());
    let mut http = tokio::spawn(olympus::http::serve(listener, router, http_stop.clone()));
    if let Some(kernel) = kernel {
        // The first sandbox need not wait for the probe.
        let host = host.clone();
        tokio::spawn(async move { host.prepare(&kernel).await });
    }

    // Ready means ready: whoever was told may ask for sandboxes at once.
    if tokio::time::timeout(REGISTER, agent.registered()).await.is_err() {
        tracing::warn!("the node is not registered yet, see above; until it is, nothing can be run");
    }
    let pointer = announce(address, &key_file);

    let broken = tokio::select! {
        () = stop => None,
        ended = &mut node => Some(("node agent", ended)),
        ended = &mut http => Some(("HTTP server", ended)),
        ended = &mut reconciler => Some(("reconciler", ended)),
    };
    if let Some((part, ended)) = broken {
        // Whoever supervises this process starts it anew, and that takes over what runs.
        bail!("the {part} ended by itself ({ended:?}); sandboxes go on running, the next start takes them over");
    }
    tracing::info!("stopping");
    if stop_mode == Stop::LeaveRunning {
        // Before its sandboxes' tasks let go of the memory that their machines map.
        host.leave().await;
    }
    // The node first: its sandboxes' ends are reported to a control plane that still answers.
    node_stop.cancel();
    node.await?;
    if stop_mode == Stop::EndSandboxes {
        host.close().await;
        networks.close().await;
    }
    http_stop.cancel();
    http.await?;
    reconciler.await?;
    forget_pointer(pointer.as_deref(), &key_file);
    Ok(ExitCode::SUCCESS)
}

/// Every sandbox takes a handful of descriptors; the usual soft limit of 1024 is for programs that use `select`.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!("the limit of open files could not be raised: {e}");
    }
}

fn mib(mib: u32) -> u64 {
    u64::from(mib) << 20
}

/// SIGTERM or SIGINT. Listens at once, so that a signal during start-up is not lost.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// Where everything is that lasts.
///
/// # Errors
/// When nobody said so and there is no home folder.
pub(crate) fn data_path(asked: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let default =
        || var("XDG_DATA_HOME").or_else(|| Some(var("HOME")?.join(".local/share"))).map(|d| d.join("tartarus"));
    asked.or_else(default).context("no home folder to keep data in: say where with --data")
}

fn data_dir(asked: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let dir = data_path(asked)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .and_then(|()| dir.canonicalize())
        .with_context(|| format!("the data folder {}", dir.display()))
}

/// One server per data folder: a second would take over the first one's sandboxes. The lock is the process's, and gone with it
/// (`fcntl`): that of an open file (`flock`) would be held by a child that a killed server had begun, until that runs its program.
fn lock(data: &Path) -> anyhow::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(data.join("lock"))?;
    match rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => bail!("another tartarus uses {}: stop it, or choose another folder with --data", data.display()),
    }
}

fn node_info(
    data: &Path,
    memory_mib: u64,
    overcommit: Overcommit,
    start_slots: Option<u32>,
) -> anyhow::Result<NodeInfo> {
    let path = data.join("node.id");
    let known = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<NodeId>().ok());
    let id = match known {
        Some(id) => id,
        None => {
            let id = NodeId::random();
            std::fs::write(&path, id.as_str()).with_context(|| path.display().to_string())?;
            id
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    Ok(NodeInfo {
        id,
        memory_mib,
        overhead_mib: OVERHEAD_MIB,
        overcommit,
        start_slots: start_slots.unwrap_or(cores),
        // More processors than the host has only slow a guest down.
        max_cpus: cores,
    })
}

/// MiB that sandboxes may reserve on a machine of `memory` MiB: what loaded snapshots may take is never promised to one.
fn sandbox_memory(memory: u64, loaded: u64) -> anyhow::Result<u64> {
    let ours = memory * 9 / 10;
    let left = ours.saturating_sub(loaded);
    let least = u64::from(Limits::default().min_memory_mib) + OVERHEAD_MIB;
    if left < least {
        bail!(
            "--snapshot-memory: {loaded} MiB for loaded snapshots leave {left} of {ours} MiB for sandboxes, and the \
             smallest takes {least} MiB: choose less than {} MiB",
            (ours + 1).saturating_sub(least)
        );
    }
    Ok(left)
}

fn memory_mib() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:")).context("/proc/meminfo has no MemTotal")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("MemTotal of /proc/meminfo")?;
    Ok(kib / 1024)
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("listening on {address}: choose another address with --listen, such as 127.0.0.1:0 for a free port")
    })
}

/// Tells people, scripts and the CLI of the same user where the server is.
fn announce(address: SocketAddr, key_file: &Path) -> Option<PathBuf> {
    let url = format!("http://{address}");
    let path = pointer::path(|name| std::env::var_os(name).map(PathBuf::from));
    if let Some(path) = &path
        && let Err(e) = pointer::write(path, &Pointer { url: url.clone(), key_file: key_file.to_owned() })
    {
        tracing::warn!("the CLI will not find this server by itself, set TARTARUS_URL and TARTARUS_API_KEY: {e}");
    }
    // Whoever started it may have closed the pipe after the first line; the server goes on.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "Tartarus is ready at {url}\nThe API key is in {}", key_file.display());
    let _ = out.flush();
    path
}

/// Removes the pointer, unless another server has taken its place.
fn forget_pointer(path: Option<&Path>, key_file: &Path) {
    if let Some(path) = path
        && let Ok(Some(pointer)) = pointer::read(path)
        && pointer.key_file == key_file
    {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_snapshots_leave_room_for_a_sandbox() {
        assert_eq!(sandbox_memory(1000, 250).unwrap(), 650);
        assert_eq!(sandbox_memory(1000, 708).unwrap(), 192);
        let error = sandbox_memory(1000, 709).unwrap_err().to_string();
        assert!(error.starts_with("--snapshot-memory: 709 MiB") && error.ends_with("less than 709 MiB"), "{error}");
    }
}
