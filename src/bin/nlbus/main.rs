//! The `nlbus` command: parse, set up logging, call the library.

mod decode;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(version, about = "The kernel's own message format as a message bus")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Decode(decode::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Decode(args) => decode::run(&args, &mut std::io::stdout().lock()),
    };
    match outcome {
        Ok(decode::Outcome::Sound) => ExitCode::SUCCESS,
        Ok(decode::Outcome::Malformed) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nlbus: {error:#}");
            ExitCode::FAILURE
        }
    }
}
