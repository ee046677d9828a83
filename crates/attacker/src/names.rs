//! Attempts by name. The questions are made here: a resolver library would hide what came.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};

use crate::PATIENCE;
use crate::plain;
use crate::report::Found;

/// Asks `server` for the addresses of `name`; reached when it gave one.
pub(crate) fn dns(server: Ipv4Addr, name: &str, over_tcp: bool) -> Result<Found, String> {
    let query = query(name)?;
    let to = SocketAddrV4::new(server, 53);
    let asked = if over_tcp { ask_tcp(to, &query) } else { ask_udp(to, &query) };
    Ok(match asked {
        Err(e) => Found::not(format!("no answer: {e}")),
        Ok(answer) => match addresses(&answer) {
            Err(code) => Found::not(format!("refused with code {code}")),
            Ok(found) if found.is_empty() => Found::not("no address"),
            Ok(found) => Found::reached(listed(&found)),
        },
    })
}

/// Asks for a name's addresses, then connects to each of them.
pub(crate) fn then_tcp(server: Ipv4Addr, name: &str, port: u16, token: &str) -> Result<Found, String> {
    let answer = match ask_udp(SocketAddrV4::new(server, 53), &query(name)?) {
        Ok(answer) => answer,
        Err(e) => return Ok(Found::not(format!("the name was not answered: {e}"))),
    };
    let found = match addresses(&answer) {
        Ok(found) if !found.is_empty() => found,
        Ok(_) => return Ok(Found::not("the name has no address")),
        Err(code) => return Ok(Found::not(format!("the name was refused with code {code}"))),
    };
    let mut last = String::new();
    for address in found.iter().take(2) {
        match plain::connected(SocketAddrV4::new(*address, port), token) {
            Ok((_, server)) => return Ok(Found::reached(format!("{address} answered: {server}"))),
            Err(why) => last = format!("{}: {why}", listed(&found)),
        }
    }
    Ok(Found::not(last))
}

fn listed(addresses: &[Ipv4Addr]) -> String {
    addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(" ")
}

fn ask_udp(to: SocketAddrV4, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(query)?;
    let mut answer = vec![0; 4096];
    let n = socket.recv(&mut answer)?;
    answer.truncate(n);
    Ok(answer)
}

fn ask_tcp(to: SocketAddrV4, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = u16::try_from(query.len()).unwrap_or(u16::MAX);
    stream.write_all(&[&length.to_be_bytes()[..], query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// A question for the IPv4 addresses of a name.
pub(crate) fn query(name: &str) -> Result<Vec<u8>, String> {
    let mut out = vec![0x7a, 0x11, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n));
        out.push(length.ok_or_else(|| format!("{name:?} is no name"))?);
        out.extend(label.as_bytes());
    }
    out.extend([0, 0, 1, 0, 1]);
    Ok(out)
}

/// The IPv4 addresses of an answer; the code of one that says no.
fn addresses(answer: &[u8]) -> Result<Vec<Ipv4Addr>, u8> {
    const BROKEN: u8 = 255;
    let code = answer.get(3).ok_or(BROKEN)? & 15;
    if code != 0 {
        return Err(code);
    }
    let short = |at: usize| Some(u16::from_be_bytes([*answer.get(at)?, *answer.get(at + 1)?]));
    let read = || {
        let (questions, answers) = (short(4)?, short(6)?);
        let mut at = 12;
        for _ in 0..questions {
            at = past_name(answer, at)? + 4;
        }
        let mut found = Vec::new();
        for _ in 0..answers {
            at = past_name(answer, at)?;
            let (kind, length) = (short(at)?, usize::from(short(at + 8)?));
            at += 10;
            let data = answer.get(at..at + length)?;
            if let (1, Ok(octets)) = (kind, <[u8; 4]>::try_from(data)) {
                found.push(Ipv4Addr::from(octets));
            }
            at += length;
        }
        Some(found)
    };
    read().ok_or(BROKEN)
}

/// Where what follows a name begins.
fn past_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_and_its_answers() {
        let question = query("good.example.org").unwrap();
        assert!(question.ends_with(b"\x04good\x07example\x03org\x00\x00\x01\x00\x01"));
        let mut answer = question.clone();
        answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 2]);
        answer.extend(b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x01\x00\x02\xc0\x0c");
        answer.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04\xcb\x00\x71\x0a");
        assert_eq!(addresses(&answer), Ok(vec![Ipv4Addr::new(203, 0, 113, 10)]));
        assert_eq!(addresses(&answer[..answer.len() - 1]), Err(255));
        answer[3] = 0x85;
        assert_eq!(addresses(&answer), Err(5));
        assert!(query("a..b").is_err());
    }
}
