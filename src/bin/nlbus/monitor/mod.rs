//! `nlbus monitor`: the events of a served kernel, one line each.

mod clock;

use std::io::{self, Write};
use std::time::SystemTime;

use nlbus::endpoint::{Endpoint, Event, Filter, KernelGroup, RequestOptions};
use nlbus::wire::Messages;
use serde_json::{Map, Value, json};

use crate::connect::Connect;
use crate::exit::Exit;
use crate::show::{self, Decoder, KernelEvent, Object, Options};
use crate::until::{self, Next, Until};

/// Print what changes in the served kernel: links, addresses, routes, neighbours and rules.
///
/// One line for each event, with the words and names of `ip monitor`; "Deleted" for what is gone, and the kind in
/// front, such as [LINK], unless only one kind is asked for. Whoever is too slow is told so by
/// "lost N events; tables may have changed".
///
/// With -j one JSON object for each event: the fields of `ip -j`, "event" ("new", also for a change, or "deleted") and
/// "object"; an address has "index" and "dev". A loss is {"event":"lost","count":N}.
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub(crate) struct Args {
    /// What to tell of; everything if nothing is named.
    #[arg(value_enum, value_name = "OBJECT")]
    kinds: Vec<Kind>,
    /// Print JSON.
    #[arg(short, long)]
    json: bool,
    /// Say when each event was received: the time in UTC, in brackets or as "timestamp".
    #[arg(short, long)]
    timestamp: bool,
    #[command(flatten)]
    until: Until,
    /// The subsystem that is the kernel's NETLINK_ROUTE.
    #[arg(long, value_name = "NAME", default_value = "route")]
    subsystem: String,
    #[command(flatten)]
    connect: Connect,
}

fn help() -> String {
    format!(
        "{}\n\nExample:\n  nlbus monitor link addr\n  nlbus monitor route -j -t -u unix:///run/nlbus.sock\n  \
         nlbus monitor link -C 1 -W 60",
        until::HELP
    )
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Network devices.
    Link,
    /// Addresses of devices.
    #[value(alias = "address")]
    Addr,
    /// Entries of routing tables.
    Route,
    /// The neighbour (ARP and NDP) caches.
    #[value(aliases = ["neighbor", "neighbour"])]
    Neigh,
    /// Rules of the routing policy.
    Rule,
    /// All of them.
    All,
}

/// Each kind under its three names.
const KINDS: [(Kind, Object, KernelGroup); 5] = [
    (Kind::Link, Object::Link, KernelGroup::Link),
    (Kind::Addr, Object::Addr, KernelGroup::Addr),
    (Kind::Route, Object::Route, KernelGroup::Route),
    (Kind::Neigh, Object::Neigh, KernelGroup::Neigh),
    (Kind::Rule, Object::Rule, KernelGroup::Rule),
];

impl Args {
    fn wants(&self, kind: Kind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&Kind::All) || self.kinds.contains(&kind)
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let endpoint = args.connect.endpoint().await?;
    let wanted: Vec<_> = KINDS.into_iter().filter(|(kind, ..)| args.wants(*kind)).collect();
    // the names of devices change with their links, whether those are printed or not
    let groups = KINDS.into_iter().map(|(.., group)| group).filter(|group| {
        *group == KernelGroup::Link || wanted.iter().any(|(.., wanted)| wanted == group)
    });
    let filters = groups.map(|group| Filter::group(group).from(args.subsystem.as_str()));
    let subscription = endpoint.subscribe_any(filters).await?;
    let printer = Printer {
        json: args.json,
        timestamp: args.timestamp,
        label: wanted.len() > 1,
        objects: wanted.iter().map(|(_, object, _)| *object).collect(),
    };
    let request = args.connect.request_options();
    let mut decoder = links(&endpoint, &args.subsystem, request).await?;
    let mut events = args.until.start(subscription)?;
    let mut out = io::stdout().lock();
    loop {
        match events.next().await? {
            Next::End(exit) => return Ok(exit),
            Next::Event(Event::Lost(count)) => {
                printer.lost(count, &mut out)?;
                decoder = links(&endpoint, &args.subsystem, request).await?;
            }
            Next::Event(Event::Message { payload, .. }) => {
                for event in printer.decode(&mut decoder, &payload) {
                    printer.event(&event, &mut out)?;
                    if !events.printed() {
                        return Ok(Exit::Ok);
                    }
                }
            }
        }
    }
}

/// A decoder that knows the links of now.
async fn links(
    endpoint: &Endpoint,
    subsystem: &str,
    request: RequestOptions,
) -> anyhow::Result<Decoder> {
    let dumps =
        show::fetch(endpoint, subsystem, Object::Link, &Options::default(), request).await?;
    Ok(Decoder::new(dumps.first().map_or(&[], Vec::as_slice))?)
}

struct Printer {
    json: bool,
    timestamp: bool,
    label: bool,
    objects: Vec<Object>,
}

impl Printer {
    /// The events in `payload` that are to be printed. A message that makes no sense is warned of.
    fn decode(&self, decoder: &mut Decoder, payload: &[u8]) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        for message in Messages::new(payload) {
            let decoded = match &message {
                Ok(message) => decoder.decode(message).map_err(|error| error.to_string()),
                Err(malformed) => Err(malformed.to_string()),
            };
            match decoded {
                Ok(event) => {
                    events.extend(event.filter(|event| self.objects.contains(&event.object)));
                }
                Err(error) => tracing::warn!(%error, "an event that makes no sense"),
            }
        }
        events
    }

    fn event(&self, event: &KernelEvent, out: &mut impl Write) -> io::Result<()> {
        let name = name(event.object);
        if !self.json {
            let label = match self.label {
                true => format!("[{}]", name.to_uppercase()),
                false => String::new(),
            };
            return self.line(&format!("{label}{}", event.line()), out);
        }
        let what = if event.deleted { "deleted" } else { "new" };
        let mut object = self.object(what);
        object.insert("object".to_owned(), json!(name));
        object.extend(event.record.clone());
        self.object_line(object, out)
    }

    fn lost(&self, count: u64, out: &mut impl Write) -> io::Result<()> {
        if !self.json {
            let events = if count == 1 { "event" } else { "events" };
            return self.line(&format!("lost {count} {events}; tables may have changed"), out);
        }
        let mut object = self.object("lost");
        object.insert("count".to_owned(), json!(count));
        self.object_line(object, out)
    }

    fn object(&self, event: &str) -> Map<String, Value> {
        let mut object = Map::new();
        if self.timestamp {
            object.insert("timestamp".to_owned(), json!(clock::utc(SystemTime::now())));
        }
        object.insert("event".to_owned(), json!(event));
        object
    }

    fn line(&self, text: &str, out: &mut impl Write) -> io::Result<()> {
        let time = match self.timestamp {
            true => format!("[{}] ", clock::utc(SystemTime::now())),
            false => String::new(),
        };
        out.write_all(format!("{time}{text}\n").as_bytes())?;
        out.flush()
    }

    fn object_line(&self, object: Map<String, Value>, out: &mut impl Write) -> io::Result<()> {
        out.write_all(format!("{}\n", Value::Object(object)).as_bytes())?;
        out.flush()
    }
}

fn name(object: Object) -> &'static str {
    KINDS
        .iter()
        .find_map(|(_, known, group)| (*known == object).then(|| group.name()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
