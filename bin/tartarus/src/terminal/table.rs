//! Aligned columns.

use super::clean;

/// Between columns.
const GAP: &str = "  ";

/// Lines of aligned columns under `head`; the last column may be as long as it is.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut lines: Vec<Vec<String>> = vec![head.iter().map(|h| (*h).to_owned()).collect()];
    lines.extend(rows.iter().map(|row| row.iter().map(|cell| clean(cell).replace('\n', "\\n")).collect()));
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        out.push_str(cells.collect::<Vec<_>>().join(GAP).trim_end());
        out.push('\n');
    }
    out
}

/// Lines of `key  value`, aligned; pairs without value are left out.
pub(crate) fn pairs(pairs: &[(&str, Option<String>)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
    let line = |(key, value): &(&str, Option<String>)| {
        let value = clean(value.as_deref()?).replace('\n', "\\n");
        Some(format!("{key:width$}{GAP}{value}\n"))
    };
    pairs.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_cell_breaks_a_line() {
        let rows = [
            vec!["1".to_owned(), "ä".to_owned(), "x\ny".to_owned()],
            vec!["22".to_owned(), String::new(), "z".to_owned()],
        ];
        assert_eq!(table(&["ID", "NAME", "C"], &rows), "ID  NAME  C\n1   ä     x\\ny\n22        z\n");
    }

    #[test]
    fn absent_values_have_no_line() {
        assert_eq!(
            pairs(&[("a", Some("1".to_owned())), ("long", None), ("bb", Some("2".to_owned()))]),
            "a     1\nbb    2\n"
        );
    }
}
