//! The manifest: what belongs to a snapshot, by length and digest. Read as if anybody had written it.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use blobs::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use tartarus_types::Timestamp;

use super::draft::MAX_STATE;
use super::folder;

/// Its file name.
pub(super) const NAME: &str = "manifest.json";
/// Longest manifest, bytes.
pub(super) const MAX: u64 = 64 * 1024;
/// The layout that this Tartarus writes.
pub(super) const VERSION: u64 = 1;

/// What `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) version: u64,
    pub(super) golden: String,
    pub(super) created_at_us: Timestamp,
    pub(super) files: Files,
    pub(super) meta: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Files {
    pub(super) memory: Part,
    pub(super) state: Part,
    pub(super) layer: LayerPart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    pub(super) bytes: u64,
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub(super) sha256: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerPart {
    pub(super) bytes: u64,
    pub(super) data_bytes: u64,
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub(super) sha256: Digest,
}

/// Why a snapshot cannot be used.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// There is no manifest, so there is no snapshot.
    Missing,
    /// A newer Tartarus wrote it, in this version.
    Newer(u64),
    /// Nobody can use it.
    Damaged(String),
    /// It may be in order.
    Io(io::Error),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("it has no manifest"),
            Self::Newer(version) => {
                write!(f, "a newer Tartarus made it: its manifest has version {version}, this one reads {VERSION}")
            }
            Self::Damaged(why) => write!(f, "it is damaged: {why}"),
            Self::Io(error) => write!(f, "it could not be read: {error}"),
        }
    }
}

/// Reads the manifest in `dir`, which must be that of `golden`.
pub(super) fn read(dir: &Path, golden: &str) -> Result<Manifest, Unreadable> {
    let mut bytes = Vec::new();
    let file = folder::open(&dir.join(NAME)).map_err(unreadable)?;
    file.take(MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    parse(&bytes, golden)
}

fn unreadable(error: io::Error) -> Unreadable {
    match error.kind() {
        ErrorKind::NotFound => Unreadable::Missing,
        // In place of a folder or a file is something else.
        ErrorKind::NotADirectory | ErrorKind::InvalidData => {
            Unreadable::Damaged(format!("its manifest is no regular file ({error})"))
        }
        _ => Unreadable::Io(error),
    }
}

fn parse(bytes: &[u8], golden: &str) -> Result<Manifest, Unreadable> {
    #[derive(Deserialize)]
    struct Version {
        version: u64,
    }
    let damaged = |why: String| Err(Unreadable::Damaged(why));
    if bytes.len() as u64 > MAX {
        return damaged(format!("its manifest is larger than {MAX} bytes"));
    }
    let version = match serde_json::from_slice(bytes) {
        Ok(Version { version }) => version,
        Err(error) => return damaged(format!("its manifest cannot be read: {error}")),
    };
    if version > VERSION {
        return Err(Unreadable::Newer(version));
    }
    let manifest: Manifest = match serde_json::from_slice(bytes) {
        Ok(manifest) => manifest,
        Err(error) => return damaged(format!("its manifest cannot be read: {error}")),
    };
    if version != VERSION {
        return damaged(format!("its manifest has version {version}"));
    }
    if manifest.golden != golden {
        return damaged("its manifest is that of another snapshot".to_owned());
    }
    if manifest.files.state.bytes > MAX_STATE {
        return damaged(format!("its state has more than {MAX_STATE} bytes"));
    }
    Ok(manifest)
}

fn to_hex<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&digest.hex())
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    let text = String::deserialize(deserializer)?;
    Digest::from_hex(&text).ok_or_else(|| de::Error::custom("a digest is 64 hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const GOLDEN: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

    fn good() -> Value {
        let sha256 = Digest::of(b"x").hex();
        json!({
            "version": 1, "golden": GOLDEN, "created_at_us": 17,
            "files": {
                "memory": {"bytes": 1, "sha256": sha256},
                "state": {"bytes": 1, "sha256": sha256},
                "layer": {"bytes": 4096, "data_bytes": 4096, "sha256": sha256},
            },
            "meta": {"any": ["thing", 1, null]},
        })
    }

    fn parsed(value: &Value) -> Result<Manifest, Unreadable> {
        parse(&serde_json::to_vec(value).unwrap(), GOLDEN)
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = parsed(&good()).unwrap();
        assert_eq!(serde_json::to_value(&manifest).unwrap(), good());
    }

    #[test]
    fn anything_else_is_damaged() {
        let bad: [(&str, Value); 12] = [
            ("/version", json!(0)),
            ("/version", json!(-1)),
            ("/version", json!("1")),
            ("/golden", json!(GOLDEN.replace('a', "b"))),
            ("/golden", json!("../x")),
            ("/created_at_us", json!("now")),
            ("/files", json!({})),
            ("/files/memory/bytes", json!(-1)),
            ("/files/memory/sha256", json!("00")),
            ("/files/state/bytes", json!(MAX_STATE + 1)),
            ("/files/layer", json!({"bytes": 1, "sha256": GOLDEN})),
            ("/files/layer/sha256", json!(GOLDEN.to_uppercase())),
        ];
        for (at, value) in bad {
            let mut manifest = good();
            *manifest.pointer_mut(at).unwrap() = value;
            assert!(matches!(parsed(&manifest), Err(Unreadable::Damaged(_))), "{at}: {manifest}");
        }
        let mut more = good();
        more["surprise"] = json!(1);
        assert!(matches!(parsed(&more), Err(Unreadable::Damaged(_))));
        let mut large = good();
        large["meta"] = json!("x".repeat(MAX as usize));
        assert!(matches!(parsed(&large), Err(Unreadable::Damaged(_))));
        let deep = "[".repeat(60_000);
        assert!(matches!(parse(deep.as_bytes(), GOLDEN), Err(Unreadable::Damaged(_))));
    }

    #[test]
    fn a_newer_version_is_told_apart_whatever_is_in_it() {
        assert!(matches!(parsed(&json!({"version": 2, "new": {"x": 1}})), Err(Unreadable::Newer(2))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, GOLDEN);
        }

        #[test]
        fn a_changed_manifest_is_another_or_none(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = serde_json::to_vec(&good()).unwrap();
            let cut_at = cut.index(bytes.len());
            prop_assert!(parse(&bytes[..cut_at], GOLDEN).is_err());
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(manifest) = parse(&bytes, GOLDEN) {
                prop_assert_eq!(manifest.golden, GOLDEN);
                prop_assert!(manifest.files.state.bytes <= MAX_STATE);
            }
        }
    }
}
