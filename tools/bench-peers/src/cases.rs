//! What is measured, and what should come of it.

use crate::engine::Plan;
use crate::peers::{Load, Peer};
use std::time::Duration;

/// What may be under way of pushes and broadcasts, in bytes of payload and in messages; as in `nlbus bench`.
const WINDOW_BYTES: usize = 1 << 20;
const WINDOW_MESSAGES: usize = 8_192;

/// One load, driven through several brokers.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// The family of cases that differ in size only.
    pub(crate) series: &'static str,
    pub(crate) load: Load,
    pub(crate) size: usize,
    clients: usize,
    /// 0: what fits the window.
    outstanding: usize,
    pub(crate) peers: &'static [Peer],
}

impl Case {
    pub(crate) fn plan(&self, seconds: f64) -> Plan {
        let measured = Duration::from_secs_f64(seconds);
        let window = (WINDOW_BYTES / self.size).clamp(2, WINDOW_MESSAGES);
        Plan {
            size: self.size,
            clients: self.clients,
            pullers: self.clients,
            outstanding: if self.outstanding == 0 { window } else { self.outstanding },
            warm_up: measured / 5,
            measured,
        }
    }
}

/// All of them, in the order in which they are run.
pub(crate) fn all() -> Vec<Case> {
    let own: &'static [Peer] = &[Peer::Relay, Peer::Nlbus];
    let all: &'static [Peer] = &Peer::ALL;
    let case = |series, load, size, clients, outstanding, peers| Case {
        name: format!("{series}, {}", bytes(size)),
        series,
        load,
        size,
        clients,
        outstanding,
        peers,
    };
    let mut cases = Vec::new();
    for size in [16, 128, 1_024, 16_384, 61_440] {
        cases.push(case(REQREP, Load::Reqrep, size, 1, 1, all));
    }
    cases.push(case(REQREP_MANY, Load::Reqrep, 128, 16, 64, all));
    for size in [16, 128, 1_024, 16_384, 61_440] {
        cases.push(case(PUSH, Load::Push, size, 1, 0, all));
    }
    cases.push(case(PUSH_MANY, Load::Push, 128, 4, 0, all));
    cases.push(case(FANOUT, Load::Fanout, 128, 64, 0, all));
    cases.push(case(TLS, Load::TlsPush, 16_384, 1, 0, own));
    cases
}

pub(crate) const REQREP: &str = "REQ/REP, 1 outstanding";
pub(crate) const REQREP_MANY: &str = "REQ/REP, 16 clients, 64 outstanding";
pub(crate) const PUSH: &str = "PUSH/PULL 1 to 1";
pub(crate) const PUSH_MANY: &str = "PUSH/PULL 4 to 4";
pub(crate) const FANOUT: &str = "SUBSCRIBE 1 to 64";
pub(crate) const TLS: &str = "PUSH/PULL 1 to 1 over TLS";

pub(crate) fn bytes(size: usize) -> String {
    if size >= 1_024 && size.is_multiple_of(1_024) {
        format!("{} KiB", size / 1_024)
    } else {
        format!("{size} B")
    }
}

/// What a target compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Median latency.
    Latency,
    /// Messages in a second.
    Rate,
    /// The broker's CPU seconds for a million messages, by itself.
    Cpu,
}

/// Against whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    Peer(Peer),
    /// The best of those that others use.
    BestOther,
    Nobody,
}

/// What nlbus should reach in a case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) series: &'static str,
    pub(crate) size: usize,
    pub(crate) measure: Measure,
    pub(crate) against: Against,
    /// At most for latency and CPU, at least for a rate.
    pub(crate) bar: f64,
}

pub(crate) fn targets() -> Vec<Target> {
    let target =
        |series, size, measure, against, bar| Target { series, size, measure, against, bar };
    let relay = Against::Peer(Peer::Relay);
    vec![
        target(REQREP, 16, Measure::Latency, relay, 1.10),
        target(REQREP, 128, Measure::Latency, relay, 1.10),
        target(REQREP, 1_024, Measure::Latency, relay, 1.10),
        target(REQREP_MANY, 128, Measure::Rate, relay, 0.85),
        target(REQREP_MANY, 128, Measure::Rate, Against::Peer(Peer::Nats), 2.2),
        target(PUSH, 128, Measure::Rate, relay, 0.5),
        target(PUSH, 16_384, Measure::Rate, relay, 0.9),
        target(PUSH, 61_440, Measure::Rate, relay, 0.9),
        target(FANOUT, 128, Measure::Rate, relay, 0.5),
        target(FANOUT, 128, Measure::Rate, Against::BestOther, 2.0),
        target(PUSH_MANY, 128, Measure::Rate, relay, 0.5),
        target(PUSH, 128, Measure::Cpu, Against::Nobody, 0.06),
        target(TLS, 16_384, Measure::Rate, relay, 0.9),
    ]
}
