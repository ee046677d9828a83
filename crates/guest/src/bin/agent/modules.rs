//! Loads kernel modules, in the order in which the initramfs lists them.

use std::fs;
use std::io::ErrorKind;

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::errors::{BootError, During};

/// The list of what every machine needs.
pub(crate) const ALWAYS: &str = "/modules/order";
/// The list of what a machine with a vsock device needs beside. There is none where the kernel has it built in, or not
/// at all.
pub(crate) const VSOCK: &str = "/modules/vsock";

/// Loads what a list names, dependencies first; nothing where there is no such list.
pub(crate) fn load(list: &str) -> Result<(), BootError> {
    let order = match fs::read_to_string(list) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        read => read.during(|| format!("read {list}"))?,
    };
    for name in order.lines().filter(|line| !line.is_empty()) {
        let path = format!("/modules/{name}");
        let file = fs::File::open(&path).during(|| format!("open the module {name}"))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).during(|| format!("load the module {name}")),
        }
    }
    Ok(())
}
