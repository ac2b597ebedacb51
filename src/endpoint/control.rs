//! Commands to the broker itself: what it is connected to, where it listens, what it has counted. All but
//! [`Endpoint::register`] take the right to control (proto-spec/control.md, "Commands and rights").

use std::time::Duration;

use super::Endpoint;
use super::error::RequestError;
use super::request::REQUEST_DEADLINE;
use crate::transport::TlsFiles;
use crate::url::BusUrl;
use crate::wire::{
    Command, Control, ControlAttribute, ControlBuilder, Envelope, Key, TooBig, kind, mode, right,
};

/// How long CONNECT and SERVE may take: the broker waits for a network.
const ORDER_DEADLINE: Duration = Duration::from_secs(15);

/// A link of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkEntry {
    /// Its slot; another link may have it later.
    pub slot: u32,
    /// Where its other end is, and who.
    pub peer: String,
    /// Bits of [`right`].
    pub rights: u32,
    /// The other end is a broker.
    pub broker: bool,
    /// How many ports of it have an address.
    pub ports: u64,
}

/// A name that somebody provides.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubsystemEntry {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: u32,
    /// How many provide it.
    pub providers: u64,
}

/// A link to another broker that the broker keeps up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UplinkEntry {
    /// What the other broker is called: its subsystems are `SUBSYSTEM@name`.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// The address that stands for its first subsystem.
    pub address: u32,
    /// The slot of its link; `None` while it is down.
    pub link: Option<u32>,
}

/// A subscription at the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionEntry {
    /// The slot of its link.
    pub link: u32,
    /// Its number on that link.
    pub cid: u32,
    /// The subsystem whose broadcasts it is for.
    pub subsystem: Option<u32>,
    /// The group that it is for.
    pub group: Option<String>,
    /// Its conditions.
    pub keys: Vec<Key>,
    /// How many brokers it has come through, if it is another broker's.
    pub hops: Option<u32>,
}

impl Endpoint {
    /// Gets the right to control with the broker's secret, for everything on this link.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with `EPERM` if that is not the secret. Cancel-safe.
    pub async fn register(&self, secret: &[u8]) -> Result<(), RequestError> {
        self.command(Command::Register, |c| c.bytes(ControlAttribute::Secret, secret)).await
    }

    /// Gives back what [`register`](Self::register) gave.
    ///
    /// # Errors
    /// As [`request`](Self::request). Cancel-safe.
    pub async fn unregister(&self) -> Result<(), RequestError> {
        self.command(Command::Unregister, |c| Ok(c)).await
    }

    /// Has the broker connect to another one at `url`, and keep that link up: the address that stands for
    /// the other one's first subsystem. Its subsystems are called `SUBSYSTEM@name` from then on; without a
    /// name it is `uplink`, or `uplink2` and so on. `files` are paths on the broker's machine, for TLS.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with the error number of why it cannot be reached, or `EEXIST` if there is an
    /// uplink of that name. Cancel-safe: the broker may have done it.
    pub async fn connect_broker(
        &self,
        url: &BusUrl,
        name: Option<&str>,
        files: Option<&TlsFiles>,
    ) -> Result<u32, RequestError> {
        let link = &self.handle.0;
        let deadline = link.command_max(ORDER_DEADLINE);
        let answer = link.control(self.port, Command::Connect, deadline, |mut control| {
            control = control.string(ControlAttribute::Host, &url.to_string())?;
            if let Some(name) = name {
                control = control.string(ControlAttribute::Text, name)?;
            }
            put_files(control, files)
        });
        answer.await?.addr.ok_or_else(|| link.lost())
    }

    /// Has the broker end the link that [`connect_broker`](Self::connect_broker) returned.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with `ENOENT` if there is none. Cancel-safe.
    pub async fn disconnect_broker(&self, address: u32) -> Result<(), RequestError> {
        self.command(Command::Disconnect, |c| c.u32(ControlAttribute::Addr, address)).await
    }

    /// Has the broker listen at `url`. `files` are paths on the broker's machine, for TLS.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with the error number of why it cannot. Cancel-safe: the broker may have
    /// done it.
    pub async fn listen(&self, url: &BusUrl, files: Option<&TlsFiles>) -> Result<(), RequestError> {
        let link = &self.handle.0;
        let deadline = link.command_max(ORDER_DEADLINE);
        let answer = link.control(self.port, Command::Serve, deadline, |control| {
            put_files(control.string(ControlAttribute::Host, &url.to_string())?, files)
        });
        answer.await.map(drop)
    }

    /// Has the broker listen no more at `url`. Links that came in there live on.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with `ENOENT` if it does not listen there. Cancel-safe.
    pub async fn unlisten(&self, url: &BusUrl) -> Result<(), RequestError> {
        let url = url.to_string();
        self.command(Command::Shutdown, |c| c.string(ControlAttribute::Host, &url)).await
    }

    /// Has the broker read its certificates and its configuration again.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with what could not be read. Cancel-safe.
    pub async fn reload(&self) -> Result<(), RequestError> {
        self.command(Command::Reload, |c| Ok(c)).await
    }

    /// Has the broker log what `directives` say, as in `info,nlbus::node=debug`.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with `EINVAL` if they make no sense. Cancel-safe.
    pub async fn log_level(&self, directives: &str) -> Result<(), RequestError> {
        self.command(Command::LogLevel, |c| c.string(ControlAttribute::Text, directives)).await
    }

