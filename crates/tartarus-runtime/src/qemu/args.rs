//! QEMU's command line for machine shape v1: a pure function, so that a golden test holds it still. A change here is a
//! change of every snapshot.

use std::path::Path;

use super::{
    AGENT_FD, Accel, BASE_FD, INITRAMFS_FD, KERNEL_FD, LAYER_FD, LAYER_READ_FD, MEMORY_FD, OVER_FD, QMP_FD, STATE_FD,
    TAP_FD,
};
use crate::driver::{DISK_BYTES, DISK_REQUESTS, DiskFormat, Machine, RuntimeError};

/// The card's address: locally administered, the same in every machine, since each has a network of its own.
pub(crate) const MAC: &str = "02:54:54:00:00:01";

/// What QEMU's own seccomp filter refuses.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The machine type. `suppress-vmdesc`: what `xen-save-devices-state` writes has no description of itself, and a restore
/// would complain of it.
const MACHINE: &str = "microvm,acpi=on,isa-serial=on,memory-backend=ram,suppress-vmdesc=on";

/// How a machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// From its kernel, on fresh memory.
    Boot,
    /// From memory at [`MEMORY_FD`] and device state at [`STATE_FD`]. Once the host is at the guest's port it loads
    /// and goes on by itself. A kernel would only be
    /// read and never be looked at, which took a quarter of QEMU's time before the guest goes on.
    Restore,
}

/// QEMU's `-accel` and `-cpu`.
fn processor(accel: Accel) -> (&'static str, &'static str) {
    match accel {
        Accel::Kvm => ("kvm", "host"),
        // tb-size bounds QEMU's own memory. Without `erms` and `fsrm` the guest copies in words: `rep movsb` is emulated
        // byte by byte, and costs half of all throughput.
        Accel::Tcg { .. } => ("tcg,tb-size=64", "max,erms=off,fsrm=off"),
    }
}

/// What of the command line a snapshot depends on, beside kernel, processors and memory: the number of the machine shape
/// and the arguments that are not part of it.
pub(super) fn shape(accel: Accel) -> String {
    let (accel, cpu) = processor(accel);
    format!("1 -M {MACHINE} -accel {accel} -cpu {cpu}")
}

/// What the guest sees of the processor, when that is QEMU's own.
pub(super) fn cpu(accel: Accel) -> &'static str {
    processor(accel).1
}

