//! `--code` and `--code-file`: source for a template's runner.

use std::path::Path;

use anyhow::Context;
use tartarus_types::Refusal;
use tokio::io::AsyncReadExt;

use crate::cli::CodeArgs;
use crate::terminal::stdin;

/// Most that a server takes, bytes.
const MOST: u64 = 1 << 20;

/// The code that was given, if any. `interactive` wants standard input for itself.
///
/// # Errors
/// When a file cannot be read, is too large or no text, or is standard input that is wanted otherwise.
pub(super) async fn given(args: CodeArgs, interactive: bool) -> anyhow::Result<Option<String>> {
    let Some(path) = args.code_file else { return Ok(args.code) };
    let bytes = if path == Path::new("-") {
        if interactive {
            let why = "standard input is the code, so there is nothing left for --interactive to pass on";
            return Err(Refusal::field("code_file", why).into());
        }
        read(stdin().context("code_file: standard input")?).await.context("code_file: standard input")?
    } else {
        let about = || format!("code_file: {}", path.display());
        read(tokio::fs::File::open(&path).await.with_context(about)?).await.with_context(about)?
    };
    if bytes.len() as u64 > MOST {
        return Err(Refusal::field("code_file", format!("has more than {MOST} bytes: pass data with -i")).into());
    }
    let text = String::from_utf8(bytes).map_err(|_| Refusal::field("code_file", "is not UTF-8 text"))?;
    // Some editors put a mark in front that no language takes.
    Ok(Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)))
}

async fn read(file: tokio::fs::File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_and_what_is_no_code_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            CodeArgs { code_file: Some(path), ..CodeArgs::default() }
        };
        assert_eq!(given(file("a.py", b"print(1)\n"), true).await.unwrap().as_deref(), Some("print(1)\n"));
        let marked = file("m.py", b"\xef\xbb\xbfprint(1)\n");
        assert_eq!(given(marked, true).await.unwrap().as_deref(), Some("print(1)\n"));
        assert_eq!(given(CodeArgs::default(), true).await.unwrap(), None);
        let dash = || CodeArgs { code_file: Some("-".into()), ..CodeArgs::default() };
        let absent = || CodeArgs { code_file: Some("/absent.py".into()), ..CodeArgs::default() };
        for (args, word) in [
            (file("b.py", b"\xff"), "UTF-8"),
            (file("c.py", &vec![b' '; (1 << 20) + 1]), "1048576 bytes"),
            (absent(), "/absent.py"),
            (dash(), "--interactive"),
        ] {
            let error = format!("{:#}", given(args, true).await.unwrap_err());
            assert!(error.starts_with("code_file: ") && error.contains(word), "{error}");
        }
    }
}
