//! What the disks of a sandbox move is bounded by its hypervisor: for a moment much, for good less.

use crate::harness::Server;

/// Reads past the guest's cache, MiB a second: at first, and when what may be moved at once is used up.
const READ: &str = "
import os, mmap, time
disk = os.open('/dev/vda', os.O_RDONLY | os.O_DIRECT)
block = mmap.mmap(-1, 1 << 20)
blocks = os.lseek(disk, 0, os.SEEK_END) >> 20
def rate(count):
    begin = time.monotonic()
    for number in range(count): os.preadv(disk, [block], (number % blocks) << 20)
    return count / (time.monotonic() - begin)
at_once = rate(256)
rate(512)
print(at_once, rate(256))";

/// What is allowed, MiB a second.
const FOR_GOOD: f64 = 128.0;

#[test]
fn a_disk_is_fast_for_a_moment_and_bounded_for_good() {
    let server = Server::start();
    let rates = server.ok(&["run", "python", "--code", READ]);
    let rates: Vec<f64> = rates.split(' ').map(|rate| rate.parse().unwrap()).collect();
    let [at_once, for_good] = rates[..] else { panic!("{rates:?}") };
    eprintln!("{at_once:.0} MiB a second at once, {for_good:.0} for good");
    assert!(for_good <= 1.1 * FOR_GOOD, "{for_good:.0} MiB a second");
    // Else it was not the limit that held it back.
    assert!(at_once > 1.3 * for_good, "{at_once:.0} MiB a second at once, {for_good:.0} for good");
}
