//! Counters of a namespace, straight from the kernel: some hundred microseconds, where a program that lists rules takes
//! milliseconds and a processor. For whoever adds up all sandboxes of a node.

use std::io;

use tartarus_types::net::NetCounter;

use super::Space;
use super::seen::merged;
use crate::StyxError;
use crate::enter::within;
use crate::netlink::{DUMP, REQUEST, ask, attribute, socket};

/// `NFT_MSG_NEWOBJ` and `NFT_MSG_GETOBJ` of the subsystem of nftables.
const OBJECT: u16 = 10 << 8 | 18;
const GET_OBJECTS: u16 = 10 << 8 | 19;
/// `NFTA_OBJ_NAME`, `NFTA_OBJ_TYPE` and `NFTA_OBJ_DATA`, and what a counter has (`linux/netfilter/nf_tables.h`).
const NAME: u16 = 2;
const TYPE: u16 = 3;
const DATA: u16 = 4;
const BYTES: u16 = 1;
const PACKETS: u16 = 2;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;

impl Space {
    /// What became of packets since the contract was last changed, as [`Self::counters`] has it.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn tally(&self) -> Result<Vec<NetCounter>, StyxError> {
        let dropped = self.state.lock().await.dropped()?;
        within(self.namespace.clone(), || {
            let counters = here().map_err(StyxError::system("read a sandbox's counters"))?;
            Ok(merged([counters, dropped].concat()))
        })
        .await
    }
}

/// Those of the calling thread's namespace.
fn here() -> io::Result<Vec<NetCounter>> {
    let mut counters = Vec::new();
    let socket = socket(libc::NETLINK_NETFILTER, 0)?;
    ask(&socket, GET_OBJECTS, REQUEST | DUMP, (0, &[]), |kind, body| {
        counters.extend(counter(body).filter(|_| kind == OBJECT));
    })?;
    Ok(counters)
}

/// A counter, after four bytes of family and version; nothing for another object.
fn counter(object: &[u8]) -> Option<NetCounter> {
    let body = object.get(4..)?;
    let kind = u32::from_be_bytes(*attribute(body, TYPE)?.first_chunk()?);
    let name = attribute(body, NAME)?.strip_suffix(b"\0")?;
    let data = attribute(body, DATA).filter(|_| kind == COUNTER)?;
    let number = |which| Some(u64::from_be_bytes(*attribute(data, which)?.first_chunk()?));
    let name = String::from_utf8(name.to_vec()).ok()?;
    Some(NetCounter { name, packets: number(PACKETS)?, bytes: number(BYTES)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::message;
    use crate::netlink::{HEADER, attributes};

    #[test]
    fn counters_are_read_and_nothing_else() {
        let data = attributes(&[(BYTES, &700_u64.to_be_bytes()), (PACKETS, &7_u64.to_be_bytes())]);
        let object = |kind: u32, name: &[u8], data: &[u8]| {
            message(OBJECT, &[(1, b"tartarus\0"), (NAME, name), (TYPE, &kind.to_be_bytes()), (DATA | 0x8000, data)])
        };
        let read = |message: &[u8]| counter(&message[HEADER..]);
        let counter = NetCounter { name: "never".to_owned(), packets: 7, bytes: 700 };
        assert_eq!(read(&object(COUNTER, b"never\0", &data)), Some(counter));
        for other in [object(2, b"never\0", &data), object(COUNTER, b"never", &data), object(COUNTER, b"a\0", &[])] {
            assert_eq!(read(&other), None);
        }
        let whole = object(COUNTER, b"never\0", &data);
        for length in HEADER..whole.len() {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
    }
}
