//! A disk that is full, that fails, or that is taken away under a broker.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]
#![cfg(feature = "cli")]

mod support_cli;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nlbus::service::queue::{Client, OutMessage, QueueError, ReceiveOptions};
use nlbus::url::BusUrl;
use nlbus::wire::errno;
use rustix::process::geteuid;
use support_cli::{Serve, program, text};
use tokio::time::timeout;

/// When a test gives up.
const HANG: Duration = Duration::from_secs(60);

/// A filesystem of a few MiB in a mount namespace of its own. Goes with the value.
struct Disk {
    holder: Child,
    /// Where it is mounted; seen only from inside.
    inside: PathBuf,
    /// The same, seen from here.
    outside: PathBuf,
}

impl Disk {
    /// `None`, and the reason printed, where none can be made.
    fn new(directory: &Path, mib: u32) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("skipped: only root can mount a filesystem");
            return None;
        }
        let script =
            format!("mount -t tmpfs -o size={mib}m tmpfs \"$0\" && echo ready && exec cat");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).arg(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut holder) = command.spawn() else {
            eprintln!("skipped: no command `unshare`");
            return None;
        };
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line != "ready\n" {
            eprintln!("skipped: nothing can be mounted here");
            holder.wait().unwrap();
            return None;
        }
        let root = PathBuf::from(format!("/proc/{}/root", holder.id()));
        let outside = root.join(directory.strip_prefix("/").unwrap());
        Some(Self { holder, inside: directory.to_owned(), outside })
    }

    /// A broker with its state there.
    fn serve(&self, url: &str) -> Serve {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg(program());
        command.args(["serve", "--queues", "--state", text(&self.inside), url]);
        Serve::spawn(command, 1)
    }

    /// Has something else take this much, or all that is left.
    fn fill(&self, bytes: u64) {
        let mut file = fs::File::options().create(true).append(true).open(self.other()).unwrap();
        let copied = std::io::copy(&mut std::io::repeat(1).take(bytes), &mut file);
        assert_eq!(copied.is_ok(), bytes < u64::MAX);
    }

    fn other(&self) -> PathBuf {
        self.outside.join("other")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
    }
}

async fn connect(url: &str) -> Client {
    let url: BusUrl = url.parse().unwrap();
    timeout(HANG, Client::connect(&url)).await.unwrap().unwrap()
}

