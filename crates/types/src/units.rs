//! Memory sizes and points in time, as people write them and as machines keep them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// Microseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This moment and `ms` milliseconds; saturates at the end of time.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000)))
    }

    /// Milliseconds from `earlier` to this moment; 0 when `earlier` is later.
    pub fn ms_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0) / 1000
    }
}

/// The text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotASize {
    /// It does not parse.
    #[error("{0:?} is not a size: write 512M, 2G or 1.5G")]
    Syntax(String),
    /// Below one mebibyte, or beyond what 32 bits of mebibytes hold.
    #[error("{0} is out of range: 1M to 4194304G")]
    Range(String),
}

/// Mebibytes of a size such as `512M`, `2G`, `1.5G` or `512` (mebibytes). `K`, `M`, `G` and `T` are powers of 1024;
/// a following `i`, `B` or `iB` changes nothing.
///
/// # Errors
/// When the text is not a size, is negative, or is not between 1 MiB and `u32::MAX` MiB.
pub fn parse_mib(text: &str) -> Result<u32, NotASize> {
    let syntax = || NotASize::Syntax(text.chars().take(40).collect());
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| syntax())?;
    let factor = match suffix.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" | "m" => 1.0,
        "k" => 1.0 / 1024.0,
        "g" => 1024.0,
        "t" => 1024.0 * 1024.0,
        _ => return Err(syntax()),
    };
    let mib = number * factor;
    if (1.0..=f64::from(u32::MAX)).contains(&mib) {
        Ok(mib.ceil() as u32)
    } else {
        Err(NotASize::Range(text.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, mib) in [("512M", 512), ("512", 512), ("2G", 2048), ("1.5GiB", 1536), ("2048k", 2), ("1T", 1 << 20)]
        {
            assert_eq!(parse_mib(text), Ok(mib), "{text}");
        }
        for bad in ["", "-512M", "M", "1.2.3M", "512X", "0", "9999999999G", "0.1M", "512M\0", "１２"] {
            assert!(parse_mib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn time_saturates() {
        assert_eq!(Timestamp(i64::MAX).plus_ms(u64::MAX), Timestamp(i64::MAX));
        assert_eq!(Timestamp(0).ms_since(Timestamp(5_000)), 0);
        assert_eq!(Timestamp(5_500).ms_since(Timestamp(0)), 5);
    }
}
