//! Goes through a kernel's tar once and keeps what may be needed.
//!
//! Which modules are needed is known only when all were seen, so all of them go one after another into one file, without
//! their names; an index says what is where.

use std::collections::{HashMap, HashSet};
use std::io::SeekFrom;
use std::path::Path;

use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::image::{HEAD, Image};
use super::layout::{self, Role};
use crate::ErebusError;
use crate::disk;
use crate::error::shown;
use crate::tarball::{Kind, Limits, Tar};
use crate::unpack::Input;

/// Most that a kernel's tar may hold: 4 GiB, 200,000 entries.
const LIMITS: Limits = Limits { entries: 200_000, bytes: 4 << 30 };
/// Largest kernel, bytes.
const MAX_KERNEL: u64 = 128 << 20;
/// Largest module, unpacked, bytes.
const MAX_MODULE: u64 = 64 << 20;
/// Most modules.
const MAX_MODULES: usize = 20_000;
/// Longest list of what is built in, bytes.
const MAX_BUILTIN: u64 = 4 << 20;
/// Bytes copied at once.
const CHUNK: usize = 256 * 1024;
/// The file that everything goes into.
const POOL: &str = "pool";

/// Where in the pool something is.
#[derive(Debug, Clone, Copy)]
struct Piece {
    at: u64,
    len: u64,
    /// The tar has several of that name: which one is meant cannot be known.
    several: bool,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Collected {
    pool: File,
    end: u64,
    kernel: Vec<u8>,
    modules: HashMap<String, Piece>,
    builtin: HashSet<String>,
    /// `uname -r`, which everything in the tar agrees on.
    pub(super) release: String,
}

impl Collected {
    /// Reads the tar to its end. The pool is made in `folder`, see [`discard`].
    pub(super) async fn read(input: impl AsyncRead + Unpin, folder: &Path) -> Result<Self, ErebusError> {
        let pool = disk::create(&folder.join(POOL), 0o600).map_err(ErebusError::io("make a file for the modules"))?;
        let mut this = Self {
            pool: File::from_std(pool),
            end: 0,
            kernel: Vec::new(),
            modules: HashMap::new(),
            builtin: HashSet::new(),
            release: String::new(),
        };
        let (mut tar, mut named, mut kernels) = (Tar::new(input, LIMITS), Named::default(), 0);
        while let Some(entry) = tar.next().await? {
            let Kind::File(size) = entry.kind else { continue };
            let path = &entry.path;
            match layout::role(path) {
                Some(Role::Kernel { release }) => {
                    named.agree(release, path)?;
                    kernels += 1;
                    if kernels > 1 {
                        return Err(ErebusError::bad("the tar holds more than one kernel: send one at a time"));
                    }
                    this.kernel = whole(&mut tar, size, MAX_KERNEL, path).await?;
                }
                Some(Role::Builtin { release }) => {
                    named.agree(release, path)?;
                    let list = whole(&mut tar, size, MAX_BUILTIN, path).await?;
                    this.builtin.extend(layout::builtin(&String::from_utf8_lossy(&list)));
                }
                Some(Role::Module { name, release }) => {
                    named.agree(release, path)?;
                    this.store(&mut tar, name, size, path).await?;
                }
                None => {}
            }
        }
        if kernels == 0 {
            return Err(ErebusError::bad(
                "the tar holds no kernel: it wants boot/vmlinuz-RELEASE and lib/modules/RELEASE/, or vmlinuz and modules/",
            ));
        }
        match Image::recognise(&this.kernel[..this.kernel.len().min(HEAD)]) {
            Some(Image::BzImage { release: Some(own) }) => named.agree(Some(own), b"the kernel itself")?,
            Some(Image::BzImage { release: None } | Image::Elf) => {}
            None => {
                return Err(ErebusError::bad("the kernel in the tar is neither an x86 bzImage nor an x86-64 ELF file"));
            }
        }
        this.release = named.0.ok_or_else(|| {
            ErebusError::bad(
                "the kernel's release is not known: name it as in boot/vmlinuz-RELEASE or lib/modules/RELEASE/",
            )
        })?;
        this.pool.flush().await.map_err(ErebusError::io("write the modules"))?;
        Ok(this)
    }

