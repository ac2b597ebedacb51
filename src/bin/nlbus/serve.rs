//! `nlbus serve`: a broker with this machine's kernel behind it.

use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use nlbus::endpoint::Endpoint;
use nlbus::node::{Node, NodeOptions};
use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_GENERIC, NETLINK_ROUTE};
use nlbus::transport::ListenOptions;
use nlbus::url::{BusUrl, Host, TransportKind};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::connect::DEFAULT_URL;
use crate::exit::{Exit, UsageError};

/// How long answers under way may take to go out after SIGTERM or SIGINT.
const GRACE: Duration = Duration::from_secs(5);

/// Serve this machine's kernel over one or more URLs.
///
/// The subsystems `route` (NETLINK_ROUTE, at address 0x00010003) and `generic` (NETLINK_GENERIC) are
/// always there. Askers may only read, unless --allow-write is given: the kernel itself enforces that.
/// SIGTERM and SIGINT let answers under way go out, and end with 0.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// Where to listen: tcp://HOST[:PORT], unix://PATH, unix://@NAME.
    #[arg(value_name = "URL", default_value = DEFAULT_URL)]
    urls: Vec<BusUrl>,
    /// Serve another netlink family too: a name and the protocol's number, 0 to 31.
    #[arg(long = "subsystem", value_name = "NAME=netlink:PROTOCOL")]
    subsystems: Vec<Subsystem>,
    /// Open the kernel's sockets in this network namespace: a name as `ip netns` knows it, or a path.
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    /// Let askers change what this process may change.
    #[arg(long)]
    allow_write: bool,
    /// Let strangers in: listen without TLS on an address that is not loopback.
    #[arg(long)]
    insecure: bool,
}

const EXAMPLE: &str = "\
Example:
  nlbus serve tcp://127.0.0.1:9824 unix:///run/nlbus.sock
  nlbus serve --netns blue --allow-write unix://@nlbus-blue
  nlbus serve --subsystem audit=netlink:9 tcp://[::1]";

#[derive(Clone, Debug)]
struct Subsystem {
    name: String,
    protocol: u16,
}

impl std::str::FromStr for Subsystem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} has no \"=\"; write NAME=netlink:PROTOCOL"))?;
        if name.is_empty() {
            return Err(format!("the name in {text:?} is empty; write NAME=netlink:PROTOCOL"));
        }
        let protocol = rest
            .strip_prefix("netlink:")
            .ok_or_else(|| format!("{rest:?} does not begin with \"netlink:\""))?;
        match protocol.parse() {
            Ok(protocol @ 0..=31) => Ok(Self { name: name.to_owned(), protocol }),
            _ => Err(format!("the protocol {protocol:?} is not a number from 0 to 31")),
        }
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    raise_descriptor_limit();
    let node = Node::new(NodeOptions::default());
    let served = start(&node, &args, &mut io::stdout()).await;
    if served.is_ok() {
        let [terminate, interrupt] = &mut ends;
        tokio::select! {
            () = came(terminate) => {}
            () = came(interrupt) => {}
        }
        tracing::info!("ending");
    }
    node.shutdown(GRACE).await;
    served.map(|()| Exit::Ok)
}

async fn came(signal: &mut Signal) {
    // None would mean that no further signal can come: then only SIGKILL is left
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Brings up the subsystems first, so that a link finds them from its first moment on.
async fn start(node: &Node, args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    for url in &args.urls {
        check_exposure(url, args.insecure).await?;
    }
    let mut options = KernelOptions::default();
    options.netns.clone_from(&args.netns);
    options.allow_write = args.allow_write;
    let kernel = Kernel::open(&options)?;
    let builtin = [("route", NETLINK_ROUTE), ("generic", NETLINK_GENERIC)];
    let further = args.subsystems.iter().map(|s| (s.name.as_str(), s.protocol));
    for (name, protocol) in builtin.into_iter().chain(further) {
        let endpoint = Endpoint::attach(node)?;
        let address = kernel.serve(&endpoint, name, protocol).await?;
        writeln!(out, "serving {name} at {address:#010x}{}", mode(args))?;
    }
    for url in &args.urls {
        let bound = node.listen(url, &ListenOptions::default()).await?;
        writeln!(out, "listening on {bound}")?;
    }
    out.flush()?;
    Ok(())
}

fn mode(args: &Args) -> &'static str {
    if args.allow_write { ", writable" } else { ", read-only" }
}

/// Whoever reaches a plain TCP port may use the bus, and with it the kernel: off loopback that has to be
/// said in so many words.
async fn check_exposure(url: &BusUrl, insecure: bool) -> anyhow::Result<()> {
    if insecure || url.is_tls() || url.transport() != TransportKind::Tcp {
        return Ok(());
    }
    let (Some(host), Some(port)) = (url.host(), url.port()) else { return Ok(()) };
    let loopback = match (host.ip(), host) {
        (Some(ip), _) => ip.is_loopback(),
        (None, Host::Name(name)) => {
            let found = tokio::net::lookup_host((name.as_str(), port)).await;
            let mut found = found.with_context(|| format!("cannot look up {name:?}"))?;
            found.all(|address| IpAddr::is_loopback(&address.ip()))
        }
        _ => false,
    };
    if loopback {
        return Ok(());
    }
    let text = format!(
        "{url} would let anybody who reaches it ask this kernel, without TLS; \
         listen on a loopback address or a unix socket, or say --insecure"
    );
    Err(UsageError(text).into())
}

/// Each asker takes a descriptor, and each link: as many as the system lets us have.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::Subsystem;

    #[test]
    fn a_subsystem_is_a_name_and_a_protocol() {
        let subsystem: Subsystem = "audit=netlink:9".parse().unwrap();
        assert_eq!((subsystem.name.as_str(), subsystem.protocol), ("audit", 9));
    }

    #[test]
    fn a_wrong_subsystem_is_told_what_is_wrong() {
        for (text, part) in [
            ("audit", "no \"=\""),
            ("=netlink:9", "name"),
            ("audit=9", "netlink:"),
            ("audit=netlink:32", "0 to 31"),
            ("audit=netlink:", "0 to 31"),
        ] {
            let error = text.parse::<Subsystem>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
