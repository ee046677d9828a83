//! `tartarus-attacker`: what `tartarus torture net` runs inside of a guest. Each attempt is a subcommand that tries to reach
//! something, says in one JSON line what came of it, and exits 0 whatever that was:
//!
//! ```text
//! tartarus-attacker tcp TOKEN ADDRESS PORT
//! {"attempt":"tcp","token":"…","reached":true,"detail":"answered by internet"}
//! tartarus-attacker all ATTEMPT -- ATTEMPT …        all at once, a line each, in the order of their ends
//! ```
//!
//! A token is 32 hex digits of the suite's choice that travel in every packet, so that whoever receives one can say which
//! attempt it was. What the attacker says of itself is only believed where nobody else can tell.
//!
//! A static binary, so that it runs in any image. It knows the guest's side of a sandbox's network and nothing of policies.

mod frames;
mod many;
mod names;
mod plain;
mod raw;
mod report;
mod strand;
mod wire;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;
use std::time::Duration;

use report::Found;

/// How long one attempt waits for an answer.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Attempts of one call.
const MOST: usize = 128;

/// The words of one attempt, taken one after the other.
struct Words<'a>(std::slice::Iter<'a, String>);

impl<'a> Words<'a> {
    fn text(&mut self, what: &str) -> Result<&'a str, String> {
        self.0.next().map(String::as_str).ok_or_else(|| format!("{what} is missing"))
    }

    fn read<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, String> {
        let text = self.text(what)?;
        text.parse().map_err(|_| format!("{text:?} is no {what}"))
    }

    fn address(&mut self) -> Result<Ipv4Addr, String> {
        self.read("address")
    }

    fn target(&mut self) -> Result<SocketAddrV4, String> {
        Ok(SocketAddrV4::new(self.address()?, self.port()?))
    }

    fn port(&mut self) -> Result<u16, String> {
        self.read("port")
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let attempts: Vec<&[String]> = match args.split_first() {
        Some((first, rest)) if first == "all" => rest.split(|word| word == "--").collect(),
        _ => vec![&args],
    };
    if attempts.len() > MOST || attempts.iter().any(|attempt| attempt.is_empty()) {
        // Nobody else may use it, so there is no help beyond this.
        let _ = writeln!(std::io::stderr(), "tartarus-attacker: ATTEMPT TOKEN …, or all ATTEMPT -- ATTEMPT …");
        return ExitCode::from(2);
    }
    std::thread::scope(|scope| {
        for attempt in attempts {
            scope.spawn(move || {
                let line = one(attempt);
                // One write, so that lines of several threads stay whole.
                let _ = std::io::stdout().write_all(line.as_bytes());
            });
        }
    });
    ExitCode::SUCCESS
}

fn one(words: &[String]) -> String {
    let (name, token) = (words.first().map_or("", String::as_str), words.get(1).map_or("", String::as_str));
    let found = attempt(name, token, Words(words.get(2..).unwrap_or_default().iter()));
    let found = found.unwrap_or_else(|why| Found { reached: false, detail: format!("could not be tried: {why}") });
    report::line(name, token, &found)
}

fn attempt(name: &str, token: &str, mut words: Words<'_>) -> Result<Found, String> {
    if token.len() != 32 || !token.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("a token is 32 hex digits".to_owned());
    }
    let words = &mut words;
    match name {
        "tcp" => Ok(plain::tcp(words.target()?, token)),
        "udp" => plain::udp(None, words.target()?, token),
        "udp-from" => plain::udp(Some(words.port()?), words.target()?, token),
        "icmp" => plain::icmp(words.address()?, token),
        "dns" => names::dns(words.address()?, words.text("name")?, false),
        "dns-tcp" => names::dns(words.address()?, words.text("name")?, true),
        "name" => names::then_tcp(words.address()?, words.text("name")?, words.port()?, token),
        "flood" => many::flood(
            words.target()?,
            words.read::<u16>("number of bytes")?.into(),
            Duration::from_millis(words.read("number of milliseconds")?),
            token,
        ),
        "connections" => many::connections(words.target()?, words.read("number of connections")?, token),
        "churn" => Ok(many::churn(words.target()?, words.read("number of connections")?)),
        "strand" => strand::strand(words.target()?, words.read("number of connections")?),
        "queries" => many::queries(words.address()?, words.text("name")?, words.read("number of questions")?),
        "listen" => many::listen(words.port()?, Duration::from_millis(words.read("number of milliseconds")?), token),
        "hold" => many::hold(words.target()?, Duration::from_millis(words.read("number of milliseconds")?), token),
        other => raw::attempt(other, token, words),
    }
}
