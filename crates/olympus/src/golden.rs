//! Which golden snapshots a template should have, how each is named, and what makes it. Pure.

use std::collections::BTreeSet;

use hades::store::{KernelRecord, TemplateRecord};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tartarus_types::{Contract, Ground, NetMode, SandboxSpec, Shape, SnapshotUse, TemplateSpec, Warm};

/// The label of a sandbox that makes a golden snapshot; its value is the template's name.
pub(crate) const LABEL: &str = "tartarus.dev/snapshot-of";
/// For the warm-up, and for a place on a node, ms.
const MAKE_MS: u64 = 600_000;

/// Whatever a golden snapshot depends on that the control plane knows. The order of the fields is part of the name.
#[derive(Serialize)]
struct Named<'a> {
    version: &'static str,
    image: &'a str,
    kernel: &'a str,
    cpus: u32,
    memory_mib: u32,
    disk_mib: u32,
    warm: &'a Warm,
    ground: &'a Ground,
    /// Absent where it is not: names are older than this.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    card: bool,
}

/// What a template's own processes are started with.
pub(crate) fn ground(spec: &TemplateSpec) -> Ground {
    Ground { env: spec.env.clone(), workdir: spec.workdir.clone(), user: spec.user.clone() }
}

/// The name of the golden snapshot for sandboxes of this template, kernel and size; `None` when the template keeps none.
pub(crate) fn golden(spec: &TemplateSpec, kernel: &str, shape: Shape) -> Option<String> {
    if spec.cold {
        return None;
    }
    let named = Named {
        version: "tartarus golden snapshot 1",
        image: &spec.image,
        kernel,
        cpus: shape.cpus,
        memory_mib: shape.memory_mib,
        disk_mib: spec.disk_mib,
        warm: &spec.warm,
        ground: &ground(spec),
        card: spec.net.mode != NetMode::None,
    };
    let canonical = serde_json::to_vec(&named).expect("texts and numbers can always be written as JSON");
    Some(Sha256::digest(canonical).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The sizes that a template keeps golden snapshots for, its own first.
pub(crate) fn shapes(spec: &TemplateSpec) -> Vec<Shape> {
    if spec.cold {
        return Vec::new();
    }
    let own = Shape { cpus: spec.cpus, memory_mib: spec.memory_mib };
    std::iter::once(own).chain(spec.shapes.iter().copied().filter(|shape| *shape != own)).collect()
}

/// The names of all golden snapshots that these templates keep with this kernel.
pub(crate) fn current<'a>(
    templates: impl IntoIterator<Item = &'a TemplateRecord>,
    kernel: Option<&KernelRecord>,
) -> BTreeSet<String> {
    let Some(kernel) = kernel else { return BTreeSet::new() };
    let of = |template: &'a TemplateRecord| {
        shapes(&template.spec).into_iter().filter_map(|shape| golden(&template.spec, &kernel.digest, shape))
    };
    templates.into_iter().flat_map(of).collect()
}

/// The sandbox that makes the golden snapshot `golden`.
pub(crate) fn maker_spec(template: &TemplateRecord, kernel: &str, shape: Shape, golden: String) -> SandboxSpec {
    let TemplateRecord { name, spec, .. } = template;
    let ground = ground(spec);
    SandboxSpec {
        template: name.clone(),
        image: spec.image.clone(),
        kernel: kernel.to_owned(),
        command: Vec::new(),
        env: ground.env.clone(),
        workdir: ground.workdir.clone(),
        user: ground.user.clone(),
        cpus: shape.cpus,
        memory_mib: shape.memory_mib,
        disk_mib: spec.disk_mib,
        timeout_ms: Some(MAKE_MS),
        start_timeout_ms: MAKE_MS,
        idle_timeout_ms: None,
        stdin: false,
        attach: false,
        code: None,
        warm: spec.warm.clone(),
        ground,
        golden: Some(golden),
        snapshot: SnapshotUse::Make,
        shred: false,
        // It is made without a network, whatever its template allows: what it becomes gets one when it is restored.
        net: Contract::default(),
        card: spec.net.mode != NetMode::None,
    }
}

#[cfg(test)]
mod tests {
    use tartarus_types::{Language, RunnerSpec};

    use super::*;

    fn spec() -> TemplateSpec {
        TemplateSpec {
            image: "sha256:i".into(),
            cpus: 1,
            memory_mib: 512,
            disk_mib: 1024,
            env: [("A".to_owned(), "b".to_owned())].into(),
            ..TemplateSpec::default()
        }
    }

    const OWN: Shape = Shape { cpus: 1, memory_mib: 512 };

    /// Names outlive the process that made them: this one must never change for the same version.
    #[test]
    fn a_name_is_stable_and_each_part_counts() {
        let name = golden(&spec(), "sha256:k", OWN).unwrap();
        assert_eq!(name, "80cdf041c973af194af5466d9ad2f1aadf9447eb20c826faff8c9effbb811852");
        let with = |change: fn(&mut TemplateSpec)| {
            let mut spec = spec();
            change(&mut spec);
            golden(&spec, "sha256:k", OWN).unwrap()
        };
        let python = |preload: &[&str]| {
            let preload = preload.iter().map(|m| (*m).to_owned()).collect();
            Some(RunnerSpec { language: Language::Python, preload })
        };
        let mut with_numpy = spec();
        with_numpy.warm.runner = python(&["numpy"]);
        let mut with_runner = spec();
        with_runner.warm.runner = python(&[]);
        let names = [
            name.clone(),
            golden(&spec(), "sha256:other", OWN).unwrap(),
            golden(&spec(), "sha256:k", Shape { cpus: 2, ..OWN }).unwrap(),
            golden(&spec(), "sha256:k", Shape { memory_mib: 256, ..OWN }).unwrap(),
            with(|s| s.image = "sha256:j".into()),
            with(|s| s.disk_mib = 64),
            with(|s| s.warm.command = Some("true".into())),
            with(|s| s.env = [("A".to_owned(), "c".to_owned())].into()),
            with(|s| s.workdir = Some("/".into())),
            with(|s| s.user = Some("/".into())),
            with(|s| s.net.mode = NetMode::Allow),
            golden(&with_numpy, "sha256:k", OWN).unwrap(),
            golden(&with_runner, "sha256:k", OWN).unwrap(),
        ];
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        let [allow, open] = [with(|s| s.net.mode = NetMode::Allow), with(|s| s.net.mode = NetMode::Open)];
        assert_eq!(allow, open, "that there is a network counts, not what it reaches");
        assert_eq!(allow, "b6f35ead776a963ac9f64a660404054b79e99c8c5431d12a7150ec873bdd5638");
        // Further sizes do not change the snapshot of this one.
        assert_eq!(with(|s| s.shapes = vec![Shape { cpus: 4, memory_mib: 64 }]), name);
        assert_eq!(golden(&TemplateSpec { cold: true, ..spec() }, "sha256:k", OWN), None);
    }

    #[test]
    fn the_templates_own_size_is_always_one() {
        let other = Shape { cpus: 2, memory_mib: 64 };
        let spec = TemplateSpec { shapes: vec![other, OWN], ..spec() };
        assert_eq!(shapes(&spec), [OWN, other]);
        assert!(shapes(&TemplateSpec { cold: true, ..spec }).is_empty());
    }
}
