//! What became of one attempt. Pure: it takes what was said and recorded.

use std::time::Instant;

use serde::Deserialize;

use super::attempts::{Attempt, How, Judge};
use super::record::Heard;

/// What the attacker said.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Said {
    pub(super) token: String,
    pub(super) reached: bool,
    pub(super) detail: String,
}

/// Whether an attempt reached its aim, and how one knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) reached: bool,
    pub(super) why: String,
}

/// Judges an attempt; `since` is when an update was in force, before which a connection was allowed.
///
/// # Errors
/// When it was not made at all: then nothing is known.
pub(super) fn judge(
    attempt: &Attempt,
    said: Option<&Said>,
    heard: &Heard,
    since: Option<Instant>,
) -> Result<Found, String> {
    let Some(said) = said else { return Err("the attacker said nothing".to_owned()) };
    if said.detail.starts_with("could not be tried") {
        return Err(said.detail.clone());
    }
    let first = heard.arrivals.first().map(|arrival| format!("arrived: {arrival}"));
    if attempt.allowed() {
        // Names and echoes are answered by who is no server of the suite's.
        let silent = ["icmp", "dns"].contains(&attempt.words.split(' ').next().unwrap_or_default());
        return Ok(match (said.reached, first) {
            (true, None) if !silent => {
                Found { reached: false, why: format!("the attacker says {:?}, and nobody received it", said.detail) }
            }
            (reached, _) => Found { reached, why: said.detail.clone() },
        });
    }
    let found = match attempt.judge {
        Judge::Packets(most) => {
            let (packets, _) = heard.count("udp", "internet");
            Found { reached: packets > most, why: format!("{packets} arrived, at most {most} may; {}", said.detail) }
        }
        Judge::Bytes(most) => {
            let (_, bytes) = heard.count("udp", "internet");
            Found { reached: bytes > most, why: format!("{bytes} bytes arrived, at most {most} may; {}", said.detail) }
        }
        _ if attempt.how == How::Update => {
            if heard.count("tcp", "internet").0 == 0 {
                return Err("the connection that the update shall cut never came about".into());
            }
            let late = heard.last.zip(since).is_some_and(|(last, since)| last > since);
            let when = if late { "it went on after the update" } else { "it ended with the update" };
            Found { reached: late || said.reached, why: format!("{when}; {}", said.detail) }
        }
        // The tokens of these are received by right; how many answers came, only the attacker knows.
        _ if attempt.how == How::Alone => Found { reached: said.reached, why: said.detail.clone() },
        Judge::Said if said.reached => Found { reached: true, why: said.detail.clone() },
        Judge::Heard | Judge::Said => {
            Found { reached: first.is_some(), why: first.unwrap_or_else(|| said.detail.clone()) }
        }
    };
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::attempts::ALL;
    use super::super::record::Arrival;
    use super::*;
    use std::time::Duration;

    fn attempt(name: &str) -> &'static Attempt {
        ALL.iter().find(|attempt| attempt.name == name).unwrap()
    }

    fn said(reached: bool) -> Said {
        Said { token: String::new(), reached, detail: "it said".to_owned() }
    }

    fn heard(count: u64) -> Heard {
        let arrival = Arrival { server: "internet", protocol: "udp", from: None, to: None };
        let arrivals = if count > 0 { vec![arrival] } else { Vec::new() };
        let counts = [(("udp", "internet"), (count, count * 1400))].into();
        Heard { arrivals, counts, last: None }
    }

    fn reached(name: &str, said_so: bool, count: u64) -> bool {
        judge(attempt(name), Some(&said(said_so)), &heard(count), None).unwrap().reached
    }

    #[test]
    fn the_record_decides_and_not_the_attacker() {
        assert!(reached("other-port", false, 1), "a one-way leak is one");
        assert!(!reached("other-port", true, 0), "nobody received it: something else answered");
        assert!(!reached("listed-tcp", true, 0), "an allowed use must arrive as well");
        assert!(reached("listed-tcp", true, 1));
        assert!(!reached("listed-tcp", false, 1), "and come back");
        assert!(reached("icmp", true, 0), "only the attacker hears an echo");
        assert!(reached("public-icmp", true, 0));
    }

    #[test]
    fn floods_are_counted_where_they_arrive() {
        assert!(!reached("flood", false, 4000));
        assert!(reached("flood", false, 4001));
        assert!(reached("flood-bytes", false, 4000));
        assert!(!reached("many-connections", false, 20), "those that are allowed arrive");
    }

    #[test]
    fn a_connection_is_cut_when_nothing_of_it_comes_after_the_update() {
        let now = Instant::now();
        let after = |last: Instant| {
            let counts = [(("tcp", "internet"), (1, 40))].into();
            let heard = Heard { last: Some(last), counts, ..heard(1) };
            judge(attempt("cut-connection"), Some(&said(false)), &heard, Some(now)).unwrap().reached
        };
        let never = judge(attempt("cut-connection"), Some(&said(false)), &heard(0), Some(now));
        assert!(never.is_err(), "what was never there is not cut");
        assert!(!after(now - Duration::from_millis(1)));
        assert!(after(now + Duration::from_millis(1)));
    }

    #[test]
    fn what_was_not_tried_is_no_success() {
        assert!(judge(attempt("other-port"), None, &heard(0), None).is_err());
        let broken = Said { detail: "could not be tried: no card".to_owned(), ..said(false) };
        assert!(judge(attempt("other-port"), Some(&broken), &heard(0), None).is_err());
    }
}
