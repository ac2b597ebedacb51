//! Medians, ratios, targets: as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::cases::{self, Against, Case, Measure, Target};
use crate::peers::{Measured, Peer};

/// One broker under one load, one value for each round.
#[derive(Debug, Default)]
struct Rounds {
    rates: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu_per_million: Vec<f64>,
}

/// What `nlbus bench idle` said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    pub(crate) links: usize,
    pub(crate) bytes_per_link: f64,
    pub(crate) p99_ratio: f64,
}

pub(crate) struct Results {
    rounds: usize,
    seconds: f64,
    cpu: usize,
    peers: Vec<(Peer, String)>,
    /// By series, size and peer.
    measured: BTreeMap<(&'static str, usize, Peer), Rounds>,
    pub(crate) idle: Vec<Idle>,
}

impl Results {
    pub(crate) fn new(rounds: usize, seconds: f64, cpu: usize, peers: Vec<(Peer, String)>) -> Self {
        Self { rounds, seconds, cpu, peers, measured: BTreeMap::new(), idle: Vec::new() }
    }

    /// Whether the peer is there to be measured.
    pub(crate) fn has(&self, peer: Peer) -> bool {
        self.peers.iter().any(|(other, _)| *other == peer)
    }

    pub(crate) fn add(&mut self, case: &Case, peer: Peer, measured: &Measured) {
        let rounds = self.measured.entry((case.series, case.size, peer)).or_default();
        let outcome = &measured.outcome;
        let microseconds = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / 1e3;
        rounds.rates.push(outcome.rate());
        rounds.p50.push(microseconds(0.5));
        rounds.p99.push(microseconds(0.99));
        let cpu = measured.usage.cpu_seconds / (outcome.messages.max(1) as f64) * 1e6;
        rounds.cpu_per_million.push(cpu);
    }

    /// The median of what was measured; `None` if it was not.
    pub(crate) fn median(
        &self,
        series: &'static str,
        size: usize,
        peer: Peer,
        measure: Measure,
    ) -> Option<f64> {
        let rounds = self.measured.get(&(series, size, peer))?;
        median(match measure {
            Measure::Latency => &rounds.p50,
            Measure::Rate => &rounds.rates,
            Measure::Cpu => &rounds.cpu_per_million,
        })
    }

    /// The sizes of a series, and who was measured.
    pub(crate) fn sizes(&self, series: &'static str) -> Vec<usize> {
        let mut sizes: Vec<usize> =
            self.measured.keys().filter(|key| key.0 == series).map(|key| key.1).collect();
        sizes.dedup();
        sizes
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("# nlbus beside others\n\n");
        self.describe(&mut text);
        self.write_targets(&mut text);
        for case in cases::all() {
            self.write_case(&case, &mut text);
        }
        text
    }

    fn describe(&self, text: &mut String) {
        let uname = rustix::system::uname();
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
        let versions: Vec<String> =
            self.peers.iter().map(|(peer, version)| format!("{} {version}", peer.name())).collect();
        let _ = writeln!(
            text,
            "Made by `tools/bench-peers/run`: {} rounds in turns, {} s each; clients and broker on CPU {} of {count}\n\
             ({}), Linux {}; TCP on loopback. Medians of the rounds.\n\n{}.\n",
            self.rounds,
            self.seconds,
            self.cpu,
            model.map_or("unknown", |(_, model)| model),
            uname.release().to_string_lossy(),
            versions.join(", "),
        );
    }

    fn write_targets(&self, text: &mut String) {
        text.push_str(
            "## Targets\n\n| what | figure | ratio | target | |\n|---|---|---|---|---|\n",
        );
        for target in cases::targets() {
            if let Some(line) = self.target_line(&target) {
                text.push_str(&line);
            }
        }
        if let Some(first) = self.idle.first() {
            let of =
                |each: fn(&Idle) -> f64| median(&self.idle.iter().map(each).collect::<Vec<_>>());
            let bytes = of(|idle| idle.bytes_per_link).unwrap_or_default();
            let ratio = of(|idle| idle.p99_ratio).unwrap_or_default();
            let _ = writeln!(
                text,
                "| {} idle links | {bytes:.0} bytes each | | ≤ 4096 | {} |\n\
                 | p99 of REQ/REP with them / without | | {ratio:.2} | ≤ 1.2 | {} |",
                first.links,
                verdict(bytes <= 4_096.0),
                verdict(ratio <= 1.2)
            );
        }
        text.push('\n');
    }

    fn target_line(&self, target: &Target) -> Option<String> {
        let Target { series, size, measure, against, bar } = *target;
        let own = self.median(series, size, Peer::Nlbus, measure)?;
        let figure = match measure {
            Measure::Latency => format!("{own:.1} µs"),
            Measure::Rate => format!("{}/s", thousands(own)),
            Measure::Cpu => format!("{own:.3} s of CPU for a million"),
        };
        let (ratio, whom) = match against {
            Against::Nobody => (own, String::new()),
            Against::Peer(peer) => {
                (own / self.median(series, size, peer, measure)?, format!(" × {}", peer.name()))
            }
            Against::BestOther => {
                let others = Peer::OTHERS.iter().filter_map(|peer| {
                    Some((self.median(series, size, *peer, measure)?, peer.name()))
                });
                let (best, name) = others.max_by(|a, b| a.0.total_cmp(&b.0))?;
                (own / best, format!(" × the best other, {name}"))
            }
        };
        let (met, sign) = match measure {
            Measure::Rate => (ratio >= bar, "≥"),
            Measure::Latency | Measure::Cpu => (ratio <= bar, "≤"),
        };
        let shown = if against == Against::Nobody { String::new() } else { format!("{ratio:.2}") };
        Some(format!(
            "| {series}, {} | {figure} | {shown} | {sign} {bar}{whom} | {} |\n",
            cases::bytes(size),
            verdict(met)
        ))
    }

    fn write_case(&self, case: &Case, text: &mut String) {
        let of = |peer, measure| self.median(case.series, case.size, peer, measure);
        if !Peer::ALL.iter().any(|peer| of(*peer, Measure::Rate).is_some()) {
            return;
        }
        let relay = of(Peer::Relay, Measure::Rate);
        let _ = writeln!(
            text,
            "## {}\n\n| | messages/s | × relay | spread | p50 | p99 | MB/s | broker CPU for a million |\n|---|---|---|---|---|---|---|---|",
            case.name
        );
        for peer in Peer::ALL {
            let Some(rounds) = self.measured.get(&(case.series, case.size, peer)) else { continue };
            let rate = median(&rounds.rates).unwrap_or_default();
            let ratio = relay.map_or(String::new(), |relay| format!("{:.2}", rate / relay));
            let _ = writeln!(
                text,
                "| {} | {} | {ratio} | {} | {:.1} µs | {:.1} µs | {:.1} | {:.3} s |",
                peer.name(),
                thousands(rate),
                spread(&rounds.rates, rate),
                median(&rounds.p50).unwrap_or_default(),
                median(&rounds.p99).unwrap_or_default(),
                rate * case.size as f64 / 1e6,
                median(&rounds.cpu_per_million).unwrap_or_default(),
            );
        }
        text.push('\n');
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "**missed**" }
}

/// How far the rounds lie apart, of the median.
fn spread(values: &[f64], median: f64) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    format!("{:.0} %", (high - low) / median.max(f64::MIN_POSITIVE) * 100.0)
}

pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len().checked_sub(1)? / 2;
    let (low, high) = (sorted[middle], sorted[sorted.len() / 2]);
    Some((low + high) / 2.0)
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
