//! Whether a driver runs a kernel here: it boots it up to the agent's answer.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tartarus_runtime::{Deadlines, Driver, Layer, Machine};

use crate::ledger::make_dir;
use crate::link::{self, Identity, LinkError};

/// How long a guest may take to answer.
const PROBE: Duration = Duration::from_secs(10);

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Found {
    /// It is not there, or may not be used: why.
    Absent(String),
    /// It is there, and could not even be tried now: why.
    Untried(String),
    /// A Linux guest booted in so many ms.
    Works(u64),
    /// It did not within the time it has: what happened instead.
    Fails(String),
}

/// Boots a kernel in `dir`, which is removed again. An error is of the attempt and proves nothing.
pub(super) async fn probe(
    dir: &Path,
    driver: &dyn Driver,
    kernel: PathBuf,
    initramfs: PathBuf,
) -> Result<Found, String> {
    let _ = std::fs::remove_dir_all(dir);
    let found = probe_in(dir, driver, kernel, initramfs).await;
    let _ = std::fs::remove_dir_all(dir);
    found
}

async fn probe_in(dir: &Path, driver: &dyn Driver, kernel: PathBuf, initramfs: PathBuf) -> Result<Found, String> {
    make_dir(dir).map_err(|e| e.to_string())?;
    // Disks without content: the agent answers that it cannot be set up, which is answer enough.
    let (base, layer) = (dir.join("base"), dir.join("layer"));
    for disk in [&base, &layer] {
        std::fs::write(disk, [0; 65_536]).map_err(|e| e.to_string())?;
    }
    let layer = Layer::raw(layer);
    let machine =
        Machine { dir: dir.to_owned(), cpus: 1, memory_mib: 256, kernel, initramfs, base, layer, network: None };
    let begin = Instant::now();
    let deadlines = Deadlines { wall_ms: Some(PROBE.as_millis() as u64 + 2_000), ..Deadlines::default() };
    let vm = driver.boot(&machine, deadlines).await.map_err(|e| e.to_string())?;
    let answer = async {
        let channel = vm.channel().await.map_err(|e| e.to_string())?;
        let (tell, _events) = tokio::sync::mpsc::channel(1);
        let hostname = "probe".to_owned();
        let identity = Identity { hostname, machine_id: "0".repeat(32), net: None, restored: false };
        match link::open(channel, identity, tell).await {
            Ok(_) | Err(LinkError::Fault(_)) => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    };
    let answer = tokio::time::timeout(PROBE, answer).await;
    let took = begin.elapsed().as_millis() as u64;
    let exit = match &answer {
        Ok(Err(_)) => tokio::time::timeout(Duration::from_secs(1), vm.wait()).await.ok(),
        _ => None,
    };
    vm.kill().await;
    vm.wait().await;
    Ok(match answer {
        Ok(Ok(())) => Found::Works(took),
        Ok(Err(e)) => {
            let how = exit.map_or(e, |exit| format!("{} {}", exit.status, exit.console.replace('\n', "; ")));
            Found::Fails(how)
        }
        Err(_) => Found::Fails("it hung".to_owned()),
    })
}
