//! The arithmetic of a benchmark: percentiles, ratios, an order that is shuffled alike in every run.

/// The value at `percent` of sorted values, between neighbours in proportion; `None` of nothing.
pub(super) fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
    let (below, part) = (at.floor() as usize, at.fract());
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    Some(low + (high - low) * part)
}

/// Values in order. What is no number comes last.
pub(super) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The one in the middle.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    percentile(&sorted(values), 50.0)
}

/// What is printed of a row.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct Summary {
    /// How many values.
    pub(super) count: usize,
    pub(super) min: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
}

impl Summary {
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        let at = |percent| percentile(&sorted, percent);
        Some(Self { count: sorted.len(), min: *sorted.first()?, p50: at(50.0)?, p90: at(90.0)?, p99: at(99.0)? })
    }
}

/// Values of one row by round: `None` where it failed.
pub(super) type ByRound = Vec<Option<f64>>;

/// Both values of every round that has both.
fn pairs<'a>(a: &'a [Option<f64>], b: &'a [Option<f64>]) -> impl Iterator<Item = (f64, f64)> + 'a {
    a.iter().zip(b).filter_map(|(a, b)| Some(((*a)?, (*b)?)))
}

/// The median of what `a` takes more than `b` in the same round.
pub(super) fn paired_difference(a: &[Option<f64>], b: &[Option<f64>]) -> Option<f64> {
    median(&pairs(a, b).map(|(a, b)| a - b).collect::<Vec<_>>())
}

/// The median of `a / b` of the same round.
pub(super) fn paired_ratio(a: &[Option<f64>], b: &[Option<f64>]) -> Option<f64> {
    median(&pairs(a, b).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b).collect::<Vec<_>>())
}

/// Numbers that look random and are the same in every run (xorshift64*).
#[derive(Debug)]
pub(super) struct Shuffle(u64);

impl Shuffle {
    pub(super) fn new(seed: u64) -> Self {
        // The generator must not begin with 0.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Numbers below `count`, each once.
    pub(super) fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, (self.next() % (last as u64 + 1)) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_neighbours() {
        let values: Vec<f64> = (1..=5).map(f64::from).collect();
        assert_eq!(percentile(&values, 50.0), Some(3.0));
        assert_eq!(percentile(&values, 90.0), Some(4.6));
        assert_eq!(percentile(&values, 100.0), Some(5.0));
        assert_eq!(percentile(&values, 0.0), Some(1.0));
        assert_eq!(percentile(&[7.0], 99.0), Some(7.0));
        assert_eq!(percentile(&[], 50.0), None);
        assert_eq!(median(&[9.0, 1.0, 5.0, 2.0]), Some(3.5));
    }

    #[test]
    fn a_summary_is_of_sorted_values() {
        let summary = Summary::of(&[30.0, 10.0, 20.0]).unwrap();
        assert_eq!((summary.count, summary.min, summary.p50), (3, 10.0, 20.0));
        assert!(summary.p99 > 29.0 && summary.p99 < 30.0);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn only_rounds_in_which_both_succeeded_are_compared() {
        let a = [Some(60.0), None, Some(90.0), Some(50.0)];
        let b = [Some(100.0), Some(1.0), Some(100.0), Some(100.0)];
        assert_eq!(paired_ratio(&a, &b), Some(0.6));
        assert_eq!(paired_difference(&a, &b), Some(-40.0));
        assert_eq!(paired_ratio(&a, &[None, Some(1.0)]), None);
        assert_eq!(paired_ratio(&[Some(1.0)], &[Some(0.0)]), None);
    }

    #[test]
    fn an_order_has_everything_once_and_is_the_same_again() {
        let (mut one, mut two) = (Shuffle::new(3), Shuffle::new(3));
        let orders: Vec<_> = (0..20).map(|_| one.order(10)).collect();
        assert_eq!(orders, (0..20).map(|_| two.order(10)).collect::<Vec<_>>());
        for order in &orders {
            let mut all = order.clone();
            all.sort_unstable();
            assert_eq!(all, (0..10).collect::<Vec<_>>());
        }
        assert!(orders.iter().any(|order| order != &orders[0]), "every round has the same order");
        assert!(Shuffle::new(0).order(0).is_empty());
    }
}
