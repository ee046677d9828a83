//! What each command does: asks the server, and shows the answer. A file per noun.

mod code;
mod doctor;
mod image;
mod kernel;
mod net;
mod outcome;
mod run;
mod sandbox;
mod session;
mod shell;
mod space;
mod template;
mod upload;

use std::io::IsTerminal;
use std::process::ExitCode;

use crate::cli::Command;
use crate::failure::{Failed, tell};
use crate::server::client;

/// Carries a command out. Quiet means no progress and no notices.
pub(crate) async fn run(command: Command, quiet: bool) -> Result<ExitCode, Failed> {
    let progress = !quiet && std::io::stderr().is_terminal();
    match command {
        Command::Run(args) => return run::run(args, progress).await,
        Command::Exec(args) => return run::exec(args, progress).await,
        Command::Wait(args) => return sandbox::wait(&client()?, &args).await,
        Command::Doctor(args) => return doctor::doctor(&client()?, &args, progress).await,
        Command::Rm(args) => {
            let client = client()?;
            return each(&args.ids, async |id| client.remove(id).await).await;
        }
        Command::Pause(args) => {
            let client = client()?;
            return each(&args.ids, async |id| client.pause(id).await.map(drop)).await;
        }
        Command::Resume(args) => {
            let client = client()?;
            return each(&args.ids, async |id| client.resume(id).await.map(drop)).await;
        }
        Command::Df(args) => space::df(&client()?, &args).await?,
        Command::Prune(args) => return space::prune(&client()?, &args).await,
        Command::Net(command) => net::run(&client()?, command).await?,
        Command::Port(args) => net::port(&client()?, &args).await?,
        Command::Create(args) => sandbox::create(args).await?,
        Command::Ps(args) => sandbox::ps(&client()?, args).await?,
        Command::Inspect(args) => sandbox::inspect(&client()?, &args).await?,
        Command::Logs(args) => sandbox::logs(&client()?, &args).await?,
        Command::Kill(args) => sandbox::kill(&client()?, &args).await?,
        Command::Image(command) => return image::run(&client()?, command, progress).await,
        Command::Kernel(command) => return kernel::run(&client()?, command, progress).await,
        Command::Template(command) => return template::run(command, progress).await,
        Command::Completion { shell } => shell::completion(shell)?,
        Command::Man { dir } => shell::man(dir.as_deref())?,
        Command::Up(_) | Command::Torture(_) | Command::Bench(_) | Command::Openapi => {
            return Err(anyhow::anyhow!("a server's role is started without this runtime").into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Does the same to each of `names`, tells what failed, and goes on.
async fn each<E: Into<anyhow::Error>>(
    names: &[String],
    act: impl AsyncFn(&str) -> Result<(), E>,
) -> Result<ExitCode, Failed> {
    let mut failed = false;
    for name in names {
        if let Err(error) = act(name).await {
            tell(&error.into());
            failed = true;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
