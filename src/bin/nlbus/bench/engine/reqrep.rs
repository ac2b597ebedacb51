//! Requests and their answers: some askers, one who answers.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::bail;

use super::pump::Pump;
use super::tally::{Counts, Flow, Stamp};
use super::{Course, Dialect, Outcome, Phase, Plan, Port as _, Role, TICK, Watch};

struct Asker {
    sent: u64,
    answers: Flow,
    /// When the open requests were written, the oldest first.
    asked: VecDeque<Instant>,
}

/// Keeps `plan.outstanding` requests under way, shared out among `plan.clients` askers.
pub(crate) fn reqrep<D: Dialect>(
    dialect: &D,
    plan: &Plan,
    watch: &mut dyn Watch,
) -> anyhow::Result<Outcome> {
    if plan.outstanding < plan.clients {
        bail!("{} askers need as many requests under way at least", plan.clients);
    }
    let mut pump = Pump::new()?;
    let (stream, port) = dialect.open(Role::Answers)?;
    let answerer = pump.add(stream, port)?;
    for number in 0..plan.clients {
        let (stream, port) = dialect.open(Role::Asks(number))?;
        pump.add(stream, port)?;
    }
    let run = dialect.run();
    let mut payload = vec![0; plan.size];
    let mut counts = Counts::default();
    let mut course = Course::start(plan, watch)?;
    let mut askers: Vec<Asker> = Vec::new();
    for flow in 0..plan.clients {
        let share = plan.outstanding / plan.clients;
        let share = share + usize::from(flow < plan.outstanding % plan.clients);
        let mut asked = VecDeque::with_capacity(share);
        let (port, out) = pump.output(answerer + 1 + flow);
        for sequence in 0..share as u64 {
            Stamp { run, flow: flow as u32, sequence }.write(&mut payload);
            port.emit(&payload, out)?;
            asked.push_back(Instant::now());
        }
        pump.flush(answerer + 1 + flow)?;
        askers.push(Asker { sent: share as u64, answers: Flow::default(), asked });
    }

    let mut ready = Vec::new();
    let mut last_arrival = Instant::now();
    loop {
        pump.wait(TICK, &mut ready)?;
        let now = Instant::now();
        let phase = course.at(now);
        for at in ready.drain(..) {
            if at == answerer {
                pump.receive(at, |arrival| {
                    arrival.port.answer(arrival.item, arrival.cut, arrival.out)
                })?;
                pump.flush(at)?;
                continue;
            }
            let flow = at - answerer - 1;
            let asker = &mut askers[flow];
            pump.receive(at, |arrival| {
                let stamp = Stamp::read(arrival.payload, run, plan.size);
                let Some(stamp) = stamp.filter(|stamp| stamp.flow as usize == flow) else {
                    bail!("an asker got an answer that is not for it");
                };
                asker.answers.note(stamp.sequence, true, &mut counts)?;
                course.arrived(asker.asked.pop_front().map(|asked| arrival.now - asked));
                if phase < Phase::Over {
                    Stamp { sequence: asker.sent, ..stamp }.write(&mut payload);
                    arrival.port.emit(&payload, arrival.out)?;
                    asker.asked.push_back(arrival.now);
                    asker.sent += 1;
                }
                Ok(())
            })?;
            pump.flush(at)?;
            last_arrival = now;
        }
        counts.sent = askers.iter().map(|asker| asker.sent).sum();
        if course.is_done(now, last_arrival, &counts)? {
            return Ok(course.finish(counts));
        }
    }
}
