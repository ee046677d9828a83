//! The line to one guest agent: a session of the guest protocol. Everything that comes from it is hostile.
//!
//! Sending never waits: what a well-behaved guest can make us send is bounded by the protocol's windows. One that does
//! not read is found out by the outbox's limit and is cut off.

use std::sync::Arc;
use std::time::Duration;

use tartarus_guest::frame::{self, Assembler, Decoder, Found, NONCE};
use tartarus_guest::{
    End, Frame, Header, Hello, HelloAck, Kind, Malformed, Net, RunnerState, Start, StartRunner, Stream, message,
};
use tartarus_guest::{OLDEST, VERSION};
use tartarus_runtime::Channel;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::carry::Carriers;
use crate::outbox::Outbox;

/// Bytes of a guest's own words that are passed on.
const MAX_FAULT: usize = 500;

/// What a guest says.
#[derive(Debug)]
pub(crate) enum GuestEvent {
    /// The process runs.
    Started { process: u32 },
    /// Output of a process, exactly at `offset`.
    Output { process: u32, stream: usize, offset: u64, bytes: Vec<u8> },
    /// Standard input was taken up to here.
    StdinTaken { process: u32, taken: u64 },
    /// The process ended; all its output came before.
    Ended { process: u32, end: End },
    /// The runner is ready, or never will be.
    Runner(RunnerState),
    /// The layer is frozen, or why not.
    Frozen(Option<String>),
    /// The session is over, and why.
    Gone(String),
}

/// Who a guest becomes.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) hostname: String,
    /// 32 hex digits.
    pub(crate) machine_id: String,
    /// Its network; none when absent.
    pub(crate) net: Option<Net>,
    /// The guest was restored between two frames, so the flush of the preamble can be left out.
    pub(crate) restored: bool,
}

