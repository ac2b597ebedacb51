//! How fast queues are, next to what they are made of: `cargo bench --bench queue [-- memory|durable]`.
//!
//! All on this machine, broker and clients in one process over a unix socket. The disk is that of the
//! directory for temporary files, TMPDIR.

#![allow(clippy::unwrap_used, reason = "a bench that fails ends")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nlbus::endpoint::Endpoint;
use nlbus::node::{Node, NodeOptions};
use nlbus::service::queue::protocol::Record;
use nlbus::service::queue::{
    Client, OutMessage, QueueOptions, ServeOptions, Served, SubscribeOptions, serve,
};
use nlbus::store::{Loaded, Store, StoreOptions};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const PAYLOAD: [u8; 128] = [7; 128];
const OUTSTANDING: usize = 64;
const MEMORY_MESSAGES: usize = 1_500_000;
/// Rounds, in each of which all have a turn: what a shared disk does meanwhile happens to all of them.
const ROUNDS: u32 = 10;
const TURN: Duration = Duration::from_millis(500);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let which = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let runs = |name: &str| which.as_deref().is_none_or(|which| which == name);
    if runs("memory") {
        memory().await;
    }
    if runs("durable") {
        beside().await;
    }
}

/// Sends that are synced, beside SQLite alone and Redis.
async fn beside() {
    let directory = tempfile::tempdir().unwrap();
    let mut sqlite = Sqlite::open(directory.path());
    let durable = Durable::start(directory.path()).await;
    let redis = Redis::start(directory.path()).await;
    let mut totals = [0.0; 3];
    for _ in 0..ROUNDS {
        totals[0] += sqlite.turn();
        totals[1] += durable.turn().await;
        if let Some(redis) = &redis {
            totals[2] += redis.turn().await;
        }
    }
    let [sqlite, ours, others] = totals.map(|total| total / f64::from(ROUNDS));
    report("bare SQLite, 64 to a commit", sqlite, 0.0);
    report("durable sends, 64 outstanding", ours, sqlite);
    if redis.is_some() {
        report("Redis, appendfsync always, 64 outstanding", others, sqlite);
        print(&format!("durable sends / Redis: {:.2}", ours / others));
    } else {
        print("Redis: skipped, redis-server is not installed");
    }
    durable.end().await;
}

#[allow(clippy::print_stdout, reason = "this is what it is for")]
fn print(text: &str) {
    println!("{text}");
}

fn report(what: &str, rate: f64, base: f64) {
    let share = if base > 0.0 { format!(" ({:.2} x)", rate / base) } else { String::new() };
    print(&format!("{what:<45} {rate:>10.0}/s{share}"));
}

async fn broker(directory: &Path, store: Store, loaded: Loaded) -> (Node, BusUrl, Served) {
    let node = Node::new(NodeOptions::default());
    let endpoint = Endpoint::attach(&node).unwrap();
    let served = serve(&endpoint, store, loaded, ServeOptions::default()).await.unwrap();
    let url = format!("unix://{}/socket", directory.display()).parse().unwrap();
    let url = node.listen(&url, &ListenOptions::default()).await.unwrap();
    (node, url, served)
}

/// Sends, delivers and acknowledges, all at once.
async fn memory() {
    let directory = tempfile::tempdir().unwrap();
    let (node, url, _served) = broker(directory.path(), Store::memory(), Loaded::default()).await;
    let client = Client::connect(&url).await.unwrap();
    client.create("q", None).await.unwrap();
    let consumer = Client::connect(&url).await.unwrap();
    let options = SubscribeOptions::default().credit(8_192).credit_bytes(4 << 20);
    let mut messages = consumer.subscribe("q", options).await.unwrap();
    let start = Instant::now();
    let producer = tokio::spawn(async move {
        let mut batches = tokio::task::JoinSet::new();
        for _ in 0..MEMORY_MESSAGES / 500 {
            while batches.len() >= 8 {
                batches.join_next().await;
            }
            let client = client.clone();
            batches.spawn(async move {
                let batch = (0..500).map(|_| OutMessage::from(&PAYLOAD[..]));
                client.send_all("q", batch).await.unwrap();
            });
        }
        batches.join_all().await;
    });
    let mut ids = Vec::new();
    let mut acks = tokio::task::JoinSet::new();
    for n in 1..=MEMORY_MESSAGES {
        ids.push(messages.next().await.unwrap().unwrap().id);
        if ids.len() == 1_000 || n == MEMORY_MESSAGES {
            let (ids, consumer) = (std::mem::take(&mut ids), consumer.clone());
            acks.spawn(async move { consumer.ack_ids("q", &ids, false).await.unwrap() });
        }
    }
    acks.join_all().await;
    let rate = MEMORY_MESSAGES as f64 / start.elapsed().as_secs_f64();
    producer.await.unwrap();
    report("send, receive and ack in memory, 128 B", rate, 0.0);
    node.shutdown(Duration::from_secs(5)).await;
}

