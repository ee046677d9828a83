//! The server itself: keys, addresses, folders.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::harness::{BINARY, Server, output};

#[test]
fn every_route_but_the_two_health_checks_needs_the_key() {
    let server = Server::empty(&[]);
    for (path, status) in [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/v1/sandboxes", 401),
        ("/v1/doctor", 401),
        ("/v1/openapi.json", 401),
        ("/nowhere", 401),
        ("/", 401),
    ] {
        assert_eq!(server.http_raw("GET", path, &[], b"").status, status, "{path}");
        let wrong = format!("Bearer tt_{}", "0".repeat(56));
        let with_wrong = server.http_raw("GET", path, &[("authorization", &wrong)], b"").status;
        assert_eq!(with_wrong, status, "{path} with a wrong key");
    }
    assert_eq!(server.http("GET", "/nowhere", &[], b"").status, 404);
    let mode = |path: &str| std::fs::metadata(server.data.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("admin.key"), mode(".")), (0o600, 0o700));
    let database = std::fs::read(server.data.join("tartarus.db")).unwrap();
    let key = server.key();
    assert!(!database.windows(key.len()).any(|w| w == key.as_bytes()), "the key is stored in clear");
}

#[test]
fn listening_beyond_loopback_without_tls_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(BINARY);
    command.args(["up", "--listen", "0.0.0.0:0", "--data", dir.path().join("d").to_str().unwrap()]);
    command.env("HOME", dir.path()).stdin(Stdio::null());
    let output = output(command);
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("--insecure") && errors.contains("TLS"), "{errors}");
    assert!(!dir.path().join("d").exists(), "something was made before it was refused");
}

#[test]
fn the_cli_of_the_same_user_finds_the_server_by_its_pointer() {
    let mut server = Server::empty(&[]);
    let bare = |server: &Server| {
        let mut command = Command::new(BINARY);
        command.args(["ps", "--json"]).env("HOME", server.scratch()).stdin(Stdio::null());
        for name in ["TARTARUS_URL", "TARTARUS_API_KEY", "XDG_STATE_HOME"] {
            command.env_remove(name);
        }
        output(command)
    };
    let found = bare(&server);
    assert!(found.status.success(), "{found:?}");
    assert_eq!(String::from_utf8_lossy(&found.stdout).trim(), "[]");
    server.stop();
    let gone = bare(&server);
    assert!(!gone.status.success());
    assert!(String::from_utf8_lossy(&gone.stderr).contains("tartarus up"), "{gone:?}");
}
