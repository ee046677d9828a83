//! Identifiers: a type each, so that a node's cannot be passed for a sandbox's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Crockford's alphabet in lower case: no `i`, `l`, `o`, `u`, so an id survives being read aloud.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// `N` random characters of 5 bits each.
///
/// # Panics
/// When the operating system has no randomness to give, since an id that could repeat is worse than no process.
pub fn random_text(len: usize) -> String {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes.iter().map(|b| ALPHABET[usize::from(b & 31)] as char).collect()
}

/// The text is not an id of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id looks like {prefix} and {len} characters of 0-9 a-z")]
pub struct NotAnId {
    prefix: &'static str,
    len: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $len:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(String);

        impl $name {
            /// What every id of this kind starts with.
            pub const PREFIX: &'static str = $prefix;

            /// A fresh random id.
            pub fn random() -> Self {
                Self(format!("{}{}", $prefix, random_text($len)))
            }

            /// The text of the id: safe as a file name and in a URL.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;
            fn from_str(text: &str) -> Result<Self, NotAnId> {
                let fits = text.strip_prefix($prefix).is_some_and(|rest| {
                    rest.len() == $len && rest.bytes().all(|b| ALPHABET.contains(&b))
                });
                if fits { Ok(Self(text.to_owned())) } else { Err(NotAnId { prefix: $prefix, len: $len }) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotAnId;
            fn try_from(text: String) -> Result<Self, NotAnId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id!(
    /// A sandbox: one microVM, from request to forgetting. 80 random bits, so a short prefix is already unique.
    SandboxId, "sbx_", 16
);
id!(
    /// A command started beside the main one in a running sandbox.
    ExecId, "exe_", 16
);
id!(
    /// A machine that runs sandboxes.
    NodeId, "nod_", 16
);
id!(
    /// The fencing token of one attempt to run a sandbox. Whoever holds the newest one owns the attempt.
    LeaseToken, "lse_", 26
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_and_others_are_refused() {
        let id = SandboxId::random();
        assert_eq!(id.as_str().parse::<SandboxId>().unwrap(), id);
        assert!(id.as_str().parse::<ExecId>().is_err());
        for bad in ["", "sbx_", "sbx_../../../../etc", "sbx_0000000000000000/", "SBX_0000000000000000"] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<SandboxId>("\"sbx_..\"").is_err());
    }

    #[test]
    fn ids_do_not_repeat() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| SandboxId::random()).collect();
        assert_eq!(ids.len(), 10_000);
    }
}
