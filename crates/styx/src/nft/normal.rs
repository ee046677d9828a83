//! The normal form of nft's text, in which what was applied and what is listed are compared. Pure.
//!
//! Versions of nft list the same rule in different words. Each such difference is named here, and put in the words of
//! version 1.0.6; any other one is a difference.

use std::net::Ipv4Addr;

/// Sets whose elements come and go by themselves.
pub(crate) const LIVE: [&str; 4] = ["pinned", "blocked", "blocked_other", "held"];

/// The first line in which `listed` is not `expected`; none where they say the same.
pub(crate) fn difference(expected: &str, listed: &str) -> Option<String> {
    let (expected, listed) = (in_order(normal(expected)), in_order(normal(listed)));
    let pairs = expected.len().max(listed.len());
    let at = (0..pairs).find(|at| expected.get(*at) != listed.get(*at))?;
    let shown = |lines: &[String]| {
        lines.get(at).map_or("nothing".to_owned(), |line| format!("{:?}", line.chars().take(200).collect::<String>()))
    };
    Some(format!("line {}: {} in place of {}", at + 1, shown(&listed), shown(&expected)))
}

/// Lines with single spaces; elements on one line, in order, and none of a live set.
fn normal(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut live = false;
    let mut source = text.lines().map(|line| as_written(words(line))).filter(|line| !line.is_empty());
    while let Some(line) = source.next() {
        if let Some(name) = line.strip_prefix("set ").and_then(|rest| rest.strip_suffix(" {")) {
            live = LIVE.contains(&name);
        }
        let Some(first) = line.strip_prefix("elements = {") else {
            lines.push(line);
            continue;
        };
        let mut elements = first.to_owned();
        while !elements.contains('}') {
            let Some(more) = source.next() else { break };
            elements = elements + " " + &more;
        }
        if !live {
            let elements = elements.trim_end_matches('}').split(',');
            let mut elements: Vec<String> = elements.map(|element| network(element.trim())).collect();
            elements.sort_unstable();
            lines.push(format!("elements = {{ {} }}", elements.join(", ")));
        }
    }
    lines
}

/// Sets at the end of their table and by name: they are listed as they were made, or by name, and their order says nothing.
fn in_order(lines: Vec<String>) -> Vec<String> {
    let (mut all, mut sets, mut set) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        let (begins, ends) = (line.starts_with("set ") && line.ends_with('{'), line == "}");
        match (begins || !set.is_empty(), ends) {
            (true, false) => set.push(line),
            (true, true) => {
                set.push(line);
                sets.push(std::mem::take(&mut set));
            }
            (false, _) => {
                // A table begins, or the text is over.
                if line.starts_with("table ") {
                    sets.sort();
                    all.extend(sets.drain(..).flatten());
                }
                all.push(line);
            }
        }
    }
    sets.push(set);
    sets.sort();
    all.extend(sets.into_iter().flatten());
    all
}

/// One line in our own words.
fn as_written(line: String) -> String {
    // Until 1.0 the value of a named counter was listed also without state.
    if line.starts_with("packets ") && line.contains(" bytes ") {
        return if line.ends_with('}') { "}".to_owned() } else { String::new() };
    }
    // Later versions than 1.1.3 say how many elements a set of a certain size has.
    if let Some((size, count)) = line.split_once(" # count ")
        && size.starts_with("size ")
        && count.bytes().all(|b| b.is_ascii_digit())
    {
        return size.to_owned();
    }
    // A time has units there, or nothing where it is none (1.0.9), and before 1.0 other signs were between them.
    if let Some(policy) = line.strip_prefix("policy = {") {
        let times =
            policy.trim_end_matches([' ', '}']).split(',').map(|time| time.split_once(':').unwrap_or((time, "")));
        return times.fold("policy".to_owned(), |all, (state, time)| {
            format!("{all} {}={}", state.trim(), seconds(time.trim()))
        });
    }
    // A protocol has its number where the system has no names for them.
    match line.trim_end_matches(';') {
        "protocol 6" => return "protocol tcp".to_owned(),
        protocol if protocol.starts_with("protocol ") => return protocol.to_owned(),
        _ => {}
    }
    // And a question that only asks whether there is a way has a word of its own there.
    line.replace(" . iif check missing ", " . iif oif missing ")
}

/// A time such as `2h4m` in seconds; any other word stays as it is, and none is no time.
fn seconds(word: &str) -> String {
    if word.is_empty() {
        return "0".to_owned();
    }
    humantime::parse_duration(word).map_or_else(|_| word.to_owned(), |time| time.as_secs().to_string())
}

