//! Commands about images.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use tartarus_api::client::Client;
use tartarus_api::node::ByteStream;
use tokio::process::Command;

use super::each;
use super::session::{Signals, Spinner};
use super::upload::{counted, of_child, of_reader};
use crate::cli::ImageCommand;
use crate::failure::Failed;
use crate::terminal::{date, print, print_json, stdin, table};

/// `tartarus image …`.
pub(super) async fn run(client: &Client, command: ImageCommand, progress: bool) -> Result<ExitCode, Failed> {
    match command {
        ImageCommand::Import { source, name, json } => {
            let mut signals = Signals::listen()?;
            let (tar, total) = open(&source).await?;
            let spinner = Spinner::upload(progress, total);
            let image = signals.or(client.import_image(&name, counted(tar, &spinner, "making the image"))).await;
            spinner.clear();
            let image = image.map_err(|signal| Failed::Told(signal.exit_code()))??;
            match json {
                true => print_json(&image)?,
                false => print(&format!("{} {}\n", image.name, image.digest))?,
            }
        }
        ImageCommand::Ls { json } => {
            let images = client.images().await?;
            let row = |image: &tartarus_api::v1::Image| {
                let size = indicatif::BinaryBytes(image.size).to_string();
                vec![image.name.clone(), size, date(image.created_at), image.digest.clone()]
            };
            match json {
                true => print_json(&images)?,
                false => {
                    print(&table(&["NAME", "SIZE", "CREATED", "DIGEST"], &images.iter().map(row).collect::<Vec<_>>()))?;
                }
            }
        }
        ImageCommand::Rm { names } => return each(&names, async |name| client.remove_image(name).await).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// A tar stream of `source`, and its size where that is known.
async fn open(source: &Path) -> anyhow::Result<(ByteStream, Option<u64>)> {
    if source == Path::new("-") {
        return Ok((of_reader(stdin()?), None));
    }
    let about = || format!("source: {}", source.display());
    let file = tokio::fs::File::open(source).await.with_context(about)?;
    let meta = file.metadata().await.with_context(about)?;
    if meta.is_dir() {
        let mut tar = Command::new("tar");
        // What is mounted below it (/proc, a home) is not part of a root file system.
        tar.args(["--create", "--numeric-owner", "--xattrs", "--one-file-system", "--file=-", "--directory"]);
        tar.arg(source).arg(".");
        return Ok((of_child(tar)?, None));
    }
    Ok((of_reader(file), meta.is_file().then_some(meta.len())))
}
