//! Commands about templates.

mod follow;
mod show;

use std::process::ExitCode;

use tartarus_api::client::Client;
use tartarus_api::v1::{CreateTemplate, SnapshotState, Template};
use tartarus_types::ErrorCode;

use super::each;
use super::session::{Signals, Spinner};
use crate::cli::{TemplateArgs, TemplateCommand, env_map};
use crate::failure::Failed;
use crate::server::client;
use crate::terminal::{note, print, print_json};
use follow::{Followed, follow};
use show::{describe, list, shape};

/// `tartarus template …`.
pub(super) async fn run(command: TemplateCommand, progress: bool) -> Result<ExitCode, Failed> {
    match command {
        TemplateCommand::Create(args) => return create(*args, progress).await,
        TemplateCommand::Ls { json } => {
            let templates = client()?.templates().await?;
            match json {
                true => print_json(&templates)?,
                false => print(&list(&templates))?,
            }
        }
        TemplateCommand::Inspect { name, json } => {
            let template = client()?.template(&name).await?;
            match json {
                true => print_json(&template)?,
                false => print(&describe(&template))?,
            }
        }
        TemplateCommand::Rebuild { names, all, detach } => return rebuild(names, all, detach, progress).await,
        TemplateCommand::Rm { names } => {
            let client = client()?;
            return each(&names, async |name| client.remove_template(name).await).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(args: TemplateArgs, progress: bool) -> Result<ExitCode, Failed> {
    let (json, detach) = (args.json, args.detach);
    let wanted = CreateTemplate {
        env: env_map(&args.env, |name| std::env::var(name).ok())?,
        name: args.name,
        image: args.from,
        cpus: args.cpus,
        memory_mib: args.memory,
        disk_mib: args.disk,
        workdir: args.workdir,
        user: args.user,
        warm: args.warm,
        runner: args.runner.map(Into::into),
        preload: args.preload,
        shapes: args.shapes,
        cold: args.no_snapshot,
        net: args.net.request()?,
    };
    let client = client()?;
    let mut signals = Signals::listen()?;
    let asked = signals.or(client.make_template(&wanted)).await;
    let (mut template, made_here) = asked.map_err(|signal| Failed::Told(signal.exit_code()))??;
    if detach {
        tell_missing(&template, true);
    } else {
        match made(&client, &template, progress, &mut signals).await? {
            Some(whole) => template = whole,
            None => {
                if made_here {
                    take_back(&client, &template).await?;
                }
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    match json {
        true => print_json(&template)?,
        false => print(&format!("{}\n", template.name))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes what we made, unless somebody did, or has made another of that name since.
async fn take_back(client: &Client, template: &Template) -> Result<(), Failed> {
    let name = &template.name;
    match client.take_back_template(template).await {
        Ok(()) => note(&format!("template {name} was removed again")),
        Err(error) if error.code() == Some(ErrorCode::NotFound) => note(&format!("template {name} is gone")),
        Err(error) if error.code() == Some(ErrorCode::NameTaken) => {
            note(&format!("template {name} is another one by now, which stays"));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Waits until the snapshots of a template are made, and gives it as it is then; `None` when one could not be, which is
/// told.
async fn made(
    client: &Client,
    template: &Template,
    progress: bool,
    signals: &mut Signals,
) -> Result<Option<Template>, Failed> {
    let spinner = Spinner::new(progress, "making the snapshot");
    let followed = signals.or(follow(client, template, &spinner)).await;
    spinner.clear();
    let name = &template.name;
    match followed {
        Ok(followed) => {
            if followed? == Followed::Failed {
                return Ok(None);
            }
        }
        Err(signal) => {
            note(&format!("{name} goes on being made; `tartarus template inspect {name}` shows how far it is"));
            return Err(Failed::Told(signal.exit_code()));
        }
    }
    let template = client.template(name).await?;
    tell_missing(&template, false);
    Ok(Some(template))
}

/// Tells which snapshots are not there; those that are being made only where nobody `expects` them to be.
fn tell_missing(template: &Template, expects: bool) {
    use SnapshotState::{Building, Outdated, Ready};
    let told = |state| state != Ready && !(expects && state == Building);
    for snapshot in template.snapshots.iter().filter(|snapshot| told(snapshot.state)) {
        let why = snapshot.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let (name, size, state) = (&template.name, shape(snapshot.shape), snapshot.state.as_str());
        let until = if snapshot.state == Outdated { "start from the old one" } else { "boot" };
        note(&format!("{name} has no snapshot for {size} yet ({state}){why}; until then its sandboxes {until}"));
    }
}

async fn rebuild(names: Vec<String>, all: bool, detach: bool, progress: bool) -> Result<ExitCode, Failed> {
    let client = client()?;
    let names = match all {
        true => client.templates().await?.into_iter().filter(|t| !t.spec.cold).map(|template| template.name).collect(),
        false => names,
    };
    let mut signals = Signals::listen()?;
    // All are asked for before the first is waited for: they are made beside each other.
    let mut asked = Vec::new();
    let mut failed = false;
    for name in &names {
        match client.rebuild_template(name).await {
            Ok(template) => asked.push(template),
            Err(error) => {
                crate::failure::tell(&error.into());
                failed = true;
            }
        }
    }
    for template in asked {
        if detach {
            tell_missing(&template, true);
        } else {
            failed |= made(&client, &template, progress, &mut signals).await?.is_none();
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
