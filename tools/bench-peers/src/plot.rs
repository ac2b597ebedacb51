//! Plots by payload size, both axes logarithmic, as SVG.

use std::fmt::Write as _;

use crate::cases::{self, Measure};
use crate::peers::Peer;
use crate::report::Results;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 104.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 56.0;

/// Median latency of a request by size.
pub(crate) fn latency(results: &Results) -> String {
    plot(results, cases::REQREP, "median latency in µs", |results, size, peer| {
        results.median(cases::REQREP, size, peer, Measure::Latency)
    })
}

/// Payload pushed in a second by size.
pub(crate) fn throughput(results: &Results) -> String {
    plot(results, cases::PUSH, "payload in MB/s", |results, size, peer| {
        let rate = results.median(cases::PUSH, size, peer, Measure::Rate)?;
        Some(rate * size as f64 / 1e6)
    })
}

fn plot(
    results: &Results,
    series: &'static str,
    unit: &str,
    value: impl Fn(&Results, usize, Peer) -> Option<f64>,
) -> String {
    let sizes = results.sizes(series);
    let curves: Vec<(Peer, Vec<(f64, f64)>)> = Peer::ALL
        .iter()
        .map(|peer| {
            let points =
                sizes.iter().filter_map(|size| Some((*size as f64, value(results, *size, *peer)?)));
            (*peer, points.collect())
        })
        .filter(|(_, points): &(Peer, Vec<_>)| !points.is_empty())
        .collect();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{series}: {unit}</text>\n"
    );
    let all = || curves.iter().flat_map(|(_, points)| points.iter().copied());
    let bounds = |values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        (low, high)
    };
    let (x_low, x_high) = bounds(all().map(|(x, _)| x).collect());
    let (y_low, y_high) = bounds(all().map(|(_, y)| y).collect());
    if !(x_high > 0.0 && y_low > 0.0) {
        svg.push_str("</svg>\n");
        return svg;
    }
    let x_span = (x_high / x_low).ln().max(1.0);
    let decade = |value: f64| value.log10();
    let (y_bottom, y_top) = (decade(y_low).floor(), decade(y_high).ceil());
    let x_at = |x: f64| LEFT + (x / x_low).ln() / x_span * (WIDTH - LEFT - RIGHT);
    let y_at = |y: f64| {
        let part = (decade(y) - y_bottom) / (y_top - y_bottom).max(1.0);
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    };
    for exponent in y_bottom as i32..=y_top as i32 {
        let y = y_at(10_f64.powi(exponent));
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0,
            10_f64.powi(exponent)
        );
    }
    for size in &sizes {
        let x = x_at(*size as f64);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#eee\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0,
            cases::bytes(*size)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">payload</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 14.0
    );
    let mut ends: Vec<f64> = Vec::new();
    for (peer, points) in &curves {
        let path: Vec<String> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
        let colour = colour(*peer);
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (x, y) in points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                x_at(*x),
                y_at(*y)
            );
        }
        if let Some((x, y)) = points.last() {
            // names stand apart where curves end close to each other
            let mut label = y_at(*y) + 4.0;
            while ends.iter().any(|other| (other - label).abs() < 13.0) {
                label += 1.0;
            }
            ends.push(label);
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{label:.1}\" fill=\"{colour}\">{}</text>",
                x_at(*x) + 8.0,
                peer.name()
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn colour(peer: Peer) -> &'static str {
    match peer {
        Peer::Relay => "#777777",
        Peer::Nlbus => "#0b6fb8",
        Peer::Nats => "#2a9d4a",
        Peer::Zmq => "#c0392b",
        Peer::Redis => "#d98a00",
    }
}
