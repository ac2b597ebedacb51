//! What `serve` is to do: the command line first, then the configuration file, then the defaults.

use std::path::PathBuf;

use anyhow::Context as _;
use nlbus::service::netlink::{KernelOptions, NETLINK_GENERIC, NETLINK_ROUTE};
use nlbus::transport::{TlsClient, TlsServer, is_exposed};
use nlbus::url::{BusUrl, TransportKind};

use super::Args;
use super::metrics;
use super::process::ProcessArgs;
use super::queues::QueuesArgs;
use super::uplinks::UplinkSetting;
use crate::config::{AccessRows, ServeConfig, ServeFile};
use crate::connect::default_url;
use crate::exit::UsageError;
use crate::secret;

/// What is always served.
const BUILTIN: [(&str, u16); 2] = [("route", NETLINK_ROUTE), ("generic", NETLINK_GENERIC)];

pub(super) struct Settings {
    /// At least one.
    pub(super) urls: Vec<BusUrl>,
    /// Those that are always served first.
    pub(super) subsystems: Vec<Subsystem>,
    netns: Option<String>,
    pub(super) allow_write: bool,
    pub(super) insecure: bool,
    pub(super) tls: Option<TlsServer>,
    /// For links to other brokers that are asked for later.
    pub(super) client: Option<TlsClient>,
    pub(super) access: AccessRows,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) secret: Option<Vec<u8>>,
    pub(super) uplinks: Vec<UplinkSetting>,
    pub(super) queues: QueuesArgs,
    pub(super) process: ProcessArgs,
}

impl Settings {
    /// Puts them together, reads the certificates, and refuses what would be dangerous.
    pub(super) async fn new(args: Args) -> anyhow::Result<Self> {
        let file = args.config.map(|config: ServeConfig| config.file).unwrap_or_default();
        let queues = args.queues.or(&file)?;
        let process = args.process.or(&file);
        let ServeFile {
            listen,
            subsystems,
            netns,
            allow_write,
            insecure,
            name,
            secret_file,
            uplink,
            tls,
            access,
            ..
        } = file;
        let insecure = args.insecure || insecure;
        let mut urls = args.urls;
        if urls.is_empty() {
            urls.extend(listen.into_iter().map(|url| url.0));
        }
        if urls.is_empty() {
            urls.push(default_url());
        }
        for url in &urls {
            check_exposure(url, insecure).await?;
        }
        if let Some(url) = &process.metrics {
            metrics::check(url, insecure).await?;
        }
        let files = match urls.iter().chain(&process.metrics).find(|url| url.is_tls()) {
            Some(url) => Some(args.tls.files(url, &tls)?),
            // listening and linking over TLS may be asked for later
            None => urls.first().and_then(|url| args.tls.files(url, &tls).ok()),
        };
        let server = files.clone().map(TlsServer::load).transpose()?;
        let client = files.map(TlsClient::load).transpose()?;
        let node = args.name.or(name).unwrap_or_else(host_name);
        if node.is_empty()
            || node.contains(|c: char| c == '@' || c.is_whitespace() || c.is_control())
        {
            let text =
                format!("the name {node:?} of this broker is empty or has an @ or a space in it");
            return Err(UsageError(text).into());
        }
        let mut uplinks = Vec::new();
        for uplink in args.uplinks {
            let files = |url: &BusUrl| args.tls.files(url, &tls);
            uplinks.push(UplinkSetting::given(uplink, &args.exports, &node, files)?);
        }
        for table in uplink {
            uplinks.push(UplinkSetting::written(table, &node, &args.tls, &tls)?);
        }
        let secret_file = args.secret_file.or(secret_file);
        let secret = secret_file.as_deref().map(secret::read).transpose()?;
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
            insecure,
            tls: server,
            client,
            access,
            secret_file,
            secret,
            uplinks,
            queues,
            process,
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

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
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
    if insecure || !is_exposed(url).await.with_context(|| format!("cannot look up {url}"))? {
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
