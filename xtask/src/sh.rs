//! Running other programs: each is shown before it runs, so that a reader learns what to type.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Where cargo tools of ours are installed to, when the machine has none.
pub(crate) const TOOLS: &str = "target/tools";

/// Makes the workspace's root the current directory: every path after this is relative to it.
pub(crate) fn enter_root() -> Result<()> {
    let here =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = here.parent().context("xtask has no parent folder")?;
    std::env::set_current_dir(root).with_context(|| format!("cannot enter {}", root.display()))
}

/// A cargo command: our tools are found, and everything goes to `target/` whatever the caller's environment says.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args).env_remove("CARGO_TARGET_DIR");
    let tools = std::path::absolute(TOOLS).map(|dir| dir.join("bin")).unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Ok(joined) = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path))) {
        command.env("PATH", joined);
    }
    command
}

/// A command from words.
pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Shows the command and runs it with our own streams.
///
/// # Errors
/// When it cannot be started, or fails; the text names it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    show(command);
    let status = command.status().with_context(|| format!("cannot run `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs the command unseen and gives its standard output.
///
/// # Errors
/// As [`run`]; the text ends with what it said on standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run `{}`", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}: {}", line(command), output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` printed something else than UTF-8", line(command)))
}

/// Shows a command, dimmed on a terminal.
pub(crate) fn show(command: &Command) {
    println!("{}", dim(&format!("$ {}", line(command))));
}

/// The command as it would be typed.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Dimmed, where it is a terminal that wants colour.
pub(crate) fn dim(text: &str) -> String {
    styled(text, "2")
}

/// Bold, where it is a terminal that wants colour.
pub(crate) fn bold(text: &str) -> String {
    styled(text, "1")
}

fn styled(text: &str, code: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || !std::io::stdout().is_terminal();
    if plain { text.to_owned() } else { format!("\x1b[{code}m{text}\x1b[0m") }
}

/// The process may install packages and the like.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Writes a file so that a reader finds the old content, the new one, or none; never half of it.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let shown = line(&command(&["tartarus", "run", "python", "--", "python3", "-c", "print('a b')"]));
        assert_eq!(shown, r"tartarus run python -- python3 -c 'print('\''a b'\'')'");
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = output(&mut command(&["sh", "-c", "echo no room >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("no room") && error.contains("sh -c"), "{error}");
        assert!(run(&mut command(&["false"])).is_err());
    }
}
