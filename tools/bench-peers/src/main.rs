//! nlbus beside a bare relay, NATS, libzmq and Redis: the same load, the same CPU, in turns.

mod cases;
#[allow(dead_code, reason = "the nlbus command uses all of it")]
#[path = "../../../src/bin/nlbus/bench/engine/mod.rs"]
mod engine;
mod nats;
mod peers;
mod plot;
mod redis;
mod relay;
mod report;
mod secure;
mod zmtp;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};

use cases::Case;
use peers::{Peer, Starter};
use report::{Idle, Results};
use secure::Papers;

/// Drive nlbus, a bare relay, NATS, libzmq and Redis with the same load on one CPU, in turns.
///
/// Writes a table and plots, and says which targets are met. Installs nothing: a peer that is missing is named
/// with its Debian package, and left out.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLE)]
struct Cli {
    /// The nlbus command to measure.
    #[arg(long, value_name = "PATH", default_value = "nlbus")]
    nlbus: PathBuf,
    /// One short round, to see that all of it works.
    #[arg(long)]
    quick: bool,
    /// How often each load is driven through each broker.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each time, after a fifth of it as a warm-up.
    #[arg(long, default_value_t = 0.8)]
    seconds: f64,
    /// Only loads whose name has this in it, or `idle`; may be repeated.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// The CPU that everything stays on.
    #[arg(long, default_value_t = 1)]
    cpu: usize,
    /// Links that do nothing.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Where peers.md, latency.svg and throughput.svg go; without it, only to standard output.
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What is started to be measured.
#[derive(Debug, Subcommand)]
enum Part {
    /// The bare relay.
    #[command(hide = true)]
    Relay {
        #[arg(long)]
        tls: bool,
    },
    /// libzmq's proxy.
    #[command(hide = true)]
    ZmqProxy { kind: String },
}

const EXAMPLE: &str = "\
Example:
  tools/bench-peers/run                          # builds all, 5 rounds, into benches/results/
  tools/bench-peers/run --quick
  tools/bench-peers/run --only PUSH --rounds 3";

fn main() -> anyhow::Result<()> {
    let mut cli = Cli::parse();
    match &cli.part {
        Some(Part::Relay { tls }) => return relay::serve(*tls),
        Some(Part::ZmqProxy { kind }) => return zmtp::serve(kind),
        None => {}
    }
    if cli.quick {
        (cli.rounds, cli.seconds, cli.idle) = (1, 0.2, cli.idle.min(1_000));
    }
    engine::pin(cli.cpu)?;
    let directory = std::env::temp_dir().join(format!("bench-peers-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let measured = measure(&cli, directory.clone());
    std::fs::remove_dir_all(directory)?;
    let results = measured?;
    let text = results.markdown();
    println!("{text}");
    if let Some(out) = &cli.out {
        std::fs::create_dir_all(out)?;
        std::fs::write(out.join("peers.md"), text)?;
        std::fs::write(out.join("latency.svg"), plot::latency(&results))?;
        std::fs::write(out.join("throughput.svg"), plot::throughput(&results))?;
    }
    Ok(())
}

fn measure(cli: &Cli, directory: PathBuf) -> anyhow::Result<Results> {
    let mut peers = Vec::new();
    for peer in Peer::ALL {
        match (peer.version(&cli.nlbus), peer.package()) {
            (Some(version), _) => peers.push((peer, version)),
            (None, Some(package)) => {
                eprintln!("{} is left out; it comes in the Debian package {package}", peer.name());
            }
            (None, None) => bail!("{} cannot be run: --nlbus PATH", cli.nlbus.display()),
        }
    }
    let wanted = |name: &str| {
        cli.only.is_empty() || cli.only.iter().any(|only| name.contains(only.as_str()))
    };
    let cases: Vec<Case> = cases::all().into_iter().filter(|case| wanted(&case.name)).collect();
    let papers = Papers::make()?;
    papers.write(&directory)?;
    let starter = Starter { nlbus: cli.nlbus.clone(), papers, directory };
    let mut results = Results::new(cli.rounds, cli.seconds, cli.cpu, peers);
    for round in 1..=cli.rounds {
        for case in &cases {
            for peer in
                case.peers.iter().filter(|peer| results.has(**peer)).copied().collect::<Vec<_>>()
            {
                eprintln!("round {round} of {}: {}: {}", cli.rounds, case.name, peer.name());
                let measured = starter.measure(peer, case.load, &case.plan(cli.seconds));
                let measured =
                    measured.with_context(|| format!("{}: {}", case.name, peer.name()))?;
                results.add(case, peer, &measured);
            }
        }
        if wanted("idle") {
            eprintln!("round {round} of {}: idle", cli.rounds);
            results.idle.push(idle(cli)?);
        }
    }
    Ok(results)
}

/// `nlbus bench idle` itself: it measures both sides.
fn idle(cli: &Cli) -> anyhow::Result<Idle> {
    let output = Command::new(&cli.nlbus)
        .args(["bench", "idle", "--json", "--clients", &cli.idle.to_string()])
        .args(["--seconds", &cli.seconds.to_string(), "--cpu", &cli.cpu.to_string()])
        .output()?;
    if !output.status.success() {
        bail!("nlbus bench idle: {}", String::from_utf8_lossy(&output.stderr));
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let number = |value: &serde_json::Value| value.as_f64().context("a figure of idle is missing");
    Ok(Idle {
        links: number(&report["idle"]["links"])? as usize,
        bytes_per_link: number(&report["idle"]["bytes_per_link"])?,
        p99_ratio: number(&report["idle"]["p99_ratio"])?,
    })
}
