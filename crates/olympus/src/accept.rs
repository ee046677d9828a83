//! From a request to the specification that is stored: defaults, bounds, and whether any node could ever run it. Pure;
//! errors name the fields of the request.

use std::collections::BTreeMap;

use hades::store::{KernelRecord, NodeRecord, TemplateRecord};
use tartarus_api::v1::{CreateExec, CreateSandbox, CreateTemplate};
use tartarus_types::spec::{MAX_ARG, check_labels, check_name};
use tartarus_types::{
    Contract, ErrorCode, Limits, NetCeiling, Refusal, RunnerSpec, SandboxId, SandboxSpec, Shape, SnapshotUse,
    TemplateSpec, Warm,
};

use crate::golden::{golden, ground, shapes};
use crate::net;
use crate::waiting::room;

/// From acceptance to the command's start when the request does not say, ms.
const START_TIMEOUT_MS: u64 = 60_000;
/// A template's virtual processors, MiB of memory and MiB of disk when the request does not say.
const TEMPLATE_SIZE: (u32, u32, u32) = (1, 512, 1024);
/// Sizes that a template may keep golden snapshots for, beside its own.
const MAX_SHAPES: usize = 16;
/// Modules that a runner may be told to import.
const MAX_PRELOAD: usize = 64;
/// Longest name of a module, bytes.
const MAX_MODULE: usize = 255;

/// What to run for a request.
pub(crate) fn sandbox_spec(
    request: CreateSandbox,
    template: TemplateRecord,
    kernel: &KernelRecord,
    limits: &Limits,
    most: NetCeiling,
) -> Result<SandboxSpec, Refusal> {
    if let Some(name) = &request.name {
        check_name("name", name)?;
        if name.starts_with(SandboxId::PREFIX) {
            return Err(Refusal::field("name", format!("names that start with {} are ids", SandboxId::PREFIX)));
        }
    }
    check_labels(&request.labels)?;
    let command = match request.command {
        Some(command) if command.is_empty() && request.code.is_none() => {
            return Err(Refusal::field("command", "is empty: leave it out for a sandbox that waits for exec"));
        }
        command => command.unwrap_or_default(),
    };
    let defaults = template.spec;
    let cpus = request.cpus.unwrap_or(defaults.cpus);
    let memory_mib = request.memory_mib.unwrap_or(defaults.memory_mib);
    let shape = Shape { cpus, memory_mib };
    let snapshot = match (request.require_snapshot, request.no_snapshot) {
        (true, true) => return Err(Refusal::field("no_snapshot", "is the opposite of require_snapshot: choose one")),
        (true, false) => {
            check_kept(&template.name, &defaults, shape)?;
            SnapshotUse::Require
        }
        (false, true) => SnapshotUse::Never,
        (false, false) => SnapshotUse::Prefer,
    };
    let net = net::contract(request.net.as_ref(), &template.name, defaults.net.clone(), most)?;
    let spec = SandboxSpec {
        golden: golden(&defaults, &kernel.digest, shape),
        ground: ground(&defaults),
        warm: defaults.warm,
        template: template.name,
        image: defaults.image,
        kernel: kernel.digest.clone(),
        command,
        env: merged(defaults.env, request.env),
        workdir: request.workdir.or(defaults.workdir),
        user: request.user.or(defaults.user),
        cpus,
        memory_mib,
        disk_mib: defaults.disk_mib,
        timeout_ms: request.timeout_ms,
        start_timeout_ms: request.start_timeout_ms.unwrap_or(START_TIMEOUT_MS),
        idle_timeout_ms: request.idle_timeout_ms,
        stdin: request.stdin,
        attach: request.attach,
        code: request.code,
        snapshot,
        shred: request.shred,
        net,
        card: false,
    };
    limits.check_size(spec.cpus, spec.memory_mib, spec.disk_mib)?;
    limits.check_ms("start_timeout_ms", spec.start_timeout_ms)?;
    for (field, ms) in [("timeout_ms", spec.timeout_ms), ("idle_timeout_ms", spec.idle_timeout_ms)] {
        ms.map_or(Ok(()), |ms| limits.check_ms(field, ms))?;
    }
    let arguments = arguments(&spec.command, spec.code.is_some());
    limits.check_command(&arguments, &spec.env, spec.workdir.as_deref(), spec.user.as_deref())?;
    check_code(spec.code.as_deref(), &spec.template, &spec.warm, &spec.command, &spec.env, limits)?;
    Ok(spec)
}

