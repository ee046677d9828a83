//! Takes the ELF file out of a bzImage, for hypervisors that start a kernel without its own unpacking (Firecracker).

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncReadExt;

use super::image::{HEAD, Image};
use super::lz4;
use crate::ErebusError;
use crate::disk::{self, Staging};
use crate::unpack::Input;

/// Largest kernel, unpacked, bytes.
const MAX_ELF: u64 = 256 << 20;

/// How kernels are packed, by their first bytes.
const PACKINGS: [(&[u8], Packing); 4] = [
    (lz4::MAGIC, Packing::Lz4),
    (b"\x1f\x8b", Packing::Gzip),
    (b"\xfd7zXZ\0", Packing::Program),
    (b"\x28\xb5\x2f\xfd", Packing::Program),
];

/// How they may be packed as well, which is not read here.
const OTHERS: [(&[u8], &str); 3] = [(b"BZh", "bzip2"), (b"\x5d\0\0", "lzma"), (b"\x89LZO", "lzo")];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    /// In blocks.
    Lz4,
    /// A program of the system unpacks it; the size at its end is a part of it.
    Gzip,
    /// A program of the system unpacks it.
    Program,
}

/// The packed kernel in a bzImage.
#[derive(Debug, PartialEq, Eq)]
struct Payload {
    /// Where it is, without what was put behind it.
    bytes: Range<usize>,
    packing: Packing,
    /// Bytes when it is unpacked.
    size: u64,
}

/// The ELF file of the kernel in `dir`.
pub(super) async fn find_or_make(dir: PathBuf, staging: Arc<Path>) -> Result<PathBuf, ErebusError> {
    let (vmlinuz, vmlinux) = (dir.join("vmlinuz"), dir.join("vmlinux"));
    if vmlinux.try_exists().map_err(ErebusError::io("look for the unpacked kernel"))? {
        return Ok(vmlinux);
    }
    let image = tokio::fs::read(&vmlinuz).await.map_err(ErebusError::io("read the kernel"))?;
    if is_elf(&image) {
        disk::share(&vmlinuz).map_err(ErebusError::io("share the kernel"))?;
        return Ok(vmlinuz);
    }
    let elf = unpack(image).await?;
    tokio::task::spawn_blocking(move || keep(&dir, &staging, &elf))
        .await
        .unwrap_or_else(|e| Err(e.into()))
        .map_err(ErebusError::io("store the unpacked kernel"))?;
    Ok(vmlinux)
}

fn keep(dir: &Path, staging: &Path, elf: &[u8]) -> io::Result<()> {
    let staging = Staging::new(staging)?;
    let made = staging.path().join("vmlinux");
    disk::write(&made, elf)?;
    disk::share(&made)?;
    fs::rename(&made, dir.join("vmlinux"))?;
    disk::sync_dir(dir)
}

fn is_elf(image: &[u8]) -> bool {
    Image::recognise(&image[..image.len().min(HEAD)]) == Some(Image::Elf)
}

async fn unpack(image: Vec<u8>) -> Result<Vec<u8>, ErebusError> {
    let Payload { bytes, packing, size } = Payload::find(&image).map_err(ErebusError::bad)?;
    let damaged = || ErebusError::bad("what is packed in it is damaged");
    let elf = match packing {
        Packing::Lz4 => tokio::task::spawn_blocking(move || lz4::unpack(&image[bytes], size as usize))
            .await
            .map_err(|e| ErebusError::io("unpack the kernel")(e.into()))?
            .ok_or_else(damaged)?,
        Packing::Gzip | Packing::Program => {
            let mut elf = Vec::new();
            let read = Input::open(&image[bytes]).await?.take(size + 1).read_to_end(&mut elf).await;
            read.map_err(|e| ErebusError::bad(e.to_string()))?;
            elf
        }
    };
    if elf.len() as u64 != size {
        return Err(damaged());
    }
    if !is_elf(&elf) {
        return Err(ErebusError::bad("what is packed in it is none for x86-64 either"));
    }
    Ok(elf)
}

impl Payload {
    /// By the boot protocol of x86, version 2.08 or newer, or says why not. Pure.
    fn find(image: &[u8]) -> Result<Self, String> {
        let (Some(Image::BzImage { .. }), Some(version)) = (Image::recognise(image), u32_at(image, 0x206)) else {
            return Err("it is no bzImage either".to_owned());
        };
        if version & 0xffff < 0x0208 {
            return Err("it is too old a bzImage, which does not say where its ELF image is".to_owned());
        }
        let sectors = match image[0x1f1] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let whole = || {
            let (offset, len) = (u32_at(image, 0x248)? as usize, u32_at(image, 0x24c)? as usize);
            let start = (sectors + 1) * 512 + offset;
            // The kernel's build puts the unpacked size behind what is packed; gzip has it there by itself.
            let size = u32_at(image.get(..start.checked_add(len)?)?, (start + len).checked_sub(4)?)?;
            Some((start..start + len, size.into())).filter(|_| len >= 8)
        };
        let (bytes, size) = whole().ok_or("what is packed in it is cut off")?;
        let packed = &image[bytes.clone()];
        if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| packed.starts_with(magic)) {
            return Err(format!(
                "it is packed with {name}, which is not read here: use one packed with gzip, xz, zstd or LZ4"
            ));
        }
        let packing = PACKINGS.iter().find(|(magic, _)| packed.starts_with(magic));
        let packing = packing.ok_or("it is packed in an unknown way")?.1;
        if size > MAX_ELF {
            return Err(format!("unpacked it is larger than {} MiB", MAX_ELF >> 20));
        }
        let end = if packing == Packing::Gzip { bytes.end } else { bytes.end - 4 };
        Ok(Self { bytes: bytes.start..end, packing, size })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
