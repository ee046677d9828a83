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

/// The same for a hypervisor that boots an ELF, in long mode, about as fast. Each letter is kept in a page of its own, too.
pub(crate) fn elf() -> Vec<u8> {
    const AT: u32 = 0x100_0000;
    let letter = (AT + 0x1000).to_le_bytes();
    let mut code = vec![0xfa]; // cli
    code.extend([[0xbb].as_slice(), &letter].concat()); // mov ebx, letter
    code.extend([0xc6, 0x03, b'A']); // mov byte [rbx], 'A'
    let next = code.len();
    code.extend([0x0f, 0xb6, 0x03]); // next: movzx eax, byte [rbx]
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xee]); // out 0x3f8, al
    code.extend([0x89, 0xc1, 0xc1, 0xe1, 0x0c]); // mov ecx, eax; shl ecx, 12
    code.extend([0x88, 0x04, 0x0b]); // mov [rbx + rcx], al
    code.extend([0xfe, 0xc0, 0x3c, b'Z' + 1, 0x75, 0x02, 0xb0, b'A']); // the next letter
    code.extend([0x88, 0x03]); // mov [rbx], al
    // Asks the port for its state 4096 times: what takes the hypervisor takes as long wherever instructions are emulated.
    code.extend([0x66, 0xba, 0xfd, 0x03, 0xb9, 0x00, 0x10, 0x00, 0x00]); // mov dx, 0x3fd; mov ecx, 4096
    code.extend([0xec, 0xff, 0xc9, 0x75, 0xfb]); // in al, dx; dec ecx; jne
    let back = next as i64 - (code.len() as i64 + 2);
    code.extend([0xeb, back as i8 as u8]); // jmp next
    let mut kernel = b"\x7fELF\x02\x01\x01".to_vec();
    kernel.resize(16, 0);
    let add = |kernel: &mut Vec<u8>, numbers: &[(u64, usize)]| {
        for (number, bytes) in numbers {
            kernel.extend(&number.to_le_bytes()[..*bytes]);
        }
    };
    let (at, length) = (u64::from(AT), code.len() as u64);
    // An executable for x86-64 with one part, whose description follows; then that: readable, writable, executable.
    add(&mut kernel, &[(2, 2), (62, 2), (1, 4), (at, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (1, 2), (0, 6)]);
    add(&mut kernel, &[(1, 4), (7, 4), (0x1000, 8), (at, 8), (at, 8), (length, 8), (length, 8), (0x1000, 8)]);
    kernel.resize(0x1000, 0);
    kernel.extend(code);
    kernel
}

pub(crate) const MIB: u32 = 64;

/// A machine for a hypervisor that boots an ELF.
pub(crate) fn elf_machine(dir: &Path) -> Machine {
    let machine = machine(dir);
    std::fs::remove_file(&machine.kernel).unwrap();
    std::fs::write(&machine.kernel, elf()).unwrap();
    for file in [&machine.kernel, &machine.base] {
        std::fs::set_permissions(file, Permissions::from_mode(0o444)).unwrap();
    }
    machine
}

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
        network: None,
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
