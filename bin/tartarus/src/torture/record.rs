//! What arrived where: servers and wires write it down, the suite asks. Nobody grades himself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Bytes of a token's text.
pub(super) const TOKEN: usize = 32;
/// Tokens that are remembered; a suite uses a few hundred.
const MOST: usize = 20_000;

/// Marks one attempt; travels in its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Token([u8; TOKEN]);

impl Token {
    /// One that nobody can guess.
    ///
    /// # Errors
    /// When the machine has no randomness.
    pub(super) fn random() -> std::io::Result<Self> {
        use std::io::Read;
        let mut bytes = [0; TOKEN / 2];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(text.as_bytes().try_into().unwrap_or([b'0'; TOKEN])))
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// One arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Who says so, such as `internet` or `wire of the internet`.
    pub(super) server: &'static str,
    /// `tcp`, `udp`, `dns`, `frame`.
    pub(super) protocol: &'static str,
    /// Whom it heard from, where it can tell.
    pub(super) from: Option<SocketAddr>,
    /// Where it listened, where it can tell.
    pub(super) to: Option<SocketAddr>,
}

impl std::fmt::Display for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at the {}", self.protocol, self.server)?;
        if let Some(to) = self.to {
            write!(f, " ({to})")?;
        }
        self.from.map_or(Ok(()), |from| write!(f, ", from {from}"))
    }
}

/// What is known of one token.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard {
    /// The first arrivals at each server.
    pub(super) arrivals: Vec<Arrival>,
    /// How many there were, by protocol and server.
    pub(super) counts: HashMap<(&'static str, &'static str), (u64, u64)>,
    /// When a server received the last one: what it repeats itself is on the wire later.
    pub(super) last: Option<Instant>,
}

impl Heard {
    /// Arrivals of this protocol at that server, and their bytes.
    pub(super) fn count(&self, protocol: &'static str, server: &'static str) -> (u64, u64) {
        self.counts.get(&(protocol, server)).copied().unwrap_or_default()
    }
}

/// The record. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub(super) struct Record(Arc<Mutex<HashMap<Token, Heard>>>);

impl Record {
    /// Writes every token in `bytes` down. Only tokens that were announced count, so nobody can fill it.
    pub(super) fn write(&self, bytes: &[u8], arrival: &Arrival) {
        for token in tokens(bytes) {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(heard) = all.get_mut(&token) else { continue };
            let count = heard.counts.entry((arrival.protocol, arrival.server)).or_default();
            *count = (count.0 + 1, count.1 + bytes.len() as u64);
            if arrival.protocol != "frame" {
                heard.last = Some(Instant::now());
            }
            if heard.arrivals.len() < 8 && !heard.arrivals.contains(arrival) {
                heard.arrivals.push(arrival.clone());
            }
        }
    }

    /// A token that is listened for from now on.
    ///
    /// # Errors
    /// When the machine has no randomness, or there are too many.
    pub(super) fn announce(&self) -> std::io::Result<Token> {
        let token = Token::random()?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            return Err(std::io::Error::other("too many attempts in one suite"));
        }
        all.insert(token, Heard::default());
        Ok(token)
    }

    pub(super) fn of(&self, token: Token) -> Heard {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&token).cloned().unwrap_or_default()
    }
}

/// All runs of just so many hex digits.
fn tokens(bytes: &[u8]) -> Vec<Token> {
    let hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    let mut found = Vec::new();
    for run in bytes.split(|byte| !hex(byte)) {
        // What stands beside a token in a packet may look like a part of it.
        let most = run.len().min(TOKEN * 4);
        found.extend(run[..most].windows(TOKEN).filter_map(|w| w.try_into().ok().map(Token)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Arrival = Arrival { server: "internet", protocol: "udp", from: None, to: None };

    #[test]
    fn only_announced_tokens_are_remembered() {
        let record = Record::default();
        let (known, unknown) = (record.announce().unwrap(), Token::random().unwrap());
        for token in [known, unknown, known] {
            record.write(format!("x{}.", token.text()).as_bytes(), &AT);
        }
        // A digit before it, as a header may end with one.
        record.write(format!("9{}", known.text()).as_bytes(), &AT);
        assert_eq!(record.of(known).count("udp", "internet"), (3, 34 + 34 + 33));
        assert_eq!(record.of(known).arrivals, [AT]);
        assert!(record.of(unknown).arrivals.is_empty());
    }

    #[test]
    fn tokens_differ_and_are_their_text() {
        let (a, b) = (Token::random().unwrap(), Token::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(tokens(a.text().as_bytes()), [a]);
        assert!(tokens(&a.text().as_bytes()[1..]).is_empty());
    }
}
