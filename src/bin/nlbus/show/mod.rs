//! What `nlbus show` prints: rtnetlink dumps in, the JSON of `ip -j` or a table out.
//!
//! Nothing here does I/O with the kernel. [`Object::requests`] says which dumps to ask for, the
//! caller fetches them from wherever the kernel is, and [`render_json`] or [`render_table`] turns
//! the answers into text:
//!
//! ```text
//! requests() ──▶ one dump each ──▶ records: one JSON object per line of the answer ──▶ JSON
//!                                                                                └──▶ rows and columns
//! ```
//!
//! The reference is iproute2 6.1 without `-d` or `-s`: its keys, values, order and filters. Left
//! out are the attributes that it can print only by asking the kernel it runs on (`xdp`, nexthop
//! details), SR-IOV functions (`vfinfo_list`) and the parameters of a route's encapsulation, whose
//! keys `ip` repeats within one object.
//!
//! The bytes may come from a hostile peer. A message that is no message is an error that names it;
//! an attribute too short to read is left out; neither panics.

mod addr;
mod command;
mod devices;
mod event;
mod layer;
mod line;
mod link;
mod message;
mod names;
mod neigh;
mod route;
mod rule;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use command::{Args, fetch, run};
pub(crate) use event::{Decoder, KernelEvent};
pub(crate) use table::visible;

use std::{io, str::FromStr};

use bytes::Bytes;
use netlink_packet_core::DecodeError;
use netlink_packet_route::AddressFamily;
use serde_json::Value;

use self::{
    devices::Devices,
    message::{Record, decode},
    names::Names,
};

/// What to show.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    /// Network devices.
    Link,
    /// Network devices and their addresses.
    Addr,
    /// Entries of routing tables.
    Route,
    /// The neighbour (ARP and NDP) caches.
    Neigh,
    /// Rules of the routing policy.
    Rule,
}

impl Object {
    /// The dump requests to send, each a whole netlink message with sequence and port 0.
    pub(crate) fn requests(self, options: &Options) -> Vec<Vec<u8>> {
        match self {
            Object::Link => vec![link::request()],
            Object::Addr => vec![link::request(), addr::request(options)],
            Object::Route => vec![link::request(), route::request(options)],
            Object::Neigh => vec![link::request(), neigh::request(options)],
            Object::Rule => vec![rule::request(options)],
        }
    }
}

/// What to leave out, as with the arguments of `ip`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// `-4` or `-6`. By default links, addresses and neighbours are of either family, rules of
    /// IPv4, routes of IPv4 unless all tables are asked for. Links have no family; the option
    /// changes nothing for them.
    pub(crate) family: Option<Family>,
    /// `dev NAME`: only what belongs to this device, which an alternative name denotes as well. The
    /// records of routes and neighbours then have no `dev`. For rules it is the name of the input
    /// interface.
    pub(crate) dev: Option<String>,
    /// `table TABLE`: only routes of this table, which their records then do not name, or rules
    /// that look it up. By default routes are of the main table, rules of any. Refused for other
    /// objects.
    pub(crate) table: Option<Table>,
    /// `proxy`: the proxy entries of the neighbour cache instead of the learned ones. Refused for
    /// other objects.
    pub(crate) proxy: bool,
}

impl Options {
    /// Refuses options that mean nothing for `object`.
    ///
    /// # Errors
    /// [`RenderError::OptionOfOtherObject`].
    pub(crate) fn check(&self, object: Object) -> Result<(), RenderError> {
        let takes_table = matches!(object, Object::Route | Object::Rule);
        let stray = [
            ("table", self.table.is_some() && !takes_table),
            ("proxy", self.proxy && object != Object::Neigh),
        ];
        match stray.into_iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(RenderError::OptionOfOtherObject { option, object }),
            None => Ok(()),
        }
    }

    /// The family to ask for: 0 is every family.
    fn address_family(&self) -> AddressFamily {
        self.family.map_or(AddressFamily::Unspec, AddressFamily::from)
    }

    fn admits_family(&self, family: AddressFamily) -> bool {
        self.family.is_none_or(|wanted| AddressFamily::from(wanted) == family)
    }
}

/// An address family that has routes and rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Inet,
    Inet6,
}

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Inet => Self::Inet,
            Family::Inet6 => Self::Inet6,
        }
    }
}

/// A routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    All,
    Id(u32),
}

impl Table {
    const MAIN: Self = Self::Id(254);

    /// Whether table number `table` is to be shown.
    fn admits(self, table: u32) -> bool {
        matches!(self, Self::All) || self == Self::Id(table)
    }
}

impl FromStr for Table {
    type Err = UnknownTable;

    /// `all`, a name that this machine knows (`main`, `local`, `default` and those of `rt_tables`),
    /// or a number.
    fn from_str(word: &str) -> Result<Self, UnknownTable> {
        if word == "all" {
            return Ok(Self::All);
        }
        let id = Names::load().table_of_name(word).or_else(|| names::number(word));
        match id {
            None => Err(UnknownTable(word.to_owned())),
            // The kernel's table 0 is no table in particular.
            Some(0) => Ok(Self::All),
            Some(id) => Ok(Self::Id(id)),
        }
    }
}

