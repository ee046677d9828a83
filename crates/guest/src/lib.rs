//! The host-guest protocol: frames over one byte stream, and the messages in them.
//!
//! The stream is a virtio-serial port (QEMU) or a vsock connection (Firecracker). It may be cut at any byte when the
//! host's agent dies, and what was on its way may still arrive at the next connection. So every connection starts with
//! a preamble that flushes the guest's parser and carries a fresh nonce, and every frame is tagged with that nonce's
//! first bytes: each side drops what came before. See `docs/guest-protocol.md`.
//!
//! Both directions are bounded by [`frame::MAX_PAYLOAD`]; a peer that breaks a rule is cut off, never guessed at.

#![forbid(unsafe_code)]

pub mod flow;
pub mod frame;
pub mod message;

pub use frame::{Decoder, Frame, Header, Kind, Malformed};
pub use message::{
    End, Freeze, Hello, HelloAck, Net, ProcessState, ProcessStatus, RunnerState, Start, StartRunner, Stream,
};

/// Version of the protocol. A change of a message or frame raises it; the host speaks to agents of two releases back.
pub const VERSION: u32 = 3;

/// The oldest version that the host still speaks: agents inside of older snapshots.
pub const OLDEST: u32 = 1;

/// Bytes of output per stream that the guest keeps until the host has them on disk.
pub const OUTPUT_WINDOW: usize = 256 * 1024;

/// Bytes of standard input that the guest takes before the command read them.
pub const STDIN_WINDOW: usize = 256 * 1024;

/// Bytes of a carried connection, in each direction, that one side may send before the other one took them.
pub const CARRY_WINDOW: usize = 128 * 1024;

/// Most carried connections at once.
pub const MAX_CARRIED: usize = 64;

/// The first version whose agent sets its card up.
pub const SETS_CARD_UP: u32 = 3;

/// The first version whose agent carries connections.
pub const CARRIES: u32 = 3;

/// Most processes that the guest remembers at once: running, or ended and not yet confirmed by the host.
pub const MAX_PROCESSES: usize = 1024;

/// Name of the virtio-serial port.
pub const PORT_NAME: &str = "tartarus.agent.1";

/// The vsock port on which the agent listens under a hypervisor without virtio-serial.
pub const VSOCK_PORT: u32 = 1024;
