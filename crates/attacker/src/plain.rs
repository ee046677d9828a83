//! Attempts through the guest's own sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Instant;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt};

use crate::PATIENCE;
use crate::frames::echo;
use crate::report::Found;

/// Every answer of a server of the suite begins so; its name and the token follow.
pub(crate) const BANNER: &str = "tartarus-torture ";

/// Reads an answer: whose it is, when it is one to this token.
pub(crate) fn answered(line: &str, token: &str) -> Option<String> {
    let (server, echoed) = line.trim_end().strip_prefix(BANNER)?.split_once(' ')?;
    (echoed == token).then(|| server.to_owned())
}

/// Connects and says the token.
///
/// # Errors
/// What came instead, in words.
pub(crate) fn connected(to: SocketAddrV4, token: &str) -> Result<(BufReader<TcpStream>, String), String> {
    let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE).map_err(|e| format!("connecting: {e}"))?;
    let asked =
        stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.write_all(format!("{token}\n").as_bytes()));
    asked.map_err(|e| format!("connected, then: {e}"))?;
    let mut stream = BufReader::new(stream);
    let server = answer_of(&mut stream, token)?;
    Ok((stream, server))
}

/// The next line of a server.
pub(crate) fn answer_of(stream: &mut BufReader<TcpStream>, token: &str) -> Result<String, String> {
    let mut line = String::new();
    stream.by_ref().take(256).read_line(&mut line).map_err(|e| format!("connected, then: {e}"))?;
    answered(&line, token).ok_or_else(|| format!("connected, and something else answered: {line:?}"))
}

pub(crate) fn tcp(to: SocketAddrV4, token: &str) -> Found {
    match connected(to, token) {
        Ok((_, server)) => Found::reached(format!("answered by {server}")),
        Err(why) => Found::not(why),
    }
}

/// Sends three datagrams, for one may be lost where many are sent.
pub(crate) fn udp(from: Option<u16>, to: SocketAddrV4, token: &str) -> Result<Found, String> {
    let local = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, from.unwrap_or(0));
    let socket = UdpSocket::bind(local).map_err(|e| format!("binding {local}: {e}"))?;
    let broadcast = socket.set_broadcast(true).and_then(|()| socket.set_read_timeout(Some(PATIENCE / 3)));
    broadcast.map_err(|e| e.to_string())?;
    let mut last = "no answer".to_owned();
    for _ in 0..3 {
        if let Err(e) = socket.send_to(token.as_bytes(), to) {
            last = format!("sending: {e}");
            continue;
        }
        let mut buffer = [0; 256];
        match socket.recv_from(&mut buffer) {
            Ok((n, _)) => match answered(&String::from_utf8_lossy(&buffer[..n]), token) {
                Some(server) => return Ok(Found::reached(format!("answered by {server}"))),
                None => last = "something else answered".to_owned(),
            },
            Err(e) => last = format!("no answer: {e}"),
        }
    }
    Ok(Found::not(last))
}

pub(crate) fn icmp(to: Ipv4Addr, token: &str) -> Result<Found, String> {
    let failed = |e: rustix::io::Errno| e.to_string();
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).map_err(failed)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).map_err(failed)?;
    if let Err(e) = sendto(&socket, &echo(8, token), SendFlags::empty(), &SocketAddrV4::new(to, 0)) {
        return Ok(Found::not(format!("sending: {e}")));
    }
    let end = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        // It hears all ICMP of this machine, its own request to itself among it: an answer has type 0 and the token.
        let n = match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((n, _)) => n,
            Err(e) => return Ok(Found::not(format!("no answer: {e}"))),
        };
        let packet = &buffer[..n];
        let header = packet.first().map_or(0, |b| usize::from(b & 15) * 4);
        let has_token = packet.windows(token.len()).any(|w| w == token.as_bytes());
        if packet.get(header) == Some(&0) && has_token {
            return Ok(Found::reached("echo answered"));
        }
    }
    Ok(Found::not("no answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn only_the_right_server_with_the_right_token_counts() {
        assert_eq!(answered(&format!("{BANNER}internet {TOKEN}\n"), TOKEN).as_deref(), Some("internet"));
        assert_eq!(answered(&format!("{BANNER}internet {}\n", TOKEN.replace('0', "1")), TOKEN), None);
        assert_eq!(answered("SSH-2.0-OpenSSH\n", TOKEN), None);
    }

    #[test]
    fn a_server_and_nobody_over_loopback() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            stream.write_all(format!("{BANNER}test {line}").as_bytes()).unwrap();
        });
        let std::net::SocketAddr::V4(address) = address else { panic!("{address}") };
        assert_eq!(tcp(address, TOKEN), Found::reached("answered by test"));
        server.join().unwrap();
        assert!(!tcp(address, TOKEN).reached, "nobody listens any more");
    }
}
