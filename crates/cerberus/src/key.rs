//! API keys: 256 random bits as text that survives a terminal, with a checksum that tells a typo from an unknown key.
//!
//! ```text
//! tt_ | 52 characters: the bits, 5 each, and 4 zero bits | 4 characters: 20 bits of SHA-256 over all before
//! ```

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const PREFIX: &str = "tt_";
/// Crockford's alphabet in lower case, as in ids.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const SECRET_CHARS: usize = 52;
const CHECK_CHARS: usize = 4;

/// Why a text is no usable API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing was sent.
    #[error("send the API key in the header `Authorization: Bearer KEY`")]
    Missing,
    /// It does not look like one.
    #[error("that is no API key: one looks like tt_ and 56 characters of 0-9 a-z")]
    Malformed,
    /// It looks like one, with at least one wrong character.
    #[error("the API key has a typo: its checksum does not match")]
    Typo,
}

/// An API key. Whoever has it is the caller that it stands for; only its hash is ever stored.
#[derive(Clone)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// A fresh random key.
    ///
    /// # Panics
    /// When the operating system has no randomness to give: a guessable key is worse than no process.
    pub fn generate() -> Self {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).expect("the operating system gives random bytes");
        Self(secret)
    }

    /// Reads the text of a key.
    ///
    /// # Errors
    /// `Malformed` or `Typo`.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let body = text.strip_prefix(PREFIX).ok_or(KeyError::Malformed)?;
        if body.len() != SECRET_CHARS + CHECK_CHARS || !body.bytes().all(|b| ALPHABET.contains(&b)) {
            return Err(KeyError::Malformed);
        }
        let (secret, check) = body.split_at(SECRET_CHARS);
        if !bool::from(checksum(secret).as_bytes().ct_eq(check.as_bytes())) {
            return Err(KeyError::Typo);
        }
        decode(secret).map(Self).ok_or(KeyError::Malformed)
    }

    /// The text of the key, to be shown or written once. A secret.
    pub fn reveal(&self) -> String {
        let secret = encode(&self.0);
        let check = checksum(&secret);
        format!("{PREFIX}{secret}{check}")
    }

    /// SHA-256 of the secret: what is stored. The secret has 256 random bits, so neither salt nor stretching adds.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(secret)")
    }
}

/// The key in an `Authorization` header.
///
/// # Errors
/// [`KeyError`], `Missing` also for another scheme than `Bearer`.
pub fn bearer(header: Option<&str>) -> Result<ApiKey, KeyError> {
    let (scheme, key) = header.and_then(|h| h.split_once(' ')).ok_or(KeyError::Missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(KeyError::Missing);
    }
    ApiKey::parse(key.trim())
}

fn checksum(secret: &str) -> String {
    let hash = Sha256::new().chain_update(PREFIX).chain_update(secret).finalize();
    encode(&hash[..3])[..CHECK_CHARS].to_owned()
}

/// 5 bits a character, most significant first, the last one filled up with zero bits.
fn encode(bytes: &[u8]) -> String {
    let bit = |i: usize| bytes.get(i / 8).map_or(0, |byte| byte >> (7 - i % 8) & 1);
    let character = |c: usize| (0..5).fold(0, |value, i| value << 1 | bit(c * 5 + i));
    (0..(bytes.len() * 8).div_ceil(5)).map(|c| char::from(ALPHABET[usize::from(character(c))])).collect()
}

/// The reverse of [`encode`]; `None` when a bit beyond the 256 is set, so that a key has one text only.
fn decode(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (c, character) in text.bytes().enumerate() {
        let value = ALPHABET.iter().position(|known| *known == character)?;
        for i in (0..5).filter(|i| value >> (4 - i) & 1 == 1) {
            let bit = c * 5 + i;
            *bytes.get_mut(bit / 8)? |= 1 << (7 - bit % 8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back() {
        let key = ApiKey::generate();
        let text = key.reveal();
        assert_eq!(text.len(), 3 + 52 + 4);
        assert_eq!(ApiKey::parse(&text).unwrap().hash(), key.hash());
        assert_ne!(ApiKey::generate().hash(), key.hash());
        assert_eq!(bearer(Some(&format!("bearer  {text}"))).unwrap().hash(), key.hash());
    }

    #[test]
    fn the_text_and_the_hash_never_change() {
        let key = ApiKey([0xa5; 32]);
        assert_eq!(key.reveal(), "tt_mpjtb9d5mpjtb9d5mpjtb9d5mpjtb9d5mpjtb9d5mpjtb9d5mpjgzj0a");
        assert_eq!(key.hash()[..8], [0xfc, 0x8b, 0x64, 0x00, 0x1c, 0x5f, 0xdd, 0x0f]);
    }

    #[test]
    fn every_single_typo_is_told_apart_from_an_unknown_key() {
        let text = ApiKey([0xa5; 32]).reveal();
        for at in PREFIX.len()..text.len() {
            let mut typo = text.clone().into_bytes();
            typo[at] = if typo[at] == b'0' { b'1' } else { b'0' };
            let typo = String::from_utf8(typo).unwrap();
            assert_eq!(ApiKey::parse(&typo).unwrap_err(), KeyError::Typo, "{at}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let text = ApiKey::generate().reveal();
        for bad in ["", "tt_", &text[..58], &format!("{text}0"), &text.to_uppercase(), &text.replace("tt_", "tk_")] {
            assert_eq!(ApiKey::parse(bad).unwrap_err(), KeyError::Malformed, "{bad}");
        }
        let beyond = format!("{}1", "0".repeat(51));
        let text = format!("tt_{beyond}{}", checksum(&beyond));
        assert_eq!(ApiKey::parse(&text).unwrap_err(), KeyError::Malformed);
        assert_eq!(bearer(None).unwrap_err(), KeyError::Missing);
        assert_eq!(bearer(Some("Basic abc")).unwrap_err(), KeyError::Missing);
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = ApiKey::generate();
        assert_eq!(format!("{key:?}"), "ApiKey(secret)");
    }
}
