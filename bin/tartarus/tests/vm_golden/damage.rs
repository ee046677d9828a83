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
    for name in ["memory", "state", "layer"] {
        for harm in ["flipped", "truncated"] {
            let hurt = folder(&server, "hurt");
            let path = hurt.join(name);
            let length = std::fs::metadata(&path).unwrap().len();
            // The server's own copies must not hide it: it starts with nothing loaded.
            server.stop();
            match harm {
                "flipped" => flip(&path, length / 2),
                _ => std::fs::File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap(),
            }
            server.spawn();
            assert_eq!(server.ok(&["run", "hurt", "--", "echo", "fine"]), "fine", "{name} {harm}");
            // It booted, or it came from another one that was made meanwhile.
            let from = started_from(&newest(&server));
            let made_anew = from == "snapshot" && folder(&server, "hurt") != hurt;
            assert!(from.starts_with("cold boot") || made_anew, "{name} {harm}: {from}");
            server.ok(&["template", "rebuild", "hurt"]);
            assert_ne!(folder(&server, "hurt"), hurt, "{name} {harm}: it was not made anew");
        }
    }
    server.nothing_left();
}
