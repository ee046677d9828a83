//! A sandbox beside one that takes all it can get keeps what it had.

use crate::harness::Server;

/// How long a sandbox works for one figure, seconds of its own clock.
const SECONDS: u32 = 2;
/// Pairs of figures: alone, and beside the other.
const PAIRS: usize = 3;

/// What takes all it can get, each with one processor.
const ATTACKERS: [(&str, &str); 4] = [
    ("busy loop", "while True: pass"),
    ("memory hog", "while True: all = [bytearray(1 << 20) for _ in range(150)]"),
    ("fork bomb", FORK_BOMB),
    ("disk filler", DISK_FILLER),
];

/// Each child does the same, and whoever cannot have one more goes on trying.
const FORK_BOMB: &str = "
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try: os.fork()
    except OSError: pass";

/// Writes until the disk is full, and again, past the guest's cache.
const DISK_FILLER: &str = "
import os
block = os.urandom(1 << 20)
while True:
    try:
        with open('/full', 'wb', 0) as file:
            while True: file.write(block)
    except OSError: os.sync()";

/// Turns of a loop in a while, in a sandbox that has Python warm.
fn speed(server: &Server, id: &str) -> f64 {
    let code = format!(
        "import time\nend = time.monotonic() + {SECONDS}\nturns = 0\nwhile time.monotonic() < end: turns += 1\nprint(turns)"
    );
    server.ok(&["exec", id, "--", "python3", "-c", &code]).parse().unwrap()
}

fn attacker(server: &Server, code: &str) -> String {
    server.ok(&["run", "python", "--detach", "--timeout", "5m", "--", "python3", "-c", code])
}

fn neighbour(server: &Server) -> String {
    let id = server.ok(&["create", "python"]);
    server.until(&id, &["running"]);
    id
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[test]
fn a_neighbour_keeps_nine_tenths_of_its_speed_beside_one_attacker() {
    let server = Server::start();
    let id = neighbour(&server);
    let mut kept = Vec::new();
    for (name, code) in ATTACKERS {
        let other = attacker(&server, code);
        server.until(&other, &["running"]);
        // Its first seconds are its start.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let mut ratios = Vec::new();
        for _ in 0..PAIRS {
            let beside = speed(&server, &id);
            server.ok(&["pause", &other]);
            let alone = speed(&server, &id);
            server.ok(&["resume", &other]);
            ratios.push(beside / alone);
        }
        let state = server.json(&["inspect", &other, "--json"])["state"].as_str().unwrap().to_owned();
        eprintln!("{name}: {:.2} of its speed alone, of {ratios:.2?}; it is {state}", median(ratios.clone()));
        kept.push((name, median(ratios)));
        server.run(&["kill", &other]);
    }
    assert!(kept.iter().all(|(_, ratio)| *ratio >= 0.9), "{kept:.2?}");
    server.ok(&["rm", &id]);
}

/// Five that want a processor each, on as many as there are.
#[test]
fn beside_all_of_them_it_keeps_its_share() {
    let server = Server::start();
    let id = neighbour(&server);
    let alone = speed(&server, &id);
    let others = ATTACKERS.map(|(_, code)| attacker(&server, code));
    for other in &others {
        server.until(other, &["running"]);
    }
    std::thread::sleep(std::time::Duration::from_secs(2));
    let ratio = median((0..PAIRS).map(|_| speed(&server, &id) / alone).collect());
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let share = (processors / (1 + others.len()) as f64).min(1.0);
    eprintln!(
        "beside all four: {ratio:.2} of its speed alone; an equal share of {processors} processors is {share:.2}"
    );
    assert!(ratio >= 0.9 * share, "{ratio:.2} of {share:.2}");
    for other in &others {
        server.run(&["kill", other]);
    }
    server.ok(&["rm", &id]);
}
