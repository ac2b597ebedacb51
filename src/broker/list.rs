//! LIST: what there is of a kind, in pieces that fit a frame.

use super::control::Outcome;
use super::order::{Answer, Entry, Order, Refusal, refuse};
use super::{Broker, Rights};
use crate::wire::{Control, ControlAttribute, ControlBuilder, TooBig, errno, kind, right};

/// Entries are put into one answer up to this length. A client of the original takes 16,384 bytes.
const PIECE_BYTES_MAX: usize = 12_288;

impl Broker {
    /// Answers a LIST, but for what only the node knows.
    pub(super) fn list(&self, control: &Control<'_>) -> Result<Outcome, Refusal> {
        let from = control.value.unwrap_or(0);
        let start = usize::try_from(from).unwrap_or(usize::MAX);
        let answer = match control.kind {
            Some(kind::LINK) => piece(self.links.iter_from(start).map(|(slot, link)| {
                let entry = Entry {
                    link: Some(slot),
                    host: Some(link.peer.clone()),
                    rights: Some(bits(link.rights())),
                    mode: link.far.as_ref().map(|_| crate::wire::mode::BROKER),
                    value: Some(link.ports.len() as u64),
                    ..Entry::default()
                };
                (u64::from(slot), entry)
            })),
            Some(kind::SUBSYSTEM) => {
                let all = self.subsystems.iter().filter(|(_, _, providers)| *providers > 0);
                let all = all.skip_while(|(_, address, _)| u64::from(*address) < from);
                piece(all.map(|(name, address, providers)| {
                    let entry = Entry {
                        host: Some(name.to_owned()),
                        addr: Some(address),
                        value: Some(providers as u64),
                        ..Entry::default()
                    };
                    (u64::from(address), entry)
                }))
            }
            Some(kind::UPLINK) => {
                let start = u32::try_from(from).unwrap_or(u32::MAX);
                piece(self.uplinks.iter_from(start).map(|(address, uplink)| {
                    let entry = Entry {
                        host: Some(uplink.kind.url.clone()),
                        text: Some(uplink.kind.name.clone()),
                        addr: Some(address),
                        link: uplink.link.map(|link| link.index() as u32),
                        ..Entry::default()
                    };
                    (u64::from(address), entry)
                }))
            }
            Some(kind::SUBSCRIPTION) => {
                piece(self.subscriptions.iter_from(start).map(|(id, subscription)| {
                    let filter = &subscription.filter;
                    let entry = Entry {
                        link: Some(subscription.link.index() as u32),
                        cid: Some(subscription.cid),
                        addr: filter.from,
                        group: filter.group.as_deref().map(str::to_owned),
                        hops: subscription.hops,
                        keys: filter.keys.to_vec(),
                        ..Entry::default()
                    };
                    (id as u64, entry)
                }))
            }
            Some(kind::LISTENER) => return Ok(Outcome::Order(Order::Listeners { from })),
            Some(other) => return refuse(errno::EINVAL, format!("there is no kind {other}")),
            None => return refuse(errno::EINVAL, "list needs a kind"),
        };
        Ok(Outcome::Done(answer))
    }
}

/// As many entries as fit, each with the number from which a list goes on that begins with it.
fn piece(entries: impl Iterator<Item = (u64, Entry)>) -> Answer {
    let (mut taken, mut length) = (Vec::new(), 0);
    for (number, entry) in entries {
        length += entry.length();
        if length > PIECE_BYTES_MAX && !taken.is_empty() {
            return Answer::list(taken, Some(number));
        }
        taken.push(entry);
    }
    Answer::list(taken, None)
}

fn bits(rights: Rights) -> u32 {
    let bit = |has: bool, bit: u32| if has { bit } else { 0 };
    bit(rights.use_bus, right::USE)
        | bit(rights.provide, right::PROVIDE)
        | bit(rights.control, right::CONTROL)
}

impl Answer {
    /// A piece of a list of which `skip` entries are left out.
    pub fn piece(entries: impl Iterator<Item = Entry>, skip: u64) -> Self {
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX);
        piece((0..).zip(entries).skip(skipped))
    }
}

impl Entry {
    /// At most how many bytes it takes.
    fn length(&self) -> usize {
        let strings = [&self.host, &self.text, &self.group];
        let text: usize = strings.into_iter().flatten().map(|text| text.len() + 8).sum();
        72 + text + 16 * self.keys.len()
    }

    /// Appends what it says.
    pub(super) fn emit<'o>(
        &self,
        mut to: ControlBuilder<'o>,
    ) -> Result<ControlBuilder<'o>, TooBig> {
        let strings = [
            (ControlAttribute::Host, &self.host),
            (ControlAttribute::Text, &self.text),
            (ControlAttribute::Group, &self.group),
        ];
        for (attribute, value) in strings {
            if let Some(value) = value {
                to = to.string(attribute, value)?;
            }
        }
        let words = [
            (ControlAttribute::Addr, self.addr),
            (ControlAttribute::Cid, self.cid),
            (ControlAttribute::Mode, self.mode),
            (ControlAttribute::Rights, self.rights),
            (ControlAttribute::Link, self.link),
            (ControlAttribute::Hops, self.hops),
        ];
        for (attribute, value) in words {
            if let Some(value) = value {
                to = to.u32(attribute, value)?;
            }
        }
        if let Some(value) = self.value {
            to = to.u64(ControlAttribute::Value, value)?;
        }
        for key in &self.keys {
            to = to.key(*key)?;
        }
        Ok(to)
    }
}
