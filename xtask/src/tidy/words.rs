//! Words that must not be in the repository: unfinished work, queues without a bound, where somebody built it, and
//! hosts on the network that nobody decided to name.

use std::net::IpAddr;

use super::Text;

/// In Rust files: the word, and what to do instead.
const IN_RUST: [(&str, &str); 4] = [
    ("todo!", "write it, or leave it out"),
    ("unimplemented!", "write it, or leave it out"),
    ("FIXME", "repair it, or file an issue"),
    ("unbounded_channel", "every queue has a bound and a written policy for when it is full"),
];

/// Absolute paths of build machines. They mean nothing to a reader and tell where a build ran.
const MACHINE_PATHS: [&str; 2] = ["/work/", "/root/"];

/// Hosts that URLs may name. A build, a test or a page that wants another one names it here first, in review.
const HOSTS: [&str; 8] = [
    "json-schema.org",
    "keepachangelog.com",
    "semver.org",
    "spdx.org",
    "www.apache.org",
    "www.freedesktop.org",
    "www.kernel.org",
    "www.rfc-editor.org",
];
/// Reserved for documentation and tests (RFC 2606, RFC 6761).
const RESERVED: [&str; 7] = ["example.com", "example.org", "example.net", "example", "test", "invalid", "localhost"];

/// Forbidden words, with file and line.
pub(super) fn check(texts: &[Text]) -> Vec<String> {
    // The rules name what they forbid.
    let judged = texts.iter().filter(|text| text.path != "xtask/src/tidy/words.rs");
    judged.flat_map(of_text).collect()
}

fn of_text(text: &Text) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.text.lines()) {
        let mut fault = |what: String| faults.push(format!("{}:{number} {what}", text.path));
        for (word, instead) in IN_RUST.iter().filter(|(word, _)| text.is("rs") && line.contains(word)) {
            fault(format!("says `{word}`: {instead}"));
        }
        for path in MACHINE_PATHS.iter().filter(|path| holds_absolute(line, path)) {
            fault(format!("names `{path}`, a path of a build machine"));
        }
        for host in hosts(line).filter(|host| !is_allowed(host)) {
            fault(format!("names the host {host}, which xtask/src/tidy/words.rs does not list"));
        }
    }
    faults
}

/// `path` is in the line, not as the tail of a longer path.
fn holds_absolute(line: &str, path: &str) -> bool {
    let before = |at: usize| line[..at].chars().next_back();
    line.match_indices(path).any(|(at, _)| !before(at).is_some_and(|c| c.is_alphanumeric() || "._-}>*".contains(c)))
}

/// Hosts of the URLs in a line.
fn hosts(line: &str) -> impl Iterator<Item = &str> {
    let starts =
        line.match_indices("://").filter(|(at, _)| line[..*at].ends_with("http") || line[..*at].ends_with("https"));
    starts.map(|(at, found)| {
        let rest = &line[at + found.len()..];
        let rest = rest.strip_prefix('[').unwrap_or(rest);
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "-._:{}$<%".contains(c))).unwrap_or(rest.len());
        &rest[..end]
    })
}

/// An address, a place-holder, a name without a dot (it leads nowhere outside), a reserved name, or one that is listed.
fn is_allowed(host: &str) -> bool {
    if host.parse::<IpAddr>().is_ok() || host.contains(['{', '$', '<', '%']) {
        return true;
    }
    let name = host.split(':').next().unwrap_or(host).trim_end_matches('.');
    let reserved =
        RESERVED.iter().any(|r| name.strip_suffix(r).is_some_and(|head| head.is_empty() || head.ends_with('.')));
    name.parse::<IpAddr>().is_ok() || !name.contains('.') || reserved || HOSTS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::super::tests::text;
    use super::*;

    fn faults(path: &str, line: &str) -> usize {
        check(&[text(path, line)]).len()
    }

    #[test]
    fn unfinished_work_is_found_in_rust() {
        for bad in ["    todo!()", "unimplemented!(\"x\")", "// FIXME: later", "mpsc::unbounded_channel()"] {
            assert_eq!(faults("a.rs", bad), 1, "{bad}");
        }
        assert_eq!(faults("clippy.toml", "path = \"tokio::sync::mpsc::unbounded_channel\""), 0);
    }

    #[test]
    fn paths_of_a_build_machine_are_found_everywhere() {
        for bad in ["see /work/main/x", "\"/root/.cargo\"", "cd /work/"] {
            assert_eq!(faults("a.md", bad), 1, "{bad}");
        }
        for good in ["lowerdir=/base,workdir=/layer/work/x", "the home is /root", "{dir}/work/x", "net/work/x"] {
            assert_eq!(faults("a.rs", good), 0, "{good}");
        }
    }

    #[test]
    fn a_host_that_nobody_decided_to_name_is_found() {
        for bad in ["https://files.registry.io/x", "see <http://mirror.net>", "https://evil.apache.org.evil.io"] {
            assert_eq!(faults("a.md", bad), 1, "{bad}");
        }
        for good in [
            "http://127.0.0.1:7423/v1",
            "http://[::1]:1/",
            "http://{addr}/v1",
            "http://HOST:PORT",
            "https://api.example.com/x",
            "http://localhost:1",
            "https://semver.org).",
            "http://www.apache.org/licenses/",
        ] {
            assert_eq!(faults("a.md", good), 0, "{good}");
        }
    }
}
