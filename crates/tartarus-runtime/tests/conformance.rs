//! Every driver does the same.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use support::conformance::Subject;
use support::tiny::{elf_machine, machine};
use support::{firecracker, qemu};

/// One test for each driver and each function of the suite.
macro_rules! conform {
    ($($test:ident),*) => {
        mod with_qemu {
            use super::*;
            $(#[tokio::test]
            async fn $test() {
                let cells = tempfile::tempdir().unwrap();
                let Some(driver) = qemu(cells.path(), false) else { return };
                Subject { driver: &driver, machine }.$test().await;
            })*
        }

        mod with_firecracker {
            use super::*;
            $(#[tokio::test]
            async fn $test() {
                let Some(driver) = firecracker().await else { return };
                Subject { driver: &driver, machine: elf_machine }.$test().await;
            })*
        }
    };
}

conform!(
    a_machine_is_paused_and_goes_on_also_for_who_takes_it_over,
    clones_go_on_when_they_are_opened_and_are_saved_as_what_they_wrote,
    a_machine_ends_at_its_deadline
);