/// Each of so many sends the next once it has its answer.
struct Durable {
    node: Node,
    served: Served,
    client: Client,
}

impl Durable {
    async fn start(directory: &Path) -> Self {
        let state = directory.join("state");
        std::fs::create_dir(&state).unwrap();
        let (store, loaded) = Store::open(&state, StoreOptions::default()).unwrap();
        let (node, url, served) = broker(directory, store, loaded).await;
        let client = Client::connect(&url).await.unwrap();
        let options = QueueOptions::default().messages_max(u64::MAX >> 1).bytes_max(u64::MAX >> 1);
        client.create("q", Some(options)).await.unwrap();
        Self { node, served, client }
    }

    async fn turn(&self) -> f64 {
        let start = Instant::now();
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..OUTSTANDING {
            let client = self.client.clone();
            senders.spawn(async move {
                let mut count = 0;
                while start.elapsed() < TURN {
                    client.send("q", &PAYLOAD[..]).await.unwrap();
                    count += 1;
                }
                count
            });
        }
        rate(senders.join_all().await, start)
    }

    async fn end(mut self) {
        drop(self.client);
        self.node.shutdown(Duration::from_secs(5)).await;
        self.served.ended().await;
    }
}

fn rate(counts: Vec<u64>, start: Instant) -> f64 {
    counts.into_iter().sum::<u64>() as f64 / start.elapsed().as_secs_f64()
}

/// What the disk and SQLite can do: the same bytes, as many rows to a commit as there are senders.
struct Sqlite {
    connection: rusqlite::Connection,
    record: Vec<u8>,
}

impl Sqlite {
    fn open(directory: &Path) -> Self {
        let connection = rusqlite::Connection::open(directory.join("bare.db")).unwrap();
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.pragma_update(None, "synchronous", "FULL").unwrap();
        let table = "CREATE TABLE messages (key INTEGER PRIMARY KEY, record BLOB NOT NULL)";
        connection.execute(table, []).unwrap();
        let record = Record { payload: PAYLOAD[..].into(), ..Record::default() }.to_bytes();
        Self { connection, record }
    }

    fn turn(&mut self) -> f64 {
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < TURN {
            let transaction = self.connection.transaction().unwrap();
            {
                let sql = "INSERT INTO messages (record) VALUES (?1)";
                let mut insert = transaction.prepare_cached(sql).unwrap();
                for _ in 0..OUTSTANDING {
                    insert.execute([&self.record]).unwrap();
                    count += 1;
                }
            }
            transaction.commit().unwrap();
        }
        rate(vec![count], start)
    }
}

/// As many connections as there are senders, each with one XADD under way.
struct Redis {
    child: Child,
    socket: PathBuf,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    async fn start(directory: &Path) -> Option<Self> {
        let socket = directory.join("redis.sock");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always"])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(directory)
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let redis = Self { child, socket };
        while UnixStream::connect(&redis.socket).await.is_err() {
            tokio::task::yield_now().await;
        }
        Some(redis)
    }

    async fn turn(&self) -> f64 {
        let mut request = b"*5\r\n$4\r\nXADD\r\n$1\r\nq\r\n$1\r\n*\r\n$1\r\nm\r\n$128\r\n".to_vec();
        request.extend_from_slice(&PAYLOAD);
        request.extend_from_slice(b"\r\n");
        let start = Instant::now();
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..OUTSTANDING {
            let (request, socket) = (request.clone(), self.socket.clone());
            senders.spawn(async move {
                let mut stream = UnixStream::connect(socket).await.unwrap();
                let mut count = 0;
                let mut answer = [0; 256];
                while start.elapsed() < TURN {
                    stream.write_all(&request).await.unwrap();
                    let length = stream.read(&mut answer).await.unwrap();
                    // "$15", a line end, 15 characters, a line end: in one piece over a unix socket
                    let answer = &answer[..length];
                    assert!(answer.starts_with(b"$") && answer.ends_with(b"\r\n"));
                    count += 1;
                }
                count
            });
        }
        rate(senders.join_all().await, start)
    }
}
