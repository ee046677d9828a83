//! The kernel's number of a namespace's rules: a request of some microseconds that tells whether any transaction was made since.

use std::io;

use crate::StyxError;
use crate::netlink::{ACK, REQUEST, ask, attribute, socket};

/// `NFT_MSG_NEWGEN` and `NFT_MSG_GETGEN` of the subsystem of nftables, and `NFTA_GEN_ID` (`linux/netfilter/nf_tables.h`).
const GENERATION: u16 = 10 << 8 | 15;
const GET_GENERATION: u16 = 10 << 8 | 16;
const ID: u16 = 1;

/// That of the calling thread's namespace. It grows with every transaction; what packets themselves put into sets does not count.
pub(crate) fn edition() -> Result<u32, StyxError> {
    let mut edition = None;
    let asked = socket(libc::NETLINK_NETFILTER, 0).and_then(|socket| {
        ask(&socket, GET_GENERATION, REQUEST | ACK, (0, &[]), |kind, body| {
            if kind == GENERATION {
                edition = body.get(4..).and_then(number);
            }
        })
    });
    let found = asked.and_then(|()| edition.ok_or_else(|| io::ErrorKind::InvalidData.into()));
    found.map_err(StyxError::system("ask for the number of a sandbox's rules"))
}

fn number(attributes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*attribute(attributes, ID)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attributes;
    use crate::{enter, nft};

    #[test]
    fn a_number_is_whole_or_none() {
        let whole = attributes(&[(2, b"name"), (ID, &7_u32.to_be_bytes())]);
        assert_eq!(number(&whole), Some(7));
        for length in 0..whole.len() {
            assert_eq!(number(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn it_grows_with_every_transaction_and_only_then() {
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: a namespace takes root");
        }
        let alone = || {
            enter::unshare().unwrap();
            let change = |text: &str| drop(nft::run("apply rules", &["-f", "-"], text).unwrap());
            change("table ip a {\n}\n");
            let first = edition().unwrap();
            nft::list_here().unwrap();
            assert_eq!(edition().unwrap(), first);
            change("delete table ip a\ntable ip a {\n}\n");
            let second = edition().unwrap();
            assert_ne!(second, first, "the same rules, but somebody was there");
            change("flush ruleset\n");
            assert_ne!(edition().unwrap(), second);
        };
        std::thread::spawn(alone).join().unwrap();
    }
}
