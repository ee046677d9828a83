//! Why a queued sandbox waits, in words. Pure.

use hades::store::NodeRecord;
use moirai::{Ask, Room, Waiting, why_waiting};
use tartarus_types::SandboxSpec;

/// What is free on a node when so much of it is taken.
pub(crate) fn room(node: &NodeRecord, reserved_mib: u64, starting: u32) -> Room {
    Room {
        memory_mib_free: node.memory_mib.saturating_sub(reserved_mib),
        start_slots_free: node.start_slots.saturating_sub(starting),
        max_cpus: node.max_cpus,
        overhead_mib: node.overhead_mib,
        overcommit: node.overcommit,
    }
}

/// Why it waits; `None` when a node takes it right now. `position` is its place in the queue from 1; it has none while it
/// waits for its next attempt.
pub(crate) fn why(
    nodes: &[NodeRecord],
    position: Option<u64>,
    spec: &SandboxSpec,
    failed: Option<&str>,
) -> Option<String> {
    let Some(position) = position else {
        return Some(match failed {
            Some(why) => format!("it is tried again in a moment, the last attempt failed: {why}"),
            None => "it is tried again in a moment".to_owned(),
        });
    };
    let empty: Vec<Room> = nodes.iter().map(|node| room(node, 0, 0)).collect();
    let now: Vec<Room> = nodes.iter().map(|node| room(node, node.reserved_mib, node.starting)).collect();
    let ask = Ask { memory_mib: spec.memory_mib, cpus: spec.cpus };
    let ahead = position.saturating_sub(1);
    let slots: u32 = nodes.iter().map(|node| node.start_slots).sum();
    let starting = || {
        let s = if slots == 1 { "" } else { "s" };
        format!("too many sandboxes are starting ({slots} start slot{s})")
    };
    let overhead = nodes.iter().map(|node| node.overhead_mib).min().unwrap_or(0);
    let reserved = empty.iter().map(|room| room.reserved_mib(ask)).min().unwrap_or(0);
    Some(match why_waiting(&empty, &now, ahead, ask)? {
        Waiting::NoNode => "no node has registered yet".to_owned(),
        Waiting::TooLarge => format!("no node is large enough for {} x {} MiB", spec.cpus, spec.memory_mib),
        Waiting::Memory => {
            format!("no node has {reserved} MiB free ({overhead} MiB of it for the hypervisor)")
        }
        Waiting::StartSlots => starting(),
        Waiting::Turn => {
            let them = if ahead == 1 { "1 older one is".to_owned() } else { format!("{ahead} older ones are") };
            let cause = if now.iter().all(|room| room.start_slots_free == 0) {
                format!(", and {}", starting())
            } else {
                String::new()
            };
            format!("{them} in front of it{cause}")
        }
    })
}

#[cfg(test)]
mod tests {
    use hades::store::TemplateRecord;
    use tartarus_types::{NodeId, Overcommit, Shape, TemplateSpec, Timestamp};

    use super::*;

    fn node(reserved_mib: u64, starting: u32) -> NodeRecord {
        NodeRecord {
            id: NodeId::random(),
            memory_mib: 2048,
            overhead_mib: 96,
            overcommit: Overcommit::NEVER,
            start_slots: 2,
            max_cpus: 4,
            seen_at: Timestamp(0),
            reserved_mib,
            starting,
        }
    }

    fn spec() -> SandboxSpec {
        let spec = TemplateSpec { cpus: 1, memory_mib: 512, disk_mib: 64, ..TemplateSpec::default() };
        let template = TemplateRecord { name: "t".into(), spec, created_at: Timestamp(0) };
        crate::golden::maker_spec(&template, "k", Shape { cpus: 1, memory_mib: 512 }, "g".into())
    }

    #[test]
    fn the_words() {
        let words = |nodes: &[NodeRecord], position| why(nodes, position, &spec(), Some("no disk"));
        assert_eq!(words(&[node(0, 0)], Some(1)), None);
        for (nodes, position, expected) in [
            (vec![], Some(1), "no node has registered yet"),
            (vec![node(1500, 0)], Some(1), "no node has 608 MiB free (96 MiB of it for the hypervisor)"),
            (vec![node(0, 2)], Some(1), "too many sandboxes are starting (2 start slots)"),
            (vec![node(0, 0)], Some(2), "1 older one is in front of it"),
            (
                vec![node(0, 2)],
                Some(4),
                "3 older ones are in front of it, and too many sandboxes are starting (2 start slots)",
            ),
            (vec![node(0, 0)], None, "it is tried again in a moment, the last attempt failed: no disk"),
        ] {
            assert_eq!(words(&nodes, position).as_deref(), Some(expected));
        }
        let small = NodeRecord { memory_mib: 128, ..node(0, 0) };
        assert_eq!(words(&[small], Some(1)).as_deref(), Some("no node is large enough for 1 x 512 MiB"));
    }
}
