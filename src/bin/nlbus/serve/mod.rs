//! `nlbus serve`: a broker with this machine's kernel behind it.

mod metrics;
mod process;
mod queues;
mod reload;
mod settings;
mod uplinks;

pub(crate) use process::SocketMode;
pub(crate) use queues::cluster_url;
pub(crate) use settings::Subsystem;

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use nlbus::endpoint::Endpoint;
use nlbus::node::{ControlOptions, Node, NodeOptions, Wish};
use nlbus::service::netlink::Kernel;
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{AccessRows, ServeConfig};
use crate::exit::{Exit, UsageError};
use crate::tls::TlsArgs;
use metrics::Metrics;
use process::Pidfile;
use queues::Queues;
use settings::Settings;
use uplinks::Uplink;

/// How long answers under way may take to go out after SIGTERM or SIGINT.
const GRACE: Duration = Duration::from_secs(5);

/// Serve this machine's kernel over one or more URLs.
///
/// The subsystems `route` (NETLINK_ROUTE, at address 0x00010003) and `generic` (NETLINK_GENERIC) are
/// always there. Askers may only read, unless --allow-write or the access list of the configuration file
/// lets them change things: the kernel itself enforces that. SIGTERM and SIGINT let answers under way go
/// out, and end with 0. SIGHUP reads the certificates, the access list and the secret again, for connections to come.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// Where to listen: tcp://HOST[:PORT], tls://HOST[:PORT], unix://PATH, unix://@NAME, unix+tls://PATH, udp://HOST[:PORT]
    /// [default: tcp://127.0.0.1:9824].
    #[arg(value_name = "URL")]
    urls: Vec<BusUrl>,
    /// Serve another netlink family too: a name and the protocol's number, 0 to 31.
    #[arg(long = "subsystem", value_name = "NAME=netlink:PROTOCOL")]
    subsystems: Vec<Subsystem>,
    /// Open the kernel's sockets in this network namespace: a name as `ip netns` knows it, or a path.
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    /// Let askers change what this process may change, unless the access list says otherwise of them.
    #[arg(long)]
    allow_write: bool,
    /// Let strangers in: listen without TLS on an address that is not loopback.
    #[arg(long)]
    insecure: bool,
    /// Link to another broker, and again whenever that link is lost: its subsystem `route` is then `route@NAME` here.
    /// Without a name it is `uplink`, the next one `uplink2`.
    #[arg(long = "uplink", value_name = "[NAME=]URL", help_heading = "Other brokers")]
    uplinks: Vec<Uplink>,
    /// Provide this subsystem at the uplinks, as SUBSYSTEM@NAME of this broker.
    #[arg(
        long = "export",
        value_name = "SUBSYSTEM",
        requires = "uplinks",
        help_heading = "Other brokers"
    )]
    exports: Vec<String>,
    /// What this broker is called there [default: the host name].
    #[arg(long, value_name = "NAME", help_heading = "Other brokers")]
    name: Option<String>,
    /// Let whoever says the secret in this file control the broker, with `nlbus ctl`. 16 bytes or more.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// A TOML file with defaults for all this, and the access list: see docs/config.md in the source.
    #[arg(long, value_name = "FILE", value_parser = ServeConfig::parse)]
    config: Option<ServeConfig>,
    #[command(flatten)]
    queues: queues::QueuesArgs,
    #[command(flatten)]
    process: process::ProcessArgs,
    #[command(flatten)]
    tls: TlsArgs,
}

const EXAMPLE: &str = "\
Example:
  nlbus serve tcp://127.0.0.1:9824 unix:///run/nlbus.sock
  nlbus serve --netns blue --allow-write unix://@nlbus-blue
  nlbus serve --subsystem audit=netlink:9 tcp://[::1]
  nlbus serve tls://0.0.0.0 --cert server.crt --key server.key --ca ca.crt
  nlbus serve tcp://127.0.0.1 --uplink hub=tls://hub.example --export route --name edge1 \\
    --cert edge1.crt --key edge1.key --ca ca.crt
  nlbus serve --queues --state /var/lib/nlbus unix:///run/nlbus.sock
  nlbus serve --queues --state nats://127.0.0.1:4222 unix:///run/nlbus.sock
  nlbus serve --config /etc/nlbus/serve.toml";

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    raise_descriptor_limit();
    let path = args.config.as_ref().map(|config| config.path.clone());
    let checks_only = args.process.check_config;
    let settings = Settings::new(args).await?;
    if checks_only {
        Queues::check(&settings.queues)?;
        writeln!(io::stdout(), "nothing is wrong")?;
        return Ok(Exit::Ok);
    }
    let node = Node::new(NodeOptions::default());
    let mut instructions = node.instructions();
    let server = Server::start(&node, path, settings, &mut io::stdout()).await;
    let served = match server {
        Ok(mut server) => {
            loop {
                tokio::select! {
                    () = came(&mut terminate) => break,
                    () = came(&mut interrupt) => break,
                    () = server.queues.shutdown_asked() => break,
                    // the log says what went wrong
                    () = came(&mut hangup) => drop(server.reload().await),
                    Some(instruction) = instructions.recv() => match &instruction.wish {
                        Wish::Stop => break,
                        Wish::Reload => {
                            let outcome = server.reload().await;
                            instruction.answer(outcome);
                        }
                        Wish::LogLevel(directives) => {
                            let outcome = crate::log::set(directives);
                            instruction.answer(outcome);
                        }
                        other => {
                            let text = format!("{other:?} is not known here");
                            instruction.answer(Err(text));
                        }
                    },
                }
            }
            tracing::info!("ending");
            node.shutdown(GRACE).await;
            server.queues.ended(GRACE).await;
            Ok(Exit::Ok)
        }
        Err(error) => Err(error),
    };
    node.shutdown(GRACE).await;
    served
}

