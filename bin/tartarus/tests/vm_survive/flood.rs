//! A guest that writes a gigabyte, wherever it can: what is kept of it is bounded, and its neighbour does not notice.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Server, output};
use crate::scene::{Client, started, until};

const MIB: u64 = 1 << 20;

/// A neighbour that must answer while something else is flooded.
fn neighbour_answers(server: &Server, id: &str) {
    let asked = Instant::now();
    let answer = output(server.cli(&["exec", id, "--", "echo", "here"]));
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "here\n", "{answer:?}\n{}", server.log());
    assert!(asked.elapsed() < Duration::from_secs(30), "the neighbour answered after {:?}", asked.elapsed());
}

/// Bytes on disk below a folder.
fn stored(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    let below = std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| stored(&e.path()));
    meta.blocks() * 512 + below.sum::<u64>()
}

/// Resident memory of a process in bytes: the most so far (`VmHWM`), or now (`VmRSS`).
fn memory(pid: u32, which: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(which)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_gigabyte_of_output_costs_the_server_neither_memory_nor_disk() {
    let server = Server::start();
    let neighbour = server.ok(&["create", "busybox"]);
    started(&server, &neighbour);
    let before = memory(server.pid(), "VmRSS");
    let command = "dd if=/dev/zero bs=1M count=1024; echo the end";
    let id = server.ok(&["run", "--detach", "busybox", "--", "sh", "-c", command]);
    let logs = server.data.join("logs").join(&id);
    started(&server, &id);
    let mut most = 0;
    let mut asked = 0;
    until("the end of the flood", Duration::from_secs(170), || {
        most = most.max(stored(&logs));
        neighbour_answers(&server, &neighbour);
        asked += 1;
        !server.json(&["inspect", &id, "--json"])["ended_at"].is_null()
    });
    let record = server.json(&["inspect", &id, "--json"]);
    assert_eq!(record["exit_status"], 0, "{record}");
    assert!(asked > 1, "the flood was over at once");
    let grown = memory(server.pid(), "VmHWM").saturating_sub(before);
    assert!(grown < 100 * MIB, "the server grew by {} MiB", grown / MIB);
    let kept = most.max(stored(&logs));
    assert!((10 * MIB..80 * MIB).contains(&kept), "{} MiB of the output are kept", kept / MIB);
    let log = output(server.cli(&["logs", &id, "--stream", "stdout"])).stdout;
    assert!(log.ends_with(b"\0the end\n"));
    assert!(log.windows(22).any(|w| w == b" bytes left out here]\n"), "no word of what was left out");
    server.ok(&["rm", &neighbour]);
    server.nothing_left();
}

#[test]
fn a_guest_that_fills_its_disk_and_floods_its_console_harms_only_itself() {
    let server = Server::start();
    let neighbour = server.ok(&["create", "busybox"]);
    started(&server, &neighbour);
    // The console is slow: as much as shows that it is cut at both ends.
    let command = "dd if=/dev/zero of=/big bs=1M count=1024; echo disk $?; sync; \
                   yes 0123456789abcdef | head -c 1500000 >/dev/console; echo console $?; sleep 1000";
    let run = Client::start(&server, &["run", "--name", "flood", "busybox", "--", "sh", "-c", command]);
    let id = started(&server, "flood")["id"].as_str().unwrap().to_owned();
    let home = server.data.join("sandboxes").join(&id);
    run.until("disk ");
    neighbour_answers(&server, &neighbour);
    run.until("console 0\n");
    neighbour_answers(&server, &neighbour);
    assert_eq!(String::from_utf8_lossy(&run.stdout()), "disk 1\nconsole 0\n");
    let size = |name: &str| std::fs::metadata(home.join(name)).unwrap().len();
    assert!((100 * MIB..=257 * MIB).contains(&stored(&home)), "{} MiB are stored", stored(&home) / MIB);
    assert!(size("layer") <= 256 * MIB);
    until("the console's end", Duration::from_secs(20), || size("console.tail") > 0);
    assert_eq!(size("console.log"), 256 * 1024);
    assert!(size("console.tail") <= 256 * 1024);

    server.ok(&["kill", &id, "--signal", "KILL"]);
    let run = run.end();
    assert!(run.err.contains("No space left on device"), "{}", run.err);
    neighbour_answers(&server, &neighbour);
    server.ok(&["rm", &neighbour]);
    server.nothing_left();
}
