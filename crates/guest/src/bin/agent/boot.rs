//! The boot, step by step: from the kernel's first process to a machine that can run commands.

use std::fs;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::agent::Ground;
use crate::channel;
use crate::console;
use crate::disks;
use crate::errors::{BootError, During};
use crate::etc::EtcFiles;
use crate::freeze::Freezer;
use crate::hook::{self, Hooks};
use crate::identity::{self, Identity};
use crate::memory;
use crate::modules;
use crate::network::Card;
use crate::port::Port;
use crate::root;
use crate::spawn::Held;
use crate::still::Still;
use crate::uevents::Uevents;

/// Open files of the agent itself: three per process, and pipes that children of ended ones keep.
const NOFILE: Rlimit = Rlimit { current: Some(524_288), maximum: Some(524_288) };

/// What a kernel does by itself every second or more often, without anybody's asking, would wake each idle guest.
const QUIET: [(&str, &str); 2] = [("/proc/sys/vm/compaction_proactiveness", "0"), ("/proc/sys/vm/stat_interval", "10")];

/// Boots. An error means that the host cannot even be told; what it can be told is the inner result.
pub(crate) fn boot() -> Result<(Port, Result<Ground, String>), String> {
    let (uevents, port) = open_channel().map_err(|error| error.to_string())?;
    let ground = prepare(&uevents).map_err(|error| error.to_string());
    if let Err(why) = &ground {
        console(why);
    }
    Ok((port, ground))
}

fn open_channel() -> Result<(Uevents, Port), BootError> {
    root::mount_kernel_file_systems()?;
    let uevents = Uevents::subscribe().during(|| "subscribe to device events".to_owned())?;
    modules::load(modules::ALWAYS)?;
    let port = channel::open(&uevents)?;
    Ok((uevents, port))
}

fn prepare(uevents: &Uevents) -> Result<Ground, BootError> {
    for (path, value) in QUIET {
        // Another kernel may not have it, and works without.
        let _ = fs::write(path, value);
    }
    let layer = root::enter(&disks::find(uevents)?)?;
    if let Err(error) = identity::loopback_up() {
        console(&format!("the loopback interface stays down: {error}"));
    }
    setrlimit(Resource::Nofile, NOFILE).during(|| "raise the agent's limit of open files".to_owned())?;
    fs::write("/proc/self/oom_score_adj", "-1000")
        .during(|| "protect the agent from the out-of-memory killer".to_owned())?;
    let files = EtcFiles::mount("/etc", "/run/tartarus-etc");
    // With none the host is told when it wants one.
    let card = Card::prepare().map_err(|error| console(&error.to_string())).ok();
    let identity = Identity::new(files, card).during(|| "open the random device".to_owned())?;
    let hooks = Hooks::listen(hook::FOLDER);
    if let Err(error) = &hooks {
        console(&format!("no process is told of a restore: could not listen in {}: {error}", hook::FOLDER));
    }
    Ok(Ground {
        held: Held::open().during(|| "open /proc, its vmstat or /dev/null".to_owned())?,
        pressure: memory::pressure().ok(),
        identity: Box::new(identity),
        freezer: Some(Freezer::new(layer, Some("/proc/self/exe"))),
        hooks: hooks.ok(),
        still: Still::default(),
    })
}
