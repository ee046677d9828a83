//! When a request is sent again, and how long it is tried.

use std::time::{Duration, Instant};

use super::error::{ClientError, Failure};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// What a repetition would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// The same as the first.
    Always,
    /// Something else, unless the first was never received.
    Unsent,
}

impl Repeat {
    /// Whether to try again after `failure`. A server that never took a connection is reported at once.
    pub(super) fn allows(self, failure: &Failure, met: bool) -> bool {
        if !(met || failure.sent) || !failure.error.passes() {
            return false;
        }
        match self {
            Self::Always => true,
            Self::Unsent => !failure.sent,
        }
    }
}

/// Growing pauses, until patience ends.
#[derive(Debug)]
pub(super) struct Backoff {
    patience: Duration,
    since: Option<Instant>,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, since: None, next: FIRST }
    }

    /// There was progress: the next failure is a first one.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.patience);
    }

    /// The server lives, which says nothing about progress: patience starts anew, pauses stay as long as they are.
    pub(super) fn alive(&mut self) {
        self.since = None;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// Gives `error` back when patience is at its end.
    pub(super) async fn pause(&mut self, error: ClientError) -> Result<(), ClientError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() + self.next > self.patience {
            return Err(error);
        }
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(LONGEST);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tartarus_types::{ErrorCode, Refusal};

    use super::*;

    #[test]
    fn only_what_is_safe_and_may_help_is_repeated() {
        let gone =
            |sent| Failure { error: ClientError::Unreachable { url: String::new(), cause: String::new() }, sent };
        assert!(Repeat::Always.allows(&gone(true), true));
        assert!(!Repeat::Always.allows(&gone(false), false), "the first contact fails fast");
        assert!(Repeat::Always.allows(&gone(true), false), "it died after it took the request");
        assert!(Repeat::Unsent.allows(&gone(false), true));
        assert!(!Repeat::Unsent.allows(&gone(true), true), "it may have been received");
        let no = Failure::from(ClientError::Refused(Refusal::field("name", "no")));
        assert!(!Repeat::Always.allows(&no, true));
        let busy = Failure::from(ClientError::Refused(Refusal::new(ErrorCode::Busy, "")));
        assert!(Repeat::Always.allows(&busy, true));
    }

    #[tokio::test]
    async fn patience_ends() {
        let mut backoff = Backoff::new(Duration::from_millis(120));
        let error = || ClientError::Protocol("x".to_owned());
        backoff.pause(error()).await.unwrap();
        assert!(backoff.pause(error()).await.is_err());
        backoff.reset();
        backoff.pause(error()).await.unwrap();
    }
}
