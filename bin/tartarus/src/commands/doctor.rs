//! `doctor`: what the server's machine can do.

use std::io::IsTerminal;
use std::process::ExitCode;

use tartarus_api::client::Client;
use tartarus_api::doctor::{DoctorReport, Status};

use super::session::Spinner;
use crate::cli::DoctorArgs;
use crate::failure::Failed;
use crate::terminal::{clean, colour, print, print_json};

/// `tartarus doctor`. Exits 1 when sandboxes cannot run.
pub(super) async fn doctor(client: &Client, args: &DoctorArgs, progress: bool) -> Result<ExitCode, Failed> {
    let spinner = Spinner::new(progress, "looking");
    let report = client.doctor(args.reprobe).await;
    spinner.clear();
    let report = report?;
    match args.json {
        true => print_json(&report)?,
        false => print(&show(&report, colour(std::io::stdout().is_terminal())))?,
    }
    let fails = report.checks.iter().any(|check| check.status == Status::Fail);
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn show(report: &DoctorReport, colour: bool) -> String {
    let width = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for check in &report.checks {
        let (word, code) = match check.status {
            Status::Ok => ("ok  ", 32),
            Status::Warn => ("warn", 33),
            Status::Fail => ("FAIL", 31),
            Status::Unknown => ("?   ", 36),
        };
        let mark = if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
        out.push_str(&format!("{mark}  {:width$}  {}\n", clean(&check.name), clean(&check.found)));
        for line in check.advice.iter().flat_map(|advice| advice.lines()) {
            out.push_str(&format!("      {:width$}  -> {}\n", "", clean(line)));
        }
    }
    out.push_str(&format!("\ndriver: {} ({})\n", clean(&report.driver), clean(&report.why)));
    out
}

#[cfg(test)]
mod tests {
    use tartarus_api::doctor::Check;

    use super::*;

    #[test]
    fn a_check_has_its_mark_and_its_advice_a_line() {
        let check = |name: &str, status, advice: Option<&str>| Check {
            name: name.to_owned(),
            status,
            found: "found".to_owned(),
            advice: advice.map(str::to_owned),
        };
        let checks = vec![check("kvm", Status::Warn, Some("do this")), check("qemu", Status::Ok, None)];
        let report = DoctorReport { driver: "qemu-tcg".to_owned(), why: "KVM is no use".to_owned(), checks };
        let plain =
            "warn  kvm   found\n            -> do this\nok    qemu  found\n\ndriver: qemu-tcg (KVM is no use)\n";
        assert_eq!(show(&report, false), plain);
        assert!(show(&report, true).contains("\x1b[33mwarn\x1b[0m"));
    }
}