/// What `execve` is given: code sees its arguments after a name of its own, so the first of them may be empty.
fn arguments(command: &[String], code: bool) -> Vec<String> {
    let name = code.then(|| "-c".to_owned());
    name.into_iter().chain(command.iter().cloned()).collect()
}

/// Refuses at once what could never start from a snapshot.
fn check_kept(name: &str, template: &TemplateSpec, shape: Shape) -> Result<(), Refusal> {
    let kept = shapes(template);
    if kept.contains(&shape) {
        return Ok(());
    }
    let detail = if kept.is_empty() {
        format!("template {name} keeps no snapshots")
    } else {
        let size = |shape: &Shape| format!("{} x {} MiB", shape.cpus, shape.memory_mib);
        let kept = kept.iter().map(size).collect::<Vec<_>>().join(", ");
        format!("template {name} has no snapshot for {}: it keeps some for {kept}", size(&shape))
    };
    let refusal = Refusal::new(ErrorCode::SnapshotRequired, detail);
    Err(Refusal { field: Some("require_snapshot".to_owned()), ..refusal })
}

fn check_code(
    code: Option<&str>,
    template: &str,
    warm: &Warm,
    command: &[String],
    env: &BTreeMap<String, String>,
    limits: &Limits,
) -> Result<(), Refusal> {
    let Some(code) = code else { return Ok(()) };
    if warm.runner.is_none() {
        let detail = format!("template {template} has no runner: create it with --runner python");
        return Err(Refusal::field("code", detail));
    }
    if code.contains('\0') {
        return Err(Refusal::field("code", "holds a NUL"));
    }
    let beside: usize = command.iter().map(|arg| arg.len() + 1).sum::<usize>()
        + env.iter().map(|(key, value)| key.len() + value.len() + 2).sum::<usize>();
    let most = limits.max_exec_bytes.saturating_sub(beside);
    if code.len() > most {
        let detail = format!("has {} bytes of {most} at most: pass more as standard input", code.len());
        return Err(Refusal::field("code", detail));
    }
    Ok(())
}

fn merged(mut base: BTreeMap<String, String>, over: BTreeMap<String, String>) -> BTreeMap<String, String> {
    base.extend(over);
    base
}

/// Refuses what no node could run even if it were empty: it would wait for ever.
pub(crate) fn check_fits(nodes: &[NodeRecord], spec: &SandboxSpec) -> Result<(), Refusal> {
    if nodes.is_empty() {
        return Err(Refusal::new(ErrorCode::NodeUnreachable, "no node has registered yet, try again in a moment"));
    }
    let rooms: Vec<_> = nodes.iter().map(|node| room(node, 0, 0)).collect();
    if moirai::ever_fits(&rooms, moirai::Ask { memory_mib: spec.memory_mib, cpus: spec.cpus }) {
        return Ok(());
    }
    let most_memory = rooms.iter().map(|room| room.largest_mib()).max().unwrap_or(0);
    let most_cpus = nodes.iter().map(|n| n.max_cpus).max().unwrap_or(0);
    let (field, detail) = if u64::from(spec.memory_mib) > most_memory || spec.cpus <= most_cpus {
        ("memory_mib", format!("{} MiB asked for; the largest node gives a sandbox {most_memory} MiB", spec.memory_mib))
    } else {
        ("cpus", format!("{} asked for; the largest node gives a sandbox {most_cpus}", spec.cpus))
    };
    Err(Refusal { field: Some(field.to_owned()), ..Refusal::new(ErrorCode::NeverFits, detail) })
}

