//! `cargo xtask tidy`: the rules of this repository that no compiler checks. Each is a pure function from text to
//! findings, so that a test can show it bad input.

mod arrows;
mod docs;
mod sources;
mod words;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{product, sh};

/// A text file of the repository; the path is relative to the root, with `/`.
#[derive(Debug)]
struct Text {
    path: String,
    text: String,
}

impl Text {
    fn is(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|e| e == extension)
    }

    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Rust that only tests compile: rules about production code do not hold there.
    fn is_test(&self) -> bool {
        let folders = ["tests", "examples", "benches", "fuzz"];
        let in_folder = self.path.split('/').any(|part| folders.contains(&part));
        in_folder || self.name() == "tests.rs" || self.name().ends_with("_tests.rs")
    }
}

/// What `cargo metadata --no-deps` says, as far as it is judged here.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// Absent, `dev` or `build`.
    kind: Option<String>,
    /// Present for members of the workspace.
    path: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: String,
}

/// What is to be repaired, and what is only to be thought about.
#[derive(Debug, Default)]
struct Findings {
    faults: Vec<String>,
    questions: Vec<String>,
}

/// Runs every check and prints what it found.
///
/// # Errors
/// When anything is to be repaired.
pub(crate) fn run() -> Result<()> {
    let json = sh::output(&mut sh::cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&json).context("cannot read what cargo metadata printed")?;
    let mut texts = Vec::new();
    collect(Path::new("."), &mut texts)?;
    texts.sort_by(|a, b| a.path.cmp(&b.path));

    let mut findings = Findings::default();
    findings.faults.extend(arrows::check(&metadata));
    findings.faults.extend(roots(&metadata)?);
    findings.faults.extend(sources::module_docs(&texts));
    sources::sizes(&texts, &mut findings);
    findings.faults.extend(words::check(&texts));
    findings.faults.extend(docs::links(&texts, |path| Path::new(path).exists()));
    findings.faults.extend(docs::promises(&texts, &folders(&metadata)));
    findings.faults.extend(openapi(&texts));

    println!("{} crates, {} files, {} arrows deep", metadata.packages.len(), texts.len(), arrows::depth(&metadata));
    for question in &findings.questions {
        println!("question: {question}");
    }
    for fault in &findings.faults {
        println!("{} {fault}", sh::bold("fault:"));
    }
    if !findings.faults.is_empty() {
        bail!("{} things to tidy up", findings.faults.len());
    }
    Ok(())
}

/// What every crate promises in its manifest and at its root.
fn roots(metadata: &Metadata) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for package in &metadata.packages {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        faults.extend(sources::lints(&package.name, &read(&package.manifest_path)?));
        for target in package.targets.iter().filter(|t| t.kind.iter().any(|k| k == "lib" || k == "bin")) {
            let root = read(&target.src_path)?;
            faults.extend(sources::forbids_unsafe(&package.name, shown(&target.src_path), &root));
        }
    }
    Ok(faults)
}

/// A path as a person reads it: relative to the root, where it is below it.
fn shown(path: &str) -> &str {
    let root = std::env::current_dir().ok();
    root.and_then(|root| path.strip_prefix(root.to_str()?)?.strip_prefix('/')).unwrap_or(path)
}

/// Package name and folder, relative to the root.
fn folders(metadata: &Metadata) -> Vec<(String, String)> {
    let folder = |package: &Package| {
        let folder = shown(&package.manifest_path).strip_suffix("/Cargo.toml")?;
        Some((package.name.clone(), folder.to_owned()))
    };
    metadata.packages.iter().filter_map(folder).collect()
}

/// The checked-in description is what the binary prints, where there is one that was built from these sources.
fn openapi(texts: &[Text]) -> Vec<String> {
    let changed = |path: &str| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    let built = changed(product::BINARY);
    let stale = texts.iter().filter(|text| text.is("rs") && !text.is_test()).any(|text| changed(&text.path) > built);
    if built.is_none() || stale {
        println!("skipped: {}: no {} of these sources", product::OPENAPI, product::BINARY);
        return Vec::new();
    }
    product::check_openapi().err().map(|error| format!("{error:#}")).into_iter().collect()
}

/// Text files below `folder`; what cargo or git made is not ours to judge.
fn collect(folder: &Path, texts: &mut Vec<Text>) -> Result<()> {
    const SKIPPED: [&str; 3] = ["target", ".git", "node_modules"];
    const KINDS: [&str; 9] = ["rs", "md", "toml", "yml", "yaml", "json", "sh", "service", "sql"];
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() && !SKIPPED.iter().any(|skipped| name == *skipped) {
            collect(&path, texts)?;
        }
        let script = path.parent().and_then(Path::file_name).is_some_and(|name| name == ".ci");
        let text = script || path.extension().is_some_and(|e| KINDS.iter().any(|kind| e == *kind));
        if kind.is_file() && text {
            let text = std::fs::read_to_string(&path).with_context(|| format!("{} is no text", path.display()))?;
            let path = path.strip_prefix(".").unwrap_or(&path).to_string_lossy().into_owned();
            texts.push(Text { path, text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn text(path: &str, text: &str) -> Text {
        Text { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn test_code_is_told_by_its_path() {
        for path in
            ["crates/a/tests/x.rs", "crates/a/src/b_tests.rs", "crates/a/src/b/tests.rs", "crates/a/examples/x.rs"]
        {
            assert!(text(path, "").is_test(), "{path}");
        }
        assert!(!text("crates/a/src/contests.rs", "").is_test());
        assert!(!text("xtask/src/stages.rs", "").is_test());
    }

    #[test]
    fn only_text_of_ours_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a.rs", "target/b.rs", ".git/c.md", "d.png", "e/f.md"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let mut texts = Vec::new();
        collect(dir.path(), &mut texts).unwrap();
        let mut names: Vec<_> = texts.iter().map(Text::name).collect();
        names.sort_unstable();
        assert_eq!(names, ["a.rs", "f.md"]);
    }
}
