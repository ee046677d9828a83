//! Placement: which queued sandbox a node takes next, and why one waits.
//!
//! For the control plane, which asks inside the store's transaction. Pure: it knows no clock, no randomness and no
//! store; what it must know arrives as arguments, so that a decision can be tested a million times.
//!
//! # Why first come, first served
//!
//! A node takes the oldest request or none: when the head does not fit *now*, it waits for room and nothing overtakes
//! it. Letting smaller ones pass would use the memory better for a while, but on a busy node the large one would then
//! wait until its start timeout. The price is bounded: the head waits at most for the longest run in its way, and is
//! itself taken off the queue by its start timeout.
//!
//! What a node could never take, even empty, must not block it: the caller leaves such requests out (see
//! [`ever_fits`]); those with too many processors are passed over here.

#![forbid(unsafe_code)]

use tartarus_types::Overcommit;

/// What is free on a node now; of an empty node: all it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Memory that is not reserved, MiB.
    pub memory_mib_free: u64,
    /// Sandboxes that may be added between lease and command start.
    pub start_slots_free: u32,
    /// Virtual processors of the largest sandbox.
    pub max_cpus: u32,
    /// Memory of each hypervisor itself, MiB; reserved with every sandbox.
    pub overhead_mib: u64,
    /// How often guest memory is sold.
    pub overcommit: Overcommit,
}

/// What a sandbox asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Memory of its guest, MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub cpus: u32,
}

/// Why a queued sandbox has not been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Waiting {
    /// There is no node.
    NoNode,
    /// No node is large enough, even empty.
    TooLarge,
    /// Older ones are in front of it.
    Turn,
    /// It is the next; no node that is large enough has the memory free.
    Memory,
    /// It is the next and there is memory; too many are starting.
    StartSlots,
}

impl Room {
    /// What is reserved for it, MiB.
    pub fn reserved_mib(self, ask: Ask) -> u64 {
        self.overcommit.reserved_mib(ask.memory_mib).saturating_add(self.overhead_mib)
    }

    /// The memory of the largest guest of a node that has nothing else, MiB. It is promised whole, however often memory is
    /// sold: one guest may use all of it.
    pub fn largest_mib(self) -> u64 {
        self.memory_mib_free.saturating_sub(self.overhead_mib)
    }

    fn has_memory(self, ask: Ask) -> bool {
        self.reserved_mib(ask) <= self.memory_mib_free
    }

    /// Memory and processors of the empty node suffice. Start slots come and go with every start; they say nothing about
    /// size.
    fn large_enough(self, ask: Ask) -> bool {
        ask.cpus <= self.max_cpus && u64::from(ask.memory_mib) <= self.largest_mib()
    }
}

/// The index of the request that a node with this room takes now: the oldest (`asks` is oldest first) that its
/// processors suffice for, or none when that one has no room yet. See the module for why nothing overtakes it.
pub fn choose(room: Room, asks: &[Ask]) -> Option<usize> {
    if room.start_slots_free == 0 {
        return None;
    }
    let head = asks.iter().position(|ask| ask.cpus <= room.max_cpus)?;
    room.has_memory(asks[head]).then_some(head)
}

/// Some node could take it when nothing else runs there; `nodes` are the rooms of empty nodes.
pub fn ever_fits(nodes: &[Room], ask: Ask) -> bool {
    nodes.iter().any(|node| node.large_enough(ask))
}

