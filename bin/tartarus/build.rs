//! Builds the programs that run in guests (the agent, and the attacker of `tartarus torture`) static and hands them to the
//! binary, so that this is all there is to install.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=TARTARUS_GUEST_AGENT");
    println!("cargo::rerun-if-env-changed=TARTARUS_ATTACKER");
    println!("cargo::rerun-if-changed=../../crates/guest");
    println!("cargo::rerun-if-changed=../../crates/attacker");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let out = PathBuf::from(env("OUT_DIR"));
    for (name, program) in [("TARTARUS_GUEST_AGENT", "tartarus-guest"), ("TARTARUS_ATTACKER", "tartarus-attacker")] {
        let file = std::env::var_os(name).map_or_else(|| build(&out, program), PathBuf::from);
        println!("cargo::rustc-env={name}_FILE={}", file.display());
    }
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// A build of its own: another target directory, since the outer build holds the lock of its own one, and other flags.
fn build(out: &Path, program: &str) -> PathBuf {
    let (target, dir) = (env("TARGET"), out.join("guest"));
    let status = Command::new(env("CARGO"))
        .args(["build", "--release", "--locked", "--package", program, "--bin", program])
        .args(["--config", "profile.release.strip=true", "--config", "profile.release.panic=\"abort\""])
        // After a restore each piece of it is translated anew: the fewer the better.
        .args(["--config", "profile.release.lto=\"fat\"", "--config", "profile.release.codegen-units=1"])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&dir)
        .current_dir(Path::new(&env("CARGO_MANIFEST_DIR")).join("../.."))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET_DIR")
        .status();
    assert!(matches!(status, Ok(s) if s.success()), "{program} does not build: {status:?}");
    dir.join(target).join("release").join(program)
}
