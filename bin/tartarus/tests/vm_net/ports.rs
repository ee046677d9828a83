//! Ports of the node that lead into a guest, by its agent: with and without a network.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::world::{World, running, sh};

/// What comes back from a server that says what it was told.
fn ask(address: &str, word: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    writeln!(stream, "{word}")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_port_leads_to_the_guest_with_and_without_a_network_and_after_a_restart() {
    let Some(world) = World::enter() else { return };
    let mut server = world.server();
    for args in [&[][..], &["--allow-cidr", "203.0.113.10/32"]] {
        let id = running(&server, args);
        sh(&server, &id, "(while true; do nc -l -p 8080 -e sed 's/^/guest: /'; done) >/dev/null 2>&1 & sleep 0.5");
        let address = server.ok(&["port", &id, "8080"]);
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        assert_eq!(ask(&address, "one").unwrap(), "guest: one\n");
        server.kill9();
        server.spawn();
        server.until(&id, &["running"]);
        let end = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            // Until the guest is spoken to again nobody listens.
            match ask(&address, "two") {
                Ok(answer) if answer == "guest: two\n" => break,
                other => assert!(std::time::Instant::now() < end, "{other:?}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        server.ok(&["port", &id, "--remove", "8080"]);
        assert!(TcpStream::connect(&address).is_err(), "nobody listens any more");
        server.ok(&["rm", &id]);
    }
    server.nothing_left();
}

#[test]
fn nobody_else_reaches_a_port_unless_the_operator_lets_them() {
    let Some(world) = World::enter() else { return };
    let server = world.server();
    let id = running(&server, &[]);
    let refused = server.run(&["port", &id, "8080", "--listen", "0.0.0.0:0"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--public-ports"), "{said}");
    server.ok(&["rm", &id]);
    server.nothing_left();
}
