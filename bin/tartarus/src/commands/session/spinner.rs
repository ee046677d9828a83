//! A sign of life while something takes long, for a person who watches.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line on standard error; nothing at all where nobody watches.
#[derive(Clone)]
pub(in crate::commands) struct Spinner(ProgressBar);

impl Spinner {
    /// A spinner that says `message`; hidden unless `progress`.
    pub(in crate::commands) fn new(progress: bool, message: &str) -> Self {
        let spinner = Self(if progress { ProgressBar::new_spinner() } else { ProgressBar::hidden() });
        spinner.0.set_message(message.to_owned());
        spinner.tick();
        spinner
    }

    /// Progress of an upload, of `total` bytes when that is known.
    pub(in crate::commands) fn upload(progress: bool, total: Option<u64>) -> Self {
        let target = if progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let spinner = Self(ProgressBar::with_draw_target(total, target));
        let template = match total {
            Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}",
            None => "{spinner} {bytes} {bytes_per_sec} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            spinner.0.set_style(style);
        }
        spinner.tick();
        spinner
    }

    fn tick(&self) {
        if !self.0.is_hidden() {
            self.0.enable_steady_tick(Duration::from_millis(100));
        }
    }

    /// Somebody may see it.
    pub(in crate::commands) fn is_shown(&self) -> bool {
        !self.0.is_hidden() && !self.0.is_finished()
    }

    /// Says something else.
    pub(in crate::commands) fn say(&self, message: &str) {
        self.0.set_message(crate::terminal::clean(message));
    }

    /// So many more bytes.
    pub(in crate::commands) fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Takes it away, before anything else is written.
    pub(in crate::commands) fn clear(&self) {
        if !self.0.is_finished() {
            self.0.finish_and_clear();
        }
    }
}
