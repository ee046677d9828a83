//! Commands about sandboxes, but for `run` and `exec`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tartarus_api::client::{Client, Listing, Process};
use tartarus_api::node::StartedFrom;
use tartarus_api::v1::{CreateSandbox, Sandbox, SandboxDetail};
use tartarus_types::{Refusal, Timestamp, signal};

use super::net;
use super::outcome::{exit_code, explain};
use super::session::{Spinner, Style, pump};
use crate::cli::{CreateArgs, InspectArgs, KillArgs, LogsArgs, PsArgs, StreamName, WaitArgs, env_map, millis};
use crate::failure::Failed;
use crate::server;
use crate::terminal::{age, date, pairs, print, print_json, shell, table};

/// `tartarus create`.
pub(super) async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let wanted = CreateSandbox {
        env: env_map(&args.env, |name| std::env::var(name).ok())?,
        template: args.template,
        name: args.name,
        labels: args.labels.into_iter().map(|pair| (pair.0, pair.1)).collect(),
        cpus: args.cpus,
        memory_mib: args.memory,
        timeout_ms: args.ttl.map(millis),
        start_timeout_ms: args.start_timeout.map(millis),
        idle_timeout_ms: args.snapshot.idle_timeout.map(millis),
        require_snapshot: args.snapshot.require_snapshot,
        no_snapshot: args.snapshot.no_snapshot,
        shred: args.snapshot.shred,
        net: args.net.request()?,
        ..CreateSandbox::default()
    };
    let sandbox = server::client()?.create(&wanted, args.idempotency_key.as_deref()).await?;
    if args.json {
        return print_json(&sandbox);
    }
    Ok(print(&format!("{}\n", sandbox.id))?)
}

/// `tartarus ps`.
pub(super) async fn ps(client: &Client, args: PsArgs) -> anyhow::Result<()> {
    let labels = args.labels.into_iter().map(|pair| (pair.0, pair.1)).collect();
    let sandboxes = client.list(&Listing { ended: args.all, limit: Some(args.limit), labels }).await?;
    if args.json {
        return print_json(&sandboxes);
    }
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let now = Timestamp(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX));
    let rows: Vec<Vec<String>> = sandboxes.iter().map(|sandbox| row(sandbox, now)).collect();
    Ok(print(&table(&["ID", "NAME", "STATE", "TEMPLATE", "AGE", "COMMAND"], &rows))?)
}

/// What it runs, as one could type it.
fn command(sandbox: &Sandbox) -> String {
    let arguments = shell(&sandbox.command);
    match (sandbox.has_code, arguments.is_empty()) {
        (false, _) => arguments,
        (true, true) => "(code)".to_owned(),
        (true, false) => format!("(code) {arguments}"),
    }
}

fn start(from: &StartedFrom) -> String {
    match from {
        StartedFrom::Snapshot { golden } => format!("snapshot {}", golden.get(..12).unwrap_or(golden)),
        StartedFrom::ColdBoot { why } => format!("cold boot: {why}"),
    }
}

fn row(sandbox: &Sandbox, now: Timestamp) -> Vec<String> {
    const LONGEST: usize = 60;
    let mut command = command(sandbox);
    if let Some((cut, _)) = command.char_indices().nth(LONGEST) {
        command.truncate(cut);
        command.push('…');
    }
    let state = match sandbox.queue_position {
        Some(position) => format!("{} ({position})", sandbox.state.as_str()),
        None => sandbox.state.as_str().to_owned(),
    };
    let name = sandbox.name.clone().unwrap_or_else(|| "-".to_owned());
    vec![sandbox.id.to_string(), name, state, sandbox.template.clone(), age(sandbox.created_at, now), command]
}

/// `tartarus inspect`.
pub(super) async fn inspect(client: &Client, args: &InspectArgs) -> anyhow::Result<()> {
    let detail = client.inspect(&args.id).await?;
    if args.json {
        return print_json(&detail);
    }
    Ok(print(&describe(&detail))?)
}

