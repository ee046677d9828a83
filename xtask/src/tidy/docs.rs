//! Rules for documents: links lead somewhere, and every test that the specification names exists.

use std::collections::BTreeSet;

use super::Text;

/// Relative links of Markdown files that lead nowhere. `exists` takes a path relative to the root.
pub(super) fn links(texts: &[Text], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    for text in texts.iter().filter(|text| text.is("md")) {
        for (number, target) in targets(&text.text) {
            let Some(path) = resolve(&text.path, target) else { continue };
            if !path.is_empty() && !exists(&path) {
                faults.push(format!("{}:{number} links to {target}, which does not exist", text.path));
            }
        }
    }
    faults
}

/// Line and target of every link outside of code.
fn targets(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        // Outside of inline code: the pieces between backticks with an even index. A link's text may itself be code, and
        // then its target starts the next piece.
        for piece in line.split('`').step_by(2) {
            found.extend(
                piece
                    .match_indices("](")
                    .filter_map(|(at, _)| piece[at + 2..].split([')', ' ']).next())
                    .map(|t| (number, t)),
            );
        }
        if let Some((_, target)) = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
            found.push((number, target.trim()));
        }
    }
    found
}

/// The path from the root that a link of the file `from` names; `None` when it leads outside of the repository's files.
fn resolve(from: &str, target: &str) -> Option<String> {
    let path = target.split('#').next().unwrap_or(target);
    if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
        return None;
    }
    let mut parts: Vec<&str> = match path.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => from.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev().collect(),
    };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_none() => return Some(format!("../{path}")),
            ".." => {}
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Where the promises are.
const SPECIFICATION: &str = "docs/SPECIFICATION.md";

/// Tests named in the tables of [`SPECIFICATION`], as `crate::path::test` or `file.rs::test` in backticks, that no
/// file holds. `folders` are the crates' names and folders.
pub(super) fn promises(texts: &[Text], folders: &[(String, String)]) -> Vec<String> {
    let Some(specification) = texts.iter().find(|text| text.path == SPECIFICATION) else {
        return vec![format!("{SPECIFICATION} is missing: what Tartarus promises, each with the test that keeps it")];
    };
    let mut faults = Vec::new();
    for (number, name) in promised(&specification.text) {
        let (place, test) = name.rsplit_once("::").unwrap_or(("", name));
        let held = texts.iter().any(|text| is_place(&text.path, place, folders) && tests(&text.text).contains(test));
        if !held {
            faults.push(format!("{SPECIFICATION}:{number} names the test {name}, which does not exist"));
        }
    }
    faults
}

/// Line and name of every test in a table.
fn promised(text: &str) -> Vec<(usize, &str)> {
    let rows = (1..).zip(text.lines()).filter(|(_, line)| line.starts_with('|'));
    let code = rows.flat_map(|(number, line)| line.split('`').skip(1).step_by(2).map(move |code| (number, code)));
    code.filter(|(_, code)| code.contains("::") && !code.contains(' ')).collect()
}

/// The file may hold what `place` names: `file.rs`, or a path of modules that starts with a crate.
fn is_place(path: &str, place: &str, folders: &[(String, String)]) -> bool {
    if !path.ends_with(".rs") {
        return false;
    }
    if place.ends_with(".rs") {
        return path == place || path.ends_with(&format!("/{place}"));
    }
    let krate = place.split("::").next().unwrap_or(place);
    folders.iter().any(|(name, folder)| {
        let same = name.replace('-', "_") == krate.replace('-', "_") || folder.rsplit('/').next() == Some(krate);
        same && path.starts_with(&format!("{folder}/"))
    })
}

/// Names of the functions that carry a test attribute.
fn tests(text: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.contains("::test]") || line.contains("::test(");
            continue;
        }
        let function = line
            .split_once("fn ")
            .filter(|(before, _)| before.split_whitespace().all(|word| matches!(word, "pub" | "async")));
        match function {
            Some((_, rest)) if is_test => {
                found.insert(rest.split(['(', '<']).next().unwrap_or(rest));
                is_test = false;
            }
            // Comments and attributes over several lines stand between an attribute and its function.
            None => is_test &= !line.ends_with(['{', '}', ';']),
            Some(_) => is_test = false,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::text;
    use super::*;

    fn exists(path: &str) -> bool {
        ["README.md", "docs/A.md", "docs/rfd/0001.md"].contains(&path)
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let page =
            "[a](A.md) [r](../README.md#x) [w](http://x/) [s](#here) [abs](/README.md)\n[no](B.md)\n[out](../../x)\n";
        let faults = links(&[text("docs/A.md", page)], exists);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("docs/A.md:2 links to B.md"), "{faults:?}");
    }

    #[test]
    fn links_with_code_and_references_are_read_code_is_not() {
        let page = "[`a`](B.md)\n[r]: C.md\n`[x](D.md)`\n```\n[x](E.md)\n```\n";
        let faults = links(&[text("docs/A.md", page)], exists);
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn a_promised_test_must_exist_and_be_a_test() {
        let folders = [("tartarus-types".to_owned(), "crates/types".to_owned())];
        let code =
            "#[test]\nfn real() {\n}\n\nfn helper() {}\n\n#[tokio::test(start_paused = true)]\nasync fn timed() {}\n";
        let promise = |row: &str| {
            let texts = [
                text(SPECIFICATION, row),
                text("crates/types/src/sandbox_tests.rs", code),
                text("bin/x/tests/vm.rs", code),
            ];
            promises(&texts, &folders).len()
        };
        for good in [
            "`types::sandbox::real`",
            "`tartarus_types::timed`",
            "`vm.rs::real`",
            "`tests/vm.rs::timed`",
            "`not a path`",
        ] {
            assert_eq!(promise(&format!("| it works | {good} |")), 0, "{good}");
        }
        for bad in ["`types::sandbox::gone`", "`types::helper`", "`other.rs::real`", "`hades::real`"] {
            assert_eq!(promise(&format!("| it works | {bad} |")), 1, "{bad}");
        }
        assert_eq!(promise("prose about `types::gone`"), 0);
    }

    #[test]
    fn a_missing_specification_is_a_fault() {
        assert_eq!(promises(&[], &[]).len(), 1);
    }
}