/// A range of addresses that is a network, as one; until 1.0 the last network of all was listed as a range.
fn network(element: &str) -> String {
    let as_network = || {
        let (first, last) = element.split_once('-')?;
        let (first, last): (Ipv4Addr, Ipv4Addr) = (first.parse().ok()?, last.parse().ok()?);
        let size = (u64::from(u32::from(last)) + 1).checked_sub(u64::from(u32::from(first)))?;
        let whole = size.is_power_of_two() && u64::from(u32::from(first)) % size == 0;
        whole.then(|| format!("{first}/{}", 32 - size.trailing_zeros()))
    };
    as_network().unwrap_or_else(|| element.to_owned())
}

fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "table ip t {\n\tset a {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1, 10.0.0.2 }\n\t}\n}\n";

    #[test]
    fn wrapping_and_order_of_elements_do_not_matter() {
        let wrapped = "table ip t {\n set a {\n  type ipv4_addr\n  elements = { 10.0.0.2,\n       10.0.0.1 }\n }\n}\n";
        assert_eq!(difference(ONE, wrapped), None);
    }

    #[test]
    fn an_element_more_matters() {
        let more = ONE.replace("10.0.0.2", "10.0.0.2, 10.0.0.3");
        let shown = difference(ONE, &more).unwrap();
        assert!(shown.starts_with("line 5:") && shown.contains("10.0.0.3"), "{shown}");
        assert!(difference(ONE, "").unwrap().contains("nothing in place of"));
        assert!(difference("", ONE).is_some());
    }

    #[test]
    fn what_versions_list_differently_is_the_same() {
        assert_eq!(network("224.0.0.0-255.255.255.255"), "224.0.0.0/3");
        for not_one in ["224.0.0.1-255.255.255.255", "10.0.0.0-10.0.0.2", "10.0.0.8-10.0.0.0", "6 . 80-81", "10.0.0.1"]
        {
            assert_eq!(network(not_one), not_one);
        }
        let ours = "counter a {\n}\nfib saddr . iif oif missing counter drop\n";
        let old = "counter a {\npackets 7 bytes 9 }\nfib saddr . iif oif missing counter drop\n";
        let new = "counter a {\n}\nfib saddr . iif check missing counter drop\n";
        assert_eq!((difference(ours, old), difference(ours, new)), (None, None));
        let policy = |long: &str, brief: &str| format!("policy = {{ established : {long}, time_wait : {brief} }}");
        assert_eq!(difference(&policy("7440", "10"), &policy("2h4m", "10s")), None);
        assert_eq!(difference(&policy("7440", "10"), "policy = {established: 7440, time_wait: 10}"), None);
        let closed = |time: &str| format!("policy = {{ time_wait : 10, close :{time} }}");
        for none in ["", " ", " 0", " 0s"] {
            assert_eq!(difference(&closed(" 0"), &closed(none)), None, "{none:?}");
        }
        assert!(difference(&closed(" 0"), &closed(" 1")).is_some());
        assert!(difference(&closed(" 0"), "policy = { time_wait : 10 }").is_some());
        assert_eq!(difference("protocol tcp", "protocol tcp;"), None);
        assert_eq!(difference("protocol tcp", "protocol 6"), None);
        assert!(difference("protocol tcp", "protocol udp").is_some());
        assert!(difference(&policy("7440", "10"), &policy("2h4m", "11s")).is_some());
        assert_eq!(difference("size 64", "size 64 # count 7"), None);
        assert!(difference("size 64", "size 65 # count 7").is_some() && difference("size 64", "size 64 # 7").is_some());
        assert!(difference(ours, &new.replace("missing", "exists")).is_some());
        assert!(difference(ours, &new.replace("saddr", "daddr")).is_some());
    }

    #[test]
    fn the_order_of_sets_does_not_matter_and_their_table_does() {
        let set = |name: &str, kind: &str| format!("\tset {name} {{\n\t\ttype {kind}\n\t}}\n");
        let (a, b) = (set("a", "ipv4_addr"), set("b", "inet_proto"));
        let tables = |one: &str, other: &str| format!("table ip t {{\n{one}}}\ntable ip u {{\n{other}}}\n");
        let whole = tables(&format!("{a}{b}"), "");
        assert_eq!(difference(&whole, &tables(&format!("{b}{a}"), "")), None);
        assert!(difference(&whole, &tables(&a, &b)).is_some());
        assert!(difference(&whole, &tables(&format!("{b}{a}{a}"), "")).is_some());
        let swapped = format!("{}{}", set("a", "inet_proto"), set("b", "ipv4_addr"));
        assert!(difference(&whole, &tables(&swapped, "")).is_some());
    }

    #[test]
    fn live_elements_do_not_matter() {
        let pinned = ONE.replace("set a {", "set pinned {");
        let none = "table ip t {\n\tset pinned {\n\t\ttype ipv4_addr\n\t}\n}\n";
        assert_eq!(difference(none, &pinned), None);
        let unended = "set blocked {\nelements = { 1.2.3.4,";
        assert_eq!(difference("set blocked {", unended), None);
    }
}
