//! What was measured, as a table or as JSON.

use serde_json::{Map, Value, json};

use super::Bench;
use super::engine::{Outcome, Plan, Usage};

/// One load.
pub(super) struct Row {
    pub(super) name: String,
    /// `None` where the messages are the kernel's.
    pub(super) plan: Option<Plan>,
    pub(super) outcome: Outcome,
    /// Of the broker that was started, in the measured time.
    pub(super) usage: Option<Usage>,
}

/// What idle links cost.
pub(super) struct Idle {
    pub(super) links: usize,
    pub(super) wanted: usize,
    pub(super) bytes_per_link: Option<f64>,
    pub(super) p99_ratio: f64,
}

/// A whole call of `nlbus bench`.
pub(super) struct Report {
    kind: &'static str,
    url: String,
    started: bool,
    rows: Vec<Row>,
    pub(super) idle: Option<Idle>,
    /// Durable sends in a second, of the rows that SQLite alone writes.
    pub(super) durable_of_sqlite: Option<f64>,
}

impl Report {
    pub(super) fn of(bench: &Bench<'_>, rows: Vec<Row>) -> Self {
        let (url, started) = (bench.url.to_string(), bench.process.is_some());
        Self {
            kind: bench.args.kind.name(),
            url,
            started,
            rows,
            idle: None,
            durable_of_sqlite: None,
        }
    }

    pub(super) fn into_rows(self) -> Vec<Row> {
        self.rows
    }

    /// What is wrong with the counts, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        let row = self.rows.iter().find(|row| !row.outcome.counts.are_sound())?;
        let counts = row.outcome.counts;
        Some(format!(
            "{}: of {} messages {} were lost, {} came twice, {} came out of order",
            row.name,
            counts.sent,
            counts.lost(),
            counts.duplicated,
            counts.reordered
        ))
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let head =
            ["", "messages/s", "p50", "p90", "p99", "p99.9", "MB/s", "CPU", "CPU/1M", "memory"];
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let mut text = format!(
            "{} at {}{}\n",
            self.kind,
            self.url,
            if self.started { ", a broker started for it" } else { "" }
        );
        for line in &lines {
            let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        let counts = self.rows.iter().map(|row| row.outcome.counts);
        let sent: u64 = counts.clone().map(|counts| counts.sent).sum();
        let received: u64 = counts.map(|counts| counts.received).sum();
        text.push_str(&format!("{sent} messages due, {received} received"));
        if let Some(share) = self.durable_of_sqlite {
            text.push_str(&format!("; durable / sqlite: {share:.2}"));
        }
        if let Some(idle) = &self.idle {
            text.push_str(&format!("\n{} idle links", idle.links));
            if idle.links < idle.wanted {
                text.push_str(&format!(" ({} do not fit the limit of open files)", idle.wanted));
            }
            if let Some(bytes) = idle.bytes_per_link {
                text.push_str(&format!(", {bytes:.0} bytes of resident memory each"));
            }
            text.push_str(&format!("; p99 with them / without: {:.2}", idle.p99_ratio));
        }
        text
    }

    /// For programs; benches/README.md describes the keys.
    pub(super) fn json(&self) -> String {
        let mut object = Map::new();
        object.insert("kind".into(), json!(self.kind));
        object.insert("url".into(), json!(self.url));
        object.insert("started".into(), json!(self.started));
        object.insert("runs".into(), Value::Array(self.rows.iter().map(Row::json).collect()));
        if let Some(share) = self.durable_of_sqlite {
            object.insert("durable_of_sqlite".into(), json!(share));
        }
        if let Some(idle) = &self.idle {
            object.insert(
                "idle".into(),
                json!({
                    "links": idle.links,
                    "wanted": idle.wanted,
                    "bytes_per_link": idle.bytes_per_link,
                    "p99_ratio": idle.p99_ratio,
                }),
            );
        }
        Value::Object(object).to_string()
    }
}

impl Row {
    fn megabytes_per_second(&self) -> Option<f64> {
        self.plan.map(|plan| self.outcome.rate() * plan.size as f64 / 1e6)
    }

    /// Of the broker, for a million messages.
    fn cpu_per_million(&self) -> Option<f64> {
        let usage = self.usage.filter(|_| self.outcome.messages > 0)?;
        Some(usage.cpu_seconds / self.outcome.messages as f64 * 1e6)
    }

    fn microseconds(&self, quantile: f64) -> f64 {
        self.outcome.latency.value_at_quantile(quantile) as f64 / 1e3
    }

    fn cells(&self) -> [String; 10] {
        let time = |quantile| duration(self.microseconds(quantile));
        let seconds =
            |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3} s"));
        [
            self.name.clone(),
            format!("{:.0}", self.outcome.rate()),
            time(0.5),
            time(0.9),
            time(0.99),
            time(0.999),
            self.megabytes_per_second().map_or("-".into(), |rate| format!("{rate:.1}")),
            seconds(self.usage.map(|usage| usage.cpu_seconds)),
            seconds(self.cpu_per_million()),
            self.usage.map_or("-".into(), |usage| mebibytes(usage.resident_bytes)),
        ]
    }

    fn json(&self) -> Value {
        let counts = self.outcome.counts;
        json!({
            "name": self.name,
            "size": self.plan.map(|plan| plan.size),
            "clients": self.plan.map(|plan| plan.clients),
            "outstanding": self.plan.map(|plan| plan.outstanding),
            "seconds": self.outcome.seconds,
            "messages": self.outcome.messages,
            "rate": self.outcome.rate(),
            "mb_per_second": self.megabytes_per_second(),
            "latency_us": {
                "p50": self.microseconds(0.5),
                "p90": self.microseconds(0.9),
                "p99": self.microseconds(0.99),
                "p999": self.microseconds(0.999),
                "max": self.outcome.latency.max() as f64 / 1e3,
            },
            "counts": {
                "sent": counts.sent,
                "received": counts.received,
                "lost": counts.lost(),
                "duplicated": counts.duplicated,
                "reordered": counts.reordered,
                "foreign": counts.foreign,
            },
            "broker": self.usage.map(|usage| json!({
                "cpu_seconds": usage.cpu_seconds,
                "cpu_seconds_per_million": self.cpu_per_million(),
                "resident_bytes": usage.resident_bytes,
                "peak_bytes": usage.peak_bytes,
            })),
        })
    }
}

fn duration(microseconds: f64) -> String {
    if microseconds < 1_000.0 {
        format!("{microseconds:.1} us")
    } else {
        format!("{:.2} ms", microseconds / 1e3)
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
