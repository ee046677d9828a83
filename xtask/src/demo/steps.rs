//! What the demo shows once the server runs: each step is a command line of `tartarus`, printed before it runs.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tokio::process::Command;

use super::Clock;
use super::server::{Access, NO_SETPRIV, Server, tartarus};
use crate::sh;

const TEMPLATE: &str = "python";
const PROGRAM: &str = r#"import os, sys, numpy
print("kernel", os.uname().release)
print("sum   ", numpy.arange(1000).sum())
print("python", sys.version)"#;

/// What is read of `inspect --json`.
#[derive(Debug, Deserialize)]
struct Detail {
    id: String,
    state: String,
    exit_status: Option<i32>,
    driver: Option<String>,
    guest_kernel: Option<String>,
    phases: Vec<Phase>,
}

#[derive(Debug, Deserialize)]
struct Phase {
    name: String,
    took_ms: f64,
}

/// The steps, while the server runs.
///
/// # Errors
/// When a step fails or the server ends.
pub(super) async fn show(server: &mut Server, tar: &Path, clock: &mut Clock) -> Result<()> {
    let access = clock.time_async("start", server.ready()).await?;
    let cli = Cli { access };
    tokio::select! {
        shown = steps(&cli, tar, clock) => shown,
        ended = server.drain() => ended,
    }
}

async fn steps(cli: &Cli, tar: &Path, clock: &mut Clock) -> Result<()> {
    clock.time_async("kernel", cli.kernel()).await?;
    // It says which driver was chosen and why. What fails here shows again, and plainer, when the program runs.
    if let Err(error) = clock.time_async("doctor", cli.run(&["doctor"])).await {
        println!("{error:#}");
    }
    clock.time_async("image", cli.image(tar)).await?;
    clock.time_async("template", cli.template()).await?;
    let name = format!("demo-{}", std::process::id());
    println!();
    let args = ["run", TEMPLATE, "--name", &name, "--", "python3", "-c", PROGRAM];
    clock.time_async("run", cli.run(&args)).await?;
    println!("exit code 0\n");
    let json = cli.read(&["inspect", &name, "--json"]).await?;
    let detail: Detail = serde_json::from_str(&json).context("cannot read what inspect printed")?;
    println!("{}", table(&detail, &host_kernel()?)?);
    Ok(())
}

/// The command line of the binary that was built, against the demo's server.
struct Cli {
    access: Access,
}

impl Cli {
    async fn kernel(&self) -> Result<()> {
        if names(&self.read(&["kernel", "ls", "--json"]).await?, "release")?.is_empty() {
            self.run(&["kernel", "add"]).await?;
        }
        Ok(())
    }

    async fn image(&self, tar: &Path) -> Result<()> {
        let tar = tar.to_str().context("the path of the root file system is not UTF-8")?;
        if !self.has("image").await? {
            self.run(&["image", "import", tar, "--name", TEMPLATE]).await?;
        }
        Ok(())
    }

    async fn template(&self) -> Result<()> {
        if !self.has("template").await? {
            self.run(&["template", "create", TEMPLATE, "--from", TEMPLATE, "--memory", "512M"]).await?;
        }
        Ok(())
    }

    async fn has(&self, kind: &str) -> Result<bool> {
        let json = self.read(&[kind, "ls", "--json"]).await?;
        Ok(names(&json, "name")?.iter().any(|name| name == TEMPLATE))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = tartarus(args);
        command.env("TARTARUS_URL", &self.access.url).env("TARTARUS_API_KEY", &self.access.key);
        command
    }

    async fn run(&self, args: &[&str]) -> Result<()> {
        let status = self.command(args).status().await.context(NO_SETPRIV)?;
        if !status.success() {
            bail!("`tartarus {}` failed: {status}", args.first().unwrap_or(&""));
        }
        Ok(())
    }

    async fn read(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output().await.context(NO_SETPRIV)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`tartarus {}` failed: {}: {}", args.join(" "), output.status, said.trim());
        }
        String::from_utf8(output.stdout).context("the command line printed something else than UTF-8")
    }
}

/// The field `field` of every object of a JSON array.
fn names(json: &str, field: &str) -> Result<Vec<String>> {
    let list: Vec<serde_json::Value> = serde_json::from_str(json).context("cannot read a list in JSON")?;
    let name = |item: &serde_json::Value| item.get(field).and_then(|name| name.as_str()).map(str::to_owned);
    list.iter().map(|item| name(item).with_context(|| format!("{item} has no {field}"))).collect()
}

fn host_kernel() -> Result<String> {
    Ok(sh::output(&mut sh::command(&["uname", "-r"]))?.trim().to_owned())
}

/// What became of the sandbox, and the time of each phase.
fn table(detail: &Detail, host_kernel: &str) -> Result<String> {
    if detail.exit_status != Some(0) {
        bail!("{} is {} with exit status {:?}", detail.id, detail.state, detail.exit_status);
    }
    let unknown = "unknown";
    let mut lines = vec![
        format!("sandbox       {} ({})", detail.id, detail.state),
        format!("driver        {}", detail.driver.as_deref().unwrap_or(unknown)),
        format!("guest kernel  {}", detail.guest_kernel.as_deref().unwrap_or(unknown)),
        format!("host kernel   {host_kernel}"),
        String::new(),
        format!("{:<18}{:>10}", "phase", "ms"),
    ];
    lines.extend(detail.phases.iter().map(|phase| format!("{:<18}{:>10.1}", phase.name, phase.took_ms)));
    let total: f64 = detail.phases.iter().map(|phase| phase.took_ms).sum();
    lines.push(format!("{:<18}{total:>10.1}", "all"));
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSPECTED: &str = r#"{"id":"sbx_0","state":"succeeded","exit_status":0,"driver":"qemu-tcg","guest_kernel":"6.1.0",
        "phases":[{"name":"accepted","at":1,"took_ms":0.0},{"name":"leased","at":2,"took_ms":1.5}],"more":1}"#;

    #[test]
    fn the_table_has_every_phase_and_their_sum() {
        let table = table(&serde_json::from_str(INSPECTED).unwrap(), "6.18").unwrap();
        assert!(table.contains("accepted") && table.contains("qemu-tcg") && table.contains("6.18"), "{table}");
        assert!(table.lines().last().unwrap().ends_with("1.5"), "{table}");
    }

    #[test]
    fn a_failed_program_is_no_success() {
        let mut detail: Detail = serde_json::from_str(INSPECTED).unwrap();
        detail.exit_status = Some(1);
        assert!(table(&detail, "6.18").is_err());
        detail.exit_status = None;
        assert!(table(&detail, "6.18").is_err());
    }

    #[test]
    fn what_is_there_is_read_from_the_lists() {
        assert_eq!(names(r#"[{"name":"python"},{"name":"b"}]"#, "name").unwrap(), ["python", "b"]);
        assert!(names("[]", "name").unwrap().is_empty());
        for bad in ["", "{}", r#"[{"id":1}]"#, r#"[{"name":1}]"#] {
            assert!(names(bad, "name").is_err(), "{bad}");
        }
    }
}
