//! Queues beside the kernel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nlbus::endpoint::Endpoint;
use nlbus::node::Node;
use nlbus::service::queue::machine::MachineOptions;
use nlbus::service::queue::{ServeOptions, Served, serve};
use nlbus::store::{Loaded, Store, StoreOptions};
use tokio::time::timeout;

use crate::config::ServeFile;
use crate::exit::UsageError;

/// Whether there are queues, and where they are kept.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Queues")]
pub(crate) struct QueuesArgs {
    /// Serve named queues, as the subsystem `queue`: see `nlbus queue`.
    #[arg(long)]
    queues: bool,
    /// Keep persistent queues in this directory, which has to be there, or in the NATS JetStream cluster at
    /// nats://[USER:PASSWORD@|TOKEN@]HOST[:PORT][,HOST…][?replicas=N]; without it they end with the broker.
    #[arg(long, value_name = "DIR|URL")]
    state: Option<PathBuf>,
    /// The size that the state may have on disk, in bytes [default: as much as there is].
    #[arg(long, value_name = "BYTES")]
    state_max: Option<u64>,
    /// Let `nlbus queue shutdown` end the broker.
    #[arg(long)]
    allow_shutdown: bool,
    /// Let only those make, destroy, purge and look into queues who may write `queue`: see --allow-write and the access
    /// list.
    #[arg(long)]
    queues_managed: bool,
    /// For tests of consumers: deliver one of N acknowledged messages once more, as if the acknowledgement had been lost.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chaos_duplicate: Option<u32>,
}

impl QueuesArgs {
    /// What the command line does not say, the file may.
    pub(super) fn or(self, file: &ServeFile) -> Result<Self, UsageError> {
        let Self { queues, state, state_max, allow_shutdown, queues_managed, chaos_duplicate } =
            self;
        let merged = Self {
            queues: queues || file.queues,
            state: state.or_else(|| file.state.clone()),
            state_max: state_max.or(file.state_max),
            allow_shutdown: allow_shutdown || file.allow_shutdown,
            queues_managed: queues_managed || file.queues_managed,
            chaos_duplicate: chaos_duplicate.or(file.chaos_duplicate),
        };
        if !merged.queues && (merged.state.is_some() || merged.allow_shutdown) {
            return Err(UsageError("--state and --allow-shutdown are for --queues".to_owned()));
        }
        Ok(merged)
    }
}

/// The queues of a broker, if it has any.
#[derive(Default)]
pub(super) struct Queues(Option<Served>);

impl Queues {
    /// Reads the state and serves the queues in it.
    pub(super) async fn start(node: &Node, args: &QueuesArgs) -> anyhow::Result<Self> {
        if !args.queues {
            return Ok(Self(None));
        }
        let mut machine = MachineOptions::default();
        machine.duplicate_every = args.chaos_duplicate.unwrap_or(0);
        let options = ServeOptions::default()
            .allow_shutdown(args.allow_shutdown)
            .managed(args.queues_managed)
            .machine(machine);
        if let Some(url) = args.state.as_deref().and_then(cluster_url) {
            let refuse = |text: &str| Err(UsageError(text.to_owned()).into());
            if args.state_max.is_some() {
                return refuse("--state-max is for a directory: a cluster has limits of its own");
            }
            if args.chaos_duplicate.is_some() {
                return refuse("--chaos-duplicate is for queues that no cluster keeps");
            }
            return Ok(Self(Some(start_cluster(&Endpoint::attach(node)?, url, options).await?)));
        }
        let (store, loaded) = match &args.state {
            None => (Store::memory(), Loaded::default()),
            Some(path) => {
                let options = StoreOptions::default().bytes_max(args.state_max);
                let (store, loaded) = Store::open(path, options)?;
                tracing::info!(
                    state = %path.display(),
                    queues = loaded.queues.len(),
                    messages = loaded.messages.len(),
                    quarantined = loaded.quarantined.len(),
                    "state read"
                );
                (store, loaded)
            }
        };
        if machine.duplicate_every > 0 {
            tracing::warn!(one_of = machine.duplicate_every, "messages are delivered twice");
        }
        let endpoint = Endpoint::attach(node)?;
        Ok(Self(Some(serve(&endpoint, store, loaded, options).await?)))
    }

    /// Whether there could be queues with these arguments.
    pub(super) fn check(args: &QueuesArgs) -> anyhow::Result<()> {
        match &args.state {
            Some(path) if args.queues && cluster_url(path).is_none() => {
                let found = std::fs::metadata(path)
                    .with_context(|| format!("the state directory {}", path.display()))?;
                anyhow::ensure!(found.is_dir(), "{} is not a directory", path.display());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The address, if there is one.
    pub(super) fn address(&self) -> Option<u32> {
        self.0.as_ref().map(Served::address)
    }

    /// Waits until somebody who may asks for the end.
    pub(super) async fn shutdown_asked(&mut self) {
        match &mut self.0 {
            Some(served) => served.shutdown_asked().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until what was taken in is stored.
    pub(super) async fn ended(&mut self, grace: Duration) {
        if let Some(served) = &mut self.0
            && timeout(grace, served.ended()).await.is_err()
        {
            tracing::warn!("not everything was stored in time");
        }
    }
}

/// The URL of a cluster, if that is what is written where a directory may stand.
pub(crate) fn cluster_url(state: &Path) -> Option<&str> {
    let text = state.to_str()?;
    (text.starts_with("nats://") || text.starts_with("nats+tls://")).then_some(text)
}

#[cfg(feature = "jetstream")]
async fn start_cluster(
    endpoint: &Endpoint,
    url: &str,
    options: ServeOptions,
) -> anyhow::Result<Served> {
    use nlbus::service::queue::{ClusterUrl, JetStream, serve_jetstream};

    let url: ClusterUrl = url.parse().map_err(|error| UsageError(format!("--state: {error}")))?;
    let cluster = JetStream::connect(&url).await?;
    Ok(serve_jetstream(endpoint, cluster, options).await?)
}

#[cfg(not(feature = "jetstream"))]
async fn start_cluster(_: &Endpoint, _: &str, _: ServeOptions) -> anyhow::Result<Served> {
    let text = "this nlbus was built without NATS: cargo build --release --features jetstream";
    Err(UsageError(text.to_owned()).into())
}
