//! The machine that was measured.

use std::collections::BTreeSet;

use serde::Serialize;

use super::programs;
use crate::sh;

/// What a reader needs to compare figures.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    processor: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    hypervisor: String,
    load: String,
}

impl Machine {
    pub(super) fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let hypervisor = programs::find("qemu-system-x86_64")
            .and_then(|program| sh::output(std::process::Command::new(program).arg("--version")).ok())
            .and_then(|text| text.lines().next().map(str::to_owned));
        Self {
            processor: processor(&read("/proc/cpuinfo")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: super::meter::memory("MemTotal").unwrap_or(0) >> 20,
            kernel: sh::output(&mut sh::command(&["uname", "-sr"])).unwrap_or_default().trim().to_owned(),
            hypervisor: hypervisor.unwrap_or_else(|| "unknown".to_owned()),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        }
    }

    pub(super) fn print(&self, drivers: &BTreeSet<String>) {
        println!("machine     {}, {} cores, {} MiB", self.processor, self.cores, self.memory_mib);
        println!("kernel      {}", self.kernel);
        println!("hypervisor  {}", self.hypervisor);
        println!("driver      {}", drivers.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
        println!("load before {}", self.load);
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
