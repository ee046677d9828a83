//! What a server counts, as Prometheus reads it. Nothing has a label for a single sandbox: they come and go.

use std::fmt::Error;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tartarus_types::State;
use tartarus_types::net::NetTotals;

/// What nobody keeps a record of: how many sandboxes ended, by state, since the server started.
#[derive(Debug, Default)]
pub(crate) struct Metrics([AtomicU64; State::ALL.len()]);

impl Metrics {
    /// A sandbox ended.
    pub(crate) fn ended(&self, state: State) {
        let counts = State::ALL.iter().zip(&self.0).filter(|(of, _)| **of == state);
        counts.for_each(|(_, count)| _ = count.fetch_add(1, Ordering::Relaxed));
    }

    /// All of it in the text format of OpenMetrics. `live` are sandboxes that have not ended, by state; a node that does not
    /// answer has no `net`, and none of its metrics is there.
    pub(crate) fn text(&self, live: Vec<(State, u64)>, net: Option<NetTotals>) -> String {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let ended = State::ALL.into_iter().zip(self.0.iter().map(count)).filter(|(state, _)| state.is_terminal());
        let now = Now { live, ended: ended.collect(), net };
        let mut registry = Registry::with_prefix("tartarus");
        registry.register_collector(Box::new(now));
        let mut written = String::new();
        text::encode(&mut written, &registry).expect("a text takes whatever is written to it");
        written
    }
}

/// What is so now.
#[derive(Debug)]
struct Now {
    live: Vec<(State, u64)>,
    ended: Vec<(State, u64)>,
    net: Option<NetTotals>,
}

impl Collector for Now {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        let live = State::ALL.into_iter().filter(|state| !state.is_terminal()).map(|state| {
            let found = self.live.iter().find(|(of, _)| *of == state);
            (state.as_str(), found.map_or(0, |(_, count)| *count))
        });
        let named = ("sandboxes", "Sandboxes that have not ended, by state");
        family(&mut to, named, "state", ConstGauge::new, live)?;
        let ended = self.ended.iter().map(|(state, count)| (state.as_str(), *count));
        let help = "Sandboxes that ended, by state; not those whose end was asked for while they were queued";
        family(&mut to, ("sandboxes_ended", help), "state", ConstCounter::new, ended)?;
        let version = [(env!("CARGO_PKG_VERSION"), 1)];
        family(&mut to, ("build_info", "The version that runs"), "version", ConstGauge::new, version)?;

        let Some(net) = &self.net else { return Ok(()) };
        one(&mut to, "networks", "Sandboxes that have a network", &ConstGauge::new(net.networks))?;
        let packets = net.counters.iter().map(|one| (one.name.as_str(), one.packets));
        let help = "Packets from and to sandboxes, by what became of them";
        family(&mut to, ("net_packets", help), "reason", ConstCounter::new, packets)?;
        let bytes = net.counters.iter().map(|one| (one.name.as_str(), one.bytes));
        let help = "Bytes from and to sandboxes, by what became of them";
        family(&mut to, ("net_bytes", help), "reason", ConstCounter::new, bytes)?;
        let help = "Questions for names that a sandbox may not look up";
        one(&mut to, "net_refused_names", help, &ConstCounter::new(net.refused_names))?;
        let help = "Times that somebody else changed a sandbox's rules or links, and they were put back";
        one(&mut to, "net_mended", help, &ConstCounter::new(net.mended))
    }
}

fn one(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl EncodeMetric) -> Result<(), Error> {
    metric.encode(to.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// One metric for each value of a label; nothing where there is none.
fn family<'a, M: EncodeMetric>(
    to: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    label: &str,
    metric: impl Fn(u64) -> M,
    values: impl IntoIterator<Item = (&'a str, u64)>,
) -> Result<(), Error> {
    let mut metrics = values.into_iter().map(|(of, value)| (of, metric(value))).peekable();
    let Some((_, first)) = metrics.peek() else { return Ok(()) };
    let mut family = to.encode_descriptor(name, help, None, first.metric_type())?;
    metrics.try_for_each(|(of, metric)| metric.encode(family.encode_family(&[(label, of)])?))
}

#[cfg(test)]
mod tests {
    use tartarus_types::net::NetCounter;

    use super::*;

    #[test]
    fn what_is_so_now_is_told() {
        let metrics = Metrics::default();
        let counter = |packets| NetCounter { name: "never".to_owned(), packets, bytes: packets * 60 };
        let net = NetTotals { networks: 3, counters: vec![counter(7)], refused_names: 2, mended: 0 };
        metrics.ended(State::Killed);
        let text = metrics.text(vec![(State::Running, 2), (State::Queued, 5)], Some(net));
        for wanted in [
            "# HELP tartarus_sandboxes Sandboxes that have not ended, by state",
            "# TYPE tartarus_sandboxes gauge",
            "# TYPE tartarus_net_packets counter",
            "tartarus_sandboxes{state=\"running\"} 2",
            "tartarus_sandboxes{state=\"queued\"} 5",
            "tartarus_sandboxes{state=\"paused\"} 0",
            "tartarus_sandboxes_ended_total{state=\"killed\"} 1",
            "tartarus_sandboxes_ended_total{state=\"failed\"} 0",
            "tartarus_networks 3",
            "tartarus_net_packets_total{reason=\"never\"} 7",
            "tartarus_net_bytes_total{reason=\"never\"} 420",
            "tartarus_net_refused_names_total 2",
            "tartarus_net_mended_total 0",
        ] {
            assert!(text.lines().any(|line| line == wanted), "{wanted}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let without = metrics.text(Vec::new(), None);
        assert!(!without.contains("tartarus_net") && without.contains("tartarus_sandboxes{state=\"running\"} 0"));
    }
}
