//! A guest of a few instructions, which prints letters for ever.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tartarus_runtime::{Layer, Machine};

const LIMIT: Duration = Duration::from_secs(30);

/// A kernel by the Linux boot protocol, in a few instructions of real mode: it prints the alphabet over and over, about
/// 20 letters a second, and keeps the next letter in memory.
pub(crate) fn kernel() -> Vec<u8> {
    let mut kernel = vec![0; 8192];
    kernel[0x1f1] = 1; // sectors of set-up code, beside the first
    kernel[0x200..0x202].copy_from_slice(&[0xeb, 0x7e]); // jmp 0x280
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&[0x02, 0x02]);
    kernel[0x211] = 1; // is loaded high
    let code: [u8; 41] = [
        0xfa, // cli
        0xb8,
        0x00,
        0x30,
        0x8e,
        0xd8, // ds = 0x3000
        0xc6,
        0x06,
        0x00,
        0x00,
        b'A', // mov byte [0], 'A'
        0xa0,
        0x00,
        0x00, // next: mov al, [0]
        0xba,
        0xf8,
        0x03,
        0xee, // out 0x3f8, al
        0xfe,
        0xc0,
        0x3c,
        b'Z' + 1,
        0x75,
        0x02,
        0xb0,
        b'A', // the next letter
        0xa2,
        0x00,
        0x00, // mov [0], al
        0x66,
        0xb9,
        0x00,
        0x00,
        0x80,
        0x00,
        0x66,
        0x49,
        0x75,
        0xfc, // count 8388608 down
        0xeb,
        0xe2, // jmp next
    ];
    kernel[0x280..0x280 + code.len()].copy_from_slice(&code);
    kernel
}

pub(crate) const MIB: u32 = 64;

pub(crate) fn machine(dir: &Path) -> Machine {
    for name in ["base", "layer", "initramfs"] {
        std::fs::write(dir.join(name), vec![0; 1 << 20]).unwrap();
    }
    std::fs::write(dir.join("kernel"), kernel()).unwrap();
    // Of these a hypervisor in a cell opens the names that its descriptors have.
    for name in ["kernel", "initramfs"] {
        std::fs::set_permissions(dir.join(name), Permissions::from_mode(0o444)).unwrap();
    }
    Machine {
        dir: dir.to_owned(),
        cpus: 1,
        memory_mib: MIB,
        kernel: dir.join("kernel"),
        initramfs: dir.join("initramfs"),
        base: dir.join("base"),
        layer: Layer::raw(dir.join("layer")),
    }
}

/// What the guest printed; QEMU's own lines come first.
pub(crate) fn letters(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("console.log")).unwrap_or_default();
    let last = text.rsplit('\n').next().unwrap_or_default();
    last.chars().skip_while(|c| !c.is_ascii_uppercase()).collect()
}

pub(crate) async fn wait_for_letters(dir: &Path, more_than: usize) -> String {
    let begin = std::time::Instant::now();
    loop {
        let now = letters(dir);
        if now.len() > more_than {
            return now;
        }
        assert!(begin.elapsed() < LIMIT, "the guest printed only {now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
