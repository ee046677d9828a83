//! A network namespace of a test.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// One, open; it goes with its last holder.
#[derive(Clone)]
pub struct Ns(pub Arc<OwnedFd>);

fn unshare() -> Ns {
    // SAFETY: only the network namespace of this thread changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    Ns::own()
}

impl Ns {
    /// Of the calling thread.
    pub fn own() -> Self {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Self(Arc::new(rustix::fs::open(c"/proc/thread-self/ns/net", flags, Mode::empty()).unwrap()))
    }

    /// A fresh one, which the calling thread enters for good.
    pub fn enter_fresh() -> Self {
        unshare()
    }

    /// A fresh one.
    pub fn fresh() -> Self {
        std::thread::spawn(unshare).join().unwrap()
    }

    /// Runs something within it, on a thread.
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&*self.0), Some(LinkNameSpaceType::Network))
                    .unwrap();
                task()
            });
            thread.join().unwrap()
        })
    }

    /// Starts something within it that ends by itself.
    pub fn spawn(&self, task: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
        let ns = self.clone();
        std::thread::spawn(move || {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&*ns.0), Some(LinkNameSpaceType::Network)).unwrap();
            drop(ns);
            task();
        })
    }

    /// Runs a shell command within it, and what it printed.
    pub fn sh(&self, command: &str) -> String {
        let (well, text) = self.try_sh(command);
        assert!(well, "{command}: {text}");
        text
    }

    pub fn try_sh(&self, command: &str) -> (bool, String) {
        let output = self.run(|| Command::new("sh").args(["-c", command]).output().unwrap());
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Gives one of its links to another one.
    pub fn give(&self, link: &str, to: &Ns) {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&*to.0);
        self.sh(&format!("ip link set {link} netns /proc/{}/fd/{fd}", std::process::id()));
    }
}
