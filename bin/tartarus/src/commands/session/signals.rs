//! Signals that would end us, heard instead. One that our caller has us ignore (`nohup`, a background job of a script)
//! stays ignored.

use std::future::pending;

use tokio::signal::unix;

/// A signal, and what a shell would make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// Somebody wants us gone.
    Terminate,
    /// The terminal was closed.
    Hangup,
}

impl Signal {
    const fn number(self) -> i32 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }

    /// 128 and its number.
    pub(in crate::commands) fn exit_code(self) -> u8 {
        128 + self.number() as u8
    }
}

/// The signals listened to.
pub(in crate::commands) struct Signals {
    interrupt: Option<unix::Signal>,
    terminate: Option<unix::Signal>,
    hangup: Option<unix::Signal>,
}

impl Signals {
    /// From now on signals are heard, and end us no more.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub(in crate::commands) fn listen() -> std::io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let listen = |signal: Signal| {
            if is_ignored(&status, signal) {
                return Ok(None);
            }
            unix::signal(unix::SignalKind::from_raw(signal.number())).map(Some)
        };
        Ok(Self {
            interrupt: listen(Signal::Interrupt)?,
            terminate: listen(Signal::Terminate)?,
            hangup: listen(Signal::Hangup)?,
        })
    }

    /// The next one.
    pub(in crate::commands) async fn next(&mut self) -> Signal {
        tokio::select! {
            () = heard(&mut self.terminate) => Signal::Terminate,
            () = heard(&mut self.hangup) => Signal::Hangup,
            () = heard(&mut self.interrupt) => Signal::Interrupt,
        }
    }

    /// Does `work` unless a signal comes first. What `work` holds (files, processes) is let go of either way.
    ///
    /// # Errors
    /// The signal.
    pub(in crate::commands) async fn or<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Signal> {
        tokio::select! {
            result = work => Ok(result),
            signal = self.next() => Err(signal),
        }
    }
}

async fn heard(signal: &mut Option<unix::Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => pending().await,
    }
}

/// Reads the set of ignored signals out of `/proc/self/status`.
fn is_ignored(status: &str, signal: Signal) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    set >> (signal.number() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_recognised() {
        let status = "Name:\tx\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(status, Signal::Hangup));
        assert!(!is_ignored(status, Signal::Interrupt));
        assert!(!is_ignored("", Signal::Hangup));
        assert_eq!(Signal::Interrupt.exit_code(), 130);
    }
}
