//! Attempts by number: packets in a second, connections at once, connections that stay.

use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::PATIENCE;
use crate::names::query;
use crate::plain::{answer_of, connected};
use crate::report::Found;

/// The longest that anything here goes on.
const LONGEST: Duration = Duration::from_secs(60);
/// The most connections at once.
const MOST: usize = 512;
/// For one of them: where no more are let through, each of the rest would wait in vain.
pub(crate) const PER_CONNECTION: Duration = Duration::from_millis(400);
/// For connections one after another.
const CHURN: Duration = Duration::from_secs(6);

/// Sends datagrams of `size` bytes as fast as it can. Who receives them counts: it says only how many were sent.
pub(crate) fn flood(to: SocketAddrV4, size: usize, time: Duration, token: &str) -> Result<Found, String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|e| e.to_string())?;
    socket.connect(to).map_err(|e| e.to_string())?;
    let mut payload = token.as_bytes().to_vec();
    payload.resize(size.clamp(token.len(), 1472), b'.');
    let end = Instant::now() + time.min(LONGEST);
    let (mut sent, mut failed) = (0_u64, 0_u64);
    while Instant::now() < end {
        // The clock is slow in a guest.
        for _ in 0..32 {
            match socket.send(&payload) {
                Ok(_) => sent += 1,
                Err(_) => failed += 1,
            }
        }
    }
    Ok(Found::not(format!("sent {sent}, could not send {failed}")))
}

/// Opens connections and keeps them until the last was tried. Reached: nine of ten, for one may be late.
pub(crate) fn connections(to: SocketAddrV4, number: usize, token: &str) -> Result<Found, String> {
    let number = number.min(MOST);
    let (mut opened, mut failed) = (Vec::new(), 0);
    let end = Instant::now() + PATIENCE * 2;
    while opened.len() + failed < number && Instant::now() < end {
        match TcpStream::connect_timeout(&to.into(), PER_CONNECTION) {
            Ok(stream) => opened.push(stream),
            Err(_) => failed += 1,
        }
    }
    let mut answered = 0;
    for stream in &mut opened {
        let said = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.write_all(format!("{token}\n").as_bytes()))
            .and_then(|()| stream.try_clone());
        let Ok(stream) = said else { continue };
        answered += usize::from(answer_of(&mut BufReader::new(stream), token).is_ok());
    }
    let found = Found::not(format!("{answered} of {number} at once"));
    Ok(Found { reached: answered * 10 >= number * 9, ..found })
}

/// Opens and closes connections one after another. Reached: nine of ten.
pub(crate) fn churn(to: SocketAddrV4, number: usize) -> Found {
    let end = Instant::now() + CHURN;
    let tries = std::iter::from_fn(|| {
        (Instant::now() < end).then(|| TcpStream::connect_timeout(&to.into(), PER_CONNECTION).is_ok())
    });
    let made = tries.filter(|made| *made).take(number).count();
    Found { reached: made * 10 >= number * 9, ..Found::not(format!("{made} of {number} one after another")) }
}

/// Asks for a name so often, a thousand times in a second. Reached: more than half were answered.
pub(crate) fn queries(server: Ipv4Addr, name: &str, number: usize) -> Result<Found, String> {
    let (query, number) = (query(name)?, number.min(5000));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|e| e.to_string())?;
    let ready = socket.connect((server, 53)).and_then(|()| socket.set_nonblocking(true));
    ready.map_err(|e| e.to_string())?;
    let (mut buffer, mut answered) = ([0; 2048], 0);
    let mut take = || {
        while let Ok(n) = socket.recv(&mut buffer) {
            // A code of zero: an answer, and no refusal.
            answered += usize::from(n > 3 && buffer[3] & 15 == 0);
        }
    };
    for _ in 0..number {
        let _ = socket.send(&query);
        std::thread::sleep(Duration::from_millis(1));
        take();
    }
    std::thread::sleep(Duration::from_millis(500));
    take();
    Ok(Found { reached: answered > number / 2, detail: format!("{answered} of {number} answered") })
}

/// Waits for somebody from outside who knows the token.
pub(crate) fn listen(port: u16, time: Duration, token: &str) -> Result<Found, String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(|e| e.to_string())?;
    let end = Instant::now() + time.min(LONGEST);
    let mut buffer = [0; 256];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Found::not("nobody came in"));
        }
        socket.set_read_timeout(Some(left)).map_err(|e| e.to_string())?;
        if let Ok((n, from)) = socket.recv_from(&mut buffer)
            && &buffer[..n] == token.as_bytes()
        {
            return Ok(Found::reached(format!("{from} came in")));
        }
    }
}

/// One connection that says its token ten times a second. Reached: it was answered to the end.
pub(crate) fn hold(to: SocketAddrV4, time: Duration, token: &str) -> Result<Found, String> {
    let (mut stream, _) = match connected(to, token) {
        Ok(connected) => connected,
        Err(why) => return Ok(Found::not(why)),
    };
    let end = Instant::now() + time.min(LONGEST);
    let mut rounds = 0_u32;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
        let said = stream.get_mut().write_all(format!("{token}\n").as_bytes()).map_err(|e| e.to_string());
        if let Err(why) = said.and_then(|()| answer_of(&mut stream, token)) {
            return Ok(Found::not(format!("cut after {rounds} rounds: {why}")));
        }
        rounds += 1;
    }
    Ok(Found::reached(format!("{rounds} rounds")))
}
