//! Real servers: TCP, UDP and names. Each answers with its name and the token that it was told, and writes it down.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::names;
use super::record::{Arrival, Record};
use super::space;

/// What every answer begins with; the attacker knows it too.
const BANNER: &str = "tartarus-torture";
/// Connections at once of one server.
const CONNECTIONS: usize = 600;
/// Longest that a connection is silent.
const SILENCE: Duration = Duration::from_secs(30);

/// What listens in one namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct Listen {
    /// The name in its answers and in the record.
    pub(super) server: &'static str,
    pub(super) tcp: Vec<SocketAddr>,
    pub(super) udp: Vec<SocketAddr>,
    /// Where names are answered.
    pub(super) dns: Vec<SocketAddr>,
}

/// Servers that run; they end when this is dropped.
pub(super) struct Servers {
    _end: DropGuard,
}

/// Starts servers in a namespace, on a thread of their own. They listen when this returns.
///
/// # Errors
/// When one of them cannot listen.
pub(super) fn start(namespace: impl AsFd + Send + 'static, listen: Listen, record: Record) -> io::Result<Servers> {
    let end = CancellationToken::new();
    let (ready, wait) = sync_channel(1);
    let stop = end.clone();
    std::thread::Builder::new().name(format!("torture {}", listen.server)).spawn(move || {
        let made =
            space::enter(&namespace).and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
        // The sockets hold the namespace from here on; a thread without any would keep it for nothing.
        drop(namespace);
        match made {
            Err(e) => _ = ready.send(Err(e)),
            Ok(runtime) => {
                let bound = runtime.block_on(bind(&listen, &record));
                let failed = bound.is_err();
                let _ = ready.send(bound);
                if !failed {
                    runtime.block_on(stop.cancelled());
                }
            }
        }
    })?;
    wait.recv().map_err(|_| io::Error::other("the thread of a server ended"))??;
    Ok(Servers { _end: end.drop_guard() })
}

/// Binds all, and serves on tasks of this thread.
async fn bind(listen: &Listen, record: &Record) -> io::Result<()> {
    let at = |address: &SocketAddr| {
        let address = *address;
        move |e: io::Error| io::Error::new(e.kind(), format!("listening on {address}: {e}"))
    };
    let server = listen.server;
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    for address in &listen.tcp {
        let listener = TcpListener::bind(address).await.map_err(at(address))?;
        tokio::spawn(accept(listener, server, record.clone(), slots.clone()));
    }
    for address in &listen.udp {
        tokio::spawn(echo(UdpSocket::bind(address).await.map_err(at(address))?, server, record.clone()));
    }
    for address in &listen.dns {
        tokio::spawn(name(UdpSocket::bind(address).await.map_err(at(address))?, server, record.clone()));
        let listener = TcpListener::bind(address).await.map_err(at(address))?;
        tokio::spawn(names_over_tcp(listener, server, record.clone(), slots.clone()));
    }
    Ok(())
}

async fn accept(listener: TcpListener, server: &'static str, record: Record, slots: Arc<Semaphore>) {
    while let Ok((stream, from)) = listener.accept().await {
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let record = record.clone();
        tokio::spawn(async move {
            // A connection that breaks is the attacker's affair.
            let _ = converse(stream, from, server, &record).await;
            drop(slot);
        });
    }
}

/// Answers each line.
async fn converse(stream: TcpStream, from: SocketAddr, server: &'static str, record: &Record) -> io::Result<()> {
    let to = stream.local_addr()?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut stream).take(256);
        let read = bounded.read_until(b'\n', &mut line);
        if tokio::time::timeout(SILENCE, read).await.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
            return Ok(());
        }
        record.write(&line, &Arrival { server, protocol: "tcp", from: Some(from), to: Some(to) });
        let answer = [format!("{BANNER} {server} ").as_bytes(), &line].concat();
        stream.get_mut().write_all(&answer).await?;
    }
}

async fn echo(socket: UdpSocket, server: &'static str, record: Record) {
    let (to, mut buffer) = (socket.local_addr().ok(), vec![0; 2048]);
    loop {
        // Errors are of earlier answers that came back refused.
        let Ok((n, from)) = socket.recv_from(&mut buffer).await else { continue };
        record.write(&buffer[..n], &Arrival { server, protocol: "udp", from: Some(from), to });
        // A flood is counted, and not doubled.
        if n <= 64 {
            let answer = [format!("{BANNER} {server} ").as_bytes(), &buffer[..n]].concat();
            let _ = socket.try_send_to(&answer, from);
        }
    }
}

async fn name(socket: UdpSocket, server: &'static str, record: Record) {
    let (to, mut buffer) = (socket.local_addr().ok(), vec![0; 2048]);
    loop {
        let Ok((n, from)) = socket.recv_from(&mut buffer).await else { continue };
        record.write(&buffer[..n], &Arrival { server, protocol: "dns", from: Some(from), to });
        if let Some(answer) = names::answer(&buffer[..n]) {
            let _ = socket.try_send_to(&answer, from);
        }
    }
}

async fn names_over_tcp(listener: TcpListener, server: &'static str, record: Record, slots: Arc<Semaphore>) {
    while let Ok((mut stream, from)) = listener.accept().await {
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let (record, to) = (record.clone(), stream.local_addr().ok());
        tokio::spawn(async move {
            let asked = async {
                let mut query = vec![0; usize::from(stream.read_u16().await?)];
                stream.read_exact(&mut query).await?;
                record.write(&query, &Arrival { server, protocol: "dns", from: Some(from), to });
                let answer = names::answer(&query).ok_or(io::ErrorKind::InvalidData)?;
                let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
                stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await
            };
            let _ = tokio::time::timeout(SILENCE, asked).await;
            drop(slot);
        });
    }
}

/// Every address with every port.
pub(super) fn each(addresses: &[Ipv4Addr], ports: &[u16]) -> Vec<SocketAddr> {
    addresses.iter().flat_map(|address| ports.iter().map(move |port| SocketAddr::from((*address, *port)))).collect()
}
