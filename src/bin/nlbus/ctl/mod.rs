//! `nlbus ctl`: commands to the broker itself.

mod list;

use std::io::{self, Write as _};
use std::path::PathBuf;

use nlbus::endpoint::Endpoint;
use nlbus::transport::TlsFiles;
use nlbus::url::BusUrl;

use crate::connect::Connect;
use crate::exit::Exit;
use crate::secret;
use crate::subscribe;

/// Control a broker from afar: what it is linked to, where it listens, what it has counted.
///
/// Takes the right to control: that of the user who serves, on a unix socket, or what the access list says, or the
/// secret. `discover` and `subscribe` take the right to use the bus.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    /// The broker's secret, in a file.
    #[arg(
        long,
        value_name = "FILE",
        env = "NLBUS_SECRET_FILE",
        hide_env_values = true,
        global = true
    )]
    secret_file: Option<PathBuf>,
}

const EXAMPLE: &str = "\
Example:
  nlbus ctl list -u unix:///run/nlbus.sock
  nlbus ctl connect tls://hub.example --name hub --secret-file secret
  nlbus show addr --subsystem route@hub";

/// Declares a subcommand that has nothing of its own, with its example.
macro_rules! example {
    ($line:literal) => {
        concat!("Example:\n  nlbus ctl ", $line)
    };
}

#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, for the life of the process")]
enum Command {
    /// Link the broker to another one, whose subsystems are then SUBSYSTEM@NAME.
    #[command(after_help = example!("connect tls://hub.example --name hub"))]
    Connect {
        /// The other broker, as the broker reaches it.
        #[arg(value_name = "URL")]
        target: BusUrl,
        /// What it shall be called [default: uplink, or uplink2 and so on].
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        to: Connect,
    },
    /// End a link to another broker.
    #[command(after_help = example!("disconnect hub"))]
    Disconnect {
        /// Its name, or the address that `connect` printed.
        #[arg(value_name = "NAME|ADDRESS")]
        uplink: String,
        #[command(flatten)]
        to: Connect,
    },
    /// Have the broker listen at one more URL.
    #[command(after_help = example!("serve unix:///run/nlbus-guests.sock"))]
    Serve {
        /// Where.
        #[arg(value_name = "URL")]
        target: BusUrl,
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        to: Connect,
    },
    /// Have the broker listen no more at a URL. Links that came in there live on.
    #[command(after_help = example!("shutdown unix:///run/nlbus-guests.sock"))]
    Shutdown {
        /// Where, as `list listeners` prints it.
        #[arg(value_name = "URL")]
        target: BusUrl,
        #[command(flatten)]
        to: Connect,
    },
    /// Print broadcasts, as `nlbus subscribe` does.
    #[command(after_help = example!("subscribe --group alerts -C 1"))]
    Subscribe(Box<subscribe::Args>),
    /// Print the address of a name.
    #[command(after_help = example!("discover route@hub"))]
    Discover {
        /// The name.
        name: String,
        #[command(flatten)]
        to: Connect,
    },
    /// Print what there is.
    #[command(after_help = example!("list links subsystems --json"))]
    List {
        /// Of what; all of it if none is given.
        #[arg(value_enum)]
        kinds: Vec<list::Kind>,
        /// As JSON: an object with an array for each kind.
        #[arg(short, long)]
        json: bool,
        #[command(flatten)]
        to: Connect,
    },
    /// Print what the broker has counted since it started.
    #[command(after_help = example!("stats --json"))]
    Stats {
        /// As a JSON object.
        #[arg(short, long)]
        json: bool,
        #[command(flatten)]
        to: Connect,
    },
    /// Have the broker log more or less.
    #[command(after_help = example!("log-level info,nlbus::node=debug"))]
    LogLevel {
        /// A level (error, warn, info, debug, trace), or directives as tracing's EnvFilter takes them.
        directives: String,
        #[command(flatten)]
        to: Connect,
    },
    /// Have the broker read its certificates, access list and secret again, as SIGHUP does.
    #[command(after_help = example!("reload"))]
    Reload {
        #[command(flatten)]
        to: Connect,
    },
    /// Have the broker end as it does at SIGTERM.
    #[command(after_help = example!("stop"))]
    Stop {
        #[command(flatten)]
        to: Connect,
    },
}

/// Files on the broker's machine, which it reads itself.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "TLS of the broker")]
struct Files {
    /// A certificate on the broker's machine, instead of what it was started with.
    #[arg(long, value_name = "FILE", requires_all = ["broker_key", "broker_ca"])]
    broker_cert: Option<PathBuf>,
    /// Its private key, there.
    #[arg(long, value_name = "FILE", requires = "broker_cert")]
    broker_key: Option<PathBuf>,
    /// The authorities to trust, there.
    #[arg(long, value_name = "FILE", requires = "broker_cert")]
    broker_ca: Option<PathBuf>,
}

impl Files {
    fn tls(self) -> Option<TlsFiles> {
        let (certificate, key, ca) = (self.broker_cert?, self.broker_key?, self.broker_ca?);
        Some(TlsFiles { certificate, key, ca })
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let secret = args.secret_file.as_deref().map(secret::read).transpose()?;
    let reach = async |to: &Connect| -> anyhow::Result<Endpoint> {
        let endpoint = to.endpoint().await?;
        if let Some(secret) = &secret {
            endpoint.register(secret).await?;
        }
        Ok(endpoint)
    };
    let mut out = io::stdout();
    match args.command {
        Command::Connect { target, name, files, to } => {
            let endpoint = reach(&to).await?;
            let files = files.tls();
            let address = endpoint.connect_broker(&target, name.as_deref(), files.as_ref()).await?;
            writeln!(out, "{address:#010x}")?;
        }
        Command::Disconnect { uplink, to } => {
            let endpoint = reach(&to).await?;
            let address = address_of(&endpoint, &uplink).await?;
            endpoint.disconnect_broker(address).await?;
        }
        Command::Serve { target, files, to } => {
            reach(&to).await?.listen(&target, files.tls().as_ref()).await?;
        }
        Command::Shutdown { target, to } => reach(&to).await?.unlisten(&target).await?,
        Command::Subscribe(args) => return subscribe::run(*args).await,
        Command::Discover { name, to } => {
            let address = reach(&to).await?.discover(&name).await?;
            writeln!(out, "{address:#010x}")?;
        }
        Command::List { kinds, json, to } => {
            let endpoint = reach(&to).await?;
            list::print(&endpoint, &kinds, json, &mut out).await?;
        }
        Command::Stats { json, to } => {
            let stats = reach(&to).await?.stats().await?;
            list::print_stats(&stats, json, &mut out)?;
        }
        Command::LogLevel { directives, to } => reach(&to).await?.log_level(&directives).await?,
        Command::Reload { to } => reach(&to).await?.reload().await?,
        Command::Stop { to } => reach(&to).await?.stop().await?,
    }
    out.flush()?;
    Ok(Exit::Ok)
}

/// The address of an uplink that is named by its name or by that address.
async fn address_of(endpoint: &Endpoint, uplink: &str) -> anyhow::Result<u32> {
    if let Some(digits) = uplink.strip_prefix("0x")
        && let Ok(address) = u32::from_str_radix(digits, 16)
    {
        return Ok(address);
    }
    let uplinks = endpoint.uplinks().await?;
    match uplinks.into_iter().find(|other| other.name == uplink) {
        Some(found) => Ok(found.address),
        None => Err(nlbus::endpoint::RequestError::Refused {
            errno: nlbus::wire::errno::ENOENT,
            text: Some(format!("no link to another broker is called {uplink:?}")),
        }
        .into()),
    }
}
