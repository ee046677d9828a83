//! The names of the suite's internet, and the answers of its name server. Pure.

use std::net::Ipv4Addr;

/// Below this everything has an address: a token is a label of a name there.
const ANYTHING: &str = ".evil.example.org";

/// Names and what they lead to.
const NAMES: &[(&str, &[Ipv4Addr])] = &[
    ("good.example.org", &[Ipv4Addr::new(203, 0, 113, 10)]),
    ("shared.example.org", &[Ipv4Addr::new(203, 0, 113, 10)]),
    ("later.example.org", &[Ipv4Addr::new(203, 0, 113, 12)]),
    ("rebind.example.org", &[Ipv4Addr::new(10, 1, 2, 3)]),
    ("metadata.example.org", &[Ipv4Addr::new(169, 254, 169, 254)]),
    ("host.example.org", &[Ipv4Addr::new(192, 0, 2, 2)]),
];
/// What the rest leads to.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
/// Seconds that answers hold.
const TTL: u32 = 2;

/// The addresses of a name; none where it does not exist.
fn addresses(name: &str) -> Vec<Ipv4Addr> {
    let name = name.to_ascii_lowercase();
    let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, addresses)| addresses.to_vec());
    known.unwrap_or_else(|| if name.ends_with(ANYTHING) { vec![ELSEWHERE] } else { Vec::new() })
}

/// The answer to a query; none to what is no query.
pub(super) fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let (name, end) = question(query)?;
    let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
    let found = addresses(&name);
    let code = if found.is_empty() { 3 } else { 0 };
    let given: &[Ipv4Addr] = if kind == 1 { &found } else { &[] };
    let mut out = query.get(..2)?.to_vec();
    out.extend([0x85, 0x80 | code, 0, 1, 0, u8::try_from(given.len()).ok()?, 0, 0, 0, 0]);
    out.extend(query.get(12..end + 4)?);
    for address in given {
        out.extend([0xc0, 0x0c, 0, 1, 0, 1]);
        out.extend(TTL.to_be_bytes());
        out.extend([0, 4]);
        out.extend(address.octets());
    }
    Some(out)
}

/// The name that is asked for, and where it ends.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        match length {
            0 => return Some((labels.join("."), at)),
            1..=63 => labels.push(String::from_utf8_lossy(query.get(at..at + length)?).into_owned()),
            _ => return None,
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut out = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            out.push(label.len() as u8);
            out.extend(label.as_bytes());
        }
        out.extend([0, 0, kind, 0, 1]);
        out
    }

    #[test]
    fn names_lead_where_they_should() {
        let given = answer(&query("GOOD.example.org", 1)).unwrap();
        assert!(given.starts_with(&[1, 2, 0x85, 0x80]) && given.ends_with(&[203, 0, 113, 10]));
        assert!(answer(&query("abc.evil.example.org", 1)).unwrap().ends_with(&[203, 0, 113, 11]));
        assert_eq!(answer(&query("absent.example.org", 1)).unwrap()[3] & 15, 3);
        let six = answer(&query("good.example.org", 28)).unwrap();
        assert_eq!((six[3] & 15, six[7]), (0, 0), "it exists, and has no such address");
        assert_eq!(answer(&[1, 2, 3]), None);
    }
}