/// A word that is neither the name nor the number of a routing table.
#[derive(Debug, thiserror::Error)]
#[error("no routing table is called {0:?}")]
pub(crate) struct UnknownTable(String);

/// Why there is nothing to show. `dump` and `message` count from 0.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RenderError {
    #[error("{found} dumps for {expected} requests")]
    DumpCount { expected: usize, found: usize },
    /// The peer's bytes are no rtnetlink message.
    #[error("message {message} of dump {dump} is malformed")]
    Malformed { dump: usize, message: usize, source: DecodeError },
    /// The peer answered with another kind of message than was asked for.
    #[error("message {message} of dump {dump} has the unexpected type {kind}")]
    UnexpectedKind { dump: usize, message: usize, kind: u16 },
    #[error("device {0:?} does not exist")]
    NoSuchDevice(String),
    #[error("{object:?} takes no option {option:?}")]
    OptionOfOtherObject { option: &'static str, object: Object },
    #[error("cannot write the table")]
    Write(#[from] io::Error),
}

/// The array that `ip -j OBJECT show` prints.
///
/// `dumps[i]` holds the messages, each with its netlink header and none of them `NLMSG_DONE`, that
/// answered `object.requests(options)[i]`.
///
/// # Errors
/// Any [`RenderError`] but `Write`.
pub(crate) fn render_json(
    object: Object,
    options: &Options,
    dumps: &[Vec<Bytes>],
) -> Result<Value, RenderError> {
    Ok(records(object, options, dumps)?.into_iter().map(Value::Object).collect())
}

/// A header line, then a line per object; a link of [`Object::Addr`] has a line more for each
/// address.
///
/// Columns that would be empty are left out. Control characters, which only a hostile or careless
/// peer would send, are escaped. See the `COLUMNS` of each object for what the columns hold.
///
/// # Errors
/// Any [`RenderError`]; `Write` if `out` fails.
pub(crate) fn render_table(
    object: Object,
    options: &Options,
    dumps: &[Vec<Bytes>],
    out: &mut dyn io::Write,
) -> Result<(), RenderError> {
    let records = records(object, options, dumps)?;
    let rows = |row: fn(&Record) -> Vec<String>| records.iter().map(row).collect::<Vec<_>>();
    match object {
        Object::Link => table::write(&link::COLUMNS, &rows(link::row), out)?,
        Object::Addr => {
            let rows: Vec<_> = records.iter().flat_map(addr::rows).collect();
            table::write(&addr::COLUMNS, &rows, out)?;
        }
        Object::Route => table::write(&route::COLUMNS, &rows(route::row), out)?,
        Object::Neigh => table::write(&neigh::COLUMNS, &rows(neigh::row), out)?,
        Object::Rule => table::write(&rule::COLUMNS, &rows(rule::row), out)?,
    }
    Ok(())
}

fn records(
    object: Object,
    options: &Options,
    dumps: &[Vec<Bytes>],
) -> Result<Vec<Record>, RenderError> {
    options.check(object)?;
    let names = Names::load();
    match (object, dumps) {
        (Object::Link, [links]) => {
            let links = decode(0, links)?;
            Ok(link::records(&links, &Context::new(object, options, names, &links)?))
        }
        (Object::Addr, [links, addresses]) => {
            let links = decode(0, links)?;
            let context = Context::new(object, options, names, &links)?;
            Ok(addr::records(&links, &decode(1, addresses)?, &context))
        }
        (Object::Route, [links, routes]) => {
            let context = Context::new(object, options, names, &decode(0, links)?)?;
            Ok(route::records(&decode(1, routes)?, &context))
        }
        (Object::Neigh, [links, neighbours]) => {
            let context = Context::new(object, options, names, &decode(0, links)?)?;
            Ok(neigh::records(&decode(1, neighbours)?, &context))
        }
        (Object::Rule, [rules]) => Ok(rule::records(&decode(0, rules)?, options, &names)),
        _ => {
            let expected = object.requests(options).len();
            Err(RenderError::DumpCount { expected, found: dumps.len() })
        }
    }
}

/// What the records of an answer have in common.
struct Context<'a> {
    object: Object,
    options: &'a Options,
    names: Names,
    devices: Devices,
    /// The index of the device that the option `dev` names.
    only: Option<u32>,
}

impl<'a> Context<'a> {
    fn new(
        object: Object,
        options: &'a Options,
        names: Names,
        links: &[link::Message<'_>],
    ) -> Result<Self, RenderError> {
        let devices = Devices::new(links);
        let index =
            |name: &String| devices.index(name).ok_or(RenderError::NoSuchDevice(name.clone()));
        let only = options.dev.as_ref().map(index).transpose()?;
        Ok(Self { object, options, names, devices, only })
    }

    /// Whether what belongs to this device is to be shown.
    fn admits_device(&self, index: u32) -> bool {
        self.only.is_none_or(|only| only == index)
    }
}
