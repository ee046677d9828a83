//! The supervisor: a small process beside each microVM, its hypervisor's parent.
//!
//! It binds the machine's sockets and hands them to the hypervisor as descriptors, so that nobody polls for them and
//! no path is too long; keeps the console log bounded; and ends the hypervisor at its deadlines, also when the node
//! agent is dead. If it dies itself, the kernel kills the hypervisor. How it ended is a file, `exit.json`.

mod client;
mod console;
mod monitor;
mod peer;
mod process;
mod spawn;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Jail, Layer, Limits};

pub use client::SupervisedVm;
pub(crate) use client::{connect_in, for_writing_only};
pub(crate) use monitor::Monitor;
pub use process::main;

/// The agent's orders.
const CONTROL: &str = "supervisor.sock";
/// How the machine is started.
const LAUNCH: &str = "launch.json";
/// Locked for as long as the supervisor lives: it is the supervisor's standard input, so that the lock passes to it
/// before its first line of code.
pub const LOCK: &str = "supervisor.lock";
/// How it ended; its existence means that it has.
const EXIT: &str = "exit.json";
/// What the guest's console and the hypervisor printed.
pub const CONSOLE: &str = "console.log";

/// How to start a machine; written before the supervisor is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The hypervisor and its arguments. The working directory is the machine's folder.
    pub argv: Vec<String>,
    /// Its whole environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Listening sockets in the folder, and the descriptor under which the hypervisor finds each.
    pub sockets: Vec<(String, i32)>,
    /// Descriptors that the supervisor inherits under the first number, at least 3, and the hypervisor under the second,
    /// which may be its standard input. They must be open in the launching process until the launch is over.
    #[serde(default)]
    pub fds: Vec<(i32, i32)>,
    /// Files that the supervisor opens for the hypervisor.
    #[serde(default)]
    pub files: Vec<Given>,
    /// A network namespace that the supervisor inherits under this number, at least 3, and goes into.
    #[serde(default)]
    pub network: Option<i32>,
    /// Where QEMU is locked up; `None` where only root could, and is not.
    #[serde(default)]
    pub cell: Option<Cell>,
    /// Which hypervisor it is: whoever takes the machine over must know how it is spoken to.
    #[serde(default)]
    pub hypervisor: Hypervisor,
    /// It may make only the system calls of [`crate::cell`]'s list, which is QEMU's.
    #[serde(default)]
    pub filtered: bool,
    /// What it may use, in its cell.
    #[serde(default)]
    pub limits: Option<Limits>,
    /// The first deadlines, counted from the supervisor's start.
    pub deadlines: Deadlines,
}

impl Launch {
    /// Whether the hypervisor is locked up with this layer: with each, but for tests of what it is for.
    fn has(&self, layer: Layer) -> bool {
        let without = match &self.hypervisor {
            Hypervisor::Firecracker(jail) => Some(&jail.without),
            Hypervisor::Qemu => self.cell.as_ref().map(|cell| &cell.without),
        };
        without.is_none_or(|without| !without.contains(&layer))
    }
}

/// The hypervisors there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hypervisor {
    /// QEMU: its arguments are its machine.
    #[default]
    Qemu,
    /// Firecracker, which its own jailer locks up.
    Firecracker(Jail),
}

/// A file that a hypervisor is given open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Its path for the supervisor.
    pub path: PathBuf,
    /// It may be written.
    pub write: bool,
    /// The descriptor under which the hypervisor finds it.
    pub at: i32,
}

/// When the supervisor ends the hypervisor by itself. Milliseconds from when it hears of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlines {
    /// The wall-clock limit of the run.
    pub wall_ms: Option<u64>,
    /// Longest time without a sign of use.
    pub idle_ms: Option<u64>,
    /// The node's lease; renewed by sending it again.
    pub lease_ms: Option<u64>,
}

/// Why the hypervisor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// By itself, or somebody else killed it.
    Itself,
    /// The agent gave the order.
    Ordered,
    /// The wall-clock limit.
    Wall,
    /// The idle limit.
    Idle,
    /// The lease ran out.
    Lease,
    /// The guest powered off or halted.
    Halted,
    /// The supervisor was killed, and the hypervisor with it.
    SupervisorDied,
}

/// How a hypervisor ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmExit {
    /// Why.
    pub cause: Cause,
    /// Its exit code or signal, in words.
    pub status: String,
    /// The guest's kernel panicked, as far as its console tells (a guest may lie about itself).
    pub panicked: bool,
    /// The last lines of the console, without control characters.
    pub console: String,
}

/// What the agent tells a supervisor; a line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Deadlines(Deadlines),
    Touch,
    Kill,
}

/// What a supervisor tells the agent; a line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum News {
    Running { pid: u32 },
    Failed { why: String },
    Ended(VmExit),
}

/// How a process of our own is started, a supervisor or a keeper: program and first arguments; the folder is appended.
#[derive(Debug, Clone)]
pub struct Program(pub Vec<PathBuf>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_of_the_previous_version_is_read() {
        let old = r#"{"argv":["qemu","-x"],"sockets":[["agent.sock",100]],"deadlines":{"wall_ms":5,"idle_ms":null,"lease_ms":null}}"#;
        let launch: Launch = serde_json::from_str(old).unwrap();
        assert_eq!((launch.argv.len(), launch.sockets.len(), launch.fds), (2, 1, Vec::new()));
        assert_eq!((launch.env.len(), launch.files.len(), launch.cell, launch.limits), (0, 0, None, None));
        assert_eq!((launch.hypervisor, launch.network), (Hypervisor::Qemu, None));
    }
}
