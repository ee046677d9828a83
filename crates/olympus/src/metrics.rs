//! What a server counts, for Prometheus. No metric has a label for a single sandbox: they come and go.

use metrics::{Label, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tartarus_types::State;
use tartarus_types::net::NetTotals;

const SANDBOXES: &str = "tartarus_sandboxes";
const ENDED: &str = "tartarus_sandboxes_ended_total";
const NETWORKS: &str = "tartarus_networks";
const PACKETS: &str = "tartarus_net_packets_total";
const BYTES: &str = "tartarus_net_bytes_total";
const REFUSED_NAMES: &str = "tartarus_net_refused_names_total";
const MENDED: &str = "tartarus_net_mended_total";
const BUILD: &str = "tartarus_build_info";

/// The metrics of one server, since it started.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    text: PrometheusHandle,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe_gauge!(SANDBOXES, "Sandboxes that have not ended, by state.");
            describe_counter!(
                ENDED,
                "Sandboxes that ended, by state; not those whose end was asked for while they were queued."
            );
            describe_gauge!(NETWORKS, "Sandboxes that have a network.");
            describe_counter!(PACKETS, "Packets from and to sandboxes, by what became of them.");
            describe_counter!(BYTES, "Bytes from and to sandboxes, by what became of them.");
            describe_counter!(REFUSED_NAMES, "Questions for names that a sandbox may not look up.");
            describe_counter!(
                MENDED,
                "Times that somebody else changed a sandbox's rules or links, and they were put back."
            );
            describe_gauge!(BUILD, "The version that runs.");
            gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1);
            for state in State::ALL.into_iter().filter(|state| state.is_terminal()) {
                counter!(ENDED, label("state", state.as_str())).absolute(0);
            }
        });
        let text = recorder.handle();
        Self { recorder, text }
    }

    /// A sandbox ended.
    pub(crate) fn ended(&self, state: State) {
        metrics::with_local_recorder(&self.recorder, || {
            counter!(ENDED, label("state", state.as_str())).increment(1);
        });
    }

    /// All of it in Prometheus' text format, with what is so now. A node that does not answer leaves its own out.
    pub(crate) fn text(&self, live: &[(State, u64)], net: Option<&NetTotals>) -> String {
        metrics::with_local_recorder(&self.recorder, || {
            for state in State::ALL.into_iter().filter(|state| !state.is_terminal()) {
                let count = live.iter().find(|(of, _)| *of == state).map_or(0, |(_, count)| *count);
                gauge!(SANDBOXES, label("state", state.as_str())).set(count as f64);
            }
            let Some(net) = net else { return };
            gauge!(NETWORKS).set(net.networks as f64);
            for one in &net.counters {
                let became = || label("reason", &one.name);
                counter!(PACKETS, became()).absolute(one.packets);
                counter!(BYTES, became()).absolute(one.bytes);
            }
            counter!(REFUSED_NAMES).absolute(net.refused_names);
            counter!(MENDED).absolute(net.mended);
        });
        self.text.render()
    }
}

fn label(name: &'static str, value: &str) -> Vec<Label> {
    vec![Label::new(name, value.to_owned())]
}

#[cfg(test)]
mod tests {
    use tartarus_types::net::NetCounter;

    use super::*;

    #[test]
    fn what_is_so_now_replaces_what_was() {
        let metrics = Metrics::new();
        let line = |text: &str, line: &str| text.lines().any(|other| other == line);
        let counter = |packets| NetCounter { name: "never".to_owned(), packets, bytes: packets * 60 };
        let net = |packets| NetTotals { networks: packets, counters: vec![counter(packets)], ..NetTotals::default() };
        metrics.ended(State::Killed);
        let text = metrics.text(&[(State::Running, 2), (State::Queued, 5)], Some(&net(3)));
        for wanted in [
            "# TYPE tartarus_sandboxes gauge",
            "# TYPE tartarus_net_packets_total counter",
            "tartarus_sandboxes{state=\"running\"} 2",
            "tartarus_sandboxes{state=\"queued\"} 5",
            "tartarus_sandboxes{state=\"paused\"} 0",
            "tartarus_sandboxes_ended_total{state=\"killed\"} 1",
            "tartarus_sandboxes_ended_total{state=\"failed\"} 0",
            "tartarus_networks 3",
            "tartarus_net_packets_total{reason=\"never\"} 3",
            "tartarus_net_bytes_total{reason=\"never\"} 180",
            "tartarus_net_mended_total 0",
        ] {
            assert!(line(&text, wanted), "{wanted}\n{text}");
        }
        let text = metrics.text(&[], Some(&net(4)));
        for wanted in ["tartarus_sandboxes{state=\"running\"} 0", "tartarus_net_packets_total{reason=\"never\"} 4"] {
            assert!(line(&text, wanted), "{wanted}\n{text}");
        }
    }
}
