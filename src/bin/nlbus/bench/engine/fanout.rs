//! Broadcasts: one who publishes, some who subscribed.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::pump::Pump;
use super::pushpull::BATCH_BYTES;
use super::tally::{Counts, Flow, Stamp};
use super::{Course, Dialect, Outcome, Phase, Plan, Port as _, Role, TICK, TIMED_EVERY, Watch};

/// Publishes as fast as `plan.outstanding` messages to the slowest of `plan.clients` subscribers allow: a
/// broker may drop what a slow one does not take, and here none is to be slow.
pub(crate) fn fanout<D: Dialect>(
    dialect: &D,
    plan: &Plan,
    watch: &mut dyn Watch,
) -> anyhow::Result<Outcome> {
    let mut pump = Pump::new()?;
    for _ in 0..plan.clients {
        let (stream, port) = dialect.open(Role::Subscribes)?;
        pump.add(stream, port)?;
    }
    let (stream, port) = dialect.open(Role::Publishes)?;
    let publisher = pump.add(stream, port)?;
    let run = dialect.run();
    let mut payload = vec![0; plan.size];
    let mut counts = Counts::default();
    let mut course = Course::start(plan, watch)?;
    let timed = plan.outstanding / TIMED_EVERY as usize + 2;
    let mut written = vec![Instant::now(); timed];
    let mut subscribers: Vec<Flow> = (0..plan.clients).map(|_| Flow::default()).collect();

    let mut ready = Vec::new();
    let mut last_arrival = Instant::now();
    let mut sent = 0_u64;
    loop {
        let now = Instant::now();
        let phase = course.at(now);
        let slowest = subscribers.iter().map(Flow::next).min().unwrap_or(sent);
        let room = plan.outstanding as u64;
        let mut more = false;
        if phase < Phase::Over && pump.is_flushed(publisher) {
            let (port, out) = pump.output(publisher);
            while sent - slowest < room && out.len() < BATCH_BYTES {
                Stamp { run, flow: 0, sequence: sent }.write(&mut payload);
                port.emit(&payload, out)?;
                if sent.is_multiple_of(TIMED_EVERY) {
                    written[(sent / TIMED_EVERY) as usize % timed] = now;
                }
                sent += 1;
            }
            pump.flush(publisher)?;
            more = pump.is_flushed(publisher) && sent - slowest < room;
        }
        counts.sent = sent * plan.clients as u64;
        pump.wait(if more { Duration::ZERO } else { TICK }, &mut ready)?;
        for at in ready.drain(..) {
            pump.receive(at, |arrival| {
                let Some(stamp) = Stamp::read(arrival.payload, run, plan.size) else {
                    counts.foreign += 1;
                    return Ok(());
                };
                let Some(subscriber) = subscribers.get_mut(at) else {
                    bail!("the publisher got its own message");
                };
                subscriber.note(stamp.sequence, true, &mut counts)?;
                let took = stamp.sequence.is_multiple_of(TIMED_EVERY).then(|| {
                    arrival.now - written[(stamp.sequence / TIMED_EVERY) as usize % timed]
                });
                course.arrived(took);
                last_arrival = arrival.now;
                Ok(())
            })?;
            pump.flush(at)?;
        }
        if course.is_done(now, last_arrival, &counts)? {
            return Ok(course.finish(counts));
        }
    }
}
