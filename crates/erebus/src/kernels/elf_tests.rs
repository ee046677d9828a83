//! Made-up kernels, packed in every way. A real one is in the tests of `kernels`.

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::super::image::fake_bzimage;
use super::*;
use crate::testing::{noise, packed};

/// The first bytes of an ELF file for x86-64, then others.
fn fake_elf(len: usize) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01".to_vec();
    elf.resize(64, 0);
    (elf[16], elf[18]) = (2, 62);
    elf.extend(noise(len - 64));
    elf
}

/// A bzImage with this in it.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = fake_bzimage("6.1.0");
    let start = image.len();
    image[0x248..0x24c].copy_from_slice(&(start as u32 - 5 * 512).to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image.extend_from_slice(b"more");
    image
}

/// As the kernel's build packs it.
fn payload(program: &str, elf: &[u8]) -> Vec<u8> {
    let size = (elf.len() as u32).to_le_bytes();
    match program {
        "gzip" => packed(program, elf),
        "lz4" => [lz4::pack(elf, 8 << 20).as_slice(), &size].concat(),
        _ => [packed(program, elf).as_slice(), &size].concat(),
    }
}

struct Kernel(tempfile::TempDir);

impl Kernel {
    fn new(vmlinuz: &[u8]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["kernel", "staging"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        disk::write(&root.path().join("kernel/vmlinuz"), vmlinuz).unwrap();
        Self(root)
    }

    async fn elf(&self) -> Result<PathBuf, String> {
        let root = self.0.path();
        find_or_make(root.join("kernel"), root.join("staging").into()).await.map_err(|e| e.to_string())
    }

    fn files(&self) -> usize {
        ["kernel", "staging"].map(|name| fs::read_dir(self.0.path().join(name)).unwrap().count()).iter().sum()
    }
}

#[tokio::test]
async fn every_packing_gives_the_elf_file_once() {
    let elf = fake_elf(9 << 20);
    for program in ["lz4", "gzip", "xz", "zstd"] {
        let kernel = Kernel::new(&bzimage(&payload(program, &elf)));
        let path = kernel.elf().await.unwrap();
        assert!(path.ends_with("kernel/vmlinux") && fs::read(&path).unwrap() == elf, "{program}");
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o444);
        assert_eq!(kernel.elf().await.unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), meta.modified().unwrap(), "made once");
        assert_eq!(kernel.files(), 2);
    }
}

#[tokio::test]
async fn an_elf_file_is_its_own() {
    let kernel = Kernel::new(&fake_elf(1000));
    let path = kernel.elf().await.unwrap();
    assert!(path.ends_with("kernel/vmlinuz"));
    assert_eq!((fs::metadata(path).unwrap().permissions().mode() & 0o777, kernel.files()), (0o444, 1));
}

#[tokio::test]
async fn what_is_no_kernel_says_why_and_leaves_nothing() {
    let elf = fake_elf(100_000);
    let put = |at: usize, bytes: &[u8], mut image: Vec<u8>| {
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let fine = || bzimage(&payload("lz4", &elf));
    let with_size = |size: u32| bzimage(&[lz4::pack(&elf, 1 << 20).as_slice(), &size.to_le_bytes()].concat());
    let half = |program: &str| {
        let packed = payload(program, &elf);
        bzimage(&[&packed[..50_000], &packed[packed.len() - 4..]].concat())
    };
    for (image, words) in [
        (b"#!/bin/sh\n".to_vec(), "no bzImage"),
        (put(0x206, &[7, 2], fine()), "too old"),
        (put(0x248, &[0xff; 4], fine()), "cut off"),
        (put(0x24c, &[0xff; 4], fine()), "cut off"),
        (put(0x24c, &[0; 4], fine()), "cut off"),
        (fine()[..60_000].to_vec(), "cut off"),
        (with_size((256 << 20) + 1), "larger than 256 MiB"),
        (with_size(99_999), "damaged"),
        (with_size(100_001), "damaged"),
        (half("lz4"), "damaged"),
        (half("gzip"), "damaged"),
        (half("xz"), "damaged"),
        (half("zstd"), "damaged"),
        (bzimage(&payload("xz", &noise(1000))), "none for x86-64"),
        (bzimage(b"BZh91AY&SY    "), "bzip2"),
        (bzimage(b"\x5d\0\0\0\x04\xff\xff\xff\xff"), "lzma"),
        (bzimage(b"\x89LZO\0\x0d\x0a\x1a\x0a...."), "lzo"),
        (bzimage(b"unknown bytes"), "unknown way"),
    ] {
        let kernel = Kernel::new(&image);
        let error = kernel.elf().await.unwrap_err();
        assert!(error.contains(words), "{error} should say {words:?}");
        assert_eq!(kernel.files(), 1);
    }
}

proptest! {
    #[test]
    fn any_header_is_survived(offset: u32, len: u32, at in 0x1f0_usize..0x260, to: u8, cut in 0_usize..12_000) {
        let mut image = bzimage(&payload("lz4", &fake_elf(2000)));
        image[at] = to;
        let _ = Payload::find(&image[..cut.min(image.len())]);
        image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&len.to_le_bytes());
        if let Ok(found) = Payload::find(&image) {
            prop_assert!(found.bytes.end <= image.len() && found.size <= MAX_ELF);
        }
    }
}
