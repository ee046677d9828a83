//! The messages that are more than a header: JSON, since they are rare and must be readable across versions.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::frame::Malformed;

/// One of a process's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both.
    pub const ALL: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// Its number in a frame's header.
    pub fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    /// The stream of a frame's header.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            _ => None,
        }
    }

    /// `stdout` or `stderr`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The host's first message of a session: what makes this guest itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`] of the host.
    pub version: u32,
    /// The time now, nanoseconds since the Unix epoch; the guest sets its clock.
    pub time_ns: u64,
    /// Fresh random bytes, as numbers, mixed into the kernel's pool and credited.
    pub entropy: Vec<u8>,
    /// The host name to take.
    pub hostname: String,
    /// The machine id to take: 32 hex digits. Absent from hosts of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// The network to have: absent from hosts of version 2 and for a guest that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<Net>,
}

/// Freezes the layer for a snapshot; an empty payload says the same as one without a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// The network that this guest takes before, since most of its clones are to have it. Since version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<Net>,
}

/// What a guest's network card is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// Its address.
    pub address: Ipv4Addr,
    /// Bits of its network: 0 to 32.
    pub prefix: u8,
    /// The way to everywhere else.
    pub gateway: Ipv4Addr,
    /// Who knows names.
    pub nameserver: Ipv4Addr,
}

/// The guest's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck {
    /// [`crate::VERSION`] of the agent.
    pub version: u32,
    /// `uname -r`.
    pub kernel: String,
    /// Nanoseconds since the guest's kernel started.
    pub uptime_ns: u64,
    /// Every process it remembers.
    pub processes: Vec<ProcessStatus>,
}

/// What the guest remembers of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its number.
    pub process: u32,
    /// The token it was started with.
    pub token: String,
    /// Runs, or how it ended.
    pub state: ProcessState,
    /// Bytes of standard input taken over.
    pub stdin_taken: u64,
}

/// Runs, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// It runs, or its output is not all sent yet.
    Running {
        /// Its pid in the guest.
        pid: u32,
    },
    /// It ended.
    Ended(End),
}

/// Starts a process. The same `token` again starts nothing and answers as the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The attempt; whoever repeats it must mean the same process.
    pub token: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The environment, to which the agent adds `PATH` and `HOME` where they are absent.
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when absent.
    pub user: Option<String>,
    /// Standard input is a pipe that the host feeds; otherwise it is empty.
    pub stdin: bool,
    /// Source for the runner, which runs it in a process of its own with `argv` as arguments. Absent: `argv` is a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// Starts the runner: a process that forks a fresh child for each job. The same again starts nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRunner {
    /// `python`.
    pub language: String,
    /// Modules to import before the first job.
    pub preload: Vec<String>,
    /// Its environment, to which the agent adds `PATH` and `HOME` where they are absent.
    pub env: BTreeMap<String, String>,
}

/// The guest's answer to [`StartRunner`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunnerState {
    /// It waits for a job, and a child for the first one waits as well.
    Ready,
    /// It could not be started, or ended before it was ready.
    Failed {
        /// Why, with its last words.
        message: String,
    },
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It exited.
    Exited {
        /// Its exit code.
        code: i32,
        /// Processes the guest's kernel killed for want of memory while it ran.
        oom_kills: u32,
    },
    /// A signal ended it.
    Signalled {
        /// The signal.
        signal: i32,
        /// Processes the guest's kernel killed for want of memory while it ran.
        oom_kills: u32,
    },
    /// The program does not exist.
    NotFound {
        /// What was tried.
        message: String,
    },
    /// The program exists and cannot be executed, or its user or directory does not exist.
    NotExecutable {
        /// What was tried.
        message: String,
    },
}

/// A message's JSON.
///
/// # Panics
/// Never: the messages hold nothing that JSON cannot.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages are plain data")
}

