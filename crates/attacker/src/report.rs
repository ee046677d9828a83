//! What an attempt came to, as one JSON line.

/// What came of an attempt, as the attacker sees it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) reached: bool,
    pub(crate) detail: String,
}

impl Found {
    pub(crate) fn reached(detail: impl Into<String>) -> Self {
        Self { reached: true, detail: detail.into() }
    }

    pub(crate) fn not(detail: impl Into<String>) -> Self {
        Self { reached: false, detail: detail.into() }
    }
}

/// The line, with its end.
pub(crate) fn line(attempt: &str, token: &str, found: &Found) -> String {
    let Found { reached, detail } = found;
    let (attempt, token, detail) = (quoted(attempt), quoted(token), quoted(detail));
    format!("{{\"attempt\":{attempt},\"token\":{token},\"reached\":{reached},\"detail\":{detail}}}\n")
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_json_whatever_was_said() {
        let found = Found::not("a \"b\"\n\\c");
        let line = line("tcp", "00", &found);
        assert_eq!(
            line,
            "{\"attempt\":\"tcp\",\"token\":\"00\",\"reached\":false,\"detail\":\"a \\\"b\\\"\\u000a\\\\c\"}\n"
        );
    }
}
