//! Pushes: some who push, some who share what is pushed.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::pump::Pump;
use super::tally::{Counts, Flow, Stamp};
use super::{Course, Dialect, Outcome, Phase, Plan, Port as _, Role, TICK, TIMED_EVERY, Watch};

/// What one write has at most, or one message.
pub(super) const BATCH_BYTES: usize = 64 * 1024;

struct Pusher {
    sent: u64,
    pushes: Flow,
    /// When the timed messages under way were written, by their number.
    written: Vec<Instant>,
}

/// Pushes as fast as `plan.outstanding` messages under way allow, from `plan.clients` to `plan.pullers`.
pub(crate) fn pushpull<D: Dialect>(
    dialect: &D,
    plan: &Plan,
    watch: &mut dyn Watch,
) -> anyhow::Result<Outcome> {
    let mut pump = Pump::new()?;
    for _ in 0..plan.pullers {
        let (stream, port) = dialect.open(Role::Pulls)?;
        pump.add(stream, port)?;
    }
    for number in 0..plan.clients {
        let (stream, port) = dialect.open(Role::Pushes(number))?;
        pump.add(stream, port)?;
    }
    let run = dialect.run();
    let ordered = plan.pullers == 1;
    let mut payload = vec![0; plan.size];
    let mut counts = Counts::default();
    let mut course = Course::start(plan, watch)?;
    let timed = plan.outstanding / TIMED_EVERY as usize + 2;
    let pusher =
        || Pusher { sent: 0, pushes: Flow::default(), written: vec![Instant::now(); timed] };
    let mut pushers: Vec<Pusher> = (0..plan.clients).map(|_| pusher()).collect();

    let mut ready = Vec::new();
    let mut last_arrival = Instant::now();
    let share = plan.outstanding.div_ceil(plan.clients) as u64;
    loop {
        let now = Instant::now();
        let phase = course.at(now);
        let mut more = false;
        for (number, pusher) in pushers.iter_mut().enumerate() {
            let at = plan.pullers + number;
            if phase == Phase::Over || !pump.is_flushed(at) {
                continue;
            }
            let (port, out) = pump.output(at);
            while pusher.sent - pusher.pushes.next() < share && out.len() < BATCH_BYTES {
                Stamp { run, flow: number as u32, sequence: pusher.sent }.write(&mut payload);
                port.emit(&payload, out)?;
                if pusher.sent.is_multiple_of(TIMED_EVERY) {
                    let slot = (pusher.sent / TIMED_EVERY) as usize % timed;
                    pusher.written[slot] = now;
                }
                pusher.sent += 1;
                counts.sent += 1;
            }
            pump.flush(at)?;
            more |= pump.is_flushed(at) && pusher.sent - pusher.pushes.next() < share;
        }
        pump.wait(if more { Duration::ZERO } else { TICK }, &mut ready)?;
        for at in ready.drain(..) {
            pump.receive(at, |arrival| {
                let Some(stamp) = Stamp::read(arrival.payload, run, plan.size) else {
                    counts.foreign += 1;
                    return Ok(());
                };
                let Some(pusher) = pushers.get_mut(stamp.flow as usize) else {
                    bail!("a message came from nobody");
                };
                pusher.pushes.note(stamp.sequence, ordered, &mut counts)?;
                let took = stamp.sequence.is_multiple_of(TIMED_EVERY).then(|| {
                    let slot = (stamp.sequence / TIMED_EVERY) as usize % timed;
                    arrival.now - pusher.written[slot]
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
