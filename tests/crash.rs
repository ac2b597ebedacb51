//! A broker that is killed at any moment: nothing that was answered is lost, nothing that was acknowledged
//! comes back, no id is given out twice, and nothing is delivered twice but what somebody held when the broker was
//! killed, or gave back.
//!
//! `NLBUS_CRASH_ROUNDS` and `NLBUS_CRASH_SEED` say how often it is killed and when: `tools/crash.sh`.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]
#![cfg(feature = "cli")]

mod support_cli;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nlbus::service::queue::{
    Client, ClientOptions, OutMessage, QueueError, QueueOptions, ReceiveOptions, SubscribeOptions,
};
use nlbus::url::BusUrl;
use support_cli::{Serve, text};
use tokio::sync::{RwLock, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// When a test gives up.
const HANG: Duration = Duration::from_secs(60);

const ROUNDS: u32 = 20;
const PRODUCERS: u32 = 16;
const CONSUMERS: u32 = 3;

/// What is known of the messages, each of which has a payload of its own.
#[derive(Default)]
struct Book {
    /// Ids by payload, and payloads by id, from answers and from deliveries.
    ids: BTreeMap<String, u64>,
    payloads: BTreeMap<u64, String>,
    answered: BTreeSet<String>,
    delivered: BTreeMap<String, u32>,
    /// Over which connection of the consumers it was delivered last, unless it was given back.
    held: BTreeMap<String, u64>,
    acked: BTreeSet<String>,
    /// Its acknowledgement was under way when the broker was killed.
    unsure: BTreeSet<String>,
    /// Received when all was over.
    drained: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Book {
    fn place(&mut self, payload: &str, id: u64) {
        let before = self.ids.insert(payload.to_owned(), id);
        if before.is_some_and(|before| before != id) {
            self.wrong.push(format!("{payload} is stored twice: as {before:?} and as {id}"));
        }
        let before = self.payloads.insert(id, payload.to_owned());
        if before.as_deref().is_some_and(|before| before != payload) {
            self.wrong.push(format!("the id {id} is given out for {before:?} and for {payload}"));
        }
    }

    fn answered(&mut self, payload: String, id: Option<u64>) {
        if let Some(id) = id {
            self.place(&payload, id);
        }
        self.answered.insert(payload);
    }

    /// To one of the consumers, who all have one connection. A lease lasts longer than that does.
    fn leased(&mut self, payload: &str, connection: u64) {
        if self.held.insert(payload.to_owned(), connection) == Some(connection) {
            self.wrong.push(format!("{payload} is delivered again while it is held"));
        }
    }

    /// Whether it was acknowledged before.
    fn delivered(&mut self, payload: &str, id: u64) -> bool {
        self.place(payload, id);
        *self.delivered.entry(payload.to_owned()).or_default() += 1;
        self.acked.contains(payload)
    }
}

type Shared = Arc<Mutex<Book>>;

fn client_options() -> ClientOptions {
    ClientOptions::default().reconnect_max(HANG)
}

async fn connect(url: &BusUrl) -> Client {
    timeout(HANG, Client::connect_with(url, client_options())).await.unwrap().unwrap()
}

/// Sends as long as somebody counts; not while `gate` is locked.
async fn produce(
    client: Client,
    number: u32,
    book: Shared,
    count: watch::Sender<u64>,
    gate: Arc<RwLock<()>>,
) {
    for n in 0.. {
        let payload = format!("{number}-{n}");
        let _open = gate.read().await;
        match client.send("q", OutMessage::from(payload.as_str())).await {
            Ok(sent) => book.lock().unwrap().answered(payload, sent.id),
            Err(error) => return book.lock().unwrap().wrong.push(format!("cannot send: {error}")),
        }
        count.send_modify(|count| *count += 1);
        if count.is_closed() {
            return;
        }
    }
}

/// Until `over`: then with nothing under way of which it is not known what became of it.
async fn consume(client: Client, number: u32, book: Shared, mut over: watch::Receiver<bool>) {
    let options = SubscribeOptions::default().credit(64);
    let mut consumer = client.subscribe("q", options).await.unwrap();
    let mut turn = number;
    loop {
        let message = tokio::select! {
            Some(Ok(message)) = consumer.next() => message,
            _ = over.wait_for(|over| *over) => return,
            else => return,
        };
        let payload = String::from_utf8(message.payload().to_vec()).unwrap();
        let again = {
            let mut book = book.lock().unwrap();
            book.leased(&payload, message.connection());
            book.delivered(&payload, message.id)
        };
        turn = turn.wrapping_add(1);
        if turn.is_multiple_of(13) {
            book.lock().unwrap().held.remove(&payload);
            let _ = client.nack(&message).await;
            continue;
        }
        match client.ack(&message).await {
            // what was on its way here when another got it is refused
            Ok(()) if again => {
                book.lock().unwrap().wrong.push(format!("{payload} came back once acknowledged"));
            }
            Ok(()) => drop(book.lock().unwrap().acked.insert(payload)),
            Err(QueueError::Lost) => drop(book.lock().unwrap().unsure.insert(payload)),
            Err(QueueError::Refused { .. }) => {}
            Err(error) => book.lock().unwrap().wrong.push(format!("cannot acknowledge: {error}")),
        }
    }
}

/// Waits until no message is in the queue.
async fn emptied(client: &Client) {
    while client.list("q", false).await.unwrap()[0].messages > 0 {
        tokio::task::yield_now().await;
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_loses_nothing_and_brings_nothing_back() {
    let rounds = number("NLBUS_CRASH_ROUNDS").unwrap_or(ROUNDS.into());
    let mut seed = number("NLBUS_CRASH_SEED").unwrap_or(u64::from(std::process::id()) << 20 | 1);
    println!("NLBUS_CRASH_SEED={seed}");
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let url = format!("unix://{}", text(&directory.path().join("socket")));
    let start = || {
        let (state, url) = (text(&state).to_owned(), url.clone());
        tokio::task::spawn_blocking(move || Serve::start(&["--queues", "--state", &state, &url], 1))
    };
    let mut serve = start().await.unwrap();
    let url: BusUrl = url.parse().unwrap();
    let book = Shared::default();
    // so that the backlog, and with it the time to read it, stays small
    let options =
        QueueOptions::default().messages_max(2_000).policy(nlbus::service::queue::Policy::Block);
    connect(&url).await.create("q", Some(options)).await.unwrap();
    let (count, mut counted) = watch::channel(0_u64);
    let gate = Arc::new(RwLock::new(()));
    let mut producers = JoinSet::new();
    for number in 0..PRODUCERS {
        let client = connect(&url).await;
        let (book, gate) = (Arc::clone(&book), Arc::clone(&gate));
        producers.spawn(produce(client, number, book, count.clone(), gate));
    }
    drop(count);
    let mut consumers = JoinSet::new();
    let stop = watch::Sender::new(false);
    let watching = connect(&url).await;
    let client = connect(&url).await;
    for number in 0..CONSUMERS {
        consumers.spawn(consume(client.clone(), number, Arc::clone(&book), stop.subscribe()));
    }
    drop(client);
    for round in 0..rounds {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        // at the very answer to one of the next few hundred messages
        let goal = *counted.borrow_and_update() + 1 + seed % 300;
        let reached = counted.wait_for(|count| *count >= goal);
        timeout(HANG, reached).await.unwrap_or_else(|_| panic!("round {round} hangs")).unwrap();
        let _closed = match round % 4 {
            // when the messages with the highest ids are done with, too
            3 => {
                let closed = timeout(HANG, gate.write()).await.unwrap();
                timeout(HANG, emptied(&watching)).await.unwrap();
                Some(closed)
            }
            _ => None,
        };
        // or a little later
        for _ in 0..seed % 50 {
            tokio::task::yield_now().await;
        }
        drop(serve);
        serve = start().await.unwrap();
        assert_eq!(book.lock().unwrap().wrong, Vec::<String>::new(), "in round {round}");
    }
    drop(counted);
    timeout(HANG, async { while producers.join_next().await.is_some() {} }).await.unwrap();
    stop.send_replace(true);
    timeout(HANG, async { while consumers.join_next().await.is_some() {} }).await.unwrap();

    // what is left is all that was not acknowledged
    let client = connect(&url).await;
    loop {
        let options = ReceiveOptions::default().messages_max(1_000);
        let messages = timeout(HANG, client.receive(&["q"], options)).await.unwrap().unwrap();
        if messages.is_empty() {
            let info = client.list("q", false).await.unwrap().remove(0);
            if info.messages == 0 {
                break;
            }
            // a consumer that was just ended has not given back what it held
            tokio::task::yield_now().await;
        }
        let ids: Vec<u64> = messages.iter().map(|message| message.id).collect();
        {
            let mut book = book.lock().unwrap();
            for message in &messages {
                let payload = String::from_utf8(message.payload().to_vec()).unwrap();
                if book.delivered(&payload, message.id) {
                    book.wrong.push(format!("{payload} came back once acknowledged"));
                }
                book.drained.insert(payload);
            }
        }
        if !ids.is_empty() {
            client.ack_ids("q", &ids, false).await.unwrap();
        }
    }
    let book = book.lock().unwrap();
    assert_eq!(book.wrong, Vec::<String>::new());
    // delivered is not enough: what was given back, or whose acknowledgement was refused, has to be there
    let done = |payload: &String| {
        [&book.acked, &book.unsure, &book.drained].iter().any(|done| done.contains(payload))
    };
    let lost: Vec<_> = book.answered.iter().filter(|payload| !done(payload)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let again = book.delivered.values().filter(|times| **times > 1).count();
    println!(
        "{rounds} kills: {} messages answered, {} acknowledged, {again} delivered more than once",
        book.answered.len(),
        book.acked.len(),
    );
    drop(serve);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_for_good_does_not_come_again_however_a_broker_ends() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let url = format!("unix://{}", text(&directory.path().join("socket")));
    let start = || {
        let (state, url) = (text(&state).to_owned(), url.clone());
        tokio::task::spawn_blocking(move || Serve::start(&["--queues", "--state", &state, &url], 1))
    };
    let mut serve = start().await.unwrap();
    let client = connect(&url.parse().unwrap()).await;
    client.create("q", None).await.unwrap();
    let mut taken = BTreeSet::new();
    let mut sent = 0;
    for _ in 0..8 {
        let many = (0..200).map(|n| OutMessage::new((sent + n).to_string()));
        client.send_all("q", many).await.unwrap();
        sent += 200;
        // killed the moment that some have arrived, with others on their way
        let options = ReceiveOptions::default().messages_max(20).auto_ack().wait(HANG);
        for _ in 0..3 {
            for message in timeout(HANG, client.receive(&["q"], options)).await.unwrap().unwrap() {
                assert!(taken.insert(message.payload().clone()), "{message:?} came again");
            }
        }
        drop(serve);
        serve = start().await.unwrap();
    }
    let options = ReceiveOptions::default().messages_max(1_000).auto_ack();
    let rest = timeout(HANG, client.receive(&["q"], options)).await.unwrap().unwrap();
    for message in rest {
        assert!(taken.insert(message.payload().clone()), "{message:?} came again");
    }
    assert!(!taken.is_empty());
    drop(serve);
}
