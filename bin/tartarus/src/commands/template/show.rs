//! What `template ls` and `template inspect` show.

use std::collections::BTreeMap;

use indicatif::BinaryBytes;
use tartarus_api::v1::{Template, TemplateSnapshot};
use tartarus_types::{Language, Shape};

use crate::commands::net::contract;
use crate::terminal::{date, pairs, table};

/// The size of a machine, for people.
pub(super) fn shape(shape: Shape) -> String {
    format!("{} x {} MiB", shape.cpus, shape.memory_mib)
}

pub(super) fn list(templates: &[Template]) -> String {
    let row = |template: &Template| {
        let spec = &template.spec;
        let mib = |n: u32| format!("{n} MiB");
        let size = [spec.cpus.to_string(), mib(spec.memory_mib), mib(spec.disk_mib)];
        [vec![template.name.clone()], size.into(), vec![states(template), spec.image.clone()]].concat()
    };
    let head = ["NAME", "CPUS", "MEMORY", "DISK", "SNAPSHOTS", "IMAGE"];
    table(&head, &templates.iter().map(row).collect::<Vec<_>>())
}

/// `ready`, or how many are in which state.
fn states(template: &Template) -> String {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for snapshot in &template.snapshots {
        *counts.entry(snapshot.state.as_str()).or_default() += 1;
    }
    match counts.len() {
        0 => "none".to_owned(),
        1 => counts.keys().copied().collect(),
        _ => counts.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", "),
    }
}

pub(super) fn describe(template: &Template) -> String {
    let spec = &template.spec;
    let runner = spec.warm.runner.as_ref();
    let preload = runner.map(|runner| runner.preload.join(", ")).filter(|modules| !modules.is_empty());
    let mut out = pairs(&[
        ("name", Some(template.name.clone())),
        ("image", Some(spec.image.clone())),
        ("cpus", Some(spec.cpus.to_string())),
        ("memory", Some(format!("{} MiB", spec.memory_mib))),
        ("disk", Some(format!("{} MiB", spec.disk_mib))),
        ("workdir", spec.workdir.clone()),
        ("user", spec.user.clone()),
        ("warm-up", spec.warm.command.clone()),
        ("runner", runner.map(|runner| language(runner.language).to_owned())),
        ("preloaded", preload),
        ("snapshots", Some(states(template))),
        ("created", Some(date(template.created_at))),
    ]);
    if spec.net.is_some() {
        out.push('\n');
        out.push_str(&contract(&spec.net));
    }
    if !template.snapshots.is_empty() {
        out.push('\n');
        let head = ["SNAPSHOT FOR", "STATE", "SIZE", "LAYER", "CREATED", "MADE BY", "WHY"];
        out.push_str(&table(&head, &template.snapshots.iter().map(row).collect::<Vec<_>>()));
    }
    if !spec.env.is_empty() {
        let row = |(key, value): (&String, &String)| vec![key.clone(), value.clone()];
        out.push('\n');
        out.push_str(&table(&["VARIABLE", "VALUE"], &spec.env.iter().map(row).collect::<Vec<_>>()));
    }
    out
}

fn row(snapshot: &TemplateSnapshot) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let size = |bytes: Option<u64>| or_none(bytes.map(|bytes| BinaryBytes(bytes).to_string()));
    vec![
        shape(snapshot.shape),
        snapshot.state.as_str().to_owned(),
        size(snapshot.bytes),
        size(snapshot.layer_bytes),
        or_none(snapshot.created_at.map(date)),
        or_none(snapshot.sandbox.as_ref().map(ToString::to_string)),
        snapshot.why.clone().unwrap_or_default(),
    ]
}

fn language(language: Language) -> &'static str {
    match language {
        Language::Python => "python",
    }
}

#[cfg(test)]
mod tests {
    use tartarus_api::v1::SnapshotState;
    use tartarus_types::{RunnerSpec, TemplateSpec, Timestamp, Warm};

    use super::*;

    fn template(states: &[SnapshotState]) -> Template {
        let snapshot = |state: &SnapshotState| TemplateSnapshot {
            shape: Shape { cpus: 1, memory_mib: 512 },
            golden: None,
            state: *state,
            sandbox: None,
            why: Some("--warm exited\nwith 3".to_owned()),
            bytes: Some(3 << 20),
            layer_bytes: None,
            created_at: None,
        };
        let runner = Some(RunnerSpec { language: Language::Python, preload: vec!["numpy".to_owned()] });
        let spec = TemplateSpec {
            image: "sha256:1".to_owned(),
            cpus: 1,
            memory_mib: 512,
            disk_mib: 64,
            warm: Warm { command: None, runner },
            cold: states.is_empty(),
            ..TemplateSpec::default()
        };
        let snapshots = states.iter().map(snapshot).collect();
        Template { name: "t".to_owned(), spec, created_at: Timestamp(0), snapshots }
    }

    #[test]
    fn states_are_told_short_and_long() {
        use SnapshotState::{Failed, Ready};
        assert_eq!(states(&template(&[])), "none");
        assert_eq!(states(&template(&[Ready, Ready])), "ready");
        assert_eq!(states(&template(&[Ready, Failed, Failed])), "2 failed, 1 ready");
        let text = describe(&template(&[Failed]));
        for part in
            ["runner     python", "preloaded  numpy", "1 x 512 MiB   failed  3.00 MiB", "--warm exited\\nwith 3"]
        {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(list(&[template(&[Ready])]).contains("ready"));
    }
}
