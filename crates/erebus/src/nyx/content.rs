//! Digests of the files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use blobs::Digest;
use sha2::{Digest as _, Sha256};

use crate::sparse::{self, CHUNK};

/// Bytes that are hashed or left out together.
const BLOCK: usize = 4096;

/// Before everything of a layer: no other thing has the same digest.
const LAYER: &str = "tartarus layer 1\n";

/// A layer as its digest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerHash {
    /// Its length.
    pub(super) bytes: u64,
    /// Bytes in blocks that are not all zeros.
    pub(super) data_bytes: u64,
    pub(super) digest: Digest,
}

/// SHA-256 of all bytes, and their number.
pub(super) fn hash(file: &File) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut at, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        let n = match file.read_at(&mut chunk, at) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            n => n?,
        };
        if n == 0 {
            return Ok((Digest::from_hasher(hasher), at));
        }
        hasher.update(&chunk[..n]);
        at += n as u64;
    }
}

/// SHA-256 over a line that says what this is, the length, and each block of 4096 bytes that is not all zeros with its
/// offset before it (numbers as 8 bytes, little endian; the last block may be shorter). So it depends on the content
/// alone: where a file system chose to have holes only decides how much need be read.
pub(super) fn hash_layer(file: &File) -> io::Result<LayerHash> {
    let bytes = file.metadata()?.len();
    let mut hasher = Sha256::new_with_prefix(LAYER);
    hasher.update(bytes.to_le_bytes());
    let (mut done, mut data_bytes, mut chunk) = (0, 0, vec![0; CHUNK]);
    for extent in sparse::extents(file, bytes) {
        let extent = extent?;
        // Whole blocks, each once.
        let mut at = (extent.start - extent.start % BLOCK as u64).max(done);
        let end = extent.end.next_multiple_of(BLOCK as u64).min(bytes);
        while at < end {
            let most = CHUNK.min((end - at) as usize);
            file.read_exact_at(&mut chunk[..most], at)?;
            for block in chunk[..most].chunks(BLOCK) {
                if block.iter().fold(0, |all, byte| all | byte) != 0 {
                    hasher.update(at.to_le_bytes());
                    hasher.update(block);
                    data_bytes += block.len() as u64;
                }
                at += block.len() as u64;
            }
        }
        done = at;
    }
    Ok(LayerHash { bytes, data_bytes, digest: Digest::from_hasher(hasher) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, without a file.
    fn by_definition(content: &[u8]) -> Digest {
        let mut bytes = b"tartarus layer 1\n".to_vec();
        bytes.extend((content.len() as u64).to_le_bytes());
        for (n, block) in content.chunks(4096).enumerate() {
            if block.iter().any(|&b| b != 0) {
                bytes.extend((n as u64 * 4096).to_le_bytes());
                bytes.extend(block);
            }
        }
        Digest::of(&bytes)
    }

    fn filled(length: u64, pieces: &[(u64, Vec<u8>)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (at, piece) in pieces {
            file.write_all_at(piece, *at).unwrap();
        }
        file
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn holes_make_no_difference(
            length in 0..40_000_u64,
            pieces in prop::collection::vec((0..40_000_u64, prop::collection::vec(0..2_u8, 0..9_000)), 0..6),
        ) {
            let pieces: Vec<_> = pieces.into_iter().filter(|(at, piece)| at + piece.len() as u64 <= length).collect();
            let sparse = filled(length, &pieces);
            let mut content = vec![0; length as usize];
            sparse.read_exact_at(&mut content, 0).unwrap();
            let dense = filled(length, &[(0, content.clone())]);
            let hashed = hash_layer(&sparse).unwrap();
            prop_assert_eq!(hashed, hash_layer(&dense).unwrap());
            prop_assert_eq!(hashed.digest, by_definition(&content));
            prop_assert_eq!(hash(&sparse).unwrap(), (Digest::of(&content), length));
        }
    }

    #[test]
    fn length_place_and_content_matter() {
        let of = |length, at, byte| hash_layer(&filled(length, &[(at, vec![byte; 10])])).unwrap().digest;
        let one = of(1 << 20, 0, 1);
        for other in [of((1 << 20) + 1, 0, 1), of(1 << 20, 4096, 1), of(1 << 20, 1, 1), of(1 << 20, 0, 2)] {
            assert_ne!(one, other);
        }
    }
}
