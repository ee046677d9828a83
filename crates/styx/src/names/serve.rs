//! Serves the questions of one sandbox, over UDP and TCP, within bounds: what a guest can make this process do, keep or wait
//! for is limited here.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tartarus_types::Timestamp;
use tartarus_types::net::Contract;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::bucket::Bucket;
use super::resolve::Desk;
use super::wire::{MAX_UDP, Malformed, parse};
use super::{Pins, Refused, Upstream};

/// Questions that are being answered at once; more over UDP are dropped, more over TCP wait.
const IN_FLIGHT: usize = 64;
const CONNECTIONS: usize = 8;
/// The longest message over TCP, in bytes.
const MAX_TCP: usize = 16 << 10;
/// How long a connection may take for one message, in either direction.
const IDLE: Duration = Duration::from_secs(10);
/// After an error that nobody caused by a packet, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The resolver could not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve names on {what}: {error}")]
pub struct ServeError {
    what: &'static str,
    error: std::io::Error,
}

/// How many questions a sandbox may ask.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    per_second: u32,
    /// How many may come at once after silence.
    burst: u32,
}

impl Rate {
    /// More than anybody asks, for who wants to see what the limit is good for.
    pub const ANY: Self = Self { per_second: 1_000_000, burst: 1_000_000 };
}

impl Default for Rate {
    fn default() -> Self {
        Self { per_second: 50, burst: 200 }
    }
}

/// Bounds that UDP and TCP share.
struct Bounds {
    bucket: Mutex<Bucket>,
    flights: Arc<Semaphore>,
}

impl Bounds {
    fn take(&self) -> Result<(), Duration> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
    }

    /// Until one more question may be asked.
    async fn turn(&self) {
        while let Err(wait) = self.take() {
            sleep(wait).await;
        }
    }
}

/// Serves until it is dropped, and with it all that it began.
///
/// `contract` says what is allowed; with each that is sent, also an equal one, what is pinned is taken for gone. `refused`
/// gets the names that were refused, with the time that `clock` tells.
///
/// # Errors
/// When the sockets cannot be used by this runtime. It returns for no other reason.
pub async fn serve(
    (udp, tcp): (std::net::UdpSocket, std::net::TcpListener),
    rate: Rate,
    contract: watch::Receiver<Arc<Contract>>,
    upstream: Arc<Upstream>,
    pins: Arc<dyn Pins>,
    refused: Arc<Refused>,
    clock: fn() -> Timestamp,
) -> Result<Infallible, ServeError> {
    let of_udp = |error| ServeError { what: "UDP", error };
    let of_tcp = |error| ServeError { what: "TCP", error };
    udp.set_nonblocking(true).map_err(of_udp)?;
    tcp.set_nonblocking(true).map_err(of_tcp)?;
    let udp = Arc::new(UdpSocket::from_std(udp).map_err(of_udp)?);
    let tcp = TcpListener::from_std(tcp).map_err(of_tcp)?;
    let desk = Arc::new(Desk::new(contract, upstream, pins, refused, clock));
    let bounds = Arc::new(Bounds {
        bucket: Mutex::new(Bucket::full(rate.burst, rate.per_second, Instant::now())),
        flights: Arc::new(Semaphore::new(IN_FLIGHT)),
    });
    tokio::select! {
        never = datagrams(udp, desk.clone(), bounds.clone()) => match never {},
        never = connections(tcp, desk, bounds) => match never {},
    }
}

async fn datagrams(udp: Arc<UdpSocket>, desk: Arc<Desk>, bounds: Arc<Bounds>) -> Infallible {
    let mut tasks = JoinSet::new();
    // One byte more than may come, by which what is too long shows.
    let mut buffer = vec![0; MAX_UDP + 1];
    loop {
        // A flood waits in the socket's buffer, where the kernel drops it, and not even reading it costs anything.
        bounds.turn().await;
        let (length, from) = match udp.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        let Some(message) = buffer.get(..length).filter(|message| message.len() <= MAX_UDP) else { continue };
        let Ok(turn) = bounds.flights.clone().try_acquire_owned() else { continue };
        datagram(message, from, &udp, &desk, turn, &mut tasks);
    }
}

/// Answers one message, in a task of its own if that takes time. What does not fit into the socket's buffer is dropped.
fn datagram(
    message: &[u8],
    from: SocketAddr,
    udp: &Arc<UdpSocket>,
    desk: &Arc<Desk>,
    turn: OwnedSemaphorePermit,
    tasks: &mut JoinSet<()>,
) {
    let at_once = match parse(message) {
        Err(Malformed::Silent) => return,
        Err(Malformed::Answer(answer)) => answer,
        Ok(question) => match desk.at_once(&question, question.udp_limit()) {
            Some(answer) => answer,
            None => {
                let (udp, desk) = (udp.clone(), desk.clone());
                tasks.spawn(async move {
                    let answer = desk.answer(&question, question.udp_limit()).await;
                    let _ = udp.try_send_to(&answer, from);
                    drop(turn);
                });
                return;
            }
        },
    };
    let _ = udp.try_send_to(&at_once, from);
}

async fn connections(tcp: TcpListener, desk: Arc<Desk>, bounds: Arc<Bounds>) -> Infallible {
    let mut tasks = JoinSet::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // More connections than that wait in the kernel.
        let Ok(place) = places.clone().acquire_owned().await else { unreachable!("the semaphore is never closed") };
        let Ok((stream, _)) = tcp.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        while tasks.try_join_next().is_some() {}
        // A socket that says goodbye to a guest that is gone would hold its namespace for minutes.
        if stream.set_zero_linger().is_err() {
            continue;
        }
        let (desk, bounds) = (desk.clone(), bounds.clone());
        tasks.spawn(async move {
            let _ = connection(stream, &desk, &bounds).await;
            drop(place);
        });
    }
}

/// Answers one question after the other; an error ends the connection, and is the guest's affair.
async fn connection(mut stream: TcpStream, desk: &Desk, bounds: &Bounds) -> std::io::Result<()> {
    let mut message = Vec::new();
    loop {
        timeout(IDLE, read(&mut stream, &mut message)).await??;
        bounds.turn().await;
        let Ok(_turn) = bounds.flights.acquire().await else { return Ok(()) };
        let answer = match parse(&message) {
            Err(Malformed::Silent) => return Ok(()),
            Err(Malformed::Answer(answer)) => answer,
            Ok(question) => desk.answer(&question, usize::from(u16::MAX)).await,
        };
        let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

async fn read(stream: &mut TcpStream, message: &mut Vec<u8>) -> std::io::Result<()> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_TCP {
        return Err(std::io::Error::other("longer than any question"));
    }
    message.resize(length, 0);
    stream.read_exact(message).await?;
    Ok(())
}
