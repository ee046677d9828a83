//! What came out of the pairs, as a table and as JSON. Pure.

use std::fmt::Write as _;

use serde_json::json;
use styx::Guard;

use super::{Asked, BAR};

/// Medians, and where the ratios of pairs lie.
pub(super) struct Measure {
    name: &'static str,
    guarded: f64,
    bare: f64,
    /// The median of the pairs' ratios, of all rules to none.
    pub(super) ratio: f64,
    /// The middle half of them.
    half: (f64, f64),
    ends: (f64, f64),
}

impl Measure {
    /// Of at least one pair: with all rules, and with none.
    pub(super) fn of(name: &'static str, pairs: &[(f64, f64)]) -> Self {
        let sorted = |of: &dyn Fn(&(f64, f64)) -> f64| {
            let mut all: Vec<f64> = pairs.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let ratios = sorted(&|pair| pair.0 / pair.1);
        let last = ratios.len() - 1;
        Self {
            name,
            guarded: median(&sorted(&|pair| pair.0)),
            bare: median(&sorted(&|pair| pair.1)),
            ratio: median(&ratios),
            half: (ratios[last / 4], ratios[last - last / 4]),
            ends: (ratios[0], ratios[last]),
        }
    }
}

fn median(sorted: &[f64]) -> f64 {
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

pub(super) fn table(asked: &Asked, measures: &[Measure]) -> String {
    let mut text =
        format!("{:<20}{:>10}{:>10}{:>8}   {:<16}{}\n", "", "all rules", "none", "ratio", "middle half", "from, to");
    for Measure { name, guarded, bare, ratio, half: (low, high), ends: (first, last) } in measures {
        let half = format!("{low:.3} .. {high:.3}");
        writeln!(text, "{name:<20}{guarded:>10.0}{bare:>10.0}{ratio:>8.3}   {half:<16}{first:.3}, {last:.3}").unwrap();
    }
    let Asked { pairs, slice, held, .. } = asked;
    let without = asked.without.map_or(String::new(), |guard| format!("; all rules but {guard}"));
    let chain = asked.door.map_or("", |_| "; frames judged by rules");
    text + &format!(
        "medians of {pairs} pairs, {slice:?} each; {} senders; {held} connections held{without}{chain}\n",
        sender(asked)
    )
}

pub(super) fn json(asked: &Asked, measures: &[Measure]) -> String {
    let row = |one: &Measure| {
        json!({
            "what": one.name, "all_rules": one.guarded, "none": one.bare, "ratio": one.ratio,
            "middle_half": [one.half.0, one.half.1], "from_to": [one.ends.0, one.ends.1],
        })
    };
    let all = json!({
        "sender": sender(asked), "pairs": asked.pairs, "seconds": asked.slice.as_secs_f64(), "held": asked.held,
        "without": asked.without.map(Guard::name), "chain": asked.door.is_some(), "bar": BAR, "measures": measures.iter().map(row).collect::<Vec<_>>(),
    });
    format!("{all:#}\n")
}

fn sender(asked: &Asked) -> &'static str {
    if asked.tap { "TAP" } else { "veth" }
}
