//! The old container of LZ4, in which kernels are packed: a magic, then blocks, each with its packed size before it.
//! Pure; nothing in it is trusted.

/// What it begins with.
pub(super) const MAGIC: &[u8] = b"\x02\x21\x4c\x18";

/// Most bytes of a block, unpacked.
const BLOCK: usize = 8 << 20;

/// What it holds; `None` when it is damaged, cut off, or holds more than `most` bytes. There is no checksum in it.
pub(super) fn unpack(mut packed: &[u8], most: usize) -> Option<Vec<u8>> {
    packed = packed.strip_prefix(MAGIC)?;
    let (mut unpacked, mut block) = (Vec::new(), vec![0; BLOCK]);
    while !packed.is_empty() {
        let (size, rest) = packed.split_first_chunk::<4>()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*size) as usize)?;
        let count = lz4_flex::block::decompress_into(bytes, &mut block).ok()?;
        if count > most - unpacked.len() {
            return None;
        }
        unpacked.extend_from_slice(&block[..count]);
        packed = rest;
    }
    Some(unpacked)
}

/// The bytes as blocks of literals, of so many bytes each.
#[cfg(test)]
pub(super) fn pack(bytes: &[u8], block: usize) -> Vec<u8> {
    let mut packed = MAGIC.to_vec();
    for chunk in bytes.chunks(block) {
        let mut literals = Vec::new();
        if chunk.len() < 15 {
            literals.push((chunk.len() as u8) << 4);
        } else {
            let left = chunk.len() - 15;
            literals.push(0xf0);
            literals.extend(std::iter::repeat_n(255, left / 255));
            literals.push((left % 255) as u8);
        }
        literals.extend_from_slice(chunk);
        packed.extend_from_slice(&(literals.len() as u32).to_le_bytes());
        packed.extend_from_slice(&literals);
    }
    packed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::noise;

    #[test]
    fn blocks_are_joined_and_bounded() {
        for (len, block) in [(0, 1), (14, 100), (15, 100), (1000, 270), (9 << 20, 8 << 20)] {
            let bytes = noise(len);
            let packed = pack(&bytes, block);
            assert!(unpack(&packed, len).as_ref() == Some(&bytes), "{len} in blocks of {block}");
            assert_eq!(len.checked_sub(1).and_then(|less| unpack(&packed, less)), None);
        }
    }

    #[test]
    fn a_repetition_is_unpacked() {
        // Four literals, then ten bytes from four back, then five literals.
        let packed = b"\x02\x21\x4c\x18\x0d\0\0\0\x46abcd\x04\0\x50-----";
        assert_eq!(unpack(packed, 100).unwrap(), b"abcdabcdabcdab-----");
        assert_eq!(unpack(packed, 18), None);
        let far = b"\x02\x21\x4c\x18\x0d\0\0\0\x46abcd\x05\0\x50-----";
        assert_eq!(unpack(far, 100), None, "from before the beginning");
    }

    #[test]
    fn what_is_cut_off_or_too_large_is_refused() {
        let packed = pack(&noise(1000), 1000);
        for cut in [0, 3, 5, 7, 100, packed.len() - 1] {
            assert_eq!(unpack(&packed[..cut], 4096), None, "{cut}");
        }
        assert_eq!(unpack(&pack(&noise(BLOCK + 1), BLOCK + 1), 2 * BLOCK), None, "a block beyond its bound");
    }

    proptest! {
        #[test]
        fn anything_is_survived(bytes: Vec<u8>, most in 0_usize..10_000) {
            let mut framed = [MAGIC, &(bytes.len() as u32).to_le_bytes()].concat();
            framed.extend_from_slice(&bytes);
            for packed in [bytes, framed] {
                if let Some(unpacked) = unpack(&packed, most) {
                    prop_assert!(unpacked.len() <= most);
                }
            }
        }

        #[test]
        fn changes_are_survived(at in 4_usize..1200, to: u8) {
            let mut packed = pack(&noise(1200), 500);
            packed[at] = to;
            if let Some(unpacked) = unpack(&packed, 4096) {
                prop_assert!(unpacked.len() <= 4096);
            }
        }
    }
}
