//! `nlbus queue serve`: a program that is run for each request in a queue.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nlbus::endpoint::MESSAGE_BYTES_MAX;
use nlbus::service::queue::{Message, Server};
use nlbus::wire::errno;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{PATIENCE, client};
use crate::body;
use crate::connect::{Connect, seconds};
use crate::exit::Exit;

/// What is kept of a program's standard error, in bytes.
const ERROR_BYTES_MAX: usize = 1_024;

/// Serve a queue by running a program for each request.
///
/// The request is the program's standard input, its standard output is the answer. If it does not end
/// with 0, the caller gets an error with the text from its standard error. SIGTERM and SIGINT let the
/// programs that are running end, and end with 0; a request that is not answered by then goes to another
/// server.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  nlbus queue serve foo --program /bin/cat\n  nlbus queue serve upper --jobs 1 --program tr -- a-z A-Z"
)]
pub(crate) struct Args {
    queue: String,
    /// The program.
    #[arg(long, value_name = "PROGRAM")]
    program: OsString,
    /// How many may run at once; with 1 the requests are served in their order.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024), default_value = "4")]
    jobs: u32,
    /// How long a program may run; then it is killed.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    time: Duration,
    #[command(flatten)]
    connect: Connect,
    /// Arguments for the program.
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

type Failure = (i32, String);

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let stopped = body::stopped()?;
    let client = client(&args.connect, PATIENCE).await?;
    let (queue, jobs) = (args.queue.clone(), args.jobs);
    let args = Arc::new(args);
    let handler = move |message: Message| {
        let args = Arc::clone(&args);
        async move { perform(&args, &message).await }
    };
    let mut server = Server::listen(&client, &queue, handler, jobs).await?;
    writeln!(io::stdout(), "serving the queue {queue}")?;
    tokio::select! {
        ended = server.ended() => ended?,
        () = stopped => server.stop().await?,
    }
    Ok(Exit::Ok)
}

async fn perform(args: &Args, message: &Message) -> Result<Bytes, Failure> {
    let spawned = Command::new(&args.program)
        .args(&args.arguments)
        .env("NLBUS_QUEUE", &args.queue)
        .env("NLBUS_ID", message.id.to_string())
        .env("NLBUS_ATTEMPT", message.attempt.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|error| {
        tracing::warn!(%error, program = ?args.program, "cannot run the program");
        (errno::EIO, "the program cannot be run".to_owned())
    })?;
    let outcome = timeout(args.time, talk(&mut child, message.payload())).await;
    outcome.unwrap_or_else(|_| {
        Err((errno::ETIMEDOUT, format!("the program took more than {:?}", args.time)))
    })
}

async fn talk(child: &mut Child, request: &[u8]) -> Result<Bytes, Failure> {
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        unreachable!("all three are pipes");
    };
    let feed = async move {
        match stdin.write_all(request).await {
            // it need not read all of it
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(broken(&error)),
            _ => Ok(()),
        }
    };
    let ((), (answer, long), (text, _)) =
        tokio::try_join!(feed, read(stdout, MESSAGE_BYTES_MAX / 2), read(stderr, ERROR_BYTES_MAX))?;
    let status = child.wait().await.map_err(|error| broken(&error))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&text);
        let text = text.trim().replace(|c: char| c.is_control(), " ");
        let text = if text.is_empty() { format!("the program ended with {status}") } else { text };
        return Err((errno::EIO, text));
    }
    if long {
        let text = format!("the answer is longer than {} bytes", MESSAGE_BYTES_MAX / 2);
        return Err((errno::EMSGSIZE, text));
    }
    Ok(answer.into())
}

/// The first `max` bytes, and whether there were more; those are read too, lest the program should wait.
async fn read(mut from: impl AsyncRead + Unpin, max: usize) -> Result<(Vec<u8>, bool), Failure> {
    let mut kept = Vec::new();
    let mut more = false;
    let mut buffer = [0; 4_096];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return Ok((kept, more)),
            Ok(length) => {
                let room = length.min(max - kept.len());
                kept.extend_from_slice(&buffer[..room]);
                more |= room < length;
            }
            Err(error) => return Err(broken(&error)),
        }
    }
}

fn broken(error: &io::Error) -> Failure {
    tracing::warn!(%error, "cannot talk with the program");
    (errno::EIO, "cannot talk with the program".to_owned())
}
