//! `nlbus reply`: a program that is run for each request.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nlbus::endpoint::{MESSAGE_BYTES_MAX, Request, RequestError};
use nlbus::wire::errno;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::body;
use crate::connect::{Connect, seconds};
use crate::exit::Exit;

/// What is kept of a program's standard error, in bytes.
const ERROR_BYTES_MAX: usize = 1_024;

/// Answer requests by running a program for each.
///
/// The request is the program's standard input, its standard output is the answer. If it does not end
/// with 0, the asker gets an error with the text from its standard error (at most 1,024 bytes). In the
/// environment: NLBUS_NAME is the name, NLBUS_ASKER the asker's return address. SIGTERM and SIGINT let the
/// programs that are running end, and end with 0.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// The name to answer for.
    name: String,
    /// The longest answer, in bytes; a program that says more is killed.
    #[arg(long, value_name = "BYTES", default_value_t = MESSAGE_BYTES_MAX)]
    limit: usize,
    /// How long a program may run; then it is killed.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    time: Duration,
    /// How many programs may run at once; further requests wait.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_024), default_value = "4")]
    jobs: u16,
    #[command(flatten)]
    connect: Connect,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

const EXAMPLE: &str = "\
Example:
  nlbus reply upper -u unix:///run/nlbus.sock -- tr a-z A-Z &
  nlbus request upper hello -u unix:///run/nlbus.sock";

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let stopped = body::stopped()?;
    tokio::pin!(stopped);
    let endpoint = args.connect.endpoint().await?;
    let mut provider = endpoint.provide(&args.name).await?;
    writeln!(io::stdout(), "answering {} at {:#010x}", args.name, provider.address())?;
    let flush_max = args.connect.timeout();
    let places = Arc::new(Semaphore::new(args.jobs.into()));
    let args = Arc::new(args);
    let mut jobs = JoinSet::new();
    let outcome = loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            provider.next_request().await.map(|request| (place, request))
        };
        tokio::select! {
            biased;
            () = &mut stopped => break Ok(Exit::Ok),
            next = next => match next {
                Some((place, request)) => {
                    let args = Arc::clone(&args);
                    jobs.spawn(async move {
                        answer(&args, request).await;
                        drop(place);
                    });
                }
                None => break Err(RequestError::Lost(None)),
            }
        }
        while jobs.try_join_next().is_some() {}
    };
    drop(provider);
    while jobs.join_next().await.is_some() {}
    let exit = outcome?;
    endpoint.flush(flush_max).await?;
    Ok(exit)
}

/// Why there is no answer: an error number and a text for the asker.
struct Failure(i32, String);

async fn answer(args: &Args, request: Request) {
    let sent = match perform(args, &request).await {
        Ok(answer) => request.reply(&answer).await,
        Err(Failure(errno, text)) => {
            tracing::info!(asker = request.asker(), text, "no answer");
            request.fail(errno, &text).await
        }
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot answer");
    }
}

/// Runs the program. It is over, and waited for, when this returns.
async fn perform(args: &Args, request: &Request) -> Result<Vec<u8>, Failure> {
    let [program, arguments @ ..] = args.program.as_slice() else {
        unreachable!("clap asks for a program");
    };
    let spawned = Command::new(program)
        .args(arguments)
        .env("NLBUS_NAME", &args.name)
        .env("NLBUS_ASKER", format!("{:#010x}", request.asker()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|error| {
        tracing::warn!(%error, ?program, "cannot run the program");
        Failure(errno::EIO, "the program cannot be run".to_owned())
    })?;
    let outcome = match timeout(args.time, talk(args, &mut child, &request.body())).await {
        Ok(outcome) => outcome,
        Err(_) => {
            Err(Failure(errno::ETIMEDOUT, format!("the program took more than {:?}", args.time)))
        }
    };
    if outcome.is_err()
        && let Err(error) = child.kill().await
    {
        tracing::debug!(%error, "the program has ended already");
    }
    outcome
}

async fn talk(args: &Args, child: &mut Child, request: &[u8]) -> Result<Vec<u8>, Failure> {
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        unreachable!("all three are pipes");
    };
    let ((), answer, text) =
        tokio::try_join!(feed(stdin, request), read_answer(stdout, args.limit), read_text(stderr))?;
    let status = child.wait().await.map_err(|error| broken(&error))?;
    if status.success() { Ok(answer) } else { Err(Failure(errno::EIO, words(&text, status))) }
}

async fn feed(mut stdin: ChildStdin, request: &[u8]) -> Result<(), Failure> {
    match stdin.write_all(request).await {
        // it need not read all of it
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(broken(&error)),
        _ => Ok(()),
    }
}

async fn read_answer(stdout: impl AsyncRead + Unpin, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut answer = Vec::new();
    let most = (limit as u64).saturating_add(1);
    stdout.take(most).read_to_end(&mut answer).await.map_err(|error| broken(&error))?;
    if answer.len() > limit {
        let text = format!("the answer is longer than {limit} bytes");
        return Err(Failure(errno::EMSGSIZE, text));
    }
    Ok(answer)
}

/// The beginning; the rest is read too, lest the program should wait for room.
async fn read_text(mut stderr: impl AsyncRead + Unpin) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let mut buffer = [0; 4_096];
    loop {
        match stderr.read(&mut buffer).await {
            Ok(0) => return Ok(text),
            Ok(length) => {
                let room = ERROR_BYTES_MAX - text.len();
                text.extend_from_slice(&buffer[..length.min(room)]);
            }
            Err(error) => return Err(broken(&error)),
        }
    }
}

fn broken(error: &io::Error) -> Failure {
    tracing::warn!(%error, "cannot talk with the program");
    Failure(errno::EIO, "cannot talk with the program".to_owned())
}

/// One line of what a program said on standard error, or how it ended if that is nothing.
fn words(text: &[u8], status: ExitStatus) -> String {
    let text = String::from_utf8_lossy(text);
    let text = text.trim().replace(|c: char| c.is_control(), " ");
    if text.is_empty() { format!("the program ended with {status}") } else { text }
}
