//! A file that was truncated, altered or exchanged never starts a guest.

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::harness::Server;
use crate::world::{folder, newest, started_from, template};

fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn a_damaged_file_is_never_restored() {
    let mut server = Server::start();
    template(&server, "hurt", &[]);
    let folder = folder(&server, "hurt");
    let names = ["memory", "state", "layer"];
    let whole: Vec<Vec<u8>> = names.iter().map(|n| std::fs::read(folder.join(n)).unwrap()).collect();
    for (name, bytes) in names.iter().zip(&whole) {
        let path = folder.join(name);
        for harm in ["flipped", "truncated"] {
            // The server's own copies must not hide it: it starts with nothing loaded.
            server.stop();
            match harm {
                "flipped" => flip(&path, bytes.len() as u64 / 2),
                _ => std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap(),
            }
            server.spawn();
            let said = server.ok(&["run", "hurt", "--", "echo", "fine"]);
            assert_eq!(said, "fine");
            let from = started_from(&newest(&server));
            let rebuilt = from == "snapshot" && std::fs::read(&path).is_ok_and(|now| now.len() >= bytes.len());
            assert!(from.starts_with("cold boot") || rebuilt, "{name} {harm}: {from}");
            server.stop();
            for (name, bytes) in names.iter().zip(&whole) {
                std::fs::write(folder.join(name), bytes).unwrap();
            }
            server.spawn();
        }
    }
    server.nothing_left();
}