pub(super) fn argv(program: &Path, accel: Accel, machine: &Machine, start: Start) -> Result<Vec<String>, RuntimeError> {
    let (accelerator, cpu) = processor(accel);
    let memory = machine.memory_mib;
    let (backend, wait) = match start {
        Start::Boot => (format!("memory-backend-ram,id=ram,size={memory}M,share=off"), "off"),
        // It was saved with a host at its port. One that comes later is an event for which the guest wakes a worker.
        Start::Restore => {
            let file =
                format!("memory-backend-file,id=ram,size={memory}M,mem-path=/proc/self/fd/{MEMORY_FD},share=off");
            (file, "on")
        }
    };
    // Neither format needs more of the host than the seccomp filter allows. What a qcow2 file says of the file that it
    // lies over is not asked.
    let (format, over) = match machine.layer.format {
        DiskFormat::Raw => ("raw", ""),
        DiskFormat::Overlay { .. } => {
            ("qcow2", ",backing.driver=raw,backing.file.driver=file,backing.file.filename=/dev/fdset/3")
        }
    };
    // A card that leads nowhere is a card all the same: a snapshot taken without one could never get one. What the guest
    // sees of it is the same, so that what was taken with this peer goes on with a TAP.
    let peer = match machine.network {
        None => "hubport,id=net0,hubid=0".to_owned(),
        Some(_) => format!("tap,id=net0,fd={TAP_FD},vhost=off"),
    };
    let mut args = vec![
        text(program)?,
        "-M".into(),
        MACHINE.into(),
        "-accel".into(),
        accelerator.into(),
        "-cpu".into(),
        cpu.into(),
        "-smp".into(),
        machine.cpus.to_string(),
        "-m".into(),
        format!("{memory}M"),
        "-object".into(),
        backend,
        "-nodefaults".into(),
        "-no-user-config".into(),
        "-display".into(),
        "none".into(),
        "-no-reboot".into(),
        "-sandbox".into(),
        SANDBOX.into(),
        "-global".into(),
        "migration.send-configuration=off".into(),
        "-chardev".into(),
        "stdio,id=console,signal=off".into(),
        "-serial".into(),
        "chardev:console".into(),
        "-chardev".into(),
        format!("socket,id=qmp,fd={QMP_FD},server=on,wait=off"),
        "-mon".into(),
        "chardev=qmp,mode=control".into(),
        "-add-fd".into(),
        format!("fd={BASE_FD},set=1"),
        "-add-fd".into(),
        format!("fd={LAYER_FD},set=2"),
        "-add-fd".into(),
        format!("fd={LAYER_READ_FD},set=2"),
        // From here on: machine shape v1, in its fixed order.
        "-drive".into(),
        format!("if=none,id=base,format=raw,readonly=on,file=/dev/fdset/1,{}", throttle()),
        "-device".into(),
        "virtio-blk-device,drive=base".into(),
        // The layer is thrown away with the machine: nothing of it needs to reach the disk. An error of the host's disk
        // is the guest's to see; by default QEMU would stop the machine for ever.
        "-drive".into(),
        format!(
            "if=none,id=layer,format={format},cache=unsafe,discard=unmap,werror=report,rerror=report,\
             file=/dev/fdset/2{over},{}",
            throttle()
        ),
        "-device".into(),
        "virtio-blk-device,drive=layer".into(),
        "-device".into(),
        "virtio-serial-device".into(),
        "-chardev".into(),
        format!("socket,id=agent,fd={AGENT_FD},server=on,wait={wait}"),
        "-device".into(),
        format!("virtserialport,chardev=agent,name={}", tartarus_guest::PORT_NAME),
        "-netdev".into(),
        peer,
        "-device".into(),
        // No announcement after a restore: it wakes half of the guest's network code, and every clone has a network of its own.
        format!("virtio-net-device,netdev=net0,mac={MAC},guest_announce=off"),
    ];
    if !over.is_empty() {
        args.extend(["-add-fd".into(), format!("fd={OVER_FD},set=3")]);
    }
    match start {
        Start::Boot => {
            let clock = match accel {
                Accel::Kvm => String::new(),
                // These keep the guest from calibrating under load, which hangs.
                Accel::Tcg { tsc_khz } => {
                    format!(" tsc_early_khz={tsc_khz} tsc=reliable no_timer_check mitigations=off")
                }
            };
            // A triple fault always resets; the ACPI reset of this machine type hangs now and then under TCG.
            // Nobody looks for a lockup in there but the host, and the modules for security that nobody set up are asked at
            // each system call; the two that stay are for programs that confine themselves.
            let append = format!("console=ttyS0 quiet panic=-1 reboot=t nowatchdog lsm=landlock,yama{clock}");
            args.extend(["-kernel".into(), format!("/proc/self/fd/{KERNEL_FD}")]);
            args.extend(["-initrd".into(), format!("/proc/self/fd/{INITRAMFS_FD}")]);
            args.extend(["-append".into(), append]);
        }
        Start::Restore => args.extend(["-incoming".into(), format!("fd:{STATE_FD}")]),
    }
    Ok(args)
}

/// Both disks draw on one group.
fn throttle() -> String {
    let limits = [("bps", DISK_BYTES), ("iops", DISK_REQUESTS)].map(|(unit, rate)| {
        format!("throttling.{unit}-total={},throttling.{unit}-total-max={}", rate.per_second, rate.at_once)
    });
    format!("throttling.group=disks,{}", limits.join(","))
}

