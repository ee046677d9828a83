//! Clones of one snapshot are twins until they are made different: before any code of a user runs.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::Server;
use crate::world::{running, sh};

/// Everything that must differ in two clones, one line each.
const TELL: &str = "import random, numpy, ssl, os, uuid, secrets\n\
    print('random', random.random())\nprint('numpy', numpy.random.rand())\nprint('generator', numpy.random.default_rng().random())\n\
    print('openssl', ssl.RAND_bytes(8).hex())\nprint('urandom', os.urandom(8).hex())\nprint('uuid', uuid.uuid4())\n\
    print('secrets', secrets.token_hex(8))\nprint('hostname', os.uname().nodename)\n\
    print('machine-id', open('/etc/machine-id').read())\nprint('kernel', open('/proc/sys/kernel/random/uuid').read())";

fn lines(text: &str) -> Vec<(String, String)> {
    text.lines().filter_map(|l| l.split_once(' ')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[test]
fn two_clones_differ_in_everything_that_is_secret() {
    let server = Server::start();
    server.ok(&[
        "template",
        "create",
        "twins",
        "--from",
        "python",
        "--memory",
        "512M",
        "--disk",
        "256M",
        "--runner",
        "python",
        "--preload",
        "random,numpy,ssl,uuid,secrets",
    ]);
    // The first job of a clone runs in a child that was forked before the snapshot, the second in one forked after.
    for round in ["first", "second"] {
        let ids = [(); 2].map(|()| running(&server, &["twins"]));
        if round == "second" {
            ids.iter().for_each(|id| drop(server.ok(&["exec", id, "--code", "pass"])));
        }
        let [a, b] = ids.each_ref().map(|id| lines(&server.ok(&["exec", id, "--code", TELL])));
        assert_eq!(a.len(), 10, "{a:?}");
        for ((what, a), (_, b)) in a.iter().zip(&b) {
            assert_ne!(a, b, "{round} job: {what} is the same in two clones");
        }
        ids.iter().for_each(|id| drop(server.ok(&["rm", id])));
    }
    server.nothing_left();
}

/// A process that was left by the warm-up and never forks reseeds by the documented hook.
#[test]
fn a_warm_process_reseeds_itself_before_any_command_runs() {
    let server = Server::start();
    let program = "import socket, random, threading, os, time\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\ns.connect('/run/tartarus/restored')\n\
        def write(): open('/tmp/number.new', 'w').write(str(random.random())); os.rename('/tmp/number.new', '/tmp/number')\n\
        random.seed(1)\nwrite()\nprint('up', flush=True)\n\
        while True:\n  seed = s.recv(64)\n  if not seed: break\n  random.seed(seed)\n  write()\n  s.send(b'ok')\n";
    let file = format!(
        "cat > /daemon.py <<'EOF'\n{program}EOF\nsetsid python3 /daemon.py > /tmp/log 2>&1 < /dev/null &\n\
        while ! grep -q up /tmp/log; do sleep 0.1; done"
    );
    server.ok(&["template", "create", "daemon", "--from", "python", "--disk", "256M", "--warm", &file]);
    let ids = [(); 2].map(|()| running(&server, &["daemon"]));
    let [a, b] = ids.each_ref().map(|id| sh(&server, id, "cat /tmp/number"));
    assert_ne!(a, b);
    assert!(!a.starts_with("0.13436424411240122"), "it never reseeded");
    ids.iter().for_each(|id| drop(server.ok(&["rm", id])));
    server.nothing_left();
}

#[test]
fn the_clock_is_right_at_once_and_a_minute_later() {
    let server = Server::start();
    let id = running(&server, &["python"]);
    // The request's own way there and back bounds what can be said.
    let off = || {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let mut best = (f64::MAX, 0.0);
        for _ in 0..5 {
            let (before, said) = (now(), server.ok(&["exec", &id, "--code", "import time; print(repr(time.time()))"]));
            let after = now();
            let at: f64 = said.parse().unwrap();
            let outside = (before - at).max(at - after).max(0.0);
            if after - before < best.0 {
                best = (after - before, outside);
            }
        }
        best
    };
    let (took, outside) = off();
    assert!(outside < 0.05, "off by more than {outside} s at once (a request took {took} s)");
    std::thread::sleep(std::time::Duration::from_secs(60));
    let (took, outside) = off();
    assert!(outside < 0.05, "off by more than {outside} s after a minute (a request took {took} s)");
    server.ok(&["rm", &id]);
    server.nothing_left();
}
