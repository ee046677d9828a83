//! Which crate may depend on which. Whatever is not listed is forbidden; the reasons are in `docs/ARCHITECTURE.md`.

use std::collections::{BTreeMap, BTreeSet};

use super::{Metadata, Package};

/// Crate, and what it may use of ours.
const ARROWS: &[(&str, &[&str])] = &[
    ("tartarus-types", &[]),
    ("hermes", &["tartarus-types"]),
    ("tartarus-api", &["tartarus-types"]),
    ("tartarus-guest", &["tartarus-types"]),
    ("tartarus-attacker", &[]),
    ("blobs", &["tartarus-types"]),
    ("cerberus", &["tartarus-types", "hermes"]),
    ("moirai", &["tartarus-types"]),
    ("hades", &["tartarus-types", "hermes"]),
    ("tartarus-runtime", &["tartarus-types", "hermes", "tartarus-guest"]),
    ("erebus", &["tartarus-types", "hermes", "blobs"]),
    ("styx", &["tartarus-types", "hermes"]),
    (
        "hecatoncheir",
        &[
            "tartarus-runtime",
            "erebus",
            "styx",
            "blobs",
            "tartarus-types",
            "tartarus-api",
            "tartarus-guest",
            "hermes",
            "cerberus",
            "moirai",
        ],
    ),
    ("olympus", &["tartarus-types", "tartarus-api", "hermes", "cerberus", "moirai", "hades", "blobs"]),
    ("charon", &["tartarus-types", "tartarus-api", "hermes", "cerberus"]),
    ("tartarus", &["olympus", "hecatoncheir", "charon", "tartarus-api", "tartarus-types", "hermes"]),
    ("xtask", &[]),
];

/// Crates that exist only for tests: they may use every library, and only dev-dependencies may name them.
const TEST_ONLY: &str = "testkit";
/// Programs: nobody depends on them.
const PROGRAMS: [&str; 3] = ["tartarus", "tartarus-attacker", "xtask"];

/// Arrows that are not allowed, and crates that no rule knows.
pub(super) fn check(metadata: &Metadata) -> Vec<String> {
    metadata.packages.iter().flat_map(of_package).collect()
}

fn of_package(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    if name != TEST_ONLY && allowed(name).is_none() {
        return vec![format!(
            "crate {name} is not in the table of arrows (xtask/src/tidy/arrows.rs): decide where it stands"
        )];
    }
    let ours = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
    let forbidden = ours.filter(|dependency| !may(name, &dependency.name, dependency.kind.as_deref() == Some("dev")));
    forbidden
        .map(|dependency| {
            let kind = dependency.kind.as_deref().map(|kind| format!("{kind}-")).unwrap_or_default();
            format!("{name} must not have {} as a {kind}dependency (docs/ARCHITECTURE.md, arrows)", dependency.name)
        })
        .collect()
}

fn may(from: &str, to: &str, for_tests: bool) -> bool {
    if from == TEST_ONLY {
        return !PROGRAMS.contains(&to);
    }
    if for_tests {
        return to == TEST_ONLY || below(from).contains(to);
    }
    allowed(from).is_some_and(|allowed| allowed.contains(&to))
}

fn allowed(name: &str) -> Option<&'static [&'static str]> {
    ARROWS.iter().find(|(from, _)| *from == name).map(|(_, to)| *to)
}

/// Everything that can be reached over allowed arrows.
fn below(name: &str) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = allowed(name).unwrap_or_default().to_vec();
    while let Some(next) = open.pop() {
        let Some((next, _)) = ARROWS.iter().find(|(from, _)| *from == next) else { continue };
        if found.insert(*next) {
            open.extend(allowed(next).unwrap_or_default());
        }
    }
    found
}

/// Arrows on the longest path: builds wait for it, whatever the number of crates.
pub(super) fn depth(metadata: &Metadata) -> usize {
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in &metadata.packages {
        let ours = package.dependencies.iter().filter(|d| d.path.is_some() && d.kind.as_deref() != Some("dev"));
        edges.insert(&package.name, ours.map(|d| d.name.as_str()).collect());
    }
    // Cargo refuses cycles, so a path has fewer arrows than there are crates; the bound keeps this total anyway.
    let bound = edges.len();
    edges.keys().map(|from| longest(&edges, from, bound)).max().unwrap_or(0)
}

fn longest(edges: &BTreeMap<&str, Vec<&str>>, from: &str, bound: usize) -> usize {
    if bound == 0 {
        return 0;
    }
    let next = edges.get(from).into_iter().flatten();
    next.map(|to| 1 + longest(edges, to, bound - 1)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::Dependency;
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependency = |(name, kind): &(&str, Option<&str>)| Dependency {
            name: (*name).to_owned(),
            kind: kind.map(str::to_owned),
            path: Some("somewhere".to_owned()),
        };
        Package {
            name: name.to_owned(),
            manifest_path: String::new(),
            dependencies: dependencies.iter().map(dependency).collect(),
            targets: Vec::new(),
        }
    }

    fn faults(packages: Vec<Package>) -> Vec<String> {
        check(&Metadata { packages })
    }

    #[test]
    fn a_node_never_sees_the_store() {
        let faults = faults(vec![package("hecatoncheir", &[("hades", None), ("erebus", None)])]);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].contains("hecatoncheir must not have hades"), "{faults:?}");
    }

    #[test]
    fn the_control_plane_links_nothing_that_needs_root() {
        for forbidden in ["erebus", "tartarus-runtime", "styx", "hecatoncheir"] {
            assert_eq!(faults(vec![package("olympus", &[(forbidden, None)])]).len(), 1, "{forbidden}");
            assert_eq!(faults(vec![package("olympus", &[(forbidden, Some("build"))])]).len(), 1, "{forbidden}");
        }
    }

    #[test]
    fn tests_may_use_what_is_below_and_the_testkit() {
        let fine = [("testkit", Some("dev")), ("tartarus-types", Some("dev"))];
        assert_eq!(faults(vec![package("hades", &fine)]).len(), 0);
        assert_eq!(faults(vec![package("hades", &[("testkit", None)])]).len(), 1);
        assert_eq!(faults(vec![package("hades", &[("olympus", Some("dev"))])]).len(), 1);
        assert_eq!(faults(vec![package("testkit", &[("olympus", None), ("tartarus", None)])]).len(), 1);
    }

    #[test]
    fn an_unknown_crate_and_crates_of_others() {
        assert!(faults(vec![package("common", &[])])[0].contains("not in the table"));
        let mut outside = package("moirai", &[("tokio", None)]);
        outside.dependencies[0].path = None;
        assert_eq!(faults(vec![outside]).len(), 0);
    }

    #[test]
    fn the_table_has_no_cycle_and_depth_counts_arrows() {
        for (name, _) in ARROWS {
            assert!(!below(name).contains(name), "{name}");
        }
        let packages =
            vec![package("a", &[("b", None)]), package("b", &[("c", None)]), package("c", &[("a", Some("dev"))])];
        assert_eq!(depth(&Metadata { packages }), 2);
    }
}
