//! Tables and bars, on figures that are made up.

use super::*;
use crate::bench::row::{Ran, Run, Work};

struct Never;

impl Work for Never {
    fn run(&self, _run: Run<'_>) -> anyhow::Result<Ran> {
        anyhow::bail!("not to be run")
    }
}

fn row(name: &'static str, what: Kind) -> Row {
    Row::new(name, what, "how").work(Ok(Box::new(Never)))
}

fn measured(ms: &[f64]) -> Measured {
    let by_round = ms.iter().map(|ms| Some(*ms)).collect();
    Measured { ms: ms.to_vec(), by_round, each: ms.to_vec(), ..Measured::default() }
}

fn rows() -> Vec<Row> {
    vec![
        row(DOCKER, Kind::Baseline),
        row(RUNNER, Kind::Ours),
        row(RUNNER_API, Kind::Ours),
        row(BARE, Kind::Bare),
        Row::new("podman", Kind::Baseline, "how"),
    ]
}

fn figures() -> Vec<Measured> {
    vec![
        measured(&[300.0, 200.0, 400.0]),
        measured(&[150.0, 120.0, 200.0]),
        measured(&[110.0, 105.0, 140.0]),
        measured(&[100.0, 100.0, 125.0]),
        Measured::default(),
    ]
}

#[test]
fn rows_are_compared_round_by_round() {
    let report = Report::new(&rows(), &Results::from([(1, figures())]));
    let runner = &report.lines[1];
    assert_eq!((runner.ratio_to_docker, runner.ratio_of_medians), (Some(0.5), Some(0.5)));
    assert_eq!(report.adds[0].by_api, Some(10.0));
    assert_eq!(report.bars.iter().map(Bar::kept).collect::<Vec<_>>(), [Some(true), Some(true)]);
    assert!(missed(&report).is_empty() && failed(&report, &rows()).is_empty());
    let podman = &report.lines[4];
    assert_eq!((podman.invalid.as_deref(), podman.ms), (Some("not installed"), None));
    assert!(podman.shown().contains("not installed"), "{}", podman.shown());
    assert!(report.text().contains("kept") && report.text().contains("150"), "{}", report.text());
}

#[test]
fn a_missed_bar_is_a_fault_and_so_is_a_failure_of_ours() {
    let mut figures = figures();
    figures[1] = measured(&[200.0, 150.0, 250.0]);
    figures[2].failures.push("no".to_owned());
    let report = Report::new(&rows(), &Results::from([(1, figures)]));
    let (missed, failed) = (missed(&report), failed(&report, &rows()));
    assert!(missed.iter().any(|fault| fault.contains("docker run")), "{missed:?}");
    assert!(failed.iter().any(|fault| fault.contains("1 failed")), "{failed:?}");
}

#[test]
fn nothing_is_compared_with_an_invalid_baseline() {
    let mut figures = figures();
    figures[0].failures.push("it printed 7".to_owned());
    figures[3].failures.push("it ended".to_owned());
    let report = Report::new(&rows(), &Results::from([(1, figures)]));
    assert!(report.lines.iter().all(|line| line.ratio_to_docker.is_none() && line.ratio_of_medians.is_none()));
    assert!(report.lines[0].invalid.as_deref().is_some_and(|why| why.contains("it printed 7")));
    assert_eq!(report.bars.iter().map(Bar::kept).collect::<Vec<_>>(), [None, None]);
    assert_eq!(missed(&report).len(), 2, "what cannot be judged is not kept");
}

#[test]
fn bars_are_about_one_at_a_time() {
    let mut slow = figures();
    slow[1] = measured(&[900.0, 900.0, 900.0]);
    let report = Report::new(&rows(), &Results::from([(1, figures()), (8, slow)]));
    assert_eq!(report.bars[0].value, Some(0.5));
    assert_eq!(report.lines.len(), 10);
}

#[test]
fn there_is_no_bar_of_a_row_that_users_do_not_have() {
    let (mut rows, mut figures) = (rows(), figures());
    rows.remove(3);
    figures.remove(3);
    let report = Report::new(&rows, &Results::from([(1, figures)]));
    assert_eq!((report.bars.len(), missed(&report).len()), (1, 0));
    assert!(!report.text().contains("bare"), "{}", report.text());
}
