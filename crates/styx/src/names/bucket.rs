//! How many questions a sandbox may ask: pure.

use std::time::Duration;

use tokio::time::Instant;

/// A bucket of permissions that fills steadily.
#[derive(Debug)]
pub(super) struct Bucket {
    burst: u32,
    /// How long one permission takes to come.
    each: Duration,
    /// When the bucket would have been empty, had it been filled from then on without a bound.
    empty_at: Instant,
}

impl Bucket {
    /// Full at `now`: `burst` permissions, and `per_second` more in each second.
    pub(super) fn full(burst: u32, per_second: u32, now: Instant) -> Self {
        let each = Duration::from_secs(1) / per_second;
        Self { burst, each, empty_at: now.checked_sub(each * burst).unwrap_or(now) }
    }

    /// Takes one permission.
    ///
    /// # Errors
    /// When there is none: how long until there is.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full = now.checked_sub(self.each * self.burst).unwrap_or(self.empty_at);
        let next = self.empty_at.max(full) + self.each;
        match next.checked_duration_since(now).filter(|wait| !wait.is_zero()) {
            Some(wait) => Err(wait),
            None => {
                self.empty_at = next;
                Ok(())
            }
        }
    }
}
