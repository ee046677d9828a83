//! `run` and `exec`: a command elsewhere that feels like one here.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::Duration;

use tartarus_api::client::{Client, ClientError, Process};
use tartarus_api::v1::{CreateExec, CreateSandbox, Sandbox};
use tartarus_types::{Outcome, Refusal};

use super::code;
use super::outcome::{exit_code, explain};
use super::session::{Session, Signals, Spinner, Style, attend, end, pump};
use crate::cli::{ExecArgs, RunArgs, env_map, millis};
use crate::failure::Failed;
use crate::server::client;
use crate::terminal::{note, print};

const FROM_START: [Option<u64>; 2] = [Some(0), Some(0)];
/// How long a sandbox that is being asked for may take to have an id, once we want it ended.
const LATE: Duration = Duration::from_secs(5);

/// `tartarus run`.
pub(super) async fn run(args: RunArgs, progress: bool) -> Result<ExitCode, Failed> {
    let (detach, json, interactive) = (args.detach, args.json, args.interactive);
    let key = args.idempotency_key.clone();
    let wanted = request(args).await?;
    let client = client()?;
    let mut signals = Signals::listen()?;

    let mut asked = Box::pin(client.create(&wanted, key.as_deref()));
    let sandbox = match signals.or(&mut asked).await {
        Ok(sandbox) => sandbox?,
        Err(signal) => {
            // It may be on record already: then nobody else would end it.
            if !detach && let Ok(Ok(sandbox)) = tokio::time::timeout(LATE, asked).await {
                end(&client, &Process::main(sandbox.id.as_str()), "KILL", Some(Duration::ZERO)).await;
            }
            return Err(Failed::Told(signal.exit_code()));
        }
    };
    if detach {
        match json {
            true => print(&format!("{}\n", serde_json::to_string(&sandbox).map_err(anyhow::Error::from)?))?,
            false => print(&format!("{}\n", sandbox.id))?,
        }
        return Ok(ExitCode::SUCCESS);
    }

    let process = Process::main(sandbox.id.as_str());
    let spinner = Spinner::new(progress, "starting");
    let work = async {
        let output = pump(&client, &process, FROM_START, true, Style::Live, &spinner);
        to_the_end(output, async || client.wait(&process.sandbox).await).await
    };
    let session = attend(&client, &process, interactive, &spinner, &mut signals, work).await;
    spinner.clear();
    let ended: Sandbox = done(&client, &process, session).await?;
    if json {
        let mut line = serde_json::to_vec(&ended)?;
        line.push(b'\n');
        std::io::Write::write_all(&mut std::io::stderr(), &line)?;
    }
    Ok(tell_end(ended.outcome.as_ref()))
}

/// `tartarus exec`.
pub(super) async fn exec(args: ExecArgs, progress: bool) -> Result<ExitCode, Failed> {
    let code = code::given(args.code, args.interactive).await?;
    let wanted = CreateExec {
        command: given(args.command, code.is_some())?,
        code,
        env: env_map(&args.env, |name| std::env::var(name).ok())?,
        workdir: args.workdir,
        user: args.user,
        stdin: args.interactive,
        attach: true,
    };
    let client = client()?;
    let mut signals = Signals::listen()?;
    let exec = match signals.or(client.exec(&args.id, &wanted, None)).await {
        Ok(exec) => exec?,
        Err(signal) => return Err(Failed::Told(signal.exit_code())),
    };
    let process = Process::exec(&exec);
    let spinner = Spinner::new(progress, "starting");
    let work = async {
        let output = pump(&client, &process, FROM_START, true, Style::Live, &spinner);
        to_the_end(output, async || client.wait_exec(&exec).await).await
    };
    let session = attend(&client, &process, args.interactive, &spinner, &mut signals, work).await;
    spinner.clear();
    let ended = done(&client, &process, session).await?;
    Ok(tell_end(ended.outcome.as_ref()))
}

/// Waits for the output and the end side by side: the end is told a moment after the last of the output.
async fn to_the_end<T>(
    output: impl Future<Output = anyhow::Result<()>>,
    ended: impl AsyncFn() -> Result<T, ClientError>,
) -> anyhow::Result<T> {
    match tokio::try_join!(output, async { anyhow::Ok(ended().await) })?.1 {
        Ok(ended) => Ok(ended),
        // Asked again, now that nothing of the output is left: until then no failure of this may cut it short.
        Err(_) => Ok(ended().await?),
    }
}

fn given(command: Vec<String>, code: bool) -> Result<Vec<String>, Refusal> {
    match command.first().map(String::as_str) {
        _ if code => Ok(command),
        None => Err(Refusal::field("command", "there is none")),
        Some("") => Err(Refusal::field("command", "the program's name is empty")),
        Some(_) => Ok(command),
    }
}

async fn request(args: RunArgs) -> anyhow::Result<CreateSandbox> {
    let code = code::given(args.code, args.interactive).await?;
    Ok(CreateSandbox {
        command: Some(given(args.command, code.is_some())?),
        code,
        env: env_map(&args.env, |name| std::env::var(name).ok())?,
        template: args.template,
        name: args.name,
        labels: args.labels.into_iter().map(|pair| (pair.0, pair.1)).collect(),
        workdir: args.workdir,
        user: args.user,
        cpus: args.cpus,
        memory_mib: args.memory,
        timeout_ms: args.timeout.map(millis),
        start_timeout_ms: args.start_timeout.map(millis),
        idle_timeout_ms: args.snapshot.idle_timeout.map(millis),
        stdin: args.interactive,
        attach: !args.detach,
        require_snapshot: args.snapshot.require_snapshot,
        no_snapshot: args.snapshot.no_snapshot,
        shred: args.snapshot.shred,
        net: args.net.request()?,
    })
}

/// What the session's work came to. When our own output cannot be written, nobody wants the command any more.
async fn done<T>(client: &Client, process: &Process, session: Session<anyhow::Result<T>>) -> Result<T, Failed> {
    let error = match session {
        Session::Left(code) => return Err(Failed::Told(code)),
        Session::Done(Ok(value)) => return Ok(value),
        Session::Done(Err(error)) => error,
    };
    if let Some(cause) = error.downcast_ref::<std::io::Error>() {
        end(client, process, "KILL", Some(Duration::ZERO)).await;
        if cause.kind() == ErrorKind::BrokenPipe {
            return Err(Failed::Told(PIPE));
        }
        return Err(error.context("output could not be written, so the command was ended").into());
    }
    if let Some(ClientError::Unreachable { .. }) = error.downcast_ref() {
        return Err(error.context(format!("lost touch with {}, which may go on", process.sandbox)).into());
    }
    Err(error.into())
}

/// What a shell reports of a program that wrote into a closed pipe: 128 and SIGPIPE.
const PIPE: u8 = 128 + 13;

fn tell_end(outcome: Option<&Outcome>) -> ExitCode {
    if let Some(why) = outcome.and_then(explain) {
        note(&why);
    }
    ExitCode::from(exit_code(outcome))
}
