//! What a command finds in the guest: mounts, users, names, a card that leads nowhere, the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::{PATIENCE, Server};
use crate::shell::{sandbox, sh};

#[test]
fn the_guest_has_what_programs_expect_of_a_linux() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    let mounts = sh(&server, &id, "cat /proc/mounts");
    for (path, kind) in
        [("/proc", "proc"), ("/sys", "sysfs"), ("/dev/pts", "devpts"), ("/dev/shm", "tmpfs"), ("/", "overlay")]
    {
        assert!(mounts.lines().any(|line| line.contains(&format!(" {path} {kind} "))), "{path}: {mounts}");
    }
    let modes = sh(&server, &id, "stat -c %a /tmp /dev/shm; test -c /dev/null && test -c /dev/ptmx && ls /dev/fd/0");
    assert_eq!(modes, "1777\n1777\n/dev/fd/0");
    for folder in ["/tmp", "/dev/shm", "/home/app"] {
        let script = format!("echo mine > {folder}/file && cat {folder}/file");
        assert_eq!(server.ok(&["exec", &id, "--user", "app", "--", "sh", "-c", &script]), "mine", "{folder}");
    }
    assert_eq!(sh(&server, &id, "echo shared > /dev/stdout; echo $HOME; echo $PATH"), format!("shared\n/root\n{PATH}"));

    let hosts = sh(&server, &id, "cat /etc/hosts");
    let named = |ip: &str, name: &str| {
        hosts.lines().any(|line| line.starts_with(ip) && line.split_whitespace().any(|word| word == name))
    };
    let hostname = sh(&server, &id, "hostname");
    assert!(named("127.0.0.1", "localhost") && named("::1", "localhost"), "{hosts}");
    assert!(named("127.", &hostname), "{hostname} is not in {hosts}");
    assert_eq!(sh(&server, &id, "cat /etc/hostname"), hostname);
    assert_eq!(hostname, id.replace('_', "-"));
    assert_eq!(sh(&server, &id, "ping -c 1 -W 10 localhost >/dev/null && echo up"), "up");
}

/// What a guest gives where nobody says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[test]
fn orphans_are_reaped() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    // Thirty grandchildren that nobody waits for: their parents are gone when they end.
    sh(&server, &id, "for i in $(seq 30); do (sleep 0.5 & ) ; done >/dev/null 2>&1; echo started");
    let count = |pattern: &str| -> usize {
        let script = format!("cat /proc/[0-9]*/stat 2>/dev/null | grep -c '{pattern}'; true");
        sh(&server, &id, &script).parse().unwrap()
    };
    let end = Instant::now() + PATIENCE;
    while count("(sleep) S") > 0 || count(") Z ") > 0 {
        assert!(Instant::now() < end, "{} zombies are left", count(") Z "));
        std::thread::sleep(Duration::from_millis(200));
    }
    // The kernel counts every process there ever was.
    let forks: u64 = sh(&server, &id, "grep processes /proc/stat").split(' ').nth(1).unwrap().parse().unwrap();
    assert!(forks > 30, "{forks}");
}

#[test]
fn the_one_network_card_leads_nowhere() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    let cards = sh(&server, &id, "ls /sys/class/net");
    let cards: Vec<&str> = cards.lines().filter(|card| *card != "lo").collect();
    let [card] = cards[..] else { panic!("{cards:?}") };
    assert_eq!(sh(&server, &id, "cat /proc/net/route | wc -l"), "1", "no route but the table's head");
    assert_eq!(sh(&server, &id, &format!("ip -4 addr show {card} | grep -c inet; true")), "0");
    // Even with an address and a route of its own making nobody answers.
    let up = format!("ip link set {card} up; ip addr add 10.0.2.15/24 dev {card}; ip route add default via 10.0.2.2");
    sh(&server, &id, &up);
    for peer in ["10.0.2.2", "10.0.2.3", "169.254.169.254"] {
        let script = format!("ping -c 1 -W 2 {peer} >/dev/null 2>&1; echo $?");
        assert_eq!(sh(&server, &id, &script), "1", "{peer}");
    }
    assert_eq!(sh(&server, &id, &format!("cat /sys/class/net/{card}/statistics/rx_packets")), "0");
    let asked = sh(&server, &id, "grep '^10.0.2.2 ' /proc/net/arp");
    assert!(asked.contains("00:00:00:00:00:00"), "it did ask, and nobody answered: {asked}");
}

#[test]
fn the_guests_clock_is_the_hosts() {
    let server = Server::start();
    let id = sandbox(&server, &["busybox"]);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    for _ in 0..3 {
        let before = now();
        let guest: f64 = sh(&server, &id, "date +%s").parse().unwrap();
        let after = now();
        // It was read between the two, cut down to the second.
        assert!(guest >= before - 1.0 - 2.0 && guest <= after + 2.0, "{before} {guest} {after}");
        std::thread::sleep(Duration::from_secs(2));
    }
}
