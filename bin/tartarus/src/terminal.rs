//! What a person sees: clean text, colour where it is wanted, tables. Pure, but for writing to standard output.

mod table;
mod time;

use std::io::Write;
use std::os::fd::AsFd;

pub(crate) use table::{pairs, table};
pub(crate) use time::{age, date};

/// Whether to colour text on a stream.
pub(crate) fn colour(is_terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Text without control characters: what a tenant wrote must not steer an operator's terminal.
pub(crate) fn clean(text: &str) -> String {
    let hostile = |c: char| c.is_control() && c != '\n';
    if !text.contains(hostile) {
        return text.to_owned();
    }
    text.chars().map(|c| if hostile(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// A command as one could type it.
pub(crate) fn shell(command: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_@%+=:,./-".contains(c);
    let word = |arg: &String| {
        if !arg.is_empty() && arg.chars().all(plain) {
            arg.clone()
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    };
    command.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Writes to standard output at once.
///
/// # Errors
/// When nobody reads it any more, or its disk is full.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes `value` to standard output as JSON, indented for people when they look.
///
/// # Errors
/// As [`print()`].
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    Ok(print(&format!("{text}\n"))?)
}

/// Standard input, read on a thread that may block.
///
/// # Errors
/// When there are no more file descriptors.
pub(crate) fn stdin() -> std::io::Result<tokio::fs::File> {
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned()?;
    Ok(tokio::fs::File::from_std(descriptor.into()))
}

/// A line for people on standard error. It is not worth failing for.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "tartarus: {}", clean(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_escape_reaches_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\r"), "a\\u{1b}[2Jb\\r");
        assert_eq!(clean("ä\n"), "ä\n");
    }

    #[test]
    fn a_command_can_be_typed_again() {
        let argv = |args: &[&str]| args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        assert_eq!(shell(&argv(&["python3", "-c", "print('x')", ""])), r"python3 -c 'print('\''x'\'')' ''");
    }
}
