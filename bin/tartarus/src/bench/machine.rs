//! The machine that was measured.

use std::path::PathBuf;
use std::process::Command;

use serde::Serialize;

use super::programs;

/// What a reader needs to compare figures.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    processor: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    /// Those that are there, with their versions.
    hypervisors: Vec<String>,
    load: String,
}

impl Machine {
    pub(super) fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let firecracker = std::env::var_os("TARTARUS_FIRECRACKER").map(PathBuf::from);
        let qemu = programs::find(&format!("qemu-system-{}", std::env::consts::ARCH));
        let found = [firecracker.or_else(|| programs::find("firecracker")), qemu];
        let version =
            |program| programs::asked(Command::new(program).arg("--version")).lines().next().map(str::to_owned);
        Self {
            processor: processor(&read("/proc/cpuinfo")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: super::meter::memory("MemTotal").unwrap_or(0) >> 20,
            kernel: programs::asked(Command::new("uname").arg("-sr")).trim().to_owned(),
            hypervisors: found.into_iter().flatten().filter_map(version).collect(),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        }
    }

    /// With the drivers that were seen.
    pub(super) fn text(&self, drivers: &[String]) -> String {
        let Self { processor, cores, memory_mib, kernel, hypervisors, load } = self;
        format!(
            "machine     {processor}, {cores} cores, {memory_mib} MiB\nkernel      {kernel}\nhypervisors {}\n\
             driver      {}\nload before {load}\n",
            hypervisors.join(", "),
            drivers.join(", ")
        )
    }
}

fn processor(text: &str) -> String {
    let model = text.lines().find_map(|line| line.strip_prefix("model name"));
    model.and_then(|rest| rest.split_once(':')).map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_a_name() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: AMD EPYC\n"), "AMD EPYC");
        assert_eq!(processor(""), "unknown");
    }
}