fn text(path: &Path) -> Result<String, RuntimeError> {
    let text = path.to_str().ok_or_else(|| RuntimeError::Start(format!("{} is not UTF-8", path.display())))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Layer;

    const TCG: Accel = Accel::Tcg { tsc_khz: 2_000_000 };

    fn machine() -> Machine {
        Machine {
            dir: "/d".into(),
            cpus: 2,
            memory_mib: 512,
            kernel: "/k/vmlinuz".into(),
            initramfs: "/k/initramfs.cpio".into(),
            base: "/b/a,b.sqsh".into(),
            layer: Layer::raw("/d/layer".into()),
            network: None,
        }
    }

    fn line(accel: Accel, machine: &Machine, start: Start) -> String {
        argv(Path::new("qemu"), accel, machine, start).unwrap().join(" ")
    }

    /// Machine shape v1 is final: snapshots taken with it must fit. Compare with care before changing this text.
    #[test]
    fn the_shape_is_what_it_was() {
        let throttle = "throttling.group=disks,throttling.bps-total=134217728,throttling.bps-total-max=536870912,\
                        throttling.iops-total=10000,throttling.iops-total-max=50000";
        assert_eq!(
            line(TCG, &machine(), Start::Boot).replace(throttle, "THROTTLE"),
            "qemu -M microvm,acpi=on,isa-serial=on,memory-backend=ram,suppress-vmdesc=on -accel tcg,tb-size=64 \
             -cpu max,erms=off,fsrm=off -smp 2 -m 512M \
             -object memory-backend-ram,id=ram,size=512M,share=off -nodefaults -no-user-config -display none \
             -no-reboot -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
             -global migration.send-configuration=off \
             -chardev stdio,id=console,signal=off -serial chardev:console \
             -chardev socket,id=qmp,fd=101,server=on,wait=off -mon chardev=qmp,mode=control \
             -add-fd fd=104,set=1 -add-fd fd=105,set=2 -add-fd fd=106,set=2 \
             -drive if=none,id=base,format=raw,readonly=on,file=/dev/fdset/1,THROTTLE -device virtio-blk-device,drive=base \
             -drive if=none,id=layer,format=raw,cache=unsafe,discard=unmap,werror=report,rerror=report,file=/dev/fdset/2,THROTTLE \
             -device virtio-blk-device,drive=layer -device virtio-serial-device \
             -chardev socket,id=agent,fd=100,server=on,wait=off \
             -device virtserialport,chardev=agent,name=tartarus.agent.1 \
             -netdev hubport,id=net0,hubid=0 -device virtio-net-device,netdev=net0,mac=02:54:54:00:00:01,guest_announce=off \
             -kernel /proc/self/fd/108 -initrd /proc/self/fd/109 \
             -append console=ttyS0 quiet panic=-1 reboot=t nowatchdog lsm=landlock,yama tsc_early_khz=2000000 tsc=reliable no_timer_check mitigations=off"
        );
    }

    #[test]
    fn a_restore_differs_from_a_boot_in_memory_state_and_waiting_and_needs_no_kernel() {
        let boot = line(TCG, &machine(), Start::Boot);
        let memory = "memory-backend-file,id=ram,size=512M,mem-path=/proc/self/fd/102,share=off";
        let machine_alone = boot.split(" -kernel ").next().unwrap();
        let expected = machine_alone
            .replace("memory-backend-ram,id=ram,size=512M,share=off", memory)
            .replace("id=agent,fd=100,server=on,wait=off", "id=agent,fd=100,server=on,wait=on")
            + " -incoming fd:103";
        assert_eq!(line(TCG, &machine(), Start::Restore), expected);
    }

    #[test]
    fn an_overlay_differs_in_its_format_and_what_it_lies_over() {
        let mut machine = machine();
        let raw = line(TCG, &machine, Start::Boot);
        machine.layer.format = DiskFormat::Overlay { over: "/g/layer".into() };
        let over = "file=/dev/fdset/2,backing.driver=raw,backing.file.driver=file,backing.file.filename=/dev/fdset/3";
        let expected = raw
            .replace("id=layer,format=raw", "id=layer,format=qcow2")
            .replace("file=/dev/fdset/2", over)
            .replace(" -kernel", " -add-fd fd=107,set=3 -kernel");
        assert_eq!(line(TCG, &machine, Start::Boot), expected);
    }

    #[test]
    fn a_network_differs_in_the_cards_peer() {
        let mut machine = machine();
        for start in [Start::Boot, Start::Restore] {
            machine.network = None;
            let expected =
                line(TCG, &machine, start).replace("hubport,id=net0,hubid=0", "tap,id=net0,fd=110,vhost=off");
            let fd = || std::sync::Arc::new(std::fs::File::open("/dev/null").unwrap().into());
            machine.network = Some(crate::driver::Network { namespace: fd(), tap: Some(fd()) });
            assert_eq!(line(TCG, &machine, start), expected);
        }
    }

    #[test]
    fn with_kvm_the_processor_and_its_clock_are_the_hosts() {
        let line = line(Accel::Kvm, &machine(), Start::Boot);
        assert!(line.contains("-accel kvm -cpu host ") && !line.contains("tsc"), "{line}");
    }

    #[test]
    fn the_shape_depends_on_the_accelerator_and_not_on_the_clock() {
        assert_eq!(
            shape(TCG),
            "1 -M microvm,acpi=on,isa-serial=on,memory-backend=ram,suppress-vmdesc=on -accel tcg,tb-size=64 \
             -cpu max,erms=off,fsrm=off"
        );
        assert_eq!(shape(TCG), shape(Accel::Tcg { tsc_khz: 1 }));
        assert_ne!(shape(TCG), shape(Accel::Kvm));
    }
}
