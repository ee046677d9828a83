//! What becomes of a question, by the contract: pure.

use std::fmt;

use tartarus_types::net::{Contract, NetMode};

use super::wire::Question;

const IN: u16 = 1;
const A: u16 = 1;
const AAAA: u16 = 28;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;

/// What becomes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict<'a> {
    /// The node's resolver is asked.
    Forward {
        /// The name to ask for: lower case, without a final dot.
        name: &'a str,
        /// Whether its addresses must be pinned: it is allowed for its name, so nothing else makes them reachable.
        pin: bool,
    },
    /// It is answered with nothing: the name is allowed, and has no records of this kind that are of use without IPv6.
    Empty,
    /// It is refused, and nobody is asked.
    Refuse(Why),
}

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The contract does not list it.
    Unlisted,
    /// It has characters that host names do not have.
    NoHostName,
    /// Neither addresses nor hints to them are asked for.
    Kind,
    /// Another class than the internet's.
    Class,
    /// What it stands for is private, or reached by no sandbox.
    PrivateAnswer,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unlisted => "not listed",
            Self::NoHostName => "no host name",
            Self::Kind => "only addresses are answered",
            Self::Class => "only class IN is answered",
            Self::PrivateAnswer => "its answer is private",
        })
    }
}

/// What becomes of `question`.
///
/// Every name is allowed where every public destination is: under `open`, and under `allow` with nothing but ports.
/// Otherwise those that a domain of the contract covers, and none under `none`.
pub(super) fn judge<'a>(contract: &Contract, question: &'a Question) -> Verdict<'a> {
    let Some(name) = question.name.as_deref() else { return Verdict::Refuse(Why::NoHostName) };
    let listed = contract.domains.iter().any(|domain| domain.covers(name));
    let allowed = match contract.mode {
        NetMode::None => false,
        NetMode::Allow => listed || contract.reaches_public_ports(),
        NetMode::Open => true,
    };
    match (allowed, question.class, question.kind) {
        (false, ..) => Verdict::Refuse(Why::Unlisted),
        (true, IN, A) => Verdict::Forward { name, pin: listed },
        (true, IN, AAAA | SVCB | HTTPS) => Verdict::Empty,
        (true, IN, _) => Verdict::Refuse(Why::Kind),
        (true, ..) => Verdict::Refuse(Why::Class),
    }
}