/// Why no session came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The connection ended.
    #[error("the connection to the guest ended: {0}")]
    Io(#[from] std::io::Error),
    /// The agent reports that it cannot work.
    #[error("the guest could not be set up: {0}")]
    Fault(String),
    /// It breaks the protocol.
    #[error("the guest agent broke the protocol: {0}")]
    Malformed(#[from] Malformed),
    /// Another version of it.
    #[error("the guest agent speaks protocol version {0}, this program speaks {OLDEST} to {VERSION}")]
    Version(u32),
}

/// An open session. Dropping it cuts the line.
pub(crate) struct GuestLink {
    outbox: Arc<Outbox>,
    carriers: Arc<Carriers>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// Ends the carried connections when the session does, however that is.
struct Ending(Arc<Carriers>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Greets the guest and waits for its answer, for as long as the caller lets it. Events arrive in `events`.
pub(crate) async fn open(
    channel: Box<dyn Channel>,
    identity: Identity,
    events: mpsc::Sender<GuestEvent>,
) -> Result<(GuestLink, HelloAck), LinkError> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|e| LinkError::Io(std::io::Error::other(e)))?;
    let mut entropy = vec![0; 64];
    getrandom::fill(&mut entropy).map_err(|e| LinkError::Io(std::io::Error::other(e)))?;
    let tag = frame::tag(&nonce);
    let Identity { hostname, machine_id, net, restored } = identity;
    let hello = Hello { version: VERSION, time_ns: time_ns(), entropy, hostname, machine_id: Some(machine_id), net };
    let mut opening = if restored { frame::short_preamble(&nonce).to_vec() } else { frame::preamble(&nonce) };
    frame::encode_message(tag, Kind::Hello, 0, &message::encode(&hello), &mut opening);

    let (mut read, mut write) = tokio::io::split(channel);
    let mut decoder = Decoder::host(nonce);
    let greet = async { write.write_all(&opening).await.map_err(LinkError::from) };
    let answer = first_message(&mut read, &mut decoder);
    let ((), ack) = tokio::try_join!(greet, answer)?;
    if !(OLDEST..=VERSION).contains(&ack.version) {
        return Err(LinkError::Version(ack.version));
    }
    let outbox = Arc::new(Outbox::new(tag));
    let carriers = Arc::new(Carriers::new(outbox.clone(), ack.version));
    let reader = tokio::spawn(read_all(read, decoder, events, Ending(carriers.clone())));
    let writing = outbox.clone();
    let writer = tokio::spawn(async move { writing.write_all(write).await });
    let tasks = [AbortOnDropHandle::new(reader), AbortOnDropHandle::new(writer)];
    let link = GuestLink { outbox, carriers, _tasks: tasks };
    // The hello lay in the port's buffer while the guest booted, so its time is old by now.
    link.clock();
    Ok((link, ack))
}

fn time_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

async fn first_message(read: &mut ReadHalf<Box<dyn Channel>>, decoder: &mut Decoder) -> Result<HelloAck, LinkError> {
    let mut assembler = Assembler::default();
    let mut bytes = vec![0; 64 * 1024];
    loop {
        while let Some(found) = decoder.next_found()? {
            let Found::Frame(frame) = found else { continue };
            match frame.header.kind {
                Kind::HelloAck => {
                    if let Some(whole) = assembler.push(frame)? {
                        return Ok(message::decode("hello-ack", &whole)?);
                    }
                }
                Kind::Fault => return Err(LinkError::Fault(words(&frame.payload))),
                other => return Err(Malformed::Kind(other as u8).into()),
            }
        }
        match read.read(&mut bytes).await? {
            0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            n => decoder.push(&bytes[..n]),
        }
    }
}

async fn read_all(
    mut read: ReadHalf<Box<dyn Channel>>,
    mut decoder: Decoder,
    events: mpsc::Sender<GuestEvent>,
    ending: Ending,
) {
    let mut bytes = vec![0; 64 * 1024];
    let why = 'session: loop {
        loop {
            let event = match decoder.next_found() {
                Ok(Some(Found::Frame(frame))) if is_carried(frame.header.kind) => match ending.0.heard(frame) {
                    Ok(()) => continue,
                    Err(e) => Err(e),
                },
                Ok(Some(Found::Frame(frame))) => event(frame),
                Ok(Some(Found::Session(_))) => continue,
                Ok(None) => break,
                Err(e) => Err(e),
            };
            match event {
                Ok(GuestEvent::Gone(why)) => break 'session why,
                Ok(event) => {
                    // A full queue holds the guest back: that is the back-pressure.
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
                Err(e) => break 'session format!("the guest agent broke the protocol: {e}"),
            }
        }
        match read.read(&mut bytes).await {
            Ok(0) => break "the connection ended".to_owned(),
            Ok(n) => decoder.push(&bytes[..n]),
            Err(e) => break e.to_string(),
        }
    };
    drop(ending);
    let _ = events.send(GuestEvent::Gone(why)).await;
}

/// About a carried connection: these do not wait for the sandbox's task.
fn is_carried(kind: Kind) -> bool {
    use Kind::{Carried, Carry, CarryEof, Cut, Dialed, Refused};
    matches!(kind, Dialed | Refused | Carry | CarryEof | Carried | Cut)
}

fn event(frame: Frame) -> Result<GuestEvent, Malformed> {
    let Frame { header: Header { kind, stream, process, offset }, payload } = frame;
    Ok(match kind {
        Kind::Started => GuestEvent::Started { process },
        Kind::Output => {
            let stream = match Stream::from_number(stream) {
                Some(Stream::Stdout) => 0,
                Some(Stream::Stderr) => 1,
                None => return Err(Malformed::Reserved),
            };
            GuestEvent::Output { process, stream, offset, bytes: payload }
        }
        Kind::StdinAck => GuestEvent::StdinTaken { process, taken: offset },
        Kind::Ended => GuestEvent::Ended { process, end: possible(message::decode("end", &payload)?)? },
        Kind::Runner => GuestEvent::Runner(match message::decode("runner", &payload)? {
            RunnerState::Ready => RunnerState::Ready,
            RunnerState::Failed { message } => RunnerState::Failed { message: words(message.as_bytes()) },
        }),
        Kind::Frozen => GuestEvent::Frozen((!payload.is_empty()).then(|| words(&payload))),
        Kind::Fault => GuestEvent::Gone(format!("the guest agent gave up: {}", words(&payload))),
        other => return Err(Malformed::Kind(other as u8)),
    })
}

/// Exit codes and signals that Linux knows; others would be taken for something else further on.
fn possible(end: End) -> Result<End, Malformed> {
    match end {
        End::Exited { code, .. } if !(0..=255).contains(&code) => Err(Malformed::Message("end")),
        End::Signalled { signal, .. } if !(1..=64).contains(&signal) => Err(Malformed::Message("end")),
        end => Ok(end),
    }
}

/// A guest's own words, fit to be printed.
pub(crate) fn words(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    text.chars().filter(|c| !c.is_control()).take(MAX_FAULT).collect()
}

impl GuestLink {
    /// Sends a frame. False when the guest has not read for so long that the machine should be given up.
    pub(crate) fn frame(&self, header: Header, payload: &[u8]) -> bool {
        self.outbox.frame(header, payload)
    }

    /// Starts a process.
    pub(crate) fn start(&self, process: u32, start: &Start) -> bool {
        self.outbox.put(|tag, out| frame::encode_message(tag, Kind::Start, process, &message::encode(start), out))
    }

    /// Bytes that wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.waiting()
    }

    /// Connections that are carried to the guest's ports in this session.
    pub(crate) fn carriers(&self) -> &Arc<Carriers> {
        &self.carriers
    }

    /// Starts the runner.
    pub(crate) fn start_runner(&self, runner: &StartRunner) -> bool {
        self.outbox.put(|tag, out| frame::encode_message(tag, Kind::StartRunner, 0, &message::encode(runner), out))
    }

    /// Sets the guest's clock.
    pub(crate) fn clock(&self) -> bool {
        self.frame(Header { kind: Kind::Clock, stream: 0, process: 0, offset: time_ns() }, &[])
    }

    /// Asks for a stream's output from `offset` on.
    pub(crate) fn attach(&self, process: u32, stream: usize, offset: u64) -> bool {
        self.frame(Header { kind: Kind::Attach, stream: stream as u8 + 1, process, offset }, &[])
    }
}

/// How long a guest that has been greeted before may take to answer a new connection.
pub(crate) const REGREET: Duration = Duration::from_secs(20);