/// A template's defaults, with `image` as the digest that the request's name stands for.
pub(crate) fn template_spec(
    request: CreateTemplate,
    image: String,
    limits: &Limits,
    most: NetCeiling,
) -> Result<TemplateSpec, Refusal> {
    let (cpus, memory_mib, disk_mib) = TEMPLATE_SIZE;
    let runner = match (request.runner, request.preload) {
        (None, preload) if preload.is_empty() => None,
        (None, _) => return Err(Refusal::field("preload", "needs a runner that imports it: name one with runner")),
        (Some(language), preload) => Some(RunnerSpec { language, preload: check_preload(preload)? }),
    };
    if let Some(command) = &request.warm
        && (command.trim().is_empty() || command.contains('\0') || command.len() > MAX_ARG)
    {
        let detail = format!("a command for /bin/sh -c of at most {MAX_ARG} bytes without NUL");
        return Err(Refusal::field("warm", detail));
    }
    let spec = TemplateSpec {
        image,
        cpus: request.cpus.unwrap_or(cpus),
        memory_mib: request.memory_mib.unwrap_or(memory_mib),
        disk_mib: request.disk_mib.unwrap_or(disk_mib),
        env: request.env,
        workdir: request.workdir,
        user: request.user,
        warm: Warm { command: request.warm, runner },
        shapes: in_order(request.shapes),
        cold: request.cold,
        net: request.net.map_or(Ok(Contract::default()), |wanted| net::asked(&wanted, most))?,
    };
    limits.check_size(spec.cpus, spec.memory_mib, spec.disk_mib)?;
    check_shapes(&spec, limits)?;
    limits.check_command(&[], &spec.env, spec.workdir.as_deref(), spec.user.as_deref())?;
    Ok(spec)
}

/// The same sizes are the same template, however they were written.
fn in_order(mut shapes: Vec<Shape>) -> Vec<Shape> {
    shapes.sort_unstable();
    shapes.dedup();
    shapes
}

fn check_shapes(spec: &TemplateSpec, limits: &Limits) -> Result<(), Refusal> {
    if spec.shapes.len() > MAX_SHAPES {
        return Err(Refusal::field("shapes", format!("at most {MAX_SHAPES}")));
    }
    if spec.cold && !spec.shapes.is_empty() {
        return Err(Refusal::field("shapes", "are sizes of snapshots, of which a cold template keeps none"));
    }
    for shape in &spec.shapes {
        limits.check_size(shape.cpus, shape.memory_mib, spec.disk_mib).map_err(|refusal| {
            let field = format!("shapes.{}", refusal.field.as_deref().unwrap_or_default());
            Refusal { field: Some(field), ..refusal }
        })?;
    }
    Ok(())
}

/// Dotted names of Python modules, each once: they become text of a program.
fn check_preload(modules: Vec<String>) -> Result<Vec<String>, Refusal> {
    if modules.len() > MAX_PRELOAD {
        return Err(Refusal::field("preload", format!("at most {MAX_PRELOAD} modules")));
    }
    let is_name = |part: &str| {
        !part.starts_with(|c: char| c.is_ascii_digit())
            && !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let mut found: Vec<String> = Vec::with_capacity(modules.len());
    for module in modules {
        if module.len() > MAX_MODULE || !module.split('.').all(is_name) {
            let shown: String = module.chars().filter(|c| !c.is_control()).take(60).collect();
            return Err(Refusal::field("preload", format!("{shown:?} is no name of a module, such as os.path")));
        }
        if !found.contains(&module) {
            found.push(module);
        }
    }
    Ok(found)
}

/// Checks a command for a running sandbox; its environment is added to the sandbox's.
pub(crate) fn check_exec(request: &CreateExec, sandbox: &SandboxSpec, limits: &Limits) -> Result<(), Refusal> {
    if request.command.is_empty() && request.code.is_none() {
        return Err(Refusal::field("command", "is empty"));
    }
    let env = merged(sandbox.env.clone(), request.env.clone());
    let arguments = arguments(&request.command, request.code.is_some());
    limits.check_command(&arguments, &env, request.workdir.as_deref(), request.user.as_deref())?;
    check_code(request.code.as_deref(), &sandbox.template, &sandbox.warm, &request.command, &env, limits)
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
