//! Flags of commands that start a server of their own: which guest kernel it is given.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct GuestKernelArgs {
    /// Take the newest guest kernel of this data folder, and nothing else of it [default: that of `up`]
    #[arg(long, value_name = "DIR", env = "TARTARUS_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// Take the guest kernel of this Debian package
    #[arg(long, value_name = "DEB", conflicts_with = "vmlinuz")]
    pub(crate) kernel: Option<PathBuf>,
    /// Take this guest kernel
    #[arg(long, value_name = "FILE", requires = "modules")]
    pub(crate) vmlinuz: Option<PathBuf>,
    /// Its modules: a folder such as lib/modules/RELEASE
    #[arg(long, value_name = "DIR", requires = "vmlinuz")]
    pub(crate) modules: Option<PathBuf>,
    /// A tar such as `dpkg-deb --fsys-tarfile` prints
    #[arg(long, value_name = "TAR", hide = true)]
    pub(crate) kernel_tar: Option<PathBuf>,
}
