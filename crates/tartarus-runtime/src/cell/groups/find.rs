//! Where the controllers of this host are.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The folder of all nodes of a host.
const PARENT: &str = "tartarus";

/// What a group can be limited in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Controller {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// Threads and processes.
    Pids,
}

impl Controller {
    /// All that a cell needs.
    pub(super) const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// The kernel's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

/// Which of the kernel's two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Version {
    /// A hierarchy for each controller.
    V1,
    /// One for all.
    #[default]
    V2,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Where.
    pub(super) mount: PathBuf,
    /// How it is spoken to.
    pub(super) version: Version,
    /// Those of [`Controller::ALL`] that it has.
    pub(super) controllers: Vec<Controller>,
}

/// Where the groups of a host's hypervisors are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// Each controller is in one of them.
    pub(super) places: Vec<Place>,
    /// The folder of all of them in each. It goes with the locks of user ids, of which groups have their names.
    pub parent: String,
}

impl Groups {
    /// Looks where they are.
    ///
    /// # Errors
    /// Which controller there is not, or not to be written, and what to do.
    pub fn find() -> Result<Self, String> {
        let path = "/proc/thread-self/mountinfo";
        let mounts = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
        find(&mounts, |mount| fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default())
    }
}

/// A line of `mountinfo`, as far as it is of a control group.
struct Mount<'a> {
    point: PathBuf,
    version: Version,
    writable: bool,
    options: &'a str,
}

fn parse(line: &str) -> Option<Mount<'_>> {
    // "36 35 0:30 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu" (man 5 proc_pid_mountinfo)
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let version = match after.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let options = after.nth(1)?;
    let fields: Vec<&str> = before.split(' ').collect();
    let (point, own) = (fields.get(4)?, fields.get(5)?);
    let writable = [own, &options].iter().all(|options| !options.split(',').any(|option| option == "ro"));
    // Blanks are written as \040; no host has them here.
    Some(Mount { point: PathBuf::from(point), version, writable, options })
}

fn find(mountinfo: &str, controllers: impl Fn(&Path) -> String) -> Result<Groups, String> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in mountinfo.lines().filter_map(parse) {
        // A later one at the same place lies over it.
        mounts.retain(|earlier| earlier.point != mount.point);
        mounts.push(mount);
    }
    let has = |mount: &Mount, controller: Controller| match mount.version {
        Version::V1 => mount.options.split(',').any(|option| option == controller.name()),
        Version::V2 => controllers(&mount.point).split_whitespace().any(|name| name == controller.name()),
    };
    let mut places: Vec<Place> = Vec::new();
    for controller in Controller::ALL {
        let name = controller.name();
        let found: Vec<&Mount> = mounts.iter().filter(|mount| has(mount, controller)).collect();
        let mount = match (found.iter().find(|mount| mount.writable), found.first()) {
            (Some(mount), _) => mount,
            (None, Some(mount)) => {
                let point = mount.point.display();
                return Err(format!(
                    "the control groups at {point} (controller {name}) are mounted read-only: mount them writable, or start \
                     the server where they are"
                ));
            }
            (None, None) => {
                return Err(format!(
                    "no control group mount has the controller {name}: mount -t cgroup2 none /sys/fs/cgroup, on a kernel \
                     that has it enabled"
                ));
            }
        };
        match places.iter_mut().find(|place| place.mount == mount.point) {
            Some(place) => place.controllers.push(controller),
            None => {
                let (mount, version) = (mount.point.clone(), mount.version);
                places.push(Place { mount, version, controllers: vec![controller] });
            }
        }
    }
    Ok(Groups { places, parent: PARENT.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";

    fn v1(name: &str, options: &str) -> String {
        format!("36 35 0:30 / /sys/fs/cgroup/{name} {options},relatime - cgroup cgroup rw,{name}\n")
    }

    fn places(groups: &Groups) -> Vec<(String, Version, usize)> {
        groups.places.iter().map(|p| (p.mount.display().to_string(), p.version, p.controllers.len())).collect()
    }

    #[test]
    fn each_controller_is_found_where_it_is() {
        let all = find(UNIFIED, |_| "cpuset cpu io memory pids\n".to_owned()).unwrap();
        assert_eq!(places(&all), [("/sys/fs/cgroup".to_owned(), Version::V2, 3)]);

        let one = v1("cpu,cpuacct", "rw") + &v1("memory", "rw") + &v1("pids", "rw");
        let old = find(&format!("{one}{UNIFIED}"), |_| String::new()).unwrap();
        assert_eq!(places(&old).len(), 3);
        assert_eq!(places(&old)[0], ("/sys/fs/cgroup/cpu,cpuacct".to_owned(), Version::V1, 1));

        let hybrid = find(&format!("{}{UNIFIED}", v1("memory", "rw")), |_| "cpu pids".to_owned()).unwrap();
        assert_eq!(places(&hybrid)[0], ("/sys/fs/cgroup".to_owned(), Version::V2, 2));
        assert_eq!(places(&hybrid)[1], ("/sys/fs/cgroup/memory".to_owned(), Version::V1, 1));
    }

    #[test]
    fn what_is_missing_or_closed_is_named_with_the_way_out() {
        let none = find("", |_| String::new()).unwrap_err();
        assert!(none.starts_with("no control group mount has the controller cpu"), "{none}");
        let closed = v1("cpu", "rw") + &v1("memory", "ro") + &v1("pids", "rw");
        let closed = find(&closed, |_| String::new()).unwrap_err();
        assert!(closed.contains("/sys/fs/cgroup/memory (controller memory) are mounted read-only"), "{closed}");
        let partly = find(UNIFIED, |_| "cpu memory".to_owned()).unwrap_err();
        assert!(partly.contains("controller pids"), "{partly}");
        let covered = v1("cpu", "rw") + &v1("memory", "rw") + &v1("pids", "rw") + &v1("pids", "ro");
        assert!(find(&covered, |_| String::new()).unwrap_err().contains("controller pids"));
        // As a container has them: the mount is read-only, the file system is not.
        let container = UNIFIED.replace("rw,nosuid", "ro,nosuid");
        assert!(find(&container, |_| "cpu memory pids".to_owned()).unwrap_err().contains("read-only"));
    }
}
