//! A node's surroundings: an "internet" with servers, a private network, a metadata service, services of the node itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::harness::{Server, skip};

/// A web server of the internet.
pub(crate) const WEB: &str = "203.0.113.10";
/// Another.
pub(crate) const OTHER: &str = "203.0.113.11";
/// A server of the private network.
pub(crate) const PRIVATE: &str = "10.1.2.3";
/// What clouds tell their machines their secrets at.
pub(crate) const METADATA: &str = "169.254.169.254";
/// The name server.
pub(crate) const DNS: &str = "203.0.113.53";
/// The node's own address on its uplink.
pub(crate) const NODE: &str = "192.0.2.2";

/// Everything around a node, for as long as the test's thread lives: the thread is in the node's namespace.
pub(crate) struct World {
    /// Every name that the name server was asked for.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

impl World {
    /// Moves this thread into the node's namespace, and builds the rest. `None`, said in one line, without root.
    pub(crate) fn enter() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("networks need root");
            return None;
        }
        unshare();
        ip("link set lo up");
        let node = rustix::thread::gettid().as_raw_pid();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (tell, made) = std::sync::mpsc::sync_channel(1);
        let heard = asked.clone();
        std::thread::spawn(move || {
            internet(node, heard);
            tell.send(()).unwrap();
            // The namespace lives by its threads.
            loop {
                std::thread::park();
            }
        });
        made.recv().unwrap();
        ip("addr add 192.0.2.2/24 dev wan0");
        ip("link set wan0 up");
        ip("route add default via 192.0.2.1");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        serve_tcp(8022);
        Some(Self { asked })
    }

    /// A server that may give sandboxes networks, in the node's namespace.
    pub(crate) fn server(&self) -> Server {
        self.server_with(&[])
    }

    /// The same with more arguments.
    pub(crate) fn server_with(&self, args: &[&str]) -> Server {
        Server::start_with(&[&["--net", "open", "--dns", DNS], args].concat())
    }

    /// How often a name was asked for.
    pub(crate) fn asked_for(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == name).count()
    }
}

/// Everything outside. It has no way on: no route leads out of it.
fn internet(node: i32, asked: Arc<Mutex<Vec<String>>>) {
    unshare();
    ip("link set lo up");
    for address in [WEB, OTHER, PRIVATE, METADATA, DNS] {
        ip(&format!("addr add {address}/32 dev lo"));
    }
    ip(&format!("link add wan type veth peer name wan0 netns {node}"));
    ip("addr add 192.0.2.1/24 dev wan");
    ip("link set wan up");
    for port in [22, 80, 443] {
        serve_tcp(port);
    }
    serve_dns(asked);
}

fn unshare() {
    // SAFETY: it changes the network namespace of this thread alone, and no descriptors.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
}

pub(crate) fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Says who it is, then echoes, one thread for each connection.
fn serve_tcp(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut stream = stream?;
                stream.write_all(format!("here is {port}\n").as_bytes())?;
                let mut bytes = [0; 1024];
                loop {
                    match stream.read(&mut bytes)? {
                        0 => return Ok(()),
                        n => stream.write_all(&bytes[..n])?,
                    }
                }
            });
        }
    });
}

/// Answers A questions: a name server of a few names, written out by hand so that nothing of the product is in it.
fn serve_dns(asked: Arc<Mutex<Vec<String>>>) {
    // By its address: an answer from another is none.
    let socket = UdpSocket::bind((DNS, 53)).unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok((n, from)) = socket.recv_from(&mut bytes) {
            let Some((name, end)) = question(&bytes[..n]) else { continue };
            let addresses: &[&str] = match name.as_str() {
                "good.example.org" | "deep.good.example.org" => &[WEB],
                "other.example.org" => &[OTHER],
                "rebind.example.org" => &[PRIVATE],
                "metadata.example.org" => &[METADATA],
                _ => &[],
            };
            asked.lock().unwrap().push(name);
            let _ = socket.send_to(&answer(&bytes[..end], addresses), from);
        }
    });
}

/// The name that is asked for, in lower case, and where the question ends.
fn question(message: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at + 4)).filter(|(_, end)| *end <= message.len());
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_lowercase());
        at += length;
    }
}

/// Addresses for 60 s; a name without any does not exist.
fn answer(question: &[u8], addresses: &[&str]) -> Vec<u8> {
    let is_a = question[question.len() - 4..question.len() - 2] == [0, 1];
    let addresses = if is_a { addresses } else { &[] };
    let code = if addresses.is_empty() && is_a { 3 } else { 0 };
    let mut out = question.to_vec();
    out[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    for address in addresses {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend(address.parse::<Ipv4Addr>().unwrap().octets());
    }
    out
}

/// Waits until a sandbox runs; gives its id.
pub(crate) fn running(server: &Server, args: &[&str]) -> String {
    let id = server.ok(&[&["create", "busybox"], args].concat());
    server.until(&id, &["running"]);
    id
}

/// Runs a shell line in a sandbox; gives what it printed.
pub(crate) fn sh(server: &Server, id: &str, line: &str) -> String {
    server.ok(&["exec", id, "--", "sh", "-c", line])
}

/// What the server at an address says first; nothing when it cannot be reached within 3 s.
pub(crate) fn reach(server: &Server, id: &str, to: &str, port: u16) -> String {
    sh(server, id, &format!("(sleep 3 | timeout 3 nc -w 3 {to} {port} | head -n 1) 2>/dev/null; true"))
}

/// Packets of all sandboxes there were, by what became of them.
pub(crate) fn counted(server: &Server, reason: &str) -> u64 {
    let text = server.http("GET", "/metrics", &[], b"").text();
    let line = format!("tartarus_net_packets_total{{reason=\"{reason}\"}} ");
    text.lines().find_map(|other| other.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
}