/// Reads a message.
///
/// # Errors
/// [`Malformed::Message`] when it is not one of the kind.
pub fn decode<T: DeserializeOwned>(name: &'static str, payload: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(payload).map_err(|_| Malformed::Message(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: agents inside older snapshots speak exactly this. A line here changes only with [`crate::VERSION`].
    #[test]
    fn samples() {
        fn sample<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: T, json: &str) {
            assert_eq!(String::from_utf8(encode(&value)).unwrap(), json);
            assert_eq!(decode::<T>("sample", json.as_bytes()), Ok(value));
        }
        assert_eq!(crate::VERSION, 3);
        sample(
            Hello { version: 1, time_ns: 2, entropy: vec![3, 255], hostname: "h".into(), machine_id: None, net: None },
            r#"{"version":1,"time_ns":2,"entropy":[3,255],"hostname":"h"}"#,
        );
        let running = ProcessState::Running { pid: 9 };
        sample(
            HelloAck {
                version: 1,
                kernel: "6.1".into(),
                uptime_ns: 5,
                processes: vec![ProcessStatus { process: 0, token: "t".into(), state: running, stdin_taken: 4 }],
            },
            r#"{"version":1,"kernel":"6.1","uptime_ns":5,"processes":[{"process":0,"token":"t","state":{"running":{"pid":9}},"stdin_taken":4}]}"#,
        );
        sample(
            Start {
                token: "t".into(),
                argv: vec!["a".into()],
                env: [("K".to_owned(), "V".to_owned())].into(),
                cwd: None,
                user: Some("u".into()),
                stdin: true,
                code: None,
            },
            r#"{"token":"t","argv":["a"],"env":{"K":"V"},"cwd":null,"user":"u","stdin":true}"#,
        );
        let code = r#"{"token":"t","argv":[],"env":{},"cwd":null,"user":null,"stdin":false,"code":"print(1)"}"#;
        let start =
            Start { token: "t".into(), code: Some("print(1)".into()), ..decode("start", code.as_bytes()).unwrap() };
        sample(start, code);
        let id = Some("0123456789abcdef0123456789abcdef".to_owned());
        sample(
            Hello { version: 2, time_ns: 2, entropy: vec![], hostname: "h".into(), machine_id: id, net: None },
            r#"{"version":2,"time_ns":2,"entropy":[],"hostname":"h","machine_id":"0123456789abcdef0123456789abcdef"}"#,
        );
        let [address, gateway] = [254, 253].map(|last| Ipv4Addr::new(198, 19, 255, last));
        let net = Some(Net { address, prefix: 30, gateway, nameserver: gateway });
        sample(
            Hello { version: 3, time_ns: 2, entropy: vec![], hostname: "h".into(), machine_id: None, net },
            r#"{"version":3,"time_ns":2,"entropy":[],"hostname":"h","net":{"address":"198.19.255.254","prefix":30,"gateway":"198.19.255.253","nameserver":"198.19.255.253"}}"#,
        );
        let with_net = r#"{"net":{"address":"198.19.255.254","prefix":30,"gateway":"198.19.255.253","nameserver":"198.19.255.253"}}"#;
        sample(Freeze { net }, with_net);
        sample(Freeze { net: None }, "{}");
        sample(
            StartRunner { language: "python".into(), preload: vec!["numpy".into()], env: [].into() },
            r#"{"language":"python","preload":["numpy"],"env":{}}"#,
        );
        sample(RunnerState::Ready, r#""ready""#);
        sample(RunnerState::Failed { message: "m".into() }, r#"{"failed":{"message":"m"}}"#);
        sample(End::Exited { code: 3, oom_kills: 0 }, r#"{"exited":{"code":3,"oom_kills":0}}"#);
        sample(End::Signalled { signal: 9, oom_kills: 1 }, r#"{"signalled":{"signal":9,"oom_kills":1}}"#);
        sample(End::NotFound { message: "m".into() }, r#"{"not_found":{"message":"m"}}"#);
        sample(End::NotExecutable { message: "m".into() }, r#"{"not_executable":{"message":"m"}}"#);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "{", "[]", "{\"version\":-1}", "\u{0}"] {
            assert!(decode::<Hello>("hello", bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
