//! Which bases make way for another. Pure.

/// A base that is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<N> {
    /// Its name.
    pub name: N,
    /// Its size in bytes.
    pub bytes: u64,
    /// It cannot be dropped.
    pub in_use: bool,
    /// Larger means later.
    pub used: u64,
}

/// What has to be dropped, least recently used first, so that `need` more bytes fit into `budget`: no more than that takes.
/// `None` when dropping all that is not in use would not be enough.
pub fn evict<N: Clone>(loaded: &[Loaded<N>], need: u64, budget: u64) -> Option<Vec<N>> {
    let mut total: u128 = u128::from(need) + loaded.iter().map(|one| u128::from(one.bytes)).sum::<u128>();
    let mut idle: Vec<&Loaded<N>> = loaded.iter().filter(|one| !one.in_use).collect();
    idle.sort_by_key(|one| one.used);
    let mut dropped = Vec::new();
    for one in idle {
        if total <= u128::from(budget) {
            break;
        }
        total -= u128::from(one.bytes);
        dropped.push(one.name.clone());
    }
    (total <= u128::from(budget)).then_some(dropped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loaded() -> impl Strategy<Value = Vec<Loaded<usize>>> {
        let one = (prop_oneof![0_u64..100, Just(u64::MAX)], any::<bool>(), 0_u64..8);
        proptest::collection::vec(one, 0..12).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            numbered.map(|(name, (bytes, in_use, used))| Loaded { name, bytes, in_use, used }).collect()
        })
    }

    proptest! {
        #[test]
        fn room_is_made_with_the_fewest_of_the_least_recently_used(
            loaded in loaded(), need in 0_u64..200, budget in 0_u64..600,
        ) {
            let sum = |keep: &dyn Fn(&Loaded<usize>) -> bool| -> u128 {
                u128::from(need) + loaded.iter().filter(|one| keep(one)).map(|one| u128::from(one.bytes)).sum::<u128>()
            };
            let budget_ = u128::from(budget);
            let Some(dropped) = evict(&loaded, need, budget) else {
                prop_assert!(sum(&|one| one.in_use) > budget_, "there would have been room");
                return Ok(());
            };
            prop_assert!(dropped.iter().all(|name| !loaded[*name].in_use));
            prop_assert!(sum(&|one| !dropped.contains(&one.name)) <= budget_, "it does not fit");
            if let Some((_, fewer)) = dropped.split_last() {
                prop_assert!(sum(&|one| !fewer.contains(&one.name)) > budget_, "one too many");
            }
            let latest = dropped.iter().map(|name| loaded[*name].used).max();
            let kept = loaded.iter().filter(|one| !one.in_use && !dropped.contains(&one.name)).map(|one| one.used).min();
            if let (Some(latest), Some(kept)) = (latest, kept) {
                prop_assert!(latest <= kept, "a later one was dropped before an earlier one");
            }
        }
    }
}
