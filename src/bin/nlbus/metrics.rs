//! Counts and measures in Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write as _};

use nlbus::service::queue::Kind;
use nlbus::service::queue::machine::{BrokerInfo, Counters, QueueInfo, Service};

/// The type of it in HTTP.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is to be exposed.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    text: String,
    name: &'static str,
}

type Measure = (&'static str, &'static str, fn(&QueueInfo) -> f64);
type Count = (&'static str, &'static str, fn(&Counters) -> u64);

/// What each queue is measured by.
const MEASURES: [Measure; 6] = [
    ("nlbus_queue_messages", "Messages in the queue.", |queue| queue.messages as f64),
    ("nlbus_queue_ready", "Messages that wait for a consumer.", |queue| queue.ready as f64),
    ("nlbus_queue_held", "Messages that consumers hold.", |queue| queue.leased as f64),
    ("nlbus_queue_bytes", "Bytes of messages in the queue.", |queue| queue.bytes as f64),
    ("nlbus_queue_consumers", "Who takes messages from it.", |queue| f64::from(queue.consumers)),
    ("nlbus_queue_served", "1 if anybody takes messages from it.", |queue| {
        f64::from(u8::from(queue.service == Service::Running))
    }),
];

/// What is counted of each queue.
const COUNTS: [Count; 9] = [
    ("nlbus_queue_sent_total", "Messages taken in.", |count| count.sent),
    ("nlbus_queue_delivered_total", "Deliveries.", |count| count.delivered),
    ("nlbus_queue_redelivered_total", "Deliveries that were not the first.", |count| {
        count.redelivered
    }),
    ("nlbus_queue_acked_total", "Messages done with.", |count| count.acked),
    ("nlbus_queue_returned_total", "Deliveries that came back.", |count| count.returned),
    ("nlbus_queue_expired_total", "Messages whose time was over.", |count| count.expired),
    ("nlbus_queue_dropped_total", "Messages dropped, purged or withdrawn.", |count| count.dropped),
    ("nlbus_queue_dead_lettered_total", "Messages gone to the dead-letter queue.", |count| {
        count.dead
    }),
    ("nlbus_queue_refused_total", "Messages not taken in.", |count| count.refused),
];

impl Exposition {
    /// The queues. Transient ones come and go with their sessions: they are summed up under the name "",
    /// which no queue has, and have no counters, which must not go back.
    pub(crate) fn queues(&mut self, broker: &BrokerInfo, queues: &[QueueInfo]) {
        let (transient, persistent): (Vec<_>, Vec<_>) =
            queues.iter().partition(|queue| queue.kind == Kind::Transient);
        self.family("nlbus_queues", "gauge", "Queues.");
        for (kind, some) in [("persistent", &persistent), ("transient", &transient)] {
            self.sample("", &[("kind", kind)], some.len());
        }
        let left_out = broker.queues.saturating_sub(queues.len() as u64);
        for (name, help, value) in [
            ("nlbus_queues_left_out", "Queues that are not shown here.", left_out as f64),
            ("nlbus_queues_bytes", "Bytes of messages in all queues.", broker.bytes as f64),
            ("nlbus_queues_durable", "1 if messages are on disk.", broker.durable.into()),
            ("nlbus_queues_damaged", "Messages put aside.", broker.quarantined.len() as f64),
            (
                "nlbus_queues_start_time_seconds",
                "When the broker of the queues started.",
                seconds(broker.started.0),
            ),
        ] {
            self.family(name, "gauge", help);
            self.sample("", &[], value);
        }
        for (name, help, measure) in MEASURES {
            self.family(name, "gauge", help);
            for queue in &persistent {
                self.sample("", &labels(queue), measure(queue));
            }
            if name != "nlbus_queue_served" {
                let sum: f64 = transient.iter().map(|queue| measure(queue)).sum();
                self.sample("", &[("queue", ""), ("kind", "transient")], sum);
            }
        }
        self.family("nlbus_queue_oldest_age_seconds", "gauge", "Age of its oldest message.");
        for queue in &persistent {
            let age = queue.oldest.map_or(0, |oldest| broker.now.us_since(oldest));
            self.sample("", &labels(queue), seconds(age));
        }
        for (name, help, count) in COUNTS {
            self.family(name, "counter", help);
            for queue in &persistent {
                self.sample("", &labels(queue), count(&queue.counters));
            }
        }
        self.family("nlbus_queue_wait_seconds", "summary", "From arrival to first delivery.");
        for queue in &persistent {
            let Counters { waited_us, .. } = queue.counters;
            self.sample("_sum", &labels(queue), seconds(waited_us));
            self.sample("_count", &labels(queue), queue.counters.first_deliveries());
        }
        self.family("nlbus_queue_done_seconds", "summary", "From arrival to acknowledgement.");
        for queue in &persistent {
            let Counters { done_us, acked, .. } = queue.counters;
            self.sample("_sum", &labels(queue), seconds(done_us));
            self.sample("_count", &labels(queue), acked);
        }
    }

    /// What a node has counted, by the names of `nlbus ctl stats`.
    pub(crate) fn node(&mut self, counters: &[(&'static str, u64)]) {
        for &(name, count) in counters {
            // the one that goes down, too
            let (end, kind) = if name == "links" { ("", "gauge") } else { ("_total", "counter") };
            let _ = writeln!(self.text, "# HELP nlbus_node_{name}{end} As in nlbus ctl stats.");
            let _ = writeln!(self.text, "# TYPE nlbus_node_{name}{end} {kind}");
            let _ = writeln!(self.text, "nlbus_node_{name}{end} {count}");
        }
    }

    /// All of it.
    pub(crate) fn into_text(self) -> String {
        self.text
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, end: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.text, "{}{end}", self.name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{before}{label}=\"{value}\"");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{after} {value}");
    }
}

fn labels(queue: &QueueInfo) -> [(&str, &str); 2] {
    [("queue", &queue.name), ("kind", "persistent")]
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
