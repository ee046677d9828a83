//! Commands about templates.

use std::process::ExitCode;

use tartarus_api::v1::{CreateTemplate, Template};

use super::each;
use crate::cli::{TemplateArgs, TemplateCommand, env_map};
use crate::failure::Failed;
use crate::server::client;
use crate::terminal::{date, pairs, print, print_json, table};

/// `tartarus template …`.
pub(super) async fn run(command: TemplateCommand) -> Result<ExitCode, Failed> {
    match command {
        TemplateCommand::Create(args) => create(args).await?,
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
        TemplateCommand::Rm { names } => {
            let client = client()?;
            return each(&names, async |name| client.remove_template(name).await).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(args: TemplateArgs) -> anyhow::Result<()> {
    let wanted = CreateTemplate {
        env: env_map(&args.env, |name| std::env::var(name).ok())?,
        name: args.name,
        image: args.from,
        cpus: args.cpus,
        memory_mib: args.memory,
        disk_mib: args.disk,
        workdir: args.workdir,
        user: args.user,
    };
    let template = client()?.create_template(&wanted).await?;
    if args.json {
        return print_json(&template);
    }
    Ok(print(&format!("{}\n", template.name))?)
}

fn list(templates: &[Template]) -> String {
    let row = |template: &Template| {
        let spec = &template.spec;
        let mib = |n: u32| format!("{n} MiB");
        let size = [spec.cpus.to_string(), mib(spec.memory_mib), mib(spec.disk_mib)];
        [vec![template.name.clone()], size.into(), vec![spec.image.clone()]].concat()
    };
    table(&["NAME", "CPUS", "MEMORY", "DISK", "IMAGE"], &templates.iter().map(row).collect::<Vec<_>>())
}

fn describe(template: &Template) -> String {
    let spec = &template.spec;
    let mut out = pairs(&[
        ("name", Some(template.name.clone())),
        ("image", Some(spec.image.clone())),
        ("cpus", Some(spec.cpus.to_string())),
        ("memory", Some(format!("{} MiB", spec.memory_mib))),
        ("disk", Some(format!("{} MiB", spec.disk_mib))),
        ("workdir", spec.workdir.clone()),
        ("user", spec.user.clone()),
        ("created", Some(date(template.created_at))),
    ]);
    if !spec.env.is_empty() {
        let row = |(key, value): (&String, &String)| vec![key.clone(), value.clone()];
        out.push('\n');
        out.push_str(&table(&["VARIABLE", "VALUE"], &spec.env.iter().map(row).collect::<Vec<_>>()));
    }
    out
}
