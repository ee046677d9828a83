//! Programs of the machine: where they are and what version.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process;

/// A program that says its version takes no longer.
const ANSWER: Duration = Duration::from_secs(10);

/// Where a program is: on the path, or where administrators' programs are.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|dir| dir.join(name)).find(|program| program.is_absolute() && program.is_file())
}

/// What a program's `--version` says, shortly.
pub(super) fn version(program: &Path) -> String {
    number(&asked(Command::new(program).arg("--version")))
}

/// What a program prints; nothing when it fails.
pub(super) fn asked(command: &mut Command) -> String {
    process::run(command, ANSWER).and_then(process::Finished::text).unwrap_or_default()
}

/// The first word of the first line that looks like a version.
pub(super) fn number(text: &str) -> String {
    let words = text.lines().next().unwrap_or_default().split_whitespace();
    let number = words.map(|word| word.trim_matches(',')).find(|word| word.bytes().any(|b| b.is_ascii_digit()));
    number.unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_what_programs_say() {
        assert_eq!(number("runc version 1.1.5+ds1\ncommit: x"), "1.1.5+ds1");
        assert_eq!(number("QEMU emulator version 7.2.22 (Debian 1:7.2+x)\n"), "7.2.22");
        assert_eq!(number("podman version 4.3.1"), "4.3.1");
        assert_eq!(number("nothing"), "unknown");
        assert_eq!(number(""), "unknown");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-of-tartarus"), None);
    }
}