    /// Has the broker stop. Returns when it has said that it will.
    ///
    /// # Errors
    /// As [`request`](Self::request). Cancel-safe.
    pub async fn stop(&self) -> Result<(), RequestError> {
        self.command(Command::Stop, |c| Ok(c)).await
    }

    /// What the broker has counted since it started, by name.
    ///
    /// # Errors
    /// As [`request`](Self::request). Cancel-safe.
    pub async fn stats(&self) -> Result<Vec<(String, u64)>, RequestError> {
        let link = &self.handle.0;
        let deadline = link.command_max(REQUEST_DEADLINE);
        let frame = link.exchange(self.port, Command::Stats, deadline, |c| Ok(c)).await?;
        let control = Control::parse(Envelope::parse(&frame)?.payload()?)?;
        let counters = control.entries().filter_map(|entry| Some((entry.text?, entry.value?)));
        Ok(counters.map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The links that are up.
    ///
    /// # Errors
    /// As [`request`](Self::request). Cancel-safe. What changes meanwhile may be missing or there twice.
    pub async fn links(&self) -> Result<Vec<LinkEntry>, RequestError> {
        let read = |entry: &Control<'_>| {
            Some(LinkEntry {
                slot: entry.link?,
                peer: entry.host.unwrap_or_default().to_owned(),
                rights: entry.rights.unwrap_or(0),
                broker: entry.mode.unwrap_or(0) & mode::BROKER != 0,
                ports: entry.value.unwrap_or(0),
            })
        };
        self.list(kind::LINK, read).await
    }

    /// The names that somebody provides.
    ///
    /// # Errors
    /// As [`links`](Self::links). Cancel-safe.
    pub async fn subsystems(&self) -> Result<Vec<SubsystemEntry>, RequestError> {
        let read = |entry: &Control<'_>| {
            let (name, address) = (entry.host?.to_owned(), entry.addr?);
            Some(SubsystemEntry { name, address, providers: entry.value.unwrap_or(0) })
        };
        self.list(kind::SUBSYSTEM, read).await
    }

    /// The URLs that the broker listens at.
    ///
    /// # Errors
    /// As [`links`](Self::links). Cancel-safe.
    pub async fn listeners(&self) -> Result<Vec<String>, RequestError> {
        self.list(kind::LISTENER, |entry| Some(entry.host?.to_owned())).await
    }

    /// The links to other brokers that the broker keeps up.
    ///
    /// # Errors
    /// As [`links`](Self::links). Cancel-safe.
    pub async fn uplinks(&self) -> Result<Vec<UplinkEntry>, RequestError> {
        let read = |entry: &Control<'_>| {
            let (name, url) = (entry.text?.to_owned(), entry.host.unwrap_or_default().to_owned());
            Some(UplinkEntry { name, url, address: entry.addr?, link: entry.link })
        };
        self.list(kind::UPLINK, read).await
    }

    /// The subscriptions.
    ///
    /// # Errors
    /// As [`links`](Self::links). Cancel-safe.
    pub async fn subscriptions(&self) -> Result<Vec<SubscriptionEntry>, RequestError> {
        let read = |entry: &Control<'_>| {
            Some(SubscriptionEntry {
                link: entry.link?,
                cid: entry.cid?,
                subsystem: entry.addr,
                group: entry.group.map(str::to_owned),
                keys: entry.keys().collect(),
                hops: entry.hops,
            })
        };
        self.list(kind::SUBSCRIPTION, read).await
    }

    async fn command(
        &self,
        command: Command,
        fill: impl FnOnce(ControlBuilder<'_>) -> Result<ControlBuilder<'_>, TooBig>,
    ) -> Result<(), RequestError> {
        let link = &self.handle.0;
        link.control(self.port, command, link.command_max(REQUEST_DEADLINE), fill).await.map(drop)
    }

    /// All pieces of a list.
    async fn list<T>(
        &self,
        kind: u32,
        read: impl Fn(&Control<'_>) -> Option<T>,
    ) -> Result<Vec<T>, RequestError> {
        let link = &self.handle.0;
        let deadline = link.command_max(REQUEST_DEADLINE);
        let (mut all, mut from) = (Vec::new(), 0);
        loop {
            let exchange = link.exchange(self.port, Command::List, deadline, |control| {
                control.u32(ControlAttribute::Kind, kind)?.u64(ControlAttribute::Value, from)
            });
            let frame = exchange.await?;
            let control = Control::parse(Envelope::parse(&frame)?.payload()?)?;
            all.extend(control.entries().filter_map(|entry| read(&entry)));
            match control.value {
                // a list that does not get on would never end
                Some(next) if next > from => from = next,
                _ => return Ok(all),
            }
        }
    }
}

impl LinkEntry {
    /// Its rights in words: `use`, `provide`, `control`.
    pub fn right_names(&self) -> Vec<&'static str> {
        let all = [(right::USE, "use"), (right::PROVIDE, "provide"), (right::CONTROL, "control")];
        all.iter().filter(|(bit, _)| self.rights & bit != 0).map(|(_, name)| *name).collect()
    }
}

fn put_files<'o>(
    control: ControlBuilder<'o>,
    files: Option<&TlsFiles>,
) -> Result<ControlBuilder<'o>, TooBig> {
    let Some(files) = files else { return Ok(control) };
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    control
        .string(ControlAttribute::SslKey, &path(&files.key))?
        .string(ControlAttribute::SslCert, &path(&files.certificate))?
        .string(ControlAttribute::SslCa, &path(&files.ca))
}
