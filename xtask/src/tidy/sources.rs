//! Rules for Rust files and crate roots: sizes, module docs, lints, `unsafe`.

use super::{Findings, Text};

/// A file that is longer does more than one thing.
const QUESTION: usize = 400;
/// No file is longer.
const LIMIT: usize = 800;

/// Crates that talk to the kernel in ways that have no safe wrapper. All others forbid `unsafe` at their root.
const MAY_BE_UNSAFE: [&str; 7] =
    ["tartarus-runtime", "hecatoncheir", "tartarus-guest", "tartarus-attacker", "erebus", "styx", "tartarus"];

/// Lines before the first test module.
fn production_lines(text: &str) -> usize {
    text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count()
}

/// Files that are too long.
pub(super) fn sizes(texts: &[Text], findings: &mut Findings) {
    for text in texts.iter().filter(|text| text.is("rs") && !text.is_test()) {
        let lines = production_lines(&text.text);
        let path = &text.path;
        if lines > LIMIT {
            findings.faults.push(format!("{path} has {lines} production lines, {LIMIT} at most: split it"));
        } else if lines > QUESTION {
            findings.questions.push(format!("{path} has {lines} production lines: does it do more than one thing?"));
        }
    }
}

/// Files that do not say first what they are.
pub(super) fn module_docs(texts: &[Text]) -> Vec<String> {
    let production = texts.iter().filter(|text| text.is("rs") && !text.is_test());
    let silent = production.filter(|text| !text.text.lines().next().is_some_and(|line| line.starts_with("//! ")));
    silent.map(|text| format!("{} does not start with a module doc (`//! …`)", text.path)).collect()
}

/// The manifest opts in to the workspace's lints.
pub(super) fn lints(name: &str, manifest: &str) -> Option<String> {
    let mut lines = manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let opted_in = lines.any(|line| line == "[lints]") && lines.next() == Some("workspace = true");
    (!opted_in).then(|| format!("crate {name} does not opt in to the workspace's lints (`[lints] workspace = true`)"))
}

/// The root of a crate that has no leave forbids `unsafe`.
pub(super) fn forbids_unsafe(name: &str, path: &str, root: &str) -> Option<String> {
    let forbids = root.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]");
    let fine = forbids || MAY_BE_UNSAFE.contains(&name);
    (!fine).then(|| format!("{path} (crate {name}) lacks `#![forbid(unsafe_code)]`"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::text;
    use super::*;

    fn sized(path: &str, lines: usize) -> Findings {
        let mut findings = Findings::default();
        sizes(&[text(path, &"x\n".repeat(lines))], &mut findings);
        findings
    }

    #[test]
    fn long_files_are_asked_about_and_then_refused() {
        assert!(sized("a.rs", 400).questions.is_empty());
        assert_eq!(sized("a.rs", 401).questions.len(), 1);
        assert_eq!(sized("a.rs", 801).faults.len(), 1);
        assert!(sized("tests/a.rs", 5000).faults.is_empty());
    }

    #[test]
    fn lines_of_tests_do_not_count() {
        let long = format!("a\nb\n#[cfg(test)]\n{}", "x\n".repeat(900));
        assert_eq!(production_lines(&long), 2);
    }

    #[test]
    fn a_file_says_first_what_it_is() {
        assert_eq!(module_docs(&[text("a.rs", "//! Doc.\n")]).len(), 0);
        for bad in ["", "use x;\n//! Doc.\n", "// Doc.\n", "//!\n"] {
            assert_eq!(module_docs(&[text("a.rs", bad)]).len(), 1, "{bad:?}");
        }
        assert_eq!(module_docs(&[text("tests/a.rs", "use x;\n"), text("a.md", "x")]).len(), 0);
    }

    #[test]
    fn a_crate_that_skips_the_lints_is_found() {
        assert_eq!(lints("a", "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"), None);
        for bad in [
            "[package]\n",
            "[lints]\nworkspace = false\n",
            "# [lints]\n# workspace = true\n",
            "[lints.rust]\nworkspace = true\n",
        ] {
            assert!(lints("a", bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn only_some_crates_may_be_unsafe() {
        assert!(forbids_unsafe("olympus", "lib.rs", "//! Doc.\n").is_some());
        assert_eq!(forbids_unsafe("olympus", "lib.rs", "//! Doc.\n#![forbid(unsafe_code)]\n"), None);
        assert!(forbids_unsafe("olympus", "lib.rs", "// #![forbid(unsafe_code)]\n").is_some());
        assert_eq!(forbids_unsafe("erebus", "lib.rs", "//! Doc.\n"), None);
    }
}
