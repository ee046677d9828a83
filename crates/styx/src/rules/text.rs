//! The shape of nft's text: tables, sets, chains and numbers, as nft lists them.

/// A table of `parts`.
pub(super) fn table(family: &str, parts: &[String]) -> String {
    format!("table {family} tartarus {{\n{}}}\n", parts.concat())
}

/// A named counter.
pub(super) fn counter(name: &str) -> String {
    format!("\tcounter {name} {{\n\t}}\n")
}

/// A set of `attributes`, each a line, with `elements`.
pub(super) fn set(name: &str, attributes: &[&str], elements: &[String]) -> String {
    let mut lines: Vec<String> = attributes.iter().map(|line| (*line).to_owned()).collect();
    if !elements.is_empty() {
        lines.push(format!("elements = {{ {} }}", elements.join(", ")));
    }
    block("set", name, &lines)
}

/// A chain of `rules`; a base chain's first one is its hook.
pub(super) fn chain(name: &str, rules: &[String]) -> String {
    block("chain", name, rules)
}

fn block(kind: &str, name: &str, lines: &[String]) -> String {
    let lines: String = lines.iter().map(|line| format!("\t\t{line}\n")).collect();
    format!("\t{kind} {name} {{\n{lines}\t}}\n")
}

/// So many bytes in the largest unit that divides them.
pub(super) fn bytes(count: u64) -> String {
    match count {
        n if n % (1 << 20) == 0 => format!("{} mbytes", n >> 20),
        n if n % (1 << 10) == 0 => format!("{} kbytes", n >> 10),
        n => format!("{n} bytes"),
    }
}

/// What is beyond so many packets in a second; a twentieth of a second's worth may come at once.
pub(super) fn packets_over(packets: u32) -> String {
    let packets = packets.max(1);
    format!("limit rate over {packets}/second burst {} packets", burst(packets))
}

/// How many packets may come at once: a twentieth of a second's worth.
pub(crate) fn burst(packets: u32) -> u32 {
    (packets / 20).max(32)
}

/// What is beyond so many megabits in a second. The kernel lets a second's worth come at once.
pub(super) fn bandwidth_over(mbit: u32) -> String {
    format!("limit rate over {}/second burst 128 kbytes", bytes(u64::from(mbit.max(1)) * 125_000))
}

/// What is beyond so many new connections: a tenth of those at once in a second, and as many as those in one go. As one that was
/// closed stays in the node's table for [`CLOSED`] seconds, there are never many more of them than of others.
pub(super) fn new_connections_over(at_once: u32) -> String {
    let at_once = at_once.max(FEW);
    format!("limit rate over {}/second burst {at_once} packets", at_once / CLOSED)
}

/// So few are let through one after another, however few may be at once.
const FEW: u32 = 100;
/// How long the node remembers a connection of a sandbox that was closed, in seconds.
pub(super) const CLOSED: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_nft_lists_them() {
        assert_eq!(bytes(125_000_000), "125000000 bytes");
        assert_eq!(bytes(128_000), "125 kbytes");
        assert_eq!(bytes(1 << 20), "1 mbytes");
        assert_eq!(packets_over(0), "limit rate over 1/second burst 32 packets");
    }

    #[test]
    fn a_set_without_elements_has_no_line_for_them() {
        assert_eq!(set("x", &["type ipv4_addr"], &[]), "\tset x {\n\t\ttype ipv4_addr\n\t}\n");
    }
}
