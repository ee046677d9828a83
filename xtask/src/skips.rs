//! Tests that found that they cannot run here. Such a test prints one line, `skipped: why`, and passes; the runner hides
//! what passing tests print, so it is read from the runner's own record.

use anyhow::{Context as _, Result};

/// Where the runner puts its record (`.ci/nextest.toml` asks for it).
const RECORD: &str = "target/nextest/default/junit.xml";

/// Test and reason of every test of the last run that was skipped.
///
/// # Errors
/// When there is no record.
pub(crate) fn of_last_run() -> Result<Vec<(String, String)>> {
    let xml = std::fs::read_to_string(RECORD).with_context(|| format!("cannot read {RECORD}"))?;
    Ok(parse(&xml))
}

/// The record is ours and regular, so a scan by lines does: a test's element opens before what it printed.
fn parse(xml: &str) -> Vec<(String, String)> {
    let mut test = "";
    let mut found = Vec::new();
    for line in xml.lines() {
        if let Some((_, rest)) = line.split_once("<testcase name=\"") {
            test = rest.split('"').next().unwrap_or(rest);
        }
        // The first line that a test printed follows the element's name on the same line.
        let opened = ["<system-out>", "<system-err>"].iter().find_map(|tag| line.split_once(tag));
        let printed = opened.map_or(line, |(_, printed)| printed);
        if let Some(why) = printed.strip_prefix("skipped: ") {
            found.push((unescape(test), unescape(why.split('<').next().unwrap_or(why))));
        }
    }
    found
}

fn unescape(text: &str) -> String {
    let names = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    names.iter().fold(text.to_owned(), |text, (name, plain)| text.replace(name, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_goes_with_its_test() {
        let xml = r#"<testsuites>
    <testcase name="a::fine"><system-out>running 1 test
nothing was skipped: all is there
</system-out></testcase>
    <testcase name="b::first" classname="x">
        <system-out>skipped: no &quot;KVM&quot;
test b::first ... ok</system-out>
    </testcase>
    <testcase name="c::later">
        <system-err>running 1 test
skipped: a &amp; b</system-err>
    </testcase>"#;
        let expected = [("b::first", "no \"KVM\""), ("c::later", "a & b")];
        assert_eq!(parse(xml), expected.map(|(test, why)| (test.to_owned(), why.to_owned())));
    }
}
