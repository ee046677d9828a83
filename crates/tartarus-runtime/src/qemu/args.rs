//! QEMU's command line for machine shape v1: a pure function, so that a golden test holds it still. A change here is a
//! change of every snapshot.

use std::path::Path;

use super::{AGENT_FD, Accel, QMP_FD};
use crate::driver::{Machine, RuntimeError};

/// The card's address: locally administered, the same in every machine, since each has a network of its own.
const MAC: &str = "02:54:54:00:00:01";

/// What QEMU's own seccomp filter refuses.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

pub(super) fn argv(program: &Path, accel: Accel, machine: &Machine) -> Result<Vec<String>, RuntimeError> {
    let (accel, cpu, clock) = match accel {
        Accel::Kvm => ("kvm".to_owned(), "host", String::new()),
        // tb-size bounds QEMU's own memory; the clock arguments keep the guest from calibrating under load, which hangs.
        Accel::Tcg { tsc_khz } => (
            "tcg,tb-size=64".to_owned(),
            // Without `erms` and `fsrm` the guest copies in words: `rep movsb` is emulated byte by byte, and costs half of
            // all throughput.
            "max,erms=off,fsrm=off",
            format!(" tsc_early_khz={tsc_khz} tsc=reliable no_timer_check mitigations=off"),
        ),
    };
    let memory = machine.memory_mib;
    // A triple fault always resets; the ACPI reset of this machine type hangs now and then under TCG.
    let append = format!("console=ttyS0 quiet panic=-1 reboot=t{clock}");
    let args = [
        text(program)?,
        "-M".into(),
        "microvm,acpi=on,isa-serial=on,memory-backend=ram".into(),
        "-accel".into(),
        accel,
        "-cpu".into(),
        cpu.into(),
        "-smp".into(),
        machine.cpus.to_string(),
        "-m".into(),
        format!("{memory}M"),
        "-object".into(),
        format!("memory-backend-ram,id=ram,size={memory}M,share=off"),
        "-nodefaults".into(),
        "-no-user-config".into(),
        "-display".into(),
        "none".into(),
        "-no-reboot".into(),
        "-sandbox".into(),
        SANDBOX.into(),
        "-global".into(),
        "migration.send-configuration=off".into(),
        "-kernel".into(),
        text(&machine.kernel)?,
        "-initrd".into(),
        text(&machine.initramfs)?,
        "-append".into(),
        append,
        "-chardev".into(),
        "stdio,id=console,signal=off".into(),
        "-serial".into(),
        "chardev:console".into(),
        "-chardev".into(),
        format!("socket,id=qmp,fd={QMP_FD},server=on,wait=off"),
        "-mon".into(),
        "chardev=qmp,mode=control".into(),
        // From here on: machine shape v1, in its fixed order.
        "-drive".into(),
        format!("if=none,id=base,format=raw,readonly=on,file={}", value(&machine.base)?),
        "-device".into(),
        "virtio-blk-device,drive=base".into(),
        // The layer is thrown away with the machine: nothing of it needs to reach the disk. An error of the host's disk
        // is the guest's to see; by default QEMU would stop the machine for ever.
        "-drive".into(),
        format!(
            "if=none,id=layer,format=raw,cache=unsafe,discard=unmap,werror=report,rerror=report,file={}",
            value(&machine.layer)?
        ),
        "-device".into(),
        "virtio-blk-device,drive=layer".into(),
        "-device".into(),
        "virtio-serial-device".into(),
        "-chardev".into(),
        format!("socket,id=agent,fd={AGENT_FD},server=on,wait=off"),
        "-device".into(),
        format!("virtserialport,chardev=agent,name={}", tartarus_guest::PORT_NAME),
        // A card that leads nowhere: a snapshot taken without one could never get one.
        "-netdev".into(),
        "hubport,id=net0,hubid=0".into(),
        "-device".into(),
        format!("virtio-net-device,netdev=net0,mac={MAC}"),
    ];
    Ok(args.into())
}

fn text(path: &Path) -> Result<String, RuntimeError> {
    let text = path.to_str().ok_or_else(|| RuntimeError::Start(format!("{} is not UTF-8", path.display())))?;
    Ok(text.to_owned())
}

/// A path within a comma-separated option: QEMU reads a doubled comma as one.
fn value(path: &Path) -> Result<String, RuntimeError> {
    Ok(text(path)?.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            dir: "/d".into(),
            cpus: 2,
            memory_mib: 512,
            kernel: "/k/vmlinuz".into(),
            initramfs: "/k/initramfs.cpio".into(),
            base: "/b/a,b.sqsh".into(),
            layer: "/d/layer".into(),
        }
    }

    /// Machine shape v1 is final: snapshots taken with it must fit. Compare with care before changing this text.
    #[test]
    fn the_shape_is_what_it_was() {
        let line = argv(Path::new("qemu"), Accel::Tcg { tsc_khz: 2_000_000 }, &machine()).unwrap().join(" ");
        assert_eq!(
            line,
            "qemu -M microvm,acpi=on,isa-serial=on,memory-backend=ram -accel tcg,tb-size=64 -cpu max,erms=off,fsrm=off -smp 2 -m 512M \
             -object memory-backend-ram,id=ram,size=512M,share=off -nodefaults -no-user-config -display none \
             -no-reboot -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
             -global migration.send-configuration=off -kernel /k/vmlinuz -initrd /k/initramfs.cpio \
             -append console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz=2000000 tsc=reliable no_timer_check mitigations=off \
             -chardev stdio,id=console,signal=off -serial chardev:console \
             -chardev socket,id=qmp,fd=101,server=on,wait=off -mon chardev=qmp,mode=control \
             -drive if=none,id=base,format=raw,readonly=on,file=/b/a,,b.sqsh -device virtio-blk-device,drive=base \
             -drive if=none,id=layer,format=raw,cache=unsafe,discard=unmap,werror=report,rerror=report,file=/d/layer \
             -device virtio-blk-device,drive=layer -device virtio-serial-device \
             -chardev socket,id=agent,fd=100,server=on,wait=off \
             -device virtserialport,chardev=agent,name=tartarus.agent.1 \
             -netdev hubport,id=net0,hubid=0 -device virtio-net-device,netdev=net0,mac=02:54:54:00:00:01"
        );
    }

    #[test]
    fn with_kvm_the_processor_and_its_clock_are_the_hosts() {
        let line = argv(Path::new("qemu"), Accel::Kvm, &machine()).unwrap().join(" ");
        assert!(line.contains("-accel kvm -cpu host ") && !line.contains("tsc"), "{line}");
    }
}