fn describe(detail: &SandboxDetail) -> String {
    let sandbox = &detail.sandbox;
    let labels = sandbox.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
    let shown = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut out = pairs(&[
        ("id", Some(sandbox.id.to_string())),
        ("name", sandbox.name.clone()),
        ("state", Some(sandbox.state.as_str().to_owned())),
        ("queue position", sandbox.queue_position.map(|n| n.to_string())),
        ("waiting because", detail.waiting.clone()),
        ("exit status", sandbox.exit_status.map(|n| n.to_string())),
        ("why", sandbox.outcome.as_ref().and_then(explain)),
        ("command", shown(command(sandbox))),
        ("template", Some(sandbox.template.clone())),
        ("labels", shown(labels)),
        ("cpus", Some(sandbox.cpus.to_string())),
        ("memory", Some(format!("{} MiB", sandbox.memory_mib))),
        ("disk", Some(format!("{} MiB", sandbox.disk_mib))),
        ("timeout", sandbox.timeout_ms.map(|ms| humantime::format_duration(Duration::from_millis(ms)).to_string())),
        ("created", Some(date(sandbox.created_at))),
        ("started", sandbox.started_at.map(date)),
        ("ended", sandbox.ended_at.map(date)),
        ("attempts", Some(sandbox.attempts.to_string())),
        ("node", sandbox.node.as_ref().map(ToString::to_string)),
        ("started from", detail.start.as_ref().map(start)),
        ("driver", detail.driver.clone()),
        ("hypervisor pid", detail.hypervisor_pid.map(|pid| pid.to_string())),
        ("guest kernel", detail.guest_kernel.clone()),
        ("image", Some(sandbox.image.clone())),
        ("kernel", Some(sandbox.kernel.clone())),
    ]);
    if let Some(contract) = &sandbox.net {
        out.push('\n');
        out.push_str(&net::contract(contract));
    }
    if let Some(tables) = detail.net_status.as_ref().map(net::describe).filter(|tables| !tables.is_empty()) {
        out.push('\n');
        out.push_str(&tables);
    }
    if !detail.phases.is_empty() {
        let phase =
            |phase: &tartarus_api::v1::Phase| vec![phase.name.clone(), format!("{:.1}", phase.took_ms), date(phase.at)];
        out.push('\n');
        out.push_str(&table(&["PHASE", "MS", "AT"], &detail.phases.iter().map(phase).collect::<Vec<_>>()));
    }
    if !detail.failures.is_empty() {
        out.push('\n');
        out.push_str(&table(
            &["FAILED ATTEMPTS"],
            &detail.failures.iter().map(|f| vec![f.clone()]).collect::<Vec<_>>(),
        ));
    }
    out
}

/// `tartarus wait`.
pub(super) async fn wait(client: &Client, args: &WaitArgs) -> Result<ExitCode, Failed> {
    let sandbox = client.wait(&args.id).await?;
    if args.json {
        print_json(&sandbox)?;
    }
    Ok(ExitCode::from(exit_code(sandbox.outcome.as_ref())))
}

/// `tartarus logs`.
pub(super) async fn logs(client: &Client, args: &LogsArgs) -> anyhow::Result<()> {
    let wanted = |stream| (args.stream.is_none() || args.stream == Some(stream)).then_some(0);
    let from = [wanted(StreamName::Stdout), wanted(StreamName::Stderr)];
    let process = Process::main(args.id.as_str());
    pump(client, &process, from, args.follow, Style::Log, &Spinner::new(false, "")).await
}

/// `tartarus kill`.
pub(super) async fn kill(client: &Client, args: &KillArgs) -> anyhow::Result<()> {
    if signal::number(&args.signal).is_none() {
        return Err(
            Refusal::field("signal", format!("{:?} is no signal: write TERM, SIGTERM or 15", args.signal)).into()
        );
    }
    client.kill(&args.id, &args.signal, None).await?;
    Ok(())
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
