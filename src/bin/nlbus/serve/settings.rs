//! What `serve` is to do: the command line first, then the configuration file, then the defaults.

use std::net::IpAddr;

use anyhow::Context as _;
use nlbus::service::netlink::{KernelOptions, NETLINK_GENERIC, NETLINK_ROUTE};
use nlbus::transport::TlsServer;
use nlbus::url::{BusUrl, Host, TransportKind};

use super::Args;
use super::queues::QueuesArgs;
use crate::config::{AccessRows, ServeConfig, ServeFile};
use crate::connect::default_url;
use crate::exit::UsageError;

/// What is always served.
const BUILTIN: [(&str, u16); 2] = [("route", NETLINK_ROUTE), ("generic", NETLINK_GENERIC)];

pub(super) struct Settings {
    /// At least one.
    pub(super) urls: Vec<BusUrl>,
    /// Those that are always served first.
    pub(super) subsystems: Vec<Subsystem>,
    netns: Option<String>,
    pub(super) allow_write: bool,
    pub(super) tls: Option<TlsServer>,
    pub(super) access: AccessRows,
    pub(super) queues: QueuesArgs,
}

impl Settings {
    /// Puts them together, reads the certificates, and refuses what would be dangerous.
    pub(super) async fn new(args: Args) -> anyhow::Result<Self> {
        let file = args.config.map(|config: ServeConfig| config.file).unwrap_or_default();
        let queues = args.queues.or(&file)?;
        let ServeFile { listen, subsystems, netns, allow_write, insecure, tls, access, .. } = file;
        let mut urls = args.urls;
        if urls.is_empty() {
            urls.extend(listen.into_iter().map(|url| url.0));
        }
        if urls.is_empty() {
            urls.push(default_url());
        }
        for url in &urls {
            check_exposure(url, args.insecure || insecure).await?;
        }
        let tls = match urls.iter().find(|url| url.is_tls()) {
            Some(url) => Some(TlsServer::load(args.tls.files(url, &tls)?)?),
            None => None,
        };
        let builtin = BUILTIN.map(|(name, protocol)| Subsystem { name: name.to_owned(), protocol });
        let further = match args.subsystems {
            given if given.is_empty() => subsystems.into_iter().map(|text| text.0).collect(),
            given => given,
        };
        Ok(Self {
            urls,
            subsystems: builtin.into_iter().chain(further).collect(),
            netns: args.netns.or(netns),
            allow_write: args.allow_write || allow_write,
            tls,
            access,
            queues,
        })
    }

    /// How the kernel is opened, for changes or for reading only.
    pub(super) fn kernel(&self, allow_write: bool) -> KernelOptions {
        let mut options = KernelOptions::default();
        options.netns.clone_from(&self.netns);
        options.allow_write = allow_write;
        options
    }
}

/// A netlink family under a name.
#[derive(Clone, Debug)]
pub(crate) struct Subsystem {
    pub(crate) name: String,
    pub(crate) protocol: u16,
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

/// Whoever reaches a plain TCP port may use the bus, and with it the kernel: off loopback that has to be
/// said in so many words.
async fn check_exposure(url: &BusUrl, insecure: bool) -> anyhow::Result<()> {
    let by_address = matches!(url.transport(), TransportKind::Tcp | TransportKind::Udp);
    if insecure || url.is_tls() || !by_address {
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
    let what = match url.transport() {
        TransportKind::Udp => "push to whoever listens here",
        _ => "ask this kernel, without TLS",
    };
    let text = format!(
        "{url} would let anybody who reaches it {what}; \
         listen on a loopback address or a unix socket, or say --insecure"
    );
    Err(UsageError(text).into())
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
