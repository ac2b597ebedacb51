//! Links that do nothing: what each costs in memory, and whether the others notice.

use anyhow::{Context as _, bail};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::engine::{Dialect as _, Role, Stream};
use super::report::{Idle, Report};
use super::{Bench, Kind};

/// Descriptors that are not for idle links.
const SPARE_DESCRIPTORS: u64 = 64;

/// Requests, the links, the same requests beside them.
pub(super) fn measure(bench: &Bench<'_>) -> anyhow::Result<Report> {
    let mut wanted = bench.clients();
    let room = raise_descriptor_limit().saturating_sub(SPARE_DESCRIPTORS);
    if room < 1 {
        bail!("the limit of open files leaves no room for links");
    }
    wanted = wanted.min(usize::try_from(room).unwrap_or(wanted));
    let alone = bench.drive(Kind::Reqrep, "without")?;
    let before = bench.usage()?;
    let mut links: Vec<Box<dyn Stream>> = Vec::with_capacity(wanted);
    for number in 0..wanted {
        let opened = bench.nlbus.open(Role::Idles);
        let (stream, _) = opened.with_context(|| format!("{number} of {wanted} links are up"))?;
        links.push(stream);
    }
    let after = bench.usage()?;
    let beside = bench.drive(Kind::Reqrep, "with")?;
    let grown = before.zip(after).map(|(before, after)| {
        after.resident_bytes.saturating_sub(before.resident_bytes) as f64 / links.len() as f64
    });
    let p99 = |row: &super::Row| row.outcome.latency.value_at_quantile(0.99).max(1) as f64;
    let idle = Idle {
        links: links.len(),
        wanted: bench.clients(),
        bytes_per_link: grown,
        p99_ratio: p99(&beside) / p99(&alone),
    };
    let mut report = Report::of(bench, vec![alone, beside]);
    report.idle = Some(idle);
    Ok(report)
}

/// As many descriptors as the system lets us have; how many that are.
fn raise_descriptor_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // what cannot be raised stays as it is
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
