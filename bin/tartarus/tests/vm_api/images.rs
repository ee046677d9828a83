//! Where images come from.

use std::os::unix::fs::{PermissionsExt, symlink};

use crate::harness::{Server, skip};

#[test]
fn a_folder_becomes_an_image() {
    let busybox = std::path::Path::new("/bin/busybox");
    if !busybox.exists() {
        return skip("busybox-static is not installed");
    }
    let server = Server::start();
    let root = server.scratch().join("root");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
    std::fs::write(root.join("bin/hello"), "#!/bin/sh\necho from a folder\n").unwrap();
    std::fs::set_permissions(root.join("bin/hello"), std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    let import = ["image", "import", root.to_str().unwrap(), "--name", "folder"];
    server.ok(&import);
    let digest = |server: &Server| {
        let images = server.json(&["image", "ls", "--json"]);
        let found = images.as_array().unwrap().iter().find(|i| i["name"] == "folder").cloned();
        found.unwrap()["digest"].clone()
    };
    let first = digest(&server);
    server.ok(&import);
    assert_eq!(digest(&server), first, "the same folder is the same image");
    server.ok(&["template", "create", "folder", "--from", "folder", "--memory", "128M", "--disk", "256M"]);
    assert_eq!(server.ok(&["run", "folder", "--", "hello"]), "from a folder");
}
