//! Framing of an output stream over HTTP, `application/vnd.tartarus.output.v1`: both streams in one body, resumable at
//! any byte.
//!
//! ```text
//! kind u8 | stream u8 | 0 u16 | length u32 | offset u64 | payload …      (numbers little-endian)
//! ```
//! Kinds: 1 data; 2 gap (`length` 8: the number of bytes left out); 3 end; 4 error (payload: a problem in JSON);
//! 5 nothing, to keep the connection alive.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tartarus_types::{ErrorCode, Refusal};

use crate::node::OutputEvent;
use crate::v1::Problem;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.tartarus.output.v1";
/// Bytes of a frame's header.
pub const HEADER: usize = 16;
/// Largest payload of a frame.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// A frame that says nothing.
pub fn keepalive() -> Bytes {
    frame(5, 0, 0, &[])
}

/// The frame of an event.
pub fn encode(event: &Result<OutputEvent, Refusal>) -> Bytes {
    match event {
        Ok(OutputEvent::Data { stream, offset, bytes }) => frame(1, *stream, *offset, bytes),
        Ok(OutputEvent::Gap { stream, offset, length }) => frame(2, *stream, *offset, &length.to_le_bytes()),
        Ok(OutputEvent::End) => frame(3, 0, 0, &[]),
        Err(refusal) => frame(4, 0, 0, &serde_json::to_vec(&Problem::from(refusal.clone())).unwrap_or_default()),
    }
}

fn frame(kind: u8, stream: usize, offset: u64, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + payload.len());
    out.put_u8(kind);
    out.put_u8(stream as u8);
    out.put_u16_le(0);
    out.put_u32_le(payload.len() as u32);
    out.put_u64_le(offset);
    out.put_slice(payload);
    out.freeze()
}

/// Reads frames out of a body.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event; `None` when more bytes are needed. Frames of unknown kind are skipped.
    pub fn next_event(&mut self) -> Option<Result<OutputEvent, Refusal>> {
        loop {
            let mut head = self.buffer.get(..HEADER)?;
            let (kind, stream) = (head.get_u8(), usize::from(head.get_u8()));
            let _reserved = head.get_u16_le();
            let (length, offset) = (head.get_u32_le() as usize, head.get_u64_le());
            if length > MAX_PAYLOAD || stream > 1 {
                return Some(Err(Refusal::new(ErrorCode::Internal, "the server sent a malformed output stream")));
            }
            if self.buffer.len() < HEADER + length {
                return None;
            }
            self.buffer.advance(HEADER);
            let payload = self.buffer.split_to(length).freeze();
            return Some(match kind {
                1 => Ok(OutputEvent::Data { stream, offset, bytes: payload }),
                2 => {
                    let length = payload.get(..8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
                    Ok(OutputEvent::Gap { stream, offset, length })
                }
                3 => Ok(OutputEvent::End),
                4 => Err(serde_json::from_slice::<Problem>(&payload)
                    .map_or_else(|_| Refusal::new(ErrorCode::Internal, "the output ended"), Refusal::from)),
                _ => continue,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_split_gives_the_same_events() {
        let events = [
            Ok(OutputEvent::Data { stream: 1, offset: 1 << 33, bytes: Bytes::from_static(b"a\0b") }),
            Ok(OutputEvent::Gap { stream: 0, offset: 5, length: 1 << 40 }),
            Err(Refusal::field("name", "no")),
            Ok(OutputEvent::End),
        ];
        let mut bytes = keepalive().to_vec();
        for event in &events {
            bytes.extend_from_slice(&encode(event));
        }
        for size in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for chunk in bytes.chunks(size) {
                decoder.push(chunk);
                found.extend(std::iter::from_fn(|| decoder.next_event()));
            }
            assert_eq!(found, events, "chunks of {size}");
        }
    }

    #[test]
    fn a_hostile_length_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(decoder.next_event(), Some(Err(_))));
    }
}
