//! Control frames: what a link says to the broker itself (proto-spec/control.md).

use super::action::{Action, Actions, Delivery};
use super::link::LinkId;
use super::subscriptions::Subscription;
use super::subsystems::{ProvideError, Provider};
use super::{Broker, RETURN_BASE};
use crate::wire::{
    Command, Control, ControlAttribute, ControlBuilder, Envelope, EnvelopeHead, GROUP_BYTES_MAX,
    LEGACY_FRAME_MAX, TooBig, errno, flag,
};

/// The version of the protocol that this broker speaks.
pub(super) const VERSION: u32 = 1;

/// The provider takes what is pushed.
const MODE_PULLS: u32 = 1;
/// The provider makes changes, and is for those who may have them made.
const MODE_WRITES: u32 = 2;

/// Why a command is answered with ERR.
struct Refusal {
    errno: i32,
    text: String,
}

/// What ACK says beside its name.
type Answer = Vec<(ControlAttribute, u32)>;

fn refuse<T>(errno: i32, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { errno, text: text.into() })
}

impl Broker {
    /// Carries out one control frame and answers it. NOOP, ACK and ERR are never answered, well-formed
    /// or not: two brokers would go on for ever.
    pub(super) fn handle_control(
        &mut self,
        from: LinkId,
        head: EnvelopeHead,
        frame: &[u8],
        actions: &mut Actions,
    ) {
        let payload = Envelope::parse(frame).and_then(|envelope| envelope.payload());
        let number = payload.ok().and_then(|message| message.get(16).copied());
        let silent = matches!(
            number.and_then(Command::from_number),
            Some(Command::Noop | Command::Ack | Command::Err)
        );
        if silent {
            return;
        }
        let result = match payload.and_then(Control::parse) {
            Ok(control) => self.command(from, head, &control, actions),
            Err(malformed) => refuse(errno::EINVAL, malformed.to_string()),
        };
        answer(from, head, result, actions);
    }

    fn command(
        &mut self,
        from: LinkId,
        head: EnvelopeHead,
        control: &Control<'_>,
        actions: &mut Actions,
    ) -> Result<Answer, Refusal> {
        let Some(command) = control.command() else {
            return refuse(errno::EOPNOTSUPP, format!("command {} is unknown", control.number));
        };
        self.permit(from, command)?;
        match command {
            Command::Hello => self.hello(from, control, actions),
            Command::Subscribe => self.subscribe(from, control, actions),
            Command::Unsubscribe => self.unsubscribe(from, control, actions),
            Command::Discover => self.discover(control),
            Command::Provide => self.provide(from, head, control),
            Command::Remove => self.remove(from, head, control),
            other => refuse(errno::EOPNOTSUPP, format!("{} is not offered here", other.symbol())),
        }
    }

    fn permit(&mut self, from: LinkId, command: Command) -> Result<(), Refusal> {
        let Some(rights) = self.links.get(from).map(|link| link.access.rights) else {
            return refuse(errno::EPIPE, "the link is gone");
        };
        let (granted, right) = match command {
            Command::Hello | Command::Register | Command::Route => (true, "any"),
            Command::Subscribe | Command::Unsubscribe | Command::Discover => {
                (rights.use_bus, "use")
            }
            Command::Provide | Command::Remove => (rights.provide, "provide"),
            _ => (rights.control, "control"),
        };
        if !granted {
            self.counters.forbidden += 1;
            let text = format!("{} needs the right \"{right}\"", command.symbol());
            return refuse(errno::EPERM, text);
        }
        Ok(())
    }

    fn hello(
        &mut self,
        from: LinkId,
        control: &Control<'_>,
        actions: &mut Actions,
    ) -> Result<Answer, Refusal> {
        match control.version {
            Some(VERSION..) => {}
            _ => return refuse(errno::EINVAL, "hello needs a version of at least 1"),
        }
        let ours = self.limits.frame_bytes_max;
        let theirs = match control.frame_max.map(|max| max as usize) {
            Some(max @ LEGACY_FRAME_MAX..) => max,
            _ => {
                let text = format!("hello needs a frame-max of at least {LEGACY_FRAME_MAX}");
                return refuse(errno::EINVAL, text);
            }
        };
        if let Some(link) = self.links.get_mut(from) {
            link.greeted = true;
            link.frame_max = theirs.min(ours);
            actions.list.push(Action::Greeted { link: from });
        }
        Ok(vec![(ControlAttribute::Version, VERSION), (ControlAttribute::FrameMax, ours as u32)])
    }

    fn subscribe(
        &mut self,
        from: LinkId,
        control: &Control<'_>,
        actions: &mut Actions,
    ) -> Result<Answer, Refusal> {
        let keys: Box<[_]> = control.keys().collect();
        let keys_max = self.limits.keys_per_subscription_max;
        if keys.len() > keys_max {
            self.counters.over_limit += 1;
            return refuse(errno::E2BIG, format!("a subscription has at most {keys_max} keys"));
        }
        let from_subsystem = match control.host {
            None => control.addr,
            Some(name) => match self.subsystems.address(name) {
                Some(address) => Some(address),
                None => return refuse(errno::ENOENT, format!("no subsystem \"{name}\"")),
            },
        };
        let group_max = self.limits.name_bytes_max.min(GROUP_BYTES_MAX);
        if control.group.is_some_and(|group| group.is_empty() || group.len() > group_max) {
            let text = format!("the name of a group has 1 to {group_max} bytes");
            return refuse(errno::EINVAL, text);
        }
        let group = control.group.map(Box::from);
        let Some(cid) = self.links.get_mut(from).and_then(|link| {
            link.cids_free.pop().or_else(|| {
                link.cid_next = link.cid_next.checked_sub(1)?;
                Some(link.cid_next)
            })
        }) else {
            self.counters.over_limit += 1;
            return refuse(errno::ENOSPC, "this link has as many subscriptions as it may");
        };
        if self.subscriptions.len() == 0 {
            actions.list.push(Action::EventsChanged);
        }
        let subscription = Subscription { link: from, cid, from: from_subsystem, group, keys };
        self.subscriptions.insert(subscription);
        Ok(vec![(ControlAttribute::Cid, cid)])
    }

