//! `df` and `prune`: the server's disk.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use indicatif::BinaryBytes;
use tartarus_api::client::Client;
use tartarus_api::v1::{DiskUsage, Prune, Pruned, PrunedFile, StoredFile};
use tartarus_types::Refusal;

use crate::cli::{DfArgs, PruneArgs, millis};
use crate::failure::Failed;
use crate::terminal::{note, pairs, print, print_json, table};

/// `tartarus df`.
pub(super) async fn df(client: &Client, args: &DfArgs) -> anyhow::Result<()> {
    let usage = client.disk_usage().await?;
    if args.json {
        return print_json(&usage);
    }
    Ok(print(&show(&usage))?)
}

fn size(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

fn sum<'a>(bytes: impl Iterator<Item = &'a u64>) -> u64 {
    bytes.sum()
}

fn show(usage: &DiskUsage) -> String {
    let files = |name: &str, files: &[StoredFile]| {
        let free = sum(files.iter().filter(|file| file.used_by.is_empty()).map(|file| &file.bytes));
        vec![name.to_owned(), files.len().to_string(), size(sum(files.iter().map(|file| &file.bytes))), size(free)]
    };
    let other = |name: &str, bytes| vec![name.to_owned(), "-".to_owned(), size(bytes), "-".to_owned()];
    let logs = &usage.logs;
    let rows = [
        files("images", &usage.images),
        files("kernels", &usage.kernels),
        files("snapshots", &usage.snapshots),
        vec!["logs".to_owned(), logs.sandboxes.to_string(), size(logs.bytes), size(logs.reclaimable)],
        other("sandboxes", usage.sandboxes),
        other("empty layers", usage.empty_layers),
        other("database", usage.database),
    ];
    let mut out = table(&["KIND", "COUNT", "SIZE", "RECLAIMABLE"], &rows);
    let kinds = [("image", &usage.images), ("kernel", &usage.kernels), ("snapshot", &usage.snapshots)];
    let row = |kind: &str, file: &StoredFile| {
        let users = if file.used_by.is_empty() { "unused".to_owned() } else { file.used_by.join(", ") };
        vec![kind.to_owned(), short(&file.name), size(file.bytes), users]
    };
    let rows: Vec<_> =
        kinds.into_iter().flat_map(|(kind, files)| files.iter().map(move |file| row(kind, file))).collect();
    if !rows.is_empty() {
        out.push('\n');
        out.push_str(&table(&["KIND", "NAME", "SIZE", "USED BY"], &rows));
    }
    let mark = match usage.min_free {
        0 => "off".to_owned(),
        mark => format!("{}: below it no new work is taken on", size(mark)),
    };
    out.push('\n');
    out.push_str(&pairs(&[
        ("disk free", Some(format!("{} of {}", size(usage.disk_free), size(usage.disk_size)))),
        ("low-water mark", Some(mark)),
        ("loaded snapshots", Some(format!("{} of memory, {} at most", size(usage.loaded), size(usage.loaded_limit)))),
        ("reclaimable", Some(format!("{} with `tartarus prune`", size(usage.reclaimable)))),
    ]));
    out
}

/// Enough of a digest to find it again.
fn short(name: &str) -> String {
    let digits = name.strip_prefix("sha256:").unwrap_or(name);
    digits.get(..12).unwrap_or(digits).to_owned()
}

/// `tartarus prune`.
pub(super) async fn prune(client: &Client, args: &PruneArgs) -> Result<ExitCode, Failed> {
    let older_than_ms = args.older_than.map(millis);
    let wanted = |dry_run| Prune { dry_run, older_than_ms, ..Prune::default() };
    if !args.force && !args.dry_run {
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            let why = "what is deleted is gone, and nobody is here to be asked: say --force, or look with --dry-run";
            return Err(Refusal::field("force", why).into());
        }
        let plan = client.prune(&wanted(true)).await?;
        if plan.is_nothing() {
            note("there is nothing to delete");
            return Ok(ExitCode::SUCCESS);
        }
        if !agreed(&summary(&plan)).await? {
            note("nothing was deleted");
            return Ok(ExitCode::FAILURE);
        }
    }
    let pruned = client.prune(&wanted(args.dry_run)).await?;
    match args.json {
        true => print_json(&pruned)?,
        false => print(&summary(&pruned))?,
    }
    for left in &pruned.left {
        note(&format!("left: {left}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks on the terminal. Only a clear yes is one. On a thread of its own, so that Ctrl-C is heard.
async fn agreed(plan: &str) -> anyhow::Result<bool> {
    let mut err = std::io::stderr();
    err.write_all(format!("{plan}Delete this? [y/N] ").as_bytes())?;
    err.flush()?;
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    Ok(matches!(line.await??.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn summary(pruned: &Pruned) -> String {
    let total = |files: &[PrunedFile]| sum(files.iter().map(|file| &file.bytes));
    let row = |name: &str, count: usize, bytes| vec![name.to_owned(), count.to_string(), size(bytes)];
    let rows = [
        row("sandboxes that ended", usize::try_from(pruned.sandboxes).unwrap_or(usize::MAX), pruned.log_bytes),
        row("images", pruned.images.len(), total(&pruned.images)),
        row("kernels", pruned.kernels.len(), total(&pruned.kernels)),
        row("snapshots", pruned.snapshots.len(), total(&pruned.snapshots)),
        row("in all", pruned.count(), pruned.bytes),
    ];
    table(&[if pruned.dry_run { "WOULD BE DELETED" } else { "DELETED" }, "COUNT", "SIZE"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_says_by_whom() {
        let file = |name: &str, bytes, used_by: &[&str]| StoredFile {
            name: name.to_owned(),
            bytes,
            used_by: used_by.iter().map(|user| (*user).to_owned()).collect(),
        };
        let usage = DiskUsage {
            images: vec![file("sha256:0123456789abcdef", 1 << 20, &["image a", "template t"])],
            snapshots: vec![file("fedcba9876543210", 3 << 20, &[])],
            min_free: 512 << 20,
            reclaimable: 3 << 20,
            ..DiskUsage::default()
        };
        let text = show(&usage);
        for line in [
            "images        1      1.00 MiB  0 B",
            "snapshots     1      3.00 MiB  3.00 MiB",
            "image     0123456789ab  1.00 MiB  image a, template t",
            "snapshot  fedcba987654  3.00 MiB  unused",
            "512.00 MiB: below it",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
        let pruned = Pruned { dry_run: true, sandboxes: 2, bytes: 5 << 10, ..Pruned::default() };
        assert!(summary(&pruned).contains("in all                2      5.00 KiB"), "{}", summary(&pruned));
    }
}