async fn came(signal: &mut Signal) {
    // None would mean that no further signal can come: then only SIGKILL is left
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// A node with a kernel behind it, and what it can be reloaded from.
struct Server {
    node: Node,
    settings: Settings,
    /// The configuration file.
    path: Option<PathBuf>,
    /// The kernel for who may have it changed, once there is somebody, and which subsystems it serves.
    writing: Option<Kernel>,
    writable: HashSet<String>,
    queues: Queues,
    /// What is there as long as it serves.
    while_up: (Option<Metrics>, Option<Pidfile>),
}

impl Server {
    /// Brings up the subsystems first, so that a link finds them from its first moment on.
    async fn start(
        node: &Node,
        path: Option<PathBuf>,
        settings: Settings,
        out: &mut impl Write,
    ) -> anyhow::Result<Self> {
        let reading = Kernel::open(&settings.kernel(false))?;
        let mut server = Self {
            node: node.clone(),
            settings,
            path,
            writing: None,
            writable: HashSet::new(),
            queues: Queues::default(),
            while_up: (None, None),
        };
        let mut served = Vec::new();
        for subsystem in &server.settings.subsystems {
            let endpoint = Endpoint::attach(node)?;
            let address = reading.serve(&endpoint, &subsystem.name, subsystem.protocol).await?;
            served.push((subsystem.name.clone(), address));
        }
        // behind the kernel, whose addresses clients of the original know by heart
        server.queues = Queues::start(node, &server.settings.queues).await?;
        let queue_address = server.queues.address();
        server.let_in(server.settings.access.clone()).await?;
        for (name, address) in served {
            writeln!(out, "serving {name} at {address:#010x}, {}", server.mode(&name))?;
        }
        if let Some(address) = queue_address {
            writeln!(out, "serving queue at {address:#010x}")?;
        }
        let mut options = ListenOptions::default();
        options.tls.clone_from(&server.settings.tls);
        server.settings.process.own(&mut options);
        if let Some(url) = &server.settings.process.metrics {
            let with_queues = queue_address.is_some();
            let (metrics, bound) = Metrics::start(node, with_queues, url, &options).await?;
            server.while_up.0 = Some(metrics);
            writeln!(out, "metrics at {bound}")?;
        }
        for url in &server.settings.urls {
            let bound = node.listen(url, &options).await?;
            writeln!(out, "listening on {bound}")?;
        }
        server.let_control(options);
        for uplink in &server.settings.uplinks {
            let address = node.uplink(&uplink.url, uplink.options.clone()).map_err(|refusal| {
                UsageError(format!("uplink {}: {}", uplink.url, refusal.text))
            })?;
            writeln!(out, "linking to {} at {address:#010x}", uplink.url)?;
        }
        server.while_up.1 = server.settings.process.pidfile()?;
        out.flush()?;
        Ok(server)
    }

    /// Says how commands over the bus listen and connect: as this command line does.
    fn let_control(&self, listen: ListenOptions) {
        let mut control = ControlOptions::default();
        control.listen = listen;
        control.insecure = self.settings.insecure;
        let uplinks = &self.settings.uplinks;
        let linking = || uplinks.iter().find_map(|uplink| uplink.options.dial.tls.clone());
        control.dial.tls = self.settings.client.clone().or_else(linking);
        self.node.set_control(control);
        self.node.set_secret(self.settings.secret.as_deref());
    }

    /// Lets links do what `access` says, and serves what some of them may have changed a second time, with
    /// the right to change it. Which of the two a link reaches is the broker's matter.
    async fn let_in(&mut self, access: AccessRows) -> anyhow::Result<()> {
        let allow_write = self.settings.allow_write;
        for subsystem in &self.settings.subsystems {
            let name = &subsystem.name;
            let uplinks = &self.settings.uplinks;
            let wanted = access.lets_write(name, allow_write)
                || uplinks.iter().any(|uplink| uplink.lets_write(name));
            if !wanted || self.writable.contains(name) {
                continue;
            }
            let kernel = match self.writing.take() {
                Some(kernel) => kernel,
                None => Kernel::open(&self.settings.kernel(true))?,
            };
            let kernel = self.writing.insert(kernel);
            let endpoint = Endpoint::attach(&self.node)?;
            kernel.serve_writers(&endpoint, name, subsystem.protocol).await?;
            self.writable.insert(name.clone());
        }
        self.node.set_access(access.list(allow_write));
        Ok(())
    }

    fn mode(&self, name: &str) -> &'static str {
        if self.settings.allow_write {
            "writable"
        } else if self.writable.contains(name) {
            "writable for some"
        } else {
            "read-only"
        }
    }
}

/// Each asker takes a descriptor, and each link: as many as the system lets us have.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
