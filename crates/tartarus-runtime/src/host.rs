//! Facts about this host that drivers depend on: its boot, its time-stamp counter.

use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Identifies this boot of the host; what was measured under another is void. Empty where `/proc` does not say.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// The host's time-stamp counter. Under TCG the guest reads it, and cannot calibrate it itself on a loaded machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tsc {
    /// Frequency in kHz.
    pub khz: u64,
    /// It ticks at one rate and in deep sleep (`constant_tsc` and `nonstop_tsc`). Without this a guest's clock drifts
    /// under TCG.
    pub steady: bool,
}

/// Measures the time-stamp counter for about 0.7 s, on one core, against `CLOCK_MONOTONIC_RAW`. The kernel's own figure
/// is only in `dmesg`, which may be restricted or rotated away.
#[cfg(target_arch = "x86_64")]
pub fn measure_tsc() -> Tsc {
    use rustix::time::{ClockId, clock_gettime};

    let now_ns = || {
        let t = clock_gettime(ClockId::MonotonicRaw);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    };
    // SAFETY: rdtsc has no preconditions on x86-64.
    let ticks = || unsafe { core::arch::x86_64::_rdtsc() };
    // The clock is read between two reads of the counter; a reading that was interrupted shows as a wide gap.
    let reading = move || {
        (0..16)
            .map(|_| {
                let before = ticks();
                let ns = now_ns();
                let after = ticks();
                (after - before, before + (after - before) / 2, ns)
            })
            .min()
            .map_or((0, 0), |(_, tsc, ns)| (tsc, ns))
    };
    let mut samples: Vec<u64> = std::thread::spawn(move || {
        let core = rustix::thread::sched_getcpu();
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        // Failing to pin only makes it less exact.
        let _ = rustix::thread::sched_setaffinity(None, &set);
        (0..3)
            .map(|_| {
                let (t0, n0) = reading();
                std::thread::sleep(Duration::from_millis(220));
                let (t1, n1) = reading();
                (u128::from(t1 - t0) * 1_000_000 / u128::from((n1 - n0).max(1))) as u64
            })
            .collect()
    })
    .join()
    .unwrap_or_else(|_| vec![0]);
    samples.sort_unstable();
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| {
        flags.lines().find(|l| l.starts_with("flags")).is_some_and(|l| l.split_whitespace().any(|f| f == flag))
    };
    Tsc { khz: samples[samples.len() / 2], steady: has("constant_tsc") && has("nonstop_tsc") }
}

/// The processor, as a guest under KVM sees it: its model and a hash of its features. The microcode's version is left
/// out, since it changes with every reboot after an update; a feature that it takes away changes the hash.
pub fn processor() -> String {
    describe(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

/// Of the first processor in a `/proc/cpuinfo`; guests cannot run on a host whose processors differ anyhow.
fn describe(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let lines = cpuinfo.lines().take_while(|line| !line.trim().is_empty());
        let mut values = lines.filter_map(|l| l.split_once(':')).filter(|(key, _)| key.trim() == name);
        values.next().map(|(_, value)| value.trim()).unwrap_or_default()
    };
    let mut flags: Vec<&str> = field("flags").split_whitespace().collect();
    flags.sort_unstable();
    let hash = Sha256::digest(flags.join(" "));
    let hash: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers = ["cpu family", "model", "stepping"].map(field).join("/");
    format!("{} {numbers} flags {hash}", field("model name"))
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::describe;

    #[test]
    fn a_processor_is_its_model_and_features_and_not_its_microcode_or_speed() {
        let of = |microcode: &str, mhz: &str, flags: &str| {
            describe(&format!(
                "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Example 9000\nstepping\t: 7\n\
                 microcode\t: {microcode}\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n\nprocessor\t: 1\nmodel name\t: other\n"
            ))
        };
        let one = of("0x1", "2000.1", "fpu sse avx");
        assert!(one.starts_with("Example 9000 6/85/7 flags "), "{one}");
        assert_eq!(one, of("0x2", "900", "avx fpu sse"));
        assert_ne!(one, of("0x1", "2000.1", "fpu sse"));
    }

    #[test]
    fn two_measurements_agree() {
        let (a, b) = (super::measure_tsc().khz, super::measure_tsc().khz);
        assert!(a > 500_000, "{a} kHz");
        assert!(a.abs_diff(b) * 5000 <= a, "{a} and {b} kHz differ by more than 0.02 %");
    }
}
