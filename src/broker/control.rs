//! Control frames: what a link says to the broker itself (proto-spec/control.md).

use std::sync::Arc;

use subtle::ConstantTimeEq as _;

use super::action::{Action, Actions, Delivery};
use super::link::LinkId;
use super::order::{Answer, Order, OrderFiles, Refusal, refuse};
use super::subscriptions::Filter;
use super::subsystems::{ProvideError, Provider};
use super::uplinks::AT;
use super::{Broker, RETURN_BASE};
use crate::url::{BusUrl, UrlError};
use crate::wire::{
    CID_CHOSEN_FIRST, Command, Control, ControlAttribute, ControlBuilder, Envelope, EnvelopeHead,
    GROUP_BYTES_MAX, LEGACY_FRAME_MAX, PROTOCOL_VERSION, TooBig, errno, flag, mode,
};

/// The version of the protocol that this broker speaks.
pub(super) const VERSION: u32 = PROTOCOL_VERSION;

/// What becomes of a command.
pub(super) enum Outcome {
    /// It is done.
    Done(Answer),
    /// It is answered later.
    Later,
    /// The node does it, and answers.
    Order(Order),
}

impl From<Answer> for Outcome {
    fn from(answer: Answer) -> Self {
        Self::Done(answer)
    }
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
        let parsed = payload.and_then(Control::parse);
        match number.and_then(Command::from_number) {
            Some(Command::Noop) => return,
            Some(Command::Ack | Command::Err) => {
                if let Ok(control) = parsed {
                    self.answered(from, head.sequence, &control, actions);
                }
                return;
            }
            _ => {}
        }
        let outcome = match &parsed {
            Ok(control) => self.command(from, head, control, frame, actions),
            Err(malformed) => refuse(errno::EINVAL, malformed.to_string()),
        };
        match outcome {
            Ok(Outcome::Done(answer)) => self.answer(from, head, Ok(answer), actions),
            Ok(Outcome::Later) => return,
            Ok(Outcome::Order(order)) => {
                actions.push(Action::Order { link: from, head, order });
            }
            Err(refusal) => self.answer(from, head, Err(refusal), actions),
        }
        let hello = parsed.is_ok_and(|control| control.command() == Some(Command::Hello));
        if hello && self.far_links.contains(&from) {
            self.greet_neighbour(actions);
        }
    }

    fn command(
        &mut self,
        from: LinkId,
        head: EnvelopeHead,
        control: &Control<'_>,
        frame: &[u8],
        actions: &mut Actions,
    ) -> Result<Outcome, Refusal> {
        let Some(command) = control.command() else {
            return refuse(errno::EOPNOTSUPP, format!("command {} is unknown", control.number));
        };
        self.permit(from, command)?;
        let answer = match command {
            Command::Hello => self.hello(from, control, actions)?,
            Command::Register => self.register(from, control)?,
            Command::Unregister => self.unregister(from),
            Command::Discover | Command::Subscribe => {
                if let Some(name) = control.host
                    && self.subsystems.discover(name).is_none()
                    && let Some((inner, uplink)) = self.uplinks.split(name)
                {
                    self.resolve(from, (inner, uplink), name, frame, actions)?;
                    return Ok(Outcome::Later);
                }
                match command {
                    Command::Discover => self.discover(control)?,
                    _ => self.subscribe(from, control, actions)?,
                }
            }
            Command::Unsubscribe => self.unsubscribe(from, control, actions)?,
            Command::Provide => self.provide(from, head, control, actions)?,
            Command::Remove => self.remove(from, head, control, actions)?,
            Command::Release => {
                self.release(from, control.port.unwrap_or(head.src), actions);
                Answer::done()
            }
            Command::List => return self.list(control),
            Command::Route | Command::Noop | Command::Ack | Command::Err => {
                let text = format!("{} is not offered here", command.symbol());
                return refuse(errno::EOPNOTSUPP, text);
            }
            other => return order(other, control).map(Outcome::Order),
        };
        Ok(Outcome::Done(answer))
    }

    fn permit(&mut self, from: LinkId, command: Command) -> Result<(), Refusal> {
        let Some(rights) = self.links.get(from).map(super::link::Link::rights) else {
            return refuse(errno::EPIPE, "the link is gone");
        };
        let (granted, right) = match command {
            Command::Hello | Command::Register | Command::Route | Command::Release => (true, "any"),
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
            actions.push(Action::Greeted { link: from });
        }
        let mut answer = Answer::word(ControlAttribute::Version, VERSION);
        answer.words.push((ControlAttribute::FrameMax, ours as u32));
        if control.mode.is_some_and(|bits| bits & mode::BROKER != 0) && self.neighbour(from) {
            answer.words.push((ControlAttribute::Mode, mode::BROKER));
        }
        Ok(answer)
    }

    /// Compares the secret in a time that does not depend on what is in either.
    fn register(&mut self, from: LinkId, control: &Control<'_>) -> Result<Answer, Refusal> {
        let Some(given) = control.secret else {
            return refuse(errno::EINVAL, "register needs a secret");
        };
        let right = self.secret.as_ref().is_some_and(|secret| bool::from(secret.ct_eq(given)));
        if !right {
            self.counters.forbidden += 1;
            return refuse(errno::EPERM, "that is not the secret");
        }
        if let Some(link) = self.links.get_mut(from) {
            link.registered = true;
        }
        Ok(Answer::done())
    }

    fn unregister(&mut self, from: LinkId) -> Answer {
        if let Some(link) = self.links.get_mut(from) {
            link.registered = false;
        }
        Answer::done()
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
        let filter = Arc::new(Filter { from: from_subsystem, group, keys });
        let Some(link) = self.links.get_mut(from) else {
            return refuse(errno::EPIPE, "the link is gone");
        };
        let hops = link.far.as_ref().map(|_| control.hops.unwrap_or(0));
        // a client of the original may send one, and means nothing by it
        let max = match link.far {
            Some(_) => self.limits.subscriptions_per_broker_max,
            None => self.limits.subscriptions_per_link_max as usize,
        };
        let cid = match control.cid.filter(|cid| *cid >= CID_CHOSEN_FIRST) {
            Some(cid) => {
                let replaced = self.subscriptions.remove(from, cid);
                if let Some(replaced) = &replaced {
                    self.interests.remove(replaced);
                    if replaced.filter != filter {
                        self.advertise(&replaced.filter, actions);
                    }
                } else if self.subscriptions.len_of(from) >= max {
                    self.counters.over_limit += 1;
                    return refuse(errno::ENOSPC, "this link has as many subscriptions as it may");
                }
                cid
            }
            None => {
                let room = self.subscriptions.len_of(from) < max;
                let free = room.then(|| {
                    link.cids_free.pop().or_else(|| {
                        link.cid_next = link.cid_next.checked_sub(1)?;
                        Some(link.cid_next)
                    })
                });
                let Some(cid) = free.flatten() else {
                    self.counters.over_limit += 1;
                    return refuse(errno::ENOSPC, "this link has as many subscriptions as it may");
                };
                cid
            }
        };
        let first = self.subscriptions.len() == 0;
        self.subscriptions.insert(from, cid, Arc::clone(&filter), hops);
        self.interests.insert(&filter, from, cid, hops);
        self.advertise(&filter, actions);
        if first {
            actions.push(Action::EventsChanged);
        }
        Ok(Answer::word(ControlAttribute::Cid, cid))
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
        let Some(gone) = self.subscriptions.remove(from, cid) else {
            return refuse(errno::ENOENT, format!("this link has no subscription {cid}"));
        };
        if let Some(link) = self.links.get_mut(from)
            && cid < CID_CHOSEN_FIRST
        {
            link.cids_free.push(cid);
        }
        self.interests.remove(&gone);
        self.advertise(&gone.filter, actions);
        if self.subscriptions.len() == 0 {
            actions.push(Action::EventsChanged);
        }
        Ok(Answer::done())
    }

    fn discover(&self, control: &Control<'_>) -> Result<Answer, Refusal> {
        let name = name_of(control)?;
        match self.subsystems.discover(name) {
            Some(address) => Ok(Answer::address(address)),
            None if name.strip_prefix(AT).is_some_and(|uplink| self.uplinks.is_name(uplink)) => {
                refuse(errno::EHOSTUNREACH, format!("the link to \"{name}\" is down"))
            }
            None => refuse(errno::ENOENT, format!("nobody provides \"{name}\"")),
        }
    }

    fn provide(
        &mut self,
        from: LinkId,
        head: EnvelopeHead,
        control: &Control<'_>,
        actions: &mut Actions,
    ) -> Result<Answer, Refusal> {
        let name = name_of(control)?;
        let port = control.port.unwrap_or(head.src);
        if name.starts_with(AT) || self.uplinks.split(name).is_some() {
            return refuse(errno::EPERM, format!("\"{name}\" belongs to another broker"));
        }
        let Some(link) = self.links.get_mut(from) else {
            return refuse(errno::EPIPE, "the link is gone");
        };
        if link.ports.contains_key(&port) {
            return refuse(errno::EEXIST, format!("port {port} has an address already"));
        }
        let ports_max = match link.far {
            Some(_) => self.limits.ports_per_broker_max,
            None => self.limits.ports_per_link_max,
        };
        if link.ports.len() >= ports_max {
            self.counters.over_limit += 1;
            return refuse(errno::ENOSPC, "this link has as many ports as it may");
        }
        let bits = control.mode.unwrap_or(0);
        if bits & !(mode::PULL | mode::WRITE) != 0 {
            return refuse(errno::EINVAL, format!("mode {bits:#x} has unknown bits"));
        }
        let provider = Provider {
            link: from,
            port,
            pulls: bits & mode::PULL != 0,
            writes: bits & mode::WRITE != 0,
        };
        let before = self.subsystems.discover(name).is_some();
        match self.subsystems.provide(name, provider, &self.limits) {
            Ok(address) => {
                link.ports.insert(port, address);
                link.provides += 1;
                link.may_answer = true;
                link.last_port = None;
                let far = link.far.is_some();
                if !before {
                    self.export_changed(name, true, actions);
                }
                if far {
                    self.back_again(address, actions);
                }
                Ok(Answer::address(address))
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
        actions: &mut Actions,
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
                self.unprovide(address, from, port, actions);
                Ok(Answer::done())
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

/// What the node is to do.
fn order(command: Command, control: &Control<'_>) -> Result<Order, Refusal> {
    Ok(match command {
        Command::Stop => Order::Stop,
        Command::Reload => Order::Reload,
        Command::Connect => Order::Connect {
            url: url_of(control)?,
            name: control.text.filter(|name| !name.is_empty()).map(str::to_owned),
            files: files_of(control),
        },
        Command::Disconnect => match control.addr {
            Some(address) => Order::Disconnect { address },
            None => return refuse(errno::EINVAL, "disconnect needs an addr"),
        },
        Command::Serve => Order::Serve { url: url_of(control)?, files: files_of(control) },
        Command::Shutdown => Order::Shutdown { url: url_of(control)? },
        Command::Stats => Order::Stats,
        Command::LogLevel => match control.text {
            Some(text) => Order::LogLevel { directives: text.to_owned() },
            None => return refuse(errno::EINVAL, "log-level needs a text"),
        },
        other => {
            return refuse(errno::EOPNOTSUPP, format!("{} is not offered here", other.symbol()));
        }
    })
}

fn url_of(control: &Control<'_>) -> Result<BusUrl, Refusal> {
    name_of(control)?.parse().or_else(|error: UrlError| {
        let errno = match error {
            UrlError::UnknownScheme { .. } => errno::EPROTONOSUPPORT,
            _ => errno::EINVAL,
        };
        refuse(errno, error.to_string())
    })
}

/// The original's clients send them empty.
fn files_of(control: &Control<'_>) -> OrderFiles {
    let path = |path: Option<&str>| path.filter(|path| !path.is_empty()).map(str::to_owned);
    OrderFiles {
        key: path(control.ssl_key),
        cert: path(control.ssl_cert),
        ca: path(control.ssl_ca),
    }
}

impl Broker {
    /// Answers a command: addresses swapped, sequence number and pid as they came. The request is never
    /// echoed: it can hold a secret. For a link that is gone nothing happens.
    pub fn answer(
        &mut self,
        to: LinkId,
        head: EnvelopeHead,
        result: Result<Answer, Refusal>,
        actions: &mut Actions,
    ) {
        let Some(link) = self.links.get(to) else { return };
        // two brokers that wait for each other to read would wait for ever, and nobody else waits for who
        // asked and does not read
        let waits = self.reading == Some(to) && link.far.is_none();
        let delivery = if waits { Delivery::Hold } else { Delivery::Must };
        let head = EnvelopeHead { flags: flag::CONTROL, dst: head.src, src: head.dst, ..head };
        actions.send_made(to, delivery, |out| {
            emit_answer(head, result, out).unwrap_or_else(|too_big| {
                unreachable!("an answer is cut to far below {}", too_big.max)
            });
        });
    }
}

fn emit_answer(
    head: EnvelopeHead,
    result: Result<Answer, Refusal>,
    out: &mut Vec<u8>,
) -> Result<(), TooBig> {
    match result {
        Ok(answer) => {
            let mut builder = ControlBuilder::new(out, head, Command::Ack);
            for (attribute, value) in answer.words {
                builder = builder.u32(attribute, value)?;
            }
            for entry in &answer.entries {
                builder = builder.entry(|builder| entry.emit(builder))?;
            }
            if let Some(next) = answer.next {
                builder = builder.u64(ControlAttribute::Value, next)?;
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