/// Why a queued request waits, or `None` when a node would take it now. `empty` are the rooms of the nodes as if
/// nothing ran there, `now` what is free on each; `ahead` requests are older.
pub fn why_waiting(empty: &[Room], now: &[Room], ahead: u64, ask: Ask) -> Option<Waiting> {
    if empty.is_empty() {
        return Some(Waiting::NoNode);
    }
    if !ever_fits(empty, ask) {
        return Some(Waiting::TooLarge);
    }
    if ahead > 0 {
        return Some(Waiting::Turn);
    }
    if now.iter().any(|room| choose(*room, &[ask]).is_some()) {
        return None;
    }
    let memory = now.iter().any(|room| ask.cpus <= room.max_cpus && room.has_memory(ask));
    Some(if memory { Waiting::StartSlots } else { Waiting::Memory })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn room(memory_mib_free: u64, start_slots_free: u32) -> Room {
        Room { memory_mib_free, start_slots_free, max_cpus: 4, overhead_mib: 96, overcommit: Overcommit::NEVER }
    }

    fn ask(memory_mib: u32) -> Ask {
        Ask { memory_mib, cpus: 1 }
    }

    #[test]
    fn the_head_is_taken_or_waited_for() {
        assert_eq!(choose(room(608, 1), &[ask(512), ask(64)]), Some(0));
        assert_eq!(choose(room(607, 1), &[ask(512), ask(64)]), None, "nothing overtakes the head");
        let twice = Room { overcommit: Overcommit::from_hundredths(200).unwrap(), ..room(352, 1) };
        assert_eq!(choose(twice, &[ask(512)]), Some(0), "half of it, and the hypervisor whole");
        assert_eq!(choose(twice, &[ask(513)]), None);
        assert!(
            ever_fits(&[twice], ask(256)) && !ever_fits(&[twice], ask(257)),
            "one guest may use all that it is promised"
        );
        assert_eq!(choose(room(9999, 0), &[ask(64)]), None);
        assert_eq!(choose(room(9999, 1), &[]), None);
        let wide = Ask { memory_mib: 64, cpus: 5 };
        assert_eq!(choose(room(9999, 1), &[wide, ask(64)]), Some(1), "what can never run here does not block");
    }

    #[test]
    fn the_reason_is_named() {
        let empty = [room(1024, 2)];
        assert_eq!(why_waiting(&[], &[], 0, ask(64)), Some(Waiting::NoNode));
        assert_eq!(why_waiting(&empty, &empty, 0, ask(1024)), Some(Waiting::TooLarge));
        assert_eq!(why_waiting(&empty, &empty, 0, Ask { memory_mib: 64, cpus: 5 }), Some(Waiting::TooLarge));
        assert_eq!(why_waiting(&empty, &empty, 3, ask(64)), Some(Waiting::Turn));
        assert_eq!(why_waiting(&empty, &[room(100, 2)], 0, ask(64)), Some(Waiting::Memory));
        assert_eq!(why_waiting(&empty, &[room(1024, 0)], 0, ask(64)), Some(Waiting::StartSlots));
        assert_eq!(why_waiting(&empty, &empty, 0, ask(64)), None);
    }

    fn rooms() -> impl Strategy<Value = Room> {
        (0..4096u64, 0..4u32, 1..9u32, 0..200u64, 100..=1000u32).prop_map(
            |(memory_mib_free, start_slots_free, max_cpus, overhead_mib, hundredths)| Room {
                memory_mib_free,
                start_slots_free,
                max_cpus,
                overhead_mib,
                overcommit: Overcommit::from_hundredths(hundredths).unwrap_or_default(),
            },
        )
    }

    fn asks() -> impl Strategy<Value = Vec<Ask>> {
        proptest::collection::vec((1..4096u32, 1..9u32).prop_map(|(memory_mib, cpus)| Ask { memory_mib, cpus }), 0..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Taking whatever is chosen until nothing is: no memory, slot or processor is sold twice.
        #[test]
        fn never_oversells(whole in rooms(), mut asks in asks()) {
            let (mut room, mut sold, mut taken) = (whole, 0, 0);
            while let Some(index) = choose(room, &asks) {
                let ask = asks.remove(index);
                prop_assert!(ask.cpus <= whole.max_cpus);
                sold += (f64::from(ask.memory_mib) * 100.0 / f64::from(whole.overcommit.hundredths())).ceil() as u64;
                sold += whole.overhead_mib;
                taken += 1;
                prop_assert!(sold <= whole.memory_mib_free && taken <= whole.start_slots_free);
                room.memory_mib_free = whole.memory_mib_free - sold;
                room.start_slots_free -= 1;
            }
        }

        /// A head that fits is taken, and nothing else is ever taken before one that this node could run.
        #[test]
        fn the_head_goes_first(room in rooms(), asks in asks()) {
            let runs_here = |ask: &Ask| ask.cpus <= room.max_cpus;
            match choose(room, &asks) {
                Some(index) => prop_assert!(!asks[..index].iter().any(runs_here)),
                None => {
                    let head_fits = asks.iter().find(|a| runs_here(a)).is_some_and(|a| {
                        room.start_slots_free > 0 && room.reserved_mib(*a) <= room.memory_mib_free
                    });
                    prop_assert!(!head_fits);
                }
            }
        }

        /// However busy a node is, its head is taken at the latest when the node has emptied: nothing starves.
        #[test]
        fn what_ever_fits_is_taken_in_the_end(mut empty in rooms(), asks in asks()) {
            empty.start_slots_free += 1;
            let possible: Vec<_> = asks.into_iter().filter(|a| ever_fits(&[empty], *a)).collect();
            prop_assert_eq!(choose(empty, &possible), (!possible.is_empty()).then_some(0));
        }

        /// The reason agrees with the choice.
        #[test]
        fn a_reason_exactly_when_it_is_not_taken(now in rooms(), used in 0..4096u64, asks in asks()) {
            let empty = Room { memory_mib_free: now.memory_mib_free + used, start_slots_free: 4, ..now };
            for ask in asks {
                let taken = ever_fits(&[empty], ask) && choose(now, &[ask]).is_some();
                prop_assert_eq!(why_waiting(&[empty], &[now], 0, ask).is_none(), taken);
            }
        }
    }
}
