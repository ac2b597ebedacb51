//! `nlbus queue`: named queues of a broker.

mod call;
mod chart;
mod diagnostics;
mod manage;
mod metrics;
mod program;
mod show;
mod tail;

use std::time::Duration;

use nlbus::service::queue::{Client, ClientOptions};

use crate::connect::Connect;
use crate::exit::Exit;

/// How long commands that stay try to reach a broker that is not there.
const PATIENCE: Duration = Duration::from_secs(30);

/// Use the named queues of a broker: see `nlbus serve --queues`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLE: &str = "\
Example:
  nlbus serve --queues unix:///tmp/nlbus.sock &
  export NLBUS_URL=unix:///tmp/nlbus.sock
  nlbus queue call foo --body hello &          # waits: nobody serves foo
  nlbus queue diagnostics                      # shows the request, and who waits
  nlbus queue serve foo --program /bin/cat &   # now the call prints hello";

#[derive(Debug, clap::Subcommand)]
enum Command {
    List(manage::ListArgs),
    Create(Box<manage::CreateArgs>),
    Destroy(manage::DestroyArgs),
    Purge(manage::PurgeArgs),
    Send(Box<manage::SendArgs>),
    Recv(manage::RecvArgs),
    Ack(manage::AckArgs),
    Call(call::Args),
    Serve(program::Args),
    Diagnostics(diagnostics::Args),
    Tail(tail::Args),
    Metrics(metrics::Args),
    Shutdown(manage::ShutdownArgs),
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    match args.command {
        Command::List(args) => manage::list(args).await,
        Command::Create(args) => manage::create(*args).await,
        Command::Destroy(args) => manage::destroy(args).await,
        Command::Purge(args) => manage::purge(args).await,
        Command::Send(args) => manage::send(*args).await,
        Command::Recv(args) => manage::receive(args).await,
        Command::Ack(args) => manage::ack(args).await,
        Command::Call(args) => call::run(args).await,
        Command::Serve(args) => program::run(args).await,
        Command::Diagnostics(args) => diagnostics::run(args).await,
        Command::Tail(args) => tail::run(args).await,
        Command::Metrics(args) => metrics::run(args).await,
        Command::Shutdown(args) => manage::shutdown(args).await,
    }
}

/// Connects; tries again for as long as `patience`.
async fn client(connect: &Connect, patience: Duration) -> anyhow::Result<Client> {
    let options = ClientOptions::default().connect(connect.options()?).reconnect_max(patience);
    Ok(Client::connect_with(&connect.url(), options).await?)
}
