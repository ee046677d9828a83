//! Nothing of one sandbox is seen in another.

use std::collections::BTreeSet;

use crate::harness::Server;
use crate::world::{newest, running, sh, started_from, template};

/// The first leaves a daemon, files everywhere and a sysctl; none of the next thirty sees any of it.
#[test]
fn thirty_runs_see_nothing_of_the_first() {
    let server = Server::start();
    let leave = "echo x > /tmp/left; echo x > /dev/shm/left; mkdir -p $HOME; echo x > $HOME/left; \
                 echo 12345 > /proc/sys/kernel/pid_max; (setsid sleep 1000 &) ; sleep 0.2; pidof sleep | wc -w";
    assert_eq!(server.ok(&["run", "busybox", "--", "sh", "-c", leave]), "1");
    assert_eq!(started_from(&newest(&server)), "snapshot");
    let look = "ls /tmp/left /dev/shm/left $HOME/left 2>/dev/null; pidof sleep; \
                grep -x 12345 /proc/sys/kernel/pid_max; echo done";
    let mut machines = BTreeSet::new();
    for _ in 0..30 {
        let id = running(&server, &["busybox"]);
        let pid = server.json(&["inspect", &id, "--json"])["hypervisor_pid"].as_u64().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let born = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().to_owned();
        assert!(machines.insert((pid, born)), "a hypervisor served twice");
        assert_eq!(sh(&server, &id, look), "done");
        server.ok(&["rm", &id]);
    }
    server.nothing_left();
}

#[test]
fn writes_stay_in_their_sandbox_and_its_disk_is_bounded() {
    let server = Server::start();
    template(&server, "wide", &["--warm", "echo golden > /shared"]);
    let ids = [(); 2].map(|()| running(&server, &["wide"]));
    sh(&server, &ids[0], "echo mine > /shared; echo a > /only-a; sync");
    assert_eq!(sh(&server, &ids[1], "cat /shared; ls /only-a 2>/dev/null; true"), "golden");
    let full = sh(&server, &ids[1], "dd if=/dev/zero of=/big bs=1M count=100 2>&1 | grep -o 'No space left'; true");
    assert_eq!(full, "No space left", "64 MiB took 100 MiB");
    assert_eq!(server.ok(&["run", "wide", "--", "cat", "/shared"]), "golden");
    ids.iter().for_each(|id| drop(server.ok(&["rm", id])));
    server.nothing_left();
}

/// A layer beyond what is copied: each sandbox gets an overlay of it.
#[test]
fn a_large_layer_is_shared_too() {
    let server = Server::start();
    let warm = "dd if=/dev/urandom of=/big bs=1M count=24 2>/dev/null; sha256sum /big > /sum";
    template(&server, "large", &["--warm", warm]);
    let ids = [(); 2].map(|()| running(&server, &["large"]));
    sh(&server, &ids[0], "dd if=/dev/zero of=/big bs=1M count=24 2>/dev/null; sync");
    assert_eq!(sh(&server, &ids[1], "sha256sum -c /sum"), "/big: OK");
    assert_eq!(server.ok(&["run", "large", "--", "sha256sum", "-c", "/sum"]), "/big: OK");
    ids.iter().for_each(|id| drop(server.ok(&["rm", id])));
    server.nothing_left();
}

#[test]
fn shredding_is_asked_for_and_the_sandbox_goes_all_the_same() {
    let server = Server::start();
    assert_eq!(server.ok(&["run", "--shred", "busybox", "--", "sh", "-c", "echo secret > /file; cat /file"]), "secret");
    server.nothing_left();
}
