//! What a suite came to: the matrix of paths and attempts, with its controls. Pure.

use serde_json::{Value, json};

use super::attempts::{Attempt, Control, Path};
use super::judge::Found;

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    /// As the contract says.
    Ok(String),
    /// Not so, and why.
    Fail(String),
    /// Not looked at.
    Empty,
}

impl Cell {
    /// Of an attempt that should, or should not, have reached its aim.
    pub(super) fn of(found: Result<Found, String>, should: bool) -> Self {
        match found {
            Ok(Found { reached, why }) if reached == should => Self::Ok(why),
            Ok(Found { why, .. }) => Self::Fail(why),
            Err(why) => Self::Fail(format!("it could not be tried: {why}")),
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Ok(_) => "ok",
            Self::Fail(_) => "FAIL",
            Self::Empty => "—",
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Ok(why) => json!({ "result": "ok", "why": why }),
            Self::Fail(why) => json!({ "result": "fail", "why": why }),
            Self::Empty => Value::Null,
        }
    }
}

/// One attempt on all paths.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) attempt: &'static Attempt,
    pub(super) paths: Vec<(Path, Cell)>,
    pub(super) control: Cell,
}

impl Row {
    /// Nothing was looked at yet.
    pub(super) fn new(attempt: &'static Attempt) -> Self {
        Self { attempt, paths: Path::ALL.map(|path| (path, Cell::Empty)).to_vec(), control: Cell::Empty }
    }

    pub(super) fn set(&mut self, path: Path, cell: Cell) {
        for (at, old) in &mut self.paths {
            if *at == path {
                *old = cell.clone();
            }
        }
    }

    fn rule(&self) -> String {
        match self.attempt.control {
            Control::Guard(name) => name.to_owned(),
            Control::Flags(flags) => format!("contract with {}", flags.join(" ")),
            Control::Allowed => "allowed".to_owned(),
            Control::None(why) => format!("none: {why}"),
        }
    }
}

/// Everything that failed, a line each.
pub(super) fn failures(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in rows {
        let Attempt { name, contract, .. } = row.attempt;
        let wrong = if row.attempt.allowed() { "is allowed and did not work" } else { "is forbidden and succeeded" };
        for (path, cell) in &row.paths {
            if let Cell::Fail(why) = cell {
                let what = if why.starts_with("it could not be tried") { "says nothing" } else { wrong };
                lines.push(format!(
                    "{name} on path {} under the contract `{}` {what}: {why}",
                    path.name(),
                    contract.name()
                ));
            }
        }
        if let Cell::Fail(why) = &row.control {
            let rule = row.rule();
            lines.push(format!(
                "{name} does not succeed without its rule ({rule}), so that it fails shows nothing: {why}"
            ));
        }
    }
    lines
}

/// The matrix as text, with what failed below it.
pub(super) fn text(rows: &[Row], seconds: u64) -> String {
    let paths: Vec<&str> = Path::ALL.iter().map(|path| path.name()).collect();
    let mut out = format!("{:<8} {:<22}", "CONTRACT", "ATTEMPT");
    for path in &paths {
        out += &format!(" {:<8}", path.to_uppercase());
    }
    out += "CONTROL  RULE\n";
    for row in rows {
        out += &format!("{:<8} {:<22}", row.attempt.contract.name(), row.attempt.name);
        for (_, cell) in &row.paths {
            out += &format!(" {:<8}", cell.word());
        }
        out += &format!("{:<8} {}\n", row.control.word(), row.rule());
    }
    let failures = failures(rows);
    for line in &failures {
        out += &format!("FAIL {line}\n");
    }
    let cells = rows.iter().flat_map(|row| row.paths.iter().map(|(_, cell)| cell));
    let tried = cells.filter(|cell| **cell != Cell::Empty).count();
    let controls = rows.iter().filter(|row| row.control != Cell::Empty).count();
    out + &format!("{tried} attempts, {controls} controls, {} failed, {seconds} s\n", failures.len())
}

/// The same for programs.
pub(super) fn as_json(rows: &[Row], seconds: u64, guests: usize) -> Value {
    let row = |row: &Row| {
        let paths: serde_json::Map<_, _> =
            row.paths.iter().map(|(path, cell)| (path.name().to_owned(), cell.json())).collect();
        json!({
            "attempt": row.attempt.name,
            "contract": row.attempt.contract.name(),
            "allowed": row.attempt.allowed(),
            "rule": row.rule(),
            "paths": paths,
            "control": row.control.json(),
        })
    };
    let failures = failures(rows);
    json!({
        "ok": failures.is_empty(),
        "seconds": seconds,
        "guests": guests,
        "failures": failures,
        "attempts": rows.iter().map(row).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::attempts::ALL;
    use super::*;

    fn found(reached: bool) -> Result<Found, String> {
        Ok(Found { reached, why: "why".to_owned() })
    }

    #[test]
    fn a_failure_is_named_with_its_path_and_rule() {
        let mut row = Row::new(ALL.iter().find(|a| a.name == "other-port").unwrap());
        row.set(Path::Restore, Cell::of(found(false), false));
        assert_eq!(failures(&[row.clone()]), Vec::<String>::new());
        row.set(Path::Cold, Cell::of(found(true), false));
        row.control = Cell::of(found(false), true);
        let lines = failures(&[row.clone()]);
        assert_eq!(lines[0], "other-port on path cold under the contract `narrow` is forbidden and succeeded: why");
        assert!(lines[1].contains("other-port does not succeed without its rule (ports)"), "{lines:?}");
        assert!(text(&[row.clone()], 3).ends_with("2 attempts, 1 controls, 2 failed, 3 s\n"));
        assert_eq!(as_json(&[row], 3, 2)["ok"], false);
    }

    #[test]
    fn what_could_not_be_tried_failed_whatever_was_wanted() {
        for should in [true, false] {
            assert!(matches!(Cell::of(Err("broken".to_owned()), should), Cell::Fail(_)));
        }
        assert!(matches!(Cell::of(found(false), true), Cell::Fail(_)));
    }
}
