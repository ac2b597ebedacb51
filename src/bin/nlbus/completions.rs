//! `nlbus completions`: what a shell needs to complete our command lines.

use std::io::{self, Write as _};

use clap_complete::Shell;

use crate::exit::Exit;

/// Print completions for a shell.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  nlbus completions bash > /etc/bash_completion.d/nlbus\n  nlbus completions zsh > ~/.zfunc/_nlbus"
)]
pub(crate) struct Args {
    shell: Shell,
}

pub(crate) fn run(args: &Args, mut command: clap::Command) -> anyhow::Result<Exit> {
    // into memory first: clap_complete panics if its output is closed
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "nlbus", &mut text);
    io::stdout().write_all(&text)?;
    Ok(Exit::Ok)
}