    /// The kernel.
    pub(super) fn kernel(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.kernel)
    }

    /// Whether the module is part of the kernel.
    pub(super) fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(name)
    }

    /// Whether the tar has the module.
    pub(super) fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }

    /// A module's file, unpacked.
    ///
    /// # Errors
    /// When the tar does not have it, has several of the name, or it cannot be unpacked.
    pub(super) async fn module(&mut self, name: &str) -> Result<Vec<u8>, ErebusError> {
        let Some(piece) = self.modules.get(name).copied() else {
            return Err(ErebusError::bad(format!("the tar has no module {name}")));
        };
        if piece.several {
            return Err(ErebusError::bad(format!("the tar has several modules {name}: leave out all but one")));
        }
        let mut packed = vec![0; piece.len as usize];
        let read = async {
            self.pool.seek(SeekFrom::Start(piece.at)).await?;
            self.pool.read_exact(&mut packed).await
        };
        read.await.map_err(ErebusError::io("read a module back"))?;
        let mut module = Vec::new();
        let unpacked = Input::open(&packed[..]).await?.take(MAX_MODULE + 1).read_to_end(&mut module).await;
        unpacked.map_err(|e| ErebusError::bad(format!("the module {name} cannot be unpacked: {e}")))?;
        if module.len() as u64 > MAX_MODULE {
            return Err(ErebusError::bad(format!("the module {name} is larger than {} MiB", MAX_MODULE >> 20)));
        }
        Ok(module)
    }

    async fn store(
        &mut self,
        tar: &mut Tar<impl AsyncRead + Unpin>,
        name: String,
        size: u64,
        path: &[u8],
    ) -> Result<(), ErebusError> {
        if size > MAX_MODULE || self.modules.len() >= MAX_MODULES {
            return Err(ErebusError::bad(format!("{} is too large, or one module too many", shown(path))));
        }
        let piece = Piece { at: self.end, len: size, several: false };
        self.modules.entry(name).and_modify(|known| known.several = true).or_insert(piece);
        self.end += size;
        let mut chunk = vec![0; CHUNK];
        loop {
            match tar.read(&mut chunk).await? {
                0 => return Ok(()),
                n => self.pool.write_all(&chunk[..n]).await.map_err(ErebusError::io("write the modules"))?,
            }
        }
    }
}

/// Removes the pool from `folder`. Blocks.
pub(super) fn discard(folder: &Path) -> std::io::Result<()> {
    std::fs::remove_file(folder.join(POOL))
}

/// The release that was named so far.
#[derive(Debug, Default)]
struct Named(Option<String>);

impl Named {
    fn agree(&mut self, release: Option<String>, by: &[u8]) -> Result<(), ErebusError> {
        let Some(release) = release else { return Ok(()) };
        if !layout::is_release(&release) {
            return Err(ErebusError::bad(format!("{} names an odd kernel release", shown(by))));
        }
        match &self.0 {
            Some(named) if *named != release => Err(ErebusError::bad(format!(
                "kernel and modules do not belong together: {} says {release}, another file {named}",
                shown(by)
            ))),
            _ => {
                self.0 = Some(release);
                Ok(())
            }
        }
    }
}

/// All of an entry's file.
async fn whole(
    tar: &mut Tar<impl AsyncRead + Unpin>,
    size: u64,
    most: u64,
    path: &[u8],
) -> Result<Vec<u8>, ErebusError> {
    if size > most {
        return Err(ErebusError::bad(format!("{} is larger than {} MiB", shown(path), most >> 20)));
    }
    let mut content = Vec::with_capacity(size as usize);
    let mut chunk = vec![0; CHUNK];
    loop {
        match tar.read(&mut chunk).await? {
            0 => return Ok(content),
            n => content.extend_from_slice(&chunk[..n]),
        }
    }
}
