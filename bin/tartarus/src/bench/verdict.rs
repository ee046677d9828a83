//! All that a benchmark found, as text and for programs, and what its exit code says of it.

use std::process::ExitCode;

use serde::Serialize;

use super::field::Field;
use super::idle::Idle;
use super::machine::Machine;
use super::report::{self, DOCKER, Report};
use super::soak::Soak;
use crate::terminal::note;

/// Exit code of `--check` where there is nothing to compare with.
const CANNOT_JUDGE: u8 = 2;
const NO_DOCKER: &str = "there is no docker to compare with, or not for this user";

/// The figures; as JSON they are a contract that scripts rely on.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    machine: Machine,
    drivers: Vec<String>,
    start: Report,
    soak: Option<Soak>,
    idle: Option<Idle>,
    /// What is not as it must be; bars count when they are checked.
    faults: Vec<String>,
}

/// What a benchmark came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) figures: Figures,
    rows: String,
    /// There was to be a comparison, and nothing to compare with.
    cannot_judge: bool,
}

impl Outcome {
    /// All that was found; `broken` is what could not be carried out.
    pub(super) fn new(
        machine: Machine,
        field: &Field,
        start: Report,
        soak: Option<Soak>,
        idle: Option<Idle>,
        broken: Vec<String>,
        check: bool,
    ) -> Self {
        let mut faults = report::failed(&start, &field.rows);
        faults.extend(broken);
        faults.extend(soak.iter().flat_map(|soak| soak.faults.clone()));
        faults.extend(idle.iter().flat_map(|idle| idle.faults.clone()));
        let docker = field.rows.iter().any(|row| row.name == DOCKER && row.is_measurable());
        if check && docker {
            faults.extend(report::missed(&start));
        }
        let drivers = start.drivers.iter().cloned().collect();
        let figures = Figures { machine, drivers, start, soak, idle, faults };
        Self { figures, rows: field.text(), cannot_judge: check && !docker }
    }

    /// The tables, with what is wrong below them.
    pub(super) fn text(&self) -> String {
        let Figures { machine, drivers, start, soak, idle, faults } = &self.figures;
        let mut out = machine.text(drivers);
        if !self.rows.is_empty() {
            out += &format!("\nrows\n{}", self.rows);
        }
        out += &start.text();
        out.extend(soak.iter().map(Soak::text));
        out.extend(idle.iter().map(Idle::text));
        if !faults.is_empty() {
            out += "\n";
        }
        out.extend(faults.iter().map(|fault| format!("fault: {fault}\n")));
        out
    }

    /// What went wrong after the figures were shown.
    pub(super) fn add_fault(&mut self, fault: String) {
        note(&format!("fault: {fault}"));
        self.figures.faults.push(fault);
    }

    /// Says what the exit code cannot, also to those who want no progress: why nothing could be judged.
    pub(super) fn explain(&self) {
        if self.cannot_judge {
            note(NO_DOCKER);
        }
    }

    /// 1 when something is wrong, 2 when it cannot be told.
    pub(super) fn code(&self) -> ExitCode {
        match (self.figures.faults.is_empty(), self.cannot_judge) {
            (false, _) => ExitCode::FAILURE,
            (true, true) => ExitCode::from(CANNOT_JUDGE),
            (true, false) => ExitCode::SUCCESS,
        }
    }
}
