//! The `nlbus` command: parse, set up logging, call the library.

mod bench;
mod body;
mod completions;
mod config;
mod connect;
mod ctl;
mod decode;
mod demo;
mod exit;
mod log;
mod metrics;
mod monitor;
mod publish;
mod pull;
mod push;
mod queue;
mod replace;
mod reply;
mod request;
mod secret;
mod serve;
mod show;
mod subscribe;
mod tls;
mod until;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};

use exit::Exit;

/// The kernel's own message format as a message bus.
#[derive(Debug, Parser)]
#[command(version, after_help = exit::HELP)]
struct Cli {
    /// Log more: -v for links and subsystems, -vv for details, -vvv for everything. NLBUS_LOG takes
    /// directives as tracing's EnvFilter does, and goes first.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, for the life of the process")]
enum Command {
    Serve(serve::Args),
    Show(show::Args),
    Monitor(monitor::Args),
    Subscribe(subscribe::Args),
    Publish(publish::Args),
    Request(request::Args),
    Reply(reply::Args),
    Push(push::Args),
    Pull(pull::Args),
    Ctl(ctl::Args),
    Queue(queue::Args),
    Decode(decode::Args),
    Bench(bench::Args),
    Demo(demo::Args),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::start(cli.verbose, matches!(cli.command, Command::Serve(_)));
    let outcome = match cli.command {
        Command::Decode(args) => decode::run(&args, &mut io::stdout().lock())
            .map(|outcome| if outcome == decode::Outcome::Sound { Exit::Ok } else { Exit::Failed }),
        Command::Serve(args) => block_on(serve::run(args)),
        Command::Show(args) => block_on(show::run(args)),
        Command::Monitor(args) => block_on(monitor::run(args)),
        Command::Subscribe(args) => block_on(subscribe::run(args)),
        Command::Publish(args) => block_on(publish::run(args)),
        Command::Request(args) => block_on(request::run(args)),
        Command::Reply(args) => block_on(reply::run(args)),
        Command::Push(args) => block_on(push::run(args)),
        Command::Pull(args) => block_on(pull::run(args)),
        Command::Ctl(args) => block_on(ctl::run(args)),
        Command::Bench(args) => block_on(bench::run(args)),
        Command::Queue(args) => block_on(queue::run(args)),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Completions(args) => completions::run(&args, Cli::command()),
    };
    let exit = outcome.unwrap_or_else(|error| {
        let exit = Exit::of(&error);
        if exit != Exit::Ok {
            let _ = writeln!(io::stderr(), "nlbus: {}", exit::one_line(&error));
        }
        exit
    });
    exit.into()
}

fn block_on(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn no_command_has_two_arguments_of_one_name() {
        super::Cli::command().debug_assert();
    }
}
