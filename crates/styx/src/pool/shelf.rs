//! Which namespaces wait, and what is done next so that those wait that will be asked for. Pure.

use std::collections::VecDeque;

use tartarus_types::Contract;

/// So many starts are looked back at.
const BACK: usize = 16;

/// Namespaces that wait: some under no contract, for whoever comes, and up to half of them under contracts that come again.
pub(super) struct Shelf<T> {
    size: usize,
    waiting: Vec<(Option<Contract>, T)>,
    /// The newest first.
    asked: VecDeque<Contract>,
}

/// What is to be done for the shelf.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// One more is made.
    Make,
    /// This one is put under a contract, and comes back.
    Ready(T, Contract),
    /// Nobody asks for its contract any more, or it has more than its part and another has none.
    Drop(T),
    /// All is as it should be.
    Rest,
}

impl<T> Shelf<T> {
    pub(super) fn new(size: usize) -> Self {
        Self { size, waiting: Vec::new(), asked: VecDeque::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn put(&mut self, under: Option<Contract>, one: T) {
        self.waiting.push((under, one));
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.waiting.drain(..).map(|(_, one)| one)
    }

    /// Remembers that somebody starts under this contract.
    pub(super) fn asked(&mut self, contract: &Contract) {
        self.asked.truncate(BACK - 1);
        self.asked.push_front(contract.clone());
    }

    /// The one that suits best: under this very contract, else under none. Another's is none for it: a guest that boots would
    /// have what that one lets pass.
    pub(super) fn take(&mut self, contract: &Contract) -> Option<T> {
        let under = |wanted: Option<&Contract>| self.waiting.iter().position(|(own, _)| own.as_ref() == wanted);
        let best = under(Some(contract)).or_else(|| under(None))?;
        Some(self.waiting.remove(best).1)
    }

    /// Whether there are some left for whoever comes: half of those that are to belong to nobody.
    pub(super) fn is_calm(&self) -> bool {
        let ready = self.ready();
        2 * (self.waiting.len() - ready) >= self.size - ready
    }

    /// How many wait under a contract.
    pub(super) fn ready(&self) -> usize {
        self.waiting.iter().filter(|(under, _)| under.is_some()).count()
    }

    /// Gives up one that waits under a contract, the oldest.
    pub(super) fn give_up(&mut self) -> Option<T> {
        let at = self.waiting.iter().position(|(under, _)| under.is_some())?;
        Some(self.waiting.remove(at).1)
    }

    /// Nothing waits under this contract any more, until it comes again.
    pub(super) fn forget(&mut self, contract: &Contract) {
        self.asked.retain(|own| own != contract);
    }

    /// What is to be done next. Whoever gets a namespace does it and, unless it is dropped, puts it back.
    pub(super) fn step(&mut self) -> Step<T> {
        // Twice makes one ready, and once keeps it so.
        let stale = |under: &Option<Contract>| under.as_ref().is_some_and(|own| !self.asked.contains(own));
        if let Some(at) = self.waiting.iter().position(|(under, _)| stale(under)) {
            return Step::Drop(self.waiting.remove(at).1);
        }
        if self.waiting.len() < self.size {
            return Step::Make;
        }
        let (places, mut coming) = (self.size / 2, self.coming());
        coming.truncate(places);
        let under = |wanted: Option<&Contract>| self.waiting.iter().filter(|(own, _)| own.as_ref() == wanted).count();
        let too_many = |own: &Option<Contract>| own.is_some() && under(own.as_ref()) > places.div_ceil(coming.len());
        if coming.iter().any(|own| under(Some(own)) == 0)
            && let Some(at) = self.waiting.iter().position(|(own, _)| too_many(own))
        {
            return Step::Drop(self.waiting.remove(at).1);
        }
        // The newest has one more where they do not come out even.
        let share = |rank: usize| places / coming.len() + usize::from(rank < places % coming.len());
        let lacks = coming.iter().enumerate().find(|(rank, own)| under(Some(own)) < share(*rank));
        let spare = under(None) > self.size - places;
        match (lacks, self.waiting.iter().position(|(own, _)| own.is_none())) {
            (Some((_, own)), Some(at)) if spare => {
                let own = (*own).clone();
                Step::Ready(self.waiting.remove(at).1, own)
            }
            _ => Step::Rest,
        }
    }

    /// Contracts that were asked for more than once of late, the newest first. Who comes once only is not waited for.
    fn coming(&self) -> Vec<&Contract> {
        let mut coming: Vec<&Contract> = Vec::new();
        for (at, own) in self.asked.iter().enumerate() {
            if !coming.contains(&own) && self.asked.iter().skip(at + 1).any(|other| other == own) {
                coming.push(own);
            }
        }
        coming
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract(connections: u32) -> Contract {
        let mut contract = Contract::default();
        contract.limits.connections = connections;
        contract
    }

    /// Does whatever is to be done, and says what there is then: under no contract, and under the first and the second.
    fn settle(shelf: &mut Shelf<u32>, next: &mut u32) -> [usize; 3] {
        for _ in 0..100 {
            match shelf.step() {
                Step::Make => {
                    *next += 1;
                    shelf.put(None, *next);
                }
                Step::Ready(one, under) => shelf.put(Some(under), one),
                Step::Drop(_) => {}
                Step::Rest => {
                    let count = |own: Option<Contract>| shelf.waiting.iter().filter(|(under, _)| *under == own).count();
                    return [count(None), count(Some(contract(1))), count(Some(contract(2)))];
                }
            }
        }
        panic!("it never rests");
    }

    fn start(shelf: &mut Shelf<u32>, own: &Contract) -> Option<u32> {
        shelf.asked(own);
        shelf.take(own)
    }

    #[test]
    fn what_comes_again_is_waited_for() {
        let (mut shelf, mut next) = (Shelf::new(4), 0);
        assert_eq!(start(&mut shelf, &contract(1)), None);
        assert_eq!(settle(&mut shelf, &mut next), [4, 0, 0], "once is not again");
        start(&mut shelf, &contract(1)).unwrap();
        assert_eq!(settle(&mut shelf, &mut next), [2, 2, 0]);
        start(&mut shelf, &contract(2)).unwrap();
        assert_eq!(settle(&mut shelf, &mut next), [2, 2, 0], "from those for whoever comes");
        start(&mut shelf, &contract(2)).unwrap();
        assert_eq!(settle(&mut shelf, &mut next), [2, 1, 1], "whoever has all the places makes room");
        for other in 3..19 {
            start(&mut shelf, &contract(other)).unwrap();
            settle(&mut shelf, &mut next);
        }
        assert_eq!(settle(&mut shelf, &mut next), [4, 0, 0], "long ago");
    }

    #[test]
    fn more_than_there_is_place_for_undo_nothing() {
        for (size, many, least) in [(4, 3, 30), (4, 9, 10), (4, 15, 1), (2, 2, 10), (3, 7, 0), (8, 16, 0)] {
            let (mut shelf, mut next, mut own) = (Shelf::new(size), 0, 0);
            for round in 0..64 {
                let contract = contract(round % many);
                shelf.asked(&contract);
                own += usize::from(shelf.waiting.iter().any(|(under, _)| under.as_ref() == Some(&contract)));
                shelf.take(&contract);
                settle(&mut shelf, &mut next);
            }
            let undone = next as usize - 64 + 1 - size;
            assert!(undone <= size && own >= least, "{size}, {many}: {undone} made for nobody, {own} found their own");
        }
    }

    #[test]
    fn the_one_that_suits_is_taken_first_and_anothers_never() {
        let mut shelf = Shelf::new(4);
        shelf.put(Some(contract(2)), 1);
        shelf.put(None, 2);
        shelf.put(Some(contract(1)), 3);
        shelf.put(Some(contract(1)), 4);
        let taken: Vec<_> = (0..4).map(|_| shelf.take(&contract(1))).collect();
        assert_eq!(taken, [Some(3), Some(4), Some(2), None]);
        assert_eq!((shelf.len(), shelf.ready(), shelf.is_calm()), (1, 1, false));
        shelf.put(None, 5);
        assert!(!shelf.is_calm(), "one of three");
        shelf.put(None, 6);
        assert!(shelf.is_calm());
        assert_eq!((shelf.give_up(), shelf.give_up()), (Some(1), None));
    }

    #[test]
    fn what_is_forgotten_is_not_waited_for() {
        let (mut shelf, mut next) = (Shelf::new(4), 0);
        start(&mut shelf, &contract(1));
        start(&mut shelf, &contract(1));
        assert_eq!(settle(&mut shelf, &mut next), [2, 2, 0]);
        shelf.forget(&contract(1));
        assert_eq!(settle(&mut shelf, &mut next), [4, 0, 0]);
    }

    #[test]
    fn a_small_one_keeps_all_for_whoever_comes() {
        for size in [0, 1] {
            let (mut shelf, mut next) = (Shelf::new(size), 0);
            for _ in 0..3 {
                start(&mut shelf, &contract(1));
                assert_eq!(settle(&mut shelf, &mut next), [size, 0, 0]);
            }
        }
    }
}
