//! Servers that answer with what they were sent, and count it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Ns;

pub const TCP: [u16; 3] = [80, 443, 25];
pub const UDP: [u16; 3] = [80, 53, 9999];

type Seen = Arc<Mutex<HashMap<String, Ipv4Addr>>>;

/// They end when this is dropped.
pub struct Servers {
    stop: Arc<AtomicBool>,
    seen: Seen,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    pub fn start(ns: &Ns, addresses: &[Ipv4Addr]) -> Self {
        let mut servers = Self { stop: Arc::default(), seen: Arc::default(), threads: Vec::new() };
        servers.add(ns, addresses);
        servers
    }

    pub fn add(&mut self, ns: &Ns, addresses: &[Ipv4Addr]) {
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        ns.run(|| {
            for address in addresses {
                udp.extend(UDP.map(|port| UdpSocket::bind((*address, port)).unwrap()));
                tcp.extend(TCP.map(|port| TcpListener::bind((*address, port)).unwrap()));
            }
        });
        for socket in udp {
            let (stop, seen) = (self.stop.clone(), self.seen.clone());
            self.threads.push(std::thread::spawn(move || answer(&socket, &stop, &seen)));
        }
        for listener in tcp {
            let (stop, seen) = (self.stop.clone(), self.seen.clone());
            self.threads.push(std::thread::spawn(move || accept(&listener, &stop, &seen)));
        }
    }

    /// Who sent this text, as the server saw it.
    pub fn sender(&self, text: &str) -> Option<Ipv4Addr> {
        self.seen.lock().unwrap().get(text).copied()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn answer(socket: &UdpSocket, stop: &AtomicBool, seen: &Seen) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut buffer = vec![0; 65536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        note(&buffer[..length], from, seen);
        drop(socket.send_to(&buffer[..length.min(1000)], from));
    }
}

fn note(text: &[u8], from: std::net::SocketAddr, seen: &Seen) {
    let std::net::IpAddr::V4(from) = from.ip() else { return };
    let text: String = String::from_utf8_lossy(text).chars().take(60).collect();
    seen.lock().unwrap().insert(text, from);
}

/// Text that begins with `talk` is answered with a line every 20 ms, without waiting for more.
fn accept(listener: &TcpListener, stop: &Arc<AtomicBool>, seen: &Seen) {
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, from)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let (stop, seen) = (stop.clone(), seen.clone());
        std::thread::spawn(move || {
            stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let mut buffer = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                match stream.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => {
                        note(&buffer[..length], SocketAddrV4::into(v4(from)), &seen);
                        if buffer.starts_with(b"talk") {
                            while !stop.load(Ordering::Relaxed) && stream.write_all(b"line\n").is_ok() {
                                std::thread::sleep(Duration::from_millis(20));
                            }
                            return;
                        }
                        if stream.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                    Err(error)
                        if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                    Err(_) => return,
                }
            }
        });
    }
}

fn v4(from: std::net::SocketAddr) -> SocketAddrV4 {
    match from {
        std::net::SocketAddr::V4(from) => from,
        std::net::SocketAddr::V6(_) => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
    }
}
