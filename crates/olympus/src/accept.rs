//! From a request to the specification that is stored: defaults, bounds, and whether any node could ever run it. Pure;
//! errors name the fields of the request.

use std::collections::BTreeMap;

use hades::store::{KernelRecord, NodeRecord, TemplateRecord};
use tartarus_api::v1::{CreateExec, CreateSandbox, CreateTemplate};
use tartarus_types::spec::{check_labels, check_name};
use tartarus_types::{ErrorCode, Limits, Refusal, SandboxId, SandboxSpec, TemplateSpec};

/// From acceptance to the command's start when the request does not say, ms.
const START_TIMEOUT_MS: u64 = 60_000;
/// A template's virtual processors, MiB of memory and MiB of disk when the request does not say.
const TEMPLATE_SIZE: (u32, u32, u32) = (1, 512, 1024);

/// What to run for a request.
pub(crate) fn sandbox_spec(
    request: CreateSandbox,
    template: TemplateRecord,
    kernel: &KernelRecord,
    limits: &Limits,
) -> Result<SandboxSpec, Refusal> {
    if let Some(name) = &request.name {
        check_name("name", name)?;
        if name.starts_with(SandboxId::PREFIX) {
            return Err(Refusal::field("name", format!("names that start with {} are ids", SandboxId::PREFIX)));
        }
    }
    check_labels(&request.labels)?;
    let command = match request.command {
        Some(command) if command.is_empty() => {
            return Err(Refusal::field("command", "is empty: leave it out for a sandbox that waits for exec"));
        }
        command => command.unwrap_or_default(),
    };
    let defaults = template.spec;
    let spec = SandboxSpec {
        template: template.name,
        image: defaults.image,
        kernel: kernel.digest.clone(),
        command,
        env: merged(defaults.env, request.env),
        workdir: request.workdir.or(defaults.workdir),
        user: request.user.or(defaults.user),
        cpus: request.cpus.unwrap_or(defaults.cpus),
        memory_mib: request.memory_mib.unwrap_or(defaults.memory_mib),
        disk_mib: defaults.disk_mib,
        timeout_ms: request.timeout_ms,
        start_timeout_ms: request.start_timeout_ms.unwrap_or(START_TIMEOUT_MS),
        idle_timeout_ms: request.idle_timeout_ms,
        stdin: request.stdin,
        attach: request.attach,
    };
    limits.check_size(spec.cpus, spec.memory_mib, spec.disk_mib)?;
    limits.check_ms("start_timeout_ms", spec.start_timeout_ms)?;
    for (field, ms) in [("timeout_ms", spec.timeout_ms), ("idle_timeout_ms", spec.idle_timeout_ms)] {
        ms.map_or(Ok(()), |ms| limits.check_ms(field, ms))?;
    }
    limits.check_command(&spec.command, &spec.env, spec.workdir.as_deref(), spec.user.as_deref())?;
    Ok(spec)
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
    let rooms: Vec<_> = nodes
        .iter()
        .map(|node| moirai::Room {
            memory_mib_free: node.memory_mib,
            start_slots_free: node.start_slots,
            max_cpus: node.max_cpus,
            overhead_mib: node.overhead_mib,
        })
        .collect();
    if moirai::ever_fits(&rooms, moirai::Ask { memory_mib: spec.memory_mib, cpus: spec.cpus }) {
        return Ok(());
    }
    let most_memory = nodes.iter().map(|n| n.memory_mib.saturating_sub(n.overhead_mib)).max().unwrap_or(0);
    let most_cpus = nodes.iter().map(|n| n.max_cpus).max().unwrap_or(0);
    let (field, detail) = if u64::from(spec.memory_mib) > most_memory || spec.cpus <= most_cpus {
        ("memory_mib", format!("{} MiB asked for; the largest node has {most_memory} MiB", spec.memory_mib))
    } else {
        ("cpus", format!("{} asked for; the largest node gives a sandbox {most_cpus}", spec.cpus))
    };
    Err(Refusal { field: Some(field.to_owned()), ..Refusal::new(ErrorCode::NeverFits, detail) })
}

/// A template's defaults, with `image` as the digest that the request's name stands for.
pub(crate) fn template_spec(request: CreateTemplate, image: String, limits: &Limits) -> Result<TemplateSpec, Refusal> {
    let (cpus, memory_mib, disk_mib) = TEMPLATE_SIZE;
    let spec = TemplateSpec {
        image,
        cpus: request.cpus.unwrap_or(cpus),
        memory_mib: request.memory_mib.unwrap_or(memory_mib),
        disk_mib: request.disk_mib.unwrap_or(disk_mib),
        env: request.env,
        workdir: request.workdir,
        user: request.user,
    };
    limits.check_size(spec.cpus, spec.memory_mib, spec.disk_mib)?;
    limits.check_command(&[], &spec.env, spec.workdir.as_deref(), spec.user.as_deref())?;
    Ok(spec)
}

/// Checks a command for a running sandbox; its environment is added to the sandbox's.
pub(crate) fn check_exec(request: &CreateExec, sandbox: &SandboxSpec, limits: &Limits) -> Result<(), Refusal> {
    if request.command.is_empty() {
        return Err(Refusal::field("command", "is empty"));
    }
    let env = merged(sandbox.env.clone(), request.env.clone());
    limits.check_command(&request.command, &env, request.workdir.as_deref(), request.user.as_deref())
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
