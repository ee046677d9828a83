//! The guests that the real-VM tests booted: each test writes its own line, this reads and sums them, and fewer than
//! the committed floor is red. A test that no longer boots anything cannot pass unseen.
//!
//! A line of `target/vm-report/*.jsonl` is `{"test":…,"guests":N}` or `{"test":…,"skipped":"why"}`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// Where tests write their lines; they get it as `TARTARUS_VM_REPORT`.
pub(crate) const REPORT: &str = "target/vm-report";
const FLOOR: &str = "xtask/guests.floor";

#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Booted { test: String, guests: u64 },
    Skipped { test: String, skipped: String },
}

/// What the tests said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Guests {
    /// How many.
    pub(crate) booted: u64,
    /// Test and why.
    pub(crate) skipped: Vec<(String, String)>,
}

/// Empties the report, so that what is read later is of this run.
pub(crate) fn start() -> Result<()> {
    match std::fs::remove_dir_all(REPORT) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {REPORT}"));
        }
        _ => {}
    }
    std::fs::create_dir_all(REPORT).with_context(|| format!("cannot make {REPORT}"))
}

/// Sums the report.
///
/// # Errors
/// When a line cannot be read.
pub(crate) fn finish() -> Result<Guests> {
    read(Path::new(REPORT))
}

/// The fewest guests that may be booted.
///
/// # Errors
/// When the file holds no number.
pub(crate) fn floor() -> Result<u64> {
    let text = std::fs::read_to_string(FLOOR).with_context(|| format!("cannot read {FLOOR}"))?;
    parse_floor(&text).with_context(|| format!("{FLOOR} holds no number"))
}

fn parse_floor(text: &str) -> Option<u64> {
    text.lines().find(|line| !line.starts_with('#'))?.trim().parse().ok()
}

fn read(folder: &Path) -> Result<Guests> {
    let mut guests = Guests::default();
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<_> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == "jsonl"));
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        guests.add(&text).with_context(|| format!("{} is not a report", file.display()))?;
    }
    Ok(guests)
}

impl Guests {
    /// Holds them against the floor.
    ///
    /// # Errors
    /// When there are fewer.
    pub(crate) fn judge(&self, floor: u64) -> Result<()> {
        if self.booted < floor {
            bail!("{} guests were booted, the floor in {FLOOR} is {floor}: tests were lost or skipped", self.booted);
        }
        Ok(())
    }

    fn add(&mut self, text: &str) -> Result<()> {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match serde_json::from_str(line).with_context(|| format!("cannot read {line:?}"))? {
                Line::Booted { guests, test } if test.is_empty() => bail!("{guests} guests of a test without a name"),
                Line::Booted { guests, .. } => self.booted += guests,
                Line::Skipped { test, skipped } => self.skipped.push((test, skipped)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_summed_and_skips_keep_their_reason() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.jsonl"), "{\"test\":\"one\",\"guests\":3}\n").unwrap();
        std::fs::write(
            dir.path().join("b.jsonl"),
            "{\"test\":\"two\",\"guests\":1}\n{\"test\":\"three\",\"skipped\":\"no KVM\"}\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("notes.txt"), "not a report").unwrap();
        let guests = read(dir.path()).unwrap();
        assert_eq!(guests, Guests { booted: 4, skipped: vec![("three".to_owned(), "no KVM".to_owned())] });
    }

    #[test]
    fn one_guest_fewer_than_the_floor_is_red() {
        let guests = Guests { booted: 4, skipped: Vec::new() };
        guests.judge(4).unwrap();
        assert!(guests.judge(5).unwrap_err().to_string().contains("floor"));
    }

    #[test]
    fn a_torn_or_foreign_line_is_red() {
        for bad in
            ["{\"test\":\"one\",\"gue", "{\"test\":\"one\"}", "{\"guests\":1}", "{\"test\":\"\",\"guests\":1}", "7"]
        {
            assert!(Guests::default().add(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_floor_is_the_first_line_that_is_no_comment() {
        assert_eq!(parse_floor("# why\n12\n"), Some(12));
        assert_eq!(parse_floor("# why\n"), None);
        assert_eq!(parse_floor("many\n"), None);
    }
}
