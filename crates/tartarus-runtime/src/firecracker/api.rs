//! What Firecracker is asked, in its own words: no more fields than are used.
//!
//! A boot is one step: its file of configuration holds the bodies of the requests that would make the same machine. So an
//! agent that dies leaves no machine that is half configured.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The kernel and how it starts.
#[derive(Debug, Serialize)]
pub(super) struct BootSource {
    pub(super) kernel_image_path: &'static str,
    pub(super) initrd_path: &'static str,
    pub(super) boot_args: &'static str,
}

/// A disk.
#[derive(Debug, Serialize)]
pub(super) struct Drive {
    pub(super) drive_id: &'static str,
    pub(super) path_on_host: &'static str,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    pub(super) cache_type: CacheType,
    pub(super) rate_limiter: RateLimiter,
}

/// What a guest's flush does.
#[derive(Debug, Serialize)]
pub(super) enum CacheType {
    /// Nothing.
    Unsafe,
}

/// What a device may do.
#[derive(Debug, Serialize)]
pub(super) struct RateLimiter {
    pub(super) bandwidth: TokenBucket,
    pub(super) ops: TokenBucket,
}

/// `size` bytes or requests every `refill_time` milliseconds, and `one_time_burst` once.
#[derive(Debug, Serialize)]
pub(super) struct TokenBucket {
    pub(super) size: u64,
    pub(super) refill_time: u64,
    pub(super) one_time_burst: u64,
}

/// Processors and memory.
#[derive(Debug, Serialize)]
pub(super) struct MachineConfiguration {
    pub(super) vcpu_count: u32,
    pub(super) mem_size_mib: u32,
}

/// A card.
#[derive(Debug, Serialize)]
pub(super) struct NetworkInterface {
    pub(super) iface_id: &'static str,
    pub(super) host_dev_name: &'static str,
    pub(super) guest_mac: &'static str,
}

/// The guest channel.
#[derive(Debug, Serialize)]
pub(super) struct Vsock {
    pub(super) guest_cid: u32,
    pub(super) uds_path: &'static str,
}

/// The file of configuration of a boot.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Configuration {
    pub(super) boot_source: BootSource,
    pub(super) drives: [Drive; 2],
    pub(super) machine_config: MachineConfiguration,
    pub(super) network_interfaces: [NetworkInterface; 1],
    pub(super) vsock: Vsock,
}

/// What the virtual processors are to do.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) enum VmState {
    Paused,
    Resumed,
}

/// Where a snapshot's memory is.
#[derive(Debug, Serialize)]
pub(super) struct MemoryBackend {
    pub(super) backend_type: BackendType,
    pub(super) backend_path: &'static str,
}

/// How it is there.
#[derive(Debug, Serialize)]
pub(super) enum BackendType {
    /// As a file, which is mapped privately.
    File,
}

/// Which pages a snapshot writes.
#[derive(Debug, Serialize)]
pub(super) enum SnapshotType {
    /// Those that are not known to be what they were.
    Diff,
}

/// What is done at once.
#[derive(Debug, Serialize)]
pub(super) enum ActionType {
    /// To write down what was counted.
    FlushMetrics,
}

/// A request.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Request {
    /// Of which build it is.
    Version,
    /// Whether it runs.
    Describe,
    /// How large its memory is.
    MachineConfig,
    /// To do something.
    Action { action_type: ActionType },
    /// To stop, or to go on.
    Vm { state: VmState },
    /// To write itself to files.
    SnapshotCreate { snapshot_type: SnapshotType, snapshot_path: &'static str, mem_file_path: &'static str },
    /// To become what such files hold.
    SnapshotLoad { snapshot_path: &'static str, mem_backend: MemoryBackend, track_dirty_pages: bool, resume_vm: bool },
}

impl Request {
    /// Method and path.
    pub(super) fn line(&self) -> (&'static str, &'static str) {
        match self {
            Self::Version => ("GET", "/version"),
            Self::Describe => ("GET", "/"),
            Self::MachineConfig => ("GET", "/machine-config"),
            Self::Action { .. } => ("PUT", "/actions"),
            Self::Vm { .. } => ("PATCH", "/vm"),
            Self::SnapshotCreate { .. } => ("PUT", "/snapshot/create"),
            Self::SnapshotLoad { .. } => ("PUT", "/snapshot/load"),
        }
    }

    /// What is sent with it.
    pub(super) fn body(&self) -> serde_json::Result<Option<Value>> {
        // What has no fields has no body.
        serde_json::to_value(self).map(|body| Some(body).filter(|body| !body.is_null()))
    }
}

/// Answer to [`Request::Version`].
#[derive(Debug, Deserialize)]
pub(super) struct Version {
    pub(super) firecracker_version: String,
}

/// Answer to [`Request::Describe`].
#[derive(Debug, Deserialize)]
pub(super) struct InstanceInfo {
    pub(super) state: InstanceState,
}

/// What the virtual processors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum InstanceState {
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

/// Answer to [`Request::MachineConfig`].
#[derive(Debug, Deserialize)]
pub(super) struct MemorySize {
    pub(super) mem_size_mib: u64,
}

/// Any refusal.
#[derive(Debug, Deserialize)]
pub(super) struct Fault {
    pub(super) fault_message: String,
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
