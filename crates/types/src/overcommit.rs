//! Selling a node's memory more than once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How often a node's memory may be given to guests: 1.0 is never twice, 2.0 is twice. Kept in hundredths, so that every
/// engine rounds alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Overcommit(u32);

impl Overcommit {
    /// Memory is given to one guest only.
    pub const NEVER: Self = Self(100);

    /// Of so many hundredths, 100 to 1000; `None` beyond that.
    pub fn from_hundredths(hundredths: u32) -> Option<Self> {
        (100..=1000).contains(&hundredths).then_some(Self(hundredths))
    }

    /// In hundredths.
    pub fn hundredths(self) -> u32 {
        self.0
    }

    /// What is reserved for a guest that is promised so much, MiB, rounded up.
    pub fn reserved_mib(self, memory_mib: u32) -> u64 {
        (u64::from(memory_mib) * 100).div_ceil(u64::from(self.0))
    }
}

impl Default for Overcommit {
    fn default() -> Self {
        Self::NEVER
    }
}

impl From<Overcommit> for u32 {
    fn from(overcommit: Overcommit) -> Self {
        overcommit.0
    }
}

/// Not a number from 1 to 10.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a number from 1 to 10 with at most two decimals, such as 1.5")]
pub struct BadOvercommit;

impl TryFrom<u32> for Overcommit {
    type Error = BadOvercommit;

    fn try_from(hundredths: u32) -> Result<Self, BadOvercommit> {
        Self::from_hundredths(hundredths).ok_or(BadOvercommit)
    }
}

impl FromStr for Overcommit {
    type Err = BadOvercommit;

    fn from_str(text: &str) -> Result<Self, BadOvercommit> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || whole.len() > 2 || decimals.len() > 2 {
            return Err(BadOvercommit);
        }
        format!("{whole}{decimals:0<2}").parse().ok().and_then(Self::from_hundredths).ok_or(BadOvercommit)
    }
}

impl fmt::Display for Overcommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_and_written() {
        for (text, hundredths) in [("1", 100), ("1.0", 100), ("1.5", 150), ("2.25", 225), ("10", 1000)] {
            let read: Overcommit = text.parse().unwrap();
            assert_eq!(read.hundredths(), hundredths, "{text}");
            assert_eq!(read.to_string().parse(), Ok(read));
        }
        for text in ["", ".", "1.", ".5", "0.99", "10.01", "1.234", "-1", "+2", "1e1", "11", "1,5", "nan", " 1"] {
            assert_eq!(text.parse::<Overcommit>(), Err(BadOvercommit), "{text}");
        }
        assert!(serde_json::from_str::<Overcommit>("99").is_err());
        assert_eq!(serde_json::to_string(&Overcommit::NEVER).unwrap(), "100");
    }

    #[test]
    fn a_promise_is_never_reserved_for_less_than_its_part() {
        assert_eq!(Overcommit::NEVER.reserved_mib(512), 512);
        assert_eq!(Overcommit(200).reserved_mib(511), 256);
        assert_eq!(Overcommit(300).reserved_mib(1), 1);
        assert_eq!(Overcommit(1000).reserved_mib(u32::MAX), u64::from(u32::MAX).div_ceil(10));
    }
}