    fn unsubscribe(
        &mut self,
        from: LinkId,
        control: &Control<'_>,
        actions: &mut Actions,
    ) -> Result<Answer, Refusal> {
        let Some(cid) = control.cid else {
            return refuse(errno::EINVAL, "unsubscribe needs a cid");
        };
        if !self.subscriptions.remove(from, cid) {
            return refuse(errno::ENOENT, format!("this link has no subscription {cid}"));
        }
        if let Some(link) = self.links.get_mut(from) {
            link.cids_free.push(cid);
        }
        if self.subscriptions.len() == 0 {
            actions.list.push(Action::EventsChanged);
        }
        Ok(Answer::new())
    }

    fn discover(&self, control: &Control<'_>) -> Result<Answer, Refusal> {
        let name = name_of(control)?;
        match self.subsystems.discover(name) {
            Some(address) => Ok(vec![(ControlAttribute::Addr, address)]),
            None => refuse(errno::ENOENT, format!("nobody provides \"{name}\"")),
        }
    }

    fn provide(
        &mut self,
        from: LinkId,
        head: EnvelopeHead,
        control: &Control<'_>,
    ) -> Result<Answer, Refusal> {
        let name = name_of(control)?;
        let port = control.port.unwrap_or(head.src);
        let Some(link) = self.links.get_mut(from) else {
            return refuse(errno::EPIPE, "the link is gone");
        };
        if link.ports.contains_key(&port) {
            return refuse(errno::EEXIST, format!("port {port} has an address already"));
        }
        if link.ports.len() >= self.limits.ports_per_link_max {
            self.counters.over_limit += 1;
            return refuse(errno::ENOSPC, "this link has as many ports as it may");
        }
        let mode = control.mode.unwrap_or(0);
        if mode & !(MODE_PULLS | MODE_WRITES) != 0 {
            return refuse(errno::EINVAL, format!("mode {mode:#x} has unknown bits"));
        }
        let provider = Provider {
            link: from,
            port,
            pulls: mode & MODE_PULLS != 0,
            writes: mode & MODE_WRITES != 0,
        };
        match self.subsystems.provide(name, provider, &self.limits) {
            Ok(address) => {
                link.ports.insert(port, address);
                link.provides += 1;
                link.may_answer = true;
                Ok(vec![(ControlAttribute::Addr, address)])
            }
            Err(ProvideError::Name) => {
                let max = self.limits.name_bytes_max;
                let text = format!("a name has 1 to {max} bytes, none of them a space or control");
                refuse(errno::EINVAL, text)
            }
            Err(ProvideError::Full) => {
                self.counters.over_limit += 1;
                refuse(errno::ENOSPC, "no room for another subsystem or provider")
            }
        }
    }

    fn remove(
        &mut self,
        from: LinkId,
        head: EnvelopeHead,
        control: &Control<'_>,
    ) -> Result<Answer, Refusal> {
        let name = name_of(control)?;
        let port = control.port.unwrap_or(head.src);
        let provided = self.subsystems.address(name).and_then(|address| {
            let link = self.links.get_mut(from)?;
            (link.ports.get(&port) == Some(&address) && address < RETURN_BASE).then_some(())?;
            link.ports.remove(&port);
            link.last_port = None;
            link.provides -= 1;
            Some(address)
        });
        match provided {
            Some(address) => {
                self.subsystems.remove(address, from, Some(port));
                Ok(Answer::new())
            }
            None => refuse(errno::ENOENT, format!("port {port} does not provide \"{name}\"")),
        }
    }
}

fn name_of<'a>(control: &Control<'a>) -> Result<&'a str, Refusal> {
    match control.host {
        Some(name) if !name.is_empty() => Ok(name),
        _ => refuse(errno::EINVAL, "the name is missing"),
    }
}

/// Sends ACK or ERR: addresses swapped, sequence number and pid as they came. The request is never
/// echoed: it can hold a secret.
fn answer(to: LinkId, head: EnvelopeHead, result: Result<Answer, Refusal>, actions: &mut Actions) {
    let head = EnvelopeHead { flags: flag::CONTROL, dst: head.src, src: head.dst, ..head };
    actions.send_made(to, Delivery::Hold, |out| {
        emit_answer(head, result, out).unwrap_or_else(|too_big| {
            unreachable!("an answer is cut to far below {}", too_big.max)
        });
    });
}

fn emit_answer(
    head: EnvelopeHead,
    result: Result<Answer, Refusal>,
    out: &mut Vec<u8>,
) -> Result<(), TooBig> {
    match result {
        Ok(values) => {
            let mut builder = ControlBuilder::new(out, head, Command::Ack);
            for (attribute, value) in values {
                builder = builder.u32(attribute, value)?;
            }
            builder.finish();
        }
        Err(Refusal { errno, mut text }) => {
            let mut end = text.len().min(TEXT_BYTES_MAX);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            ControlBuilder::new(out, head, Command::Err)
                .string(ControlAttribute::Error, &text)?
                .u32(ControlAttribute::Errno, errno as u32)?
                .finish();
        }
    }
    Ok(())
}

/// An error's text is cut here; it may repeat a name that the peer sent.
const TEXT_BYTES_MAX: usize = 1_024;
