//! Hermes: telemetry. Sets logging up, for every process of Tartarus; it refuses to know what is logged.

#![forbid(unsafe_code)]

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The variable that chooses what is logged, such as `debug` or `olympus=debug,info`.
pub const FILTER: &str = "TARTARUS_LOG";

/// Logs to standard error what [`FILTER`] asks for (`info` when it is unset or cannot be read), as JSON lines or as
/// text; colours only on a terminal. A second call changes nothing.
pub fn init(json: bool) {
    let asked = std::env::var(FILTER).unwrap_or_default();
    let (filter, wrong) = filter(&asked);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only when a subscriber is set already, which then stays.
    let set =
        if json { builder.json().try_init() } else { builder.with_ansi(std::io::stderr().is_terminal()).try_init() };
    if let (Ok(()), Some(wrong)) = (set, wrong) {
        tracing::warn!("{FILTER} could not be read, info is used: {wrong}");
    }
}

/// The filter of a text, and what is wrong with the text when `info` took its place.
fn filter(text: &str) -> (EnvFilter, Option<String>) {
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    match builder.parse(text) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_the_default_also_for_nonsense() {
        assert_eq!(filter("").0.max_level_hint(), Some(LevelFilter::INFO));
        assert_eq!(filter("debug").0.max_level_hint(), Some(LevelFilter::DEBUG));
        let (nonsense, wrong) = filter("a=b=c");
        assert_eq!(nonsense.max_level_hint(), Some(LevelFilter::INFO));
        assert!(wrong.is_some());
    }

    #[test]
    fn twice_is_once() {
        init(false);
        init(true);
    }
}