/// Sends as often as is answered with an id: the ids.
async fn send_until_full(client: &Client, length: usize) -> BTreeSet<u64> {
    let mut ids = BTreeSet::new();
    loop {
        match client.send("q", OutMessage::new(vec![7; length])).await {
            Ok(sent) => assert!(ids.insert(sent.id.unwrap())),
            Err(QueueError::Refused { errno, text }) => {
                assert!(matches!(errno, errno::ENOSPC | errno::EIO), "{text}");
                assert_eq!(text.contains("no room"), errno == errno::ENOSPC, "{text}");
                return ids;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Takes and acknowledges `count` messages, one by one.
async fn take(client: &Client, count: usize) -> BTreeSet<u64> {
    let mut ids = BTreeSet::new();
    for _ in 0..count {
        let message = client.receive(&["q"], ReceiveOptions::default()).await.unwrap().remove(0);
        assert_eq!(message.attempt, 1);
        client.ack(&message).await.unwrap();
        ids.insert(message.id);
    }
    ids
}

#[tokio::test]
async fn on_a_full_disk_senders_are_refused_and_what_is_there_can_be_taken_and_stays_gone() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    let Some(disk) = Disk::new(&state, 32) else { return };
    let url = format!("unix://{}", text(&directory.path().join("socket")));
    disk.fill(8 << 20);
    let mut serve = disk.serve(&url);
    let mut client = connect(&url).await;
    client.create("q", None).await.unwrap();
    let mut left = send_until_full(&client, 60_000).await;
    left.extend(send_until_full(&client, 10_000).await);
    left.extend(send_until_full(&client, 100).await);
    assert!(left.len() > 100, "only {} messages fit", left.len());
    disk.fill(u64::MAX);
    left.extend(send_until_full(&client, 100).await);
    // each acknowledgement is a commit, and takes room of which there is none; after it the broker dies
    for share in [3, 2] {
        let count = left.len() / share;
        let taken = take(&client, count).await;
        assert_eq!(taken, left.iter().copied().take(count).collect());
        left.retain(|id| !taken.contains(id));
        serve.kill();
        serve = disk.serve(&url);
        client = connect(&url).await;
        let info = client.list("q", false).await.unwrap().remove(0);
        assert_eq!(info.messages, left.len() as u64);
    }
    // there is room in the database, though none on the disk
    let again = client.send("q", OutMessage::new(vec![7; 10_000])).await.unwrap();
    assert!(again.id.unwrap() > *left.last().unwrap());
    left.insert(again.id.unwrap());
    let more = send_until_full(&client, 60_000).await;
    assert_eq!(left.intersection(&more).count(), 0);
    left.extend(more);
    fs::remove_file(disk.other()).unwrap();
    let large = loop {
        match client.send("q", OutMessage::new(vec![7; 600_000])).await {
            Ok(sent) => break sent.id.unwrap(),
            Err(QueueError::Refused { errno: errno::ENOSPC, .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    left.insert(large);
    assert_eq!(take(&client, left.len()).await, left);
    serve.end();
    let serve = disk.serve(&url);
    let info = connect(&url).await.list("q", false).await.unwrap().remove(0);
    assert_eq!(info.messages, 0);
    serve.end();
}

#[tokio::test]
async fn when_writing_fails_an_acknowledgement_is_refused_unless_it_is_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    let url = format!("unix://{}", text(&directory.path().join("socket")));
    let arguments = ["serve", "--queues", "--state", text(&state), &url];
    // no file can be longer than that
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 14336; exec \"$0\" \"$@\"", program()]);
    let serve = Serve::spawn(
        {
            command.args(arguments);
            command
        },
        1,
    );
    let client = connect(&url).await;
    client.create("q", None).await.unwrap();
    let mut left = send_until_full(&client, 60_000).await;
    left.extend(send_until_full(&client, 100).await);
    let mut refused = 0;
    loop {
        let messages = client.receive(&["q"], ReceiveOptions::default()).await.unwrap();
        let Some(message) = messages.first() else { break };
        assert!(left.contains(&message.id), "{} came again", message.id);
        match client.ack(message).await {
            Ok(()) => assert!(left.remove(&message.id)),
            Err(QueueError::Refused { errno: errno::EIO, text }) => {
                assert!(text.contains("undone"), "{text}");
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, left.len());
    serve.kill();
    let serve = Serve::start(&arguments[1..], 1);
    let client = connect(&url).await;
    let mut found = BTreeSet::new();
    loop {
        let options = ReceiveOptions::default().messages_max(1_000);
        let messages = client.receive(&["q"], options).await.unwrap();
        if messages.is_empty() {
            break;
        }
        found.extend(messages.iter().map(|message| message.id));
    }
    assert_eq!(found, left, "neither lost nor back once acknowledged");
    serve.end();
}

#[tokio::test]
async fn nothing_is_taken_in_once_the_state_was_removed_and_what_is_there_can_be_taken() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    let url = format!("unix://{}", text(&directory.path().join("socket")));
    let serve = Serve::start(&["--queues", "--state", text(&state), &url], 1);
    let client = connect(&url).await;
    for n in 0..2 {
        client.send("q", OutMessage::from(format!("{n}").as_str()).create()).await.unwrap();
    }
    fs::rename(&state, directory.path().join("elsewhere")).unwrap();
    let number = |error: QueueError| error.errno();
    let refused = client.send("q", OutMessage::from("lost")).await.map_err(number);
    assert_eq!(refused.unwrap_err(), Some(errno::EIO));
    let message = client.receive(&["q"], ReceiveOptions::default()).await.unwrap().remove(0);
    assert_eq!(client.ack(&message).await.map_err(number), Err(Some(errno::EIO)));
    assert!(client.receive(&["q"], ReceiveOptions::default()).await.unwrap()[0].id > message.id);
    fs::rename(directory.path().join("elsewhere"), &state).unwrap();
    client.send("q", OutMessage::from("kept")).await.unwrap();
    serve.kill();
    let serve = Serve::start(&["--queues", "--state", text(&state), &url], 1);
    let client = connect(&url).await;
    let options = ReceiveOptions::default().messages_max(9);
    let messages = client.receive(&["q"], options).await.unwrap();
    let payloads: Vec<_> = messages.iter().map(|message| message.payload().clone()).collect();
    assert_eq!(payloads, ["1", "kept"]);
    serve.end();
}

#[tokio::test]
async fn a_broker_that_ended_in_good_order_starts_on_a_disk_that_has_filled_since() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    let Some(disk) = Disk::new(&state, 32) else { return };
    let url = format!("unix://{}", text(&directory.path().join("socket")));
    let serve = disk.serve(&url);
    let client = connect(&url).await;
    client.create("q", None).await.unwrap();
    for _ in 0..10 {
        client.send("q", OutMessage::new(vec![7; 1_000])).await.unwrap();
    }
    serve.end();
    disk.fill(u64::MAX);
    let serve = disk.serve(&url);
    let client = connect(&url).await;
    assert_eq!(take(&client, 10).await.len(), 10);
    serve.end();
}
