//! Whether a node is ready for networks, and what it says where it is not.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::os::unix::fs::PermissionsExt as _;

use rustix::thread::UnshareFlags;
use styx::Styx;
use support::{alone, in_world, open};

#[test]
fn the_path_is_tried_and_what_blocks_it_is_named() {
    in_world(async |world| {
        let styx = Styx::new(alone());
        assert_eq!(styx.findings().await, []);
        world.node.sh("sysctl -qw net.ipv4.ip_forward=0");
        let found = styx.findings().await;
        assert_eq!(found[0].command.as_deref(), Some("sysctl -w net.ipv4.ip_forward=1"));
        world.node.sh(found[0].command.as_ref().unwrap());
        assert_eq!(styx.findings().await, []);
        world.node.sh("nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'");
        let found = styx.findings().await;
        let command = found[0].command.clone().unwrap();
        assert!(command.starts_with("nft insert rule"), "{command}");
        assert!(styx.take(&open()).await.is_err());
        world.node.sh(&command);
        assert_eq!(styx.findings().await, []);
        styx.take(&open()).await.unwrap();
        world
            .node
            .sh("ip link add foreign type veth peer name foreign1 && ip addr add 198.18.3.4/24 dev foreign && ip link set foreign up");
        assert!(styx.findings().await[0].problem.contains("198.18.3.4"));
    });
}

/// Such as one that is too old: here a version that knows no counter of the name `port`, as 0.9.8.
#[test]
fn an_nft_that_does_not_know_the_rules_is_named_before_anybody_starts() {
    in_world(async |world| {
        let styx = Styx::new(alone());
        let folder = tempfile::tempdir().unwrap();
        let (real, old) = (folder.path().join("real"), folder.path().join("old"));
        let place = ["/usr/sbin/nft", "/sbin/nft"].into_iter().find(|at| std::path::Path::new(at).exists()).unwrap();
        std::fs::copy(place, &real).unwrap();
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n--version) echo 'nftables v0.9.8 (E.D.S.)' ;;\n\
             '-f -') text=$(cat); case \"$text\" in *'counter port'*) echo 'syntax error, unexpected port' >&2; exit 1 ;; esac\n\
             printf '%s\\n' \"$text\" | {0} -f - ;;\n*) exec {0} \"$@\" ;;\nesac\n",
            real.display()
        );
        std::fs::write(&old, script).unwrap();
        std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
        // SAFETY: only this thread's mounts become its own, and those of what it starts.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
        world.node.sh(&format!("mount --make-rprivate / && mount --bind {} {place}", old.display()));
        let found = styx.findings().await;
        let problem = found.first().map(|found| found.problem.clone()).unwrap_or_default();
        assert!(problem.contains("nft v0.9.8") && problem.contains("unexpected port"), "{found:?}");
        assert!(problem.contains("for nftables 1.0.6 or later"), "{problem}");
        assert!(styx.take(&open()).await.unwrap_err().to_string().contains("nft v0.9.8"));
        world.node.sh(&format!("umount {place}"));
        assert_eq!(styx.findings().await, []);
        styx.take(&open()).await.unwrap();
    });
}
