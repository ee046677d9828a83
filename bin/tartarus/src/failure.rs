//! Errors as a person reads them: `tartarus: error: …`, then what to do about it; and the exit code.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use tartarus_api::ClientError;
use tartarus_types::{ErrorCode, Refusal};

use crate::terminal;

/// A command that did not work.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Something to tell.
    Error(anyhow::Error),
    /// Already told; the exit code.
    Told(u8),
}

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Failed {
    /// Tells it, and gives the exit code: `own` unless the reader of our output has gone, which is nobody's error.
    pub(crate) fn report(self, own: u8) -> ExitCode {
        let error = match self {
            Self::Told(code) => return ExitCode::from(code),
            Self::Error(error) => error,
        };
        let broken = |e: &std::io::Error| e.kind() == ErrorKind::BrokenPipe;
        if error.downcast_ref().is_some_and(broken) {
            return ExitCode::from(128 + 13);
        }
        tell(&error);
        ExitCode::from(own)
    }
}

/// Prints an error and its hint on standard error.
pub(crate) fn tell(error: &anyhow::Error) {
    let colour = terminal::colour(std::io::stderr().is_terminal());
    let word = if colour { "\x1b[1;31merror\x1b[0m" } else { "error" };
    let mut text = format!("tartarus: {word}: {}\n", terminal::clean(&format!("{error:#}")));
    if let Some(hint) = hint(error) {
        text.push_str(&format!("  {hint}\n"));
    }
    // Nothing is left to tell it to when standard error is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let refusal = match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(refusal)) => refusal,
        Some(_) => return None,
        None => error.downcast_ref::<Refusal>()?,
    };
    Some(match (refusal.code, refusal.field.as_deref()) {
        (ErrorCode::NotFound, _) if refusal.detail.contains("template") => {
            "`tartarus template ls` shows those there are, `tartarus template create NAME --from IMAGE` makes one"
        }
        (ErrorCode::NotFound, _) if refusal.detail.contains("image") => "`tartarus image ls` shows those there are",
        (ErrorCode::NotFound, _) if refusal.detail.contains("kernel") => "`tartarus kernel ls` shows those there are",
        (ErrorCode::NotFound, _) => "`tartarus ps --all` shows those there are",
        (ErrorCode::Ambiguous, _) => "write more of the id; `tartarus ps --all` shows them in full",
        (ErrorCode::Unauthenticated, _) => "set TARTARUS_API_KEY to a key of that server",
        (ErrorCode::InvalidField, Some("command")) => "write it after --, as in: tartarus run python -- python3 -V",
        (ErrorCode::SnapshotRequired, _) => "leave --require-snapshot out to boot it cold",
        (ErrorCode::NeverFits, _) => "ask for less with --memory or --cpus",
        (ErrorCode::IdempotencyMismatch, _) => "use another --idempotency-key for another request",
        (ErrorCode::NameTaken, _) => "choose another name, or remove what has it",
        _ => return None,
    })
}

/// Tells a mistake on the command line (or prints the help that was asked for), and gives the exit code.
pub(crate) fn usage(args: &[OsString], error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    match refusal(error) {
        Some(refusal) => tell(&refusal.into()),
        None => _ = error.print(),
    }
    // Global flags take no value, so the first bare word is the command.
    let command = args.iter().skip(1).find(|arg| !arg.to_string_lossy().starts_with('-'));
    let passes_codes_on = command.is_some_and(|c| ["run", "exec", "wait"].iter().any(|known| c == known));
    ExitCode::from(if passes_codes_on { 125 } else { 2 })
}

/// A flag's value that could not be read, told as a server would tell it.
fn refusal(error: &clap::Error) -> Option<Refusal> {
    if error.kind() != clap::error::ErrorKind::ValueValidation {
        return None;
    }
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return None };
    let field = arg.trim_start_matches('-').split(' ').next().unwrap_or(arg).replace('-', "_");
    let cause = std::error::Error::source(error)?;
    Some(Refusal::field(&field, cause.to_string()))
}
