//! Which server to talk to, and with which key.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use tartarus_api::Client;

use crate::pointer::{self, Pointer};

const DEFAULT_URL: &str = "http://127.0.0.1:7423";
const ADVICE: &str = "start a server with `tartarus up`, or set TARTARUS_URL and TARTARUS_API_KEY";

/// A client of the server that environment and pointer file name.
///
/// # Errors
/// When there is no key, or the pointer file cannot be used although it is needed.
pub(crate) fn client() -> anyhow::Result<Client> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let text = |name: &str| -> anyhow::Result<Option<String>> {
        let Some(value) = var(name) else { return Ok(None) };
        value.into_string().map(Some).map_err(|_| anyhow!("{name} is not text"))
    };
    let (url, key) = (text("TARTARUS_URL")?, text("TARTARUS_API_KEY")?);
    let pointer = || match pointer::path(|name| var(name).map(PathBuf::from)) {
        Some(path) => Ok(pointer::read(&path)?),
        None => Ok(None),
    };
    let read_key = |path: &Path| {
        std::fs::read_to_string(path)
            .with_context(|| format!("the server's key in {} cannot be read: set TARTARUS_API_KEY", path.display()))
    };
    let (url, key) = choose(url, key, pointer, read_key)?;
    Ok(Client::new(&url, &key)?)
}

/// The environment goes before the pointer file, and the pointer file before the default. A key is only ever sent to
/// the server it belongs to.
fn choose(
    url: Option<String>,
    key: Option<String>,
    pointer: impl FnOnce() -> anyhow::Result<Option<Pointer>>,
    read_key: impl FnOnce(&Path) -> anyhow::Result<String>,
) -> anyhow::Result<(String, String)> {
    if let (Some(url), Some(key)) = (&url, &key) {
        return Ok((url.clone(), key.clone()));
    }
    let same = |a: &str, b: &str| a.trim_end_matches('/') == b.trim_end_matches('/');
    match (url, key, pointer()?) {
        (None, Some(key), Some(pointer)) => Ok((pointer.url, key)),
        (None, Some(key), None) => Ok((DEFAULT_URL.to_owned(), key)),
        (None, None, None) => Err(anyhow!("no server at {DEFAULT_URL} is known to this user: {ADVICE}")),
        (Some(url), None, Some(pointer)) if !same(&url, &pointer.url) => {
            Err(anyhow!("TARTARUS_URL is {url}, for which there is no key: set TARTARUS_API_KEY"))
        }
        (Some(url), None, None) => {
            Err(anyhow!("TARTARUS_URL is {url}, for which there is no key: set TARTARUS_API_KEY"))
        }
        (url, _, Some(pointer)) => {
            let key = read_key(&pointer.key_file)?;
            Ok((url.unwrap_or(pointer.url), key.trim().to_owned()))
        }
        (Some(url), Some(key), None) => Ok((url, key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(url: Option<&str>, key: Option<&str>, pointer: Option<&str>) -> Result<(String, String), String> {
        let pointer = pointer.map(|url| Pointer { url: url.to_owned(), key_file: "/k".into() });
        let own = |text: Option<&str>| text.map(str::to_owned);
        choose(own(url), own(key), || Ok(pointer), |_| Ok("from file\n".to_owned())).map_err(|e| e.to_string())
    }

    #[test]
    fn environment_then_pointer_then_default() {
        let is = |url: &str, key: &str| Ok((url.to_owned(), key.to_owned()));
        assert_eq!(chosen(Some("http://e"), Some("k"), Some("http://p")), is("http://e", "k"));
        assert_eq!(chosen(None, Some("k"), Some("http://p")), is("http://p", "k"));
        assert_eq!(chosen(None, None, Some("http://p")), is("http://p", "from file"));
        assert_eq!(chosen(None, Some("k"), None), is(DEFAULT_URL, "k"));
        assert_eq!(chosen(Some("http://p/"), None, Some("http://p")), is("http://p/", "from file"));
    }

    #[test]
    fn a_key_is_not_sent_to_another_server() {
        assert!(chosen(Some("http://e"), None, Some("http://p")).unwrap_err().contains("TARTARUS_API_KEY"));
        assert!(chosen(Some("http://e"), None, None).unwrap_err().contains("TARTARUS_API_KEY"));
        assert!(chosen(None, None, None).unwrap_err().contains("tartarus up"));
    }

    #[test]
    fn a_damaged_pointer_is_not_looked_at_when_it_is_not_needed() {
        let damaged = || Err(anyhow!("damaged"));
        choose(Some("http://e".into()), Some("k".into()), damaged, |_| Ok(String::new())).unwrap();
    }
}
