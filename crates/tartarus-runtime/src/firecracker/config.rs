//! Machine shape v1 as Firecracker is told it: a pure function, so that a golden test holds it still. A change here is a
//! change of every snapshot.

use super::api::{
    BackendType, BootSource, CacheType, Configuration, Drive, MachineConfiguration, MemoryBackend, NetworkInterface,
    RateLimiter, Request, TokenBucket, Vsock,
};
use super::jail::{AGENT, BASE, INITRAMFS, KERNEL, LAYER, STATE};
use crate::driver::{DISK_BYTES, DISK_REQUESTS, Machine, Rate};
use crate::qemu::MAC;

/// What of the configuration a snapshot depends on, beside kernel, processors and memory.
/// Its disks' limits are of the snapshot as well.
pub(super) fn shape() -> String {
    let (bytes, requests) = (DISK_BYTES.per_second, DISK_REQUESTS.per_second);
    format!("1 mmio: base, layer, tap0, vsock 3 /run/agent.sock; {bytes} bytes/s, {requests} requests/s")
}

/// The kernel's arguments. There is no ACPI to reset the machine by, but a keyboard controller; a card for PCI is none;
/// nobody types. The modules for security that nobody set up are asked at each system call; the two that stay are for
/// programs that confine themselves.
const ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 reboot=k pci=off i8042.noaux i8042.nomux i8042.dumbkbd \
                         nowatchdog lsm=landlock,yama";

/// The address of the guest's end of the channel: the first that a guest can have. Each machine has its own socket.
const GUEST_CID: u32 = 3;

/// Milliseconds between two portions of what a disk may do.
const PORTION: u64 = 100;
/// Each disk has its own limit, half of what both may do together.
fn half(rate: Rate) -> TokenBucket {
    TokenBucket { size: rate.per_second / 2 * PORTION / 1000, refill_time: PORTION, one_time_burst: rate.at_once / 2 }
}

/// What a machine boots with.
pub(super) fn configuration(machine: &Machine) -> Configuration {
    let drive = |drive_id, path_on_host, is_read_only| Drive {
        drive_id,
        path_on_host,
        // The guest is told by its initramfs what its root is.
        is_root_device: false,
        is_read_only,
        // The layer is thrown away with the machine: nothing of it needs to reach the disk.
        cache_type: CacheType::Unsafe,
        rate_limiter: RateLimiter { bandwidth: half(DISK_BYTES), ops: half(DISK_REQUESTS) },
    };
    Configuration {
        boot_source: BootSource { kernel_image_path: KERNEL, initrd_path: INITRAMFS, boot_args: ARGUMENTS },
        drives: [drive("base", BASE, true), drive("layer", LAYER, false)],
        machine_config: MachineConfiguration { vcpu_count: machine.cpus, mem_size_mib: machine.memory_mib },
        network_interfaces: [NetworkInterface { iface_id: "net0", host_dev_name: "tap0", guest_mac: MAC }],
        vsock: Vsock { guest_cid: GUEST_CID, uds_path: AGENT },
    }
}

/// How a snapshot is loaded, whose memory is standard input. The guest does not run before somebody listens to it.
pub(super) fn load() -> Request {
    Request::SnapshotLoad {
        snapshot_path: STATE,
        mem_backend: MemoryBackend { backend_type: BackendType::File, backend_path: "/proc/self/fd/0" },
        // Else a snapshot of this machine would write out all that lies in memory of its base.
        track_dirty_pages: true,
        resume_vm: false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::driver::Layer;

    /// Machine shape v1 is final: snapshots taken with it must fit. Compare with care before changing this text.
    #[test]
    fn the_shape_is_what_it_was() {
        let machine = Machine {
            dir: "/d".into(),
            cpus: 2,
            memory_mib: 512,
            kernel: "/k/vmlinux".into(),
            initramfs: "/k/initramfs.cpio".into(),
            base: "/b/a,b.sqsh".into(),
            layer: Layer::raw(Path::new("/d/layer").into()),
            network: None,
        };
        let limit = r#""rate_limiter":{"bandwidth":{"size":6710886,"refill_time":100,"one_time_burst":268435456},"ops":{"size":500,"refill_time":100,"one_time_burst":25000}}"#;
        let expected = format!(
            "{}{}{}{}{}",
            r#"{"boot-source":{"kernel_image_path":"/kernel","initrd_path":"/initramfs","boot_args":"console=ttyS0 quiet panic=-1 reboot=k pci=off i8042.noaux i8042.nomux i8042.dumbkbd nowatchdog lsm=landlock,yama"},"#,
            format_args!(
                r#""drives":[{{"drive_id":"base","path_on_host":"/base","is_root_device":false,"is_read_only":true,"cache_type":"Unsafe",{limit}}},"#
            ),
            format_args!(
                r#"{{"drive_id":"layer","path_on_host":"/layer","is_root_device":false,"is_read_only":false,"cache_type":"Unsafe",{limit}}}],"#
            ),
            r#""machine-config":{"vcpu_count":2,"mem_size_mib":512},"#,
            r#""network-interfaces":[{"iface_id":"net0","host_dev_name":"tap0","guest_mac":"02:54:54:00:00:01"}],"vsock":{"guest_cid":3,"uds_path":"/run/agent.sock"}}"#,
        );
        assert_eq!(serde_json::to_string(&configuration(&machine)).unwrap(), expected);
    }
}
