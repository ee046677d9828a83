//! Queued work over the server's death, and kills at moments that nobody chose.

use std::collections::HashSet;
use std::time::Duration;

use crate::harness::{Server, skip};
use crate::scene::{Client, NONCE, Random, end_of, nonces};

const TERMINAL: &[&str] = &["succeeded", "failed", "killed", "timed_out", "lost"];

#[test]
fn queued_work_starts_after_the_servers_death_each_run_once() {
    let slots = std::thread::available_parallelism().map_or(1, usize::from);
    if slots > 8 {
        return skip("more start slots than this test wants to fill");
    }
    let mut server = Server::start();
    let run = || server.ok(&["run", "--detach", "busybox", "--", "sh", "-c", NONCE]);
    let ids: Vec<String> = (0..slots + 2).map(|_| run()).collect();
    server.kill9();
    server.spawn();
    let mut seen = HashSet::new();
    for id in &ids {
        let record = server.until(id, TERMINAL);
        assert_eq!(end_of(&record), ("exited", 0), "{record}\n{}", server.log());
        let log = server.ok(&["logs", id]);
        assert_eq!(nonces(&log), 1, "{log}");
        assert!(seen.insert(log), "two runs have one log");
    }
    server.nothing_left();
}

#[test]
fn kills_at_random_moments_lose_no_run_and_double_none() {
    const SEED: u64 = 0x7a72_7461_7475_4321;
    const KILLS: usize = 8;
    const FIRST: usize = 3;
    let mut random = Random(SEED);
    let mut server = Server::start();
    let command = format!("{NONCE}; sleep 1; echo done");
    let start = |server: &Server, n: usize| {
        Client::start(server, &["run", "--name", &format!("r{n}"), "busybox", "--", "sh", "-c", &command])
    };
    let mut clients: Vec<Client> = (0..FIRST).map(|n| start(&server, n)).collect();
    for kill in 0..KILLS {
        std::thread::sleep(Duration::from_millis(random.below(4000)));
        if kill % 2 == 0 {
            clients.push(start(&server, clients.len()));
            // It may have asked by then, be about to, or have been answered.
            std::thread::sleep(Duration::from_millis(random.below(60)));
        }
        server.kill9();
        std::thread::sleep(Duration::from_millis(random.below(700)));
        server.spawn();
    }
    let ended: Vec<_> = clients.into_iter().map(Client::end).collect();

    let listed = server.json(&["ps", "--all", "--json", "--limit", "1000"]);
    let listed = listed.as_array().unwrap();
    let (mut whole, mut on_record) = (0, 0);
    for (n, client) in ended.iter().enumerate() {
        let named: Vec<_> = listed.iter().filter(|s| s["name"] == format!("r{n}")).collect();
        let sandbox = match named[..] {
            [] => {
                // It found no server at its start, and said so.
                let refused = client.code == Some(125) && client.err.contains("tartarus up") && client.out.is_empty();
                assert!(refused, "seed {SEED:#x}: lost: {client:?}\n{}", server.log());
                continue;
            }
            [sandbox] => sandbox,
            _ => panic!("seed {SEED:#x}: doubled: {named:?}"),
        };
        on_record += 1;
        let record = server.until(sandbox["id"].as_str().unwrap(), TERMINAL);
        let log = server.ok(&["logs", record["id"].as_str().unwrap()]);
        let context = format!("seed {SEED:#x}: {record}\n{client:?}\n{log}\n{}", server.log());
        assert_eq!(client.text().trim_end(), log, "{context}");
        match end_of(&record) {
            ("exited", 0) => {
                assert!(nonces(&log) == 1 && log.ends_with("\ndone"), "{context}");
                assert_eq!(client.code, Some(0), "{context}");
                whole += 1;
            }
            ("node_lost" | "start_failed", 125) => {
                assert!(nonces(&log) == 0 && client.code == Some(125), "{context}");
            }
            _ => panic!("{context}"),
        }
    }
    assert_eq!(listed.len(), on_record, "nobody asked for these: {listed:?}");
    assert!(whole * 2 > ended.len(), "seed {SEED:#x}: only {whole} of {} ran", ended.len());
    server.nothing_left();
}
