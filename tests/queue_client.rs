//! A client of queues whose connection is lost, held up or slow, through real sockets and a proxy between.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_queue;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use nlbus::service::queue::machine::QueueInfo;
use nlbus::service::queue::{
    CallError, Client, Message, OutMessage, Policy, QueueError, QueueOptions, ReceiveOptions,
    Server, SubscribeOptions,
};
use nlbus::url::BusUrl;
use nlbus::wire::errno;
use support_queue::{Broker, HANG, in_time, next};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::yield_now;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

/// Between a client and its broker.
#[derive(Clone)]
struct Proxy {
    url: BusUrl,
    inner: Arc<Inner>,
}

struct Inner {
    /// Whether connections are taken through.
    open: AtomicBool,
    /// Whether the broker's side of a cut connection stays up.
    keeps: AtomicBool,
    kept: Mutex<Vec<TcpStream>>,
    /// Whether what the client says goes on to the broker; until then it is kept.
    flows: watch::Sender<bool>,
    /// Connections taken through, and how many times they were cut.
    accepted: watch::Sender<usize>,
    cuts: watch::Sender<usize>,
    /// Bytes from clients, and from the broker.
    up: watch::Sender<usize>,
    down: watch::Sender<usize>,
}

impl Proxy {
    async fn start(broker: &Broker) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
        let target = broker.url.to_string().trim_start_matches("tcp://").to_owned();
        let inner = Arc::new(Inner {
            open: AtomicBool::new(true),
            keeps: AtomicBool::new(false),
            kept: Mutex::default(),
            flows: watch::Sender::new(true),
            accepted: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
            up: watch::Sender::new(0),
            down: watch::Sender::new(0),
        });
        let shared = Arc::clone(&inner);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if shared.open.load(Ordering::SeqCst) {
                    let cut = shared.cuts.subscribe();
                    shared.accepted.send_modify(|accepted| *accepted += 1);
                    tokio::spawn(carry(client, target.clone(), Arc::clone(&shared), cut));
                }
            }
        });
        Self { url, inner }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.url).await.unwrap()
    }

    /// Ends all connections.
    fn cut(&self) {
        self.inner.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// No new ones from now on, or again.
    fn open(&self, open: bool) {
        self.inner.open.store(open, Ordering::SeqCst);
    }

    fn flow(&self, flows: bool) {
        self.inner.flows.send_replace(flows);
    }
}

async fn carry(
    mut client: TcpStream,
    target: String,
    shared: Arc<Inner>,
    mut cut: watch::Receiver<usize>,
) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    {
        let (mut client_reads, mut client_writes) = client.split();
        let (mut server_reads, mut server_writes) = server.split();
        let (up, down) = (&shared.up, &shared.down);
        let mut flows = shared.flows.subscribe();
        let upwards = async move {
            let (mut buffer, mut kept) = (vec![0; 65_536], Vec::new());
            loop {
                tokio::select! {
                    length = client_reads.read(&mut buffer) => {
                        let length = length.unwrap_or(0);
                        if length == 0 {
                            break;
                        }
                        kept.extend_from_slice(&buffer[..length]);
                        up.send_modify(|bytes| *bytes += length);
                    }
                    flow = flows.wait_for(|flows| *flows), if !kept.is_empty() => drop(flow),
                }
                if *flows.borrow() {
                    let _ = server_writes.write_all(&kept).await;
                    kept.clear();
                }
            }
        };
        let downwards = async move {
            let mut buffer = vec![0; 65_536];
            while let Ok(length @ 1..) = server_reads.read(&mut buffer).await {
                down.send_modify(|bytes| *bytes += length);
                let _ = client_writes.write_all(&buffer[..length]).await;
            }
        };
        tokio::select! {
            () = upwards => {}
            () = downwards => {}
            _ = cut.changed() => {}
        }
    }
    if shared.keeps.load(Ordering::SeqCst) {
        shared.kept.lock().unwrap().push(server);
    }
}

async fn reaches(counter: &watch::Sender<usize>, count: usize) {
    in_time(counter.subscribe().wait_for(|value| *value >= count)).await.unwrap();
}

/// Until the queues whose names begin with `prefix` are so.
async fn until(client: &Client, prefix: &str, is_so: impl Fn(&[QueueInfo]) -> bool) {
    in_time(async {
        while !is_so(&client.list(prefix, false).await.unwrap()) {
            yield_now().await;
        }
    })
    .await;
}

/// Whatever a client does by itself when its connection is back has happened after some questions and answers.
async fn settle(client: &Client) {
    for _ in 0..50 {
        in_time(client.list("", false)).await.unwrap();
    }
}

async fn echo(client: &Client, queue: &str) -> Server {
    let handler = |message: Message| async move { Ok(message.payload().clone()) };
    Server::listen(client, queue, handler, 4).await.unwrap()
}

fn number(message: &Message) -> u32 {
    String::from_utf8_lossy(message.payload()).parse().unwrap()
}

#[tokio::test]
async fn a_consumer_that_takes_nothing_while_leases_end_holds_nothing_else_of_its_client_up() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    let options = SubscribeOptions::default().credit(4).lease(Duration::from_millis(1));
    let mut jobs = client.subscribe("q", options).await.unwrap();
    for _ in 0..4 {
        client.send("q", "x").await.unwrap();
    }
    let job = next(&mut jobs).await;
    let watcher = broker.client().await;
    until(&watcher, "q", |all| all[0].counters.redelivered > 2_000).await;
    in_time(client.ack(&job)).await.unwrap();
    in_time(client.list("", false)).await.unwrap();
    // the deliveries go on, and so do acknowledgements; some come twice
    let mut left = BTreeSet::from([1, 2, 3, 4]);
    while !left.is_empty() {
        let job = next(&mut jobs).await;
        if let Err(error) = in_time(client.ack(&job)).await {
            assert_eq!(error.errno(), Some(errno::ENOENT));
        }
        left.remove(&job.id);
    }
    assert_eq!(watcher.list("q", false).await.unwrap()[0].messages, 0);
}

#[tokio::test]
async fn calls_work_over_a_new_connection_while_the_broker_still_believes_in_the_old_one() {
    let broker = Broker::start(None).await;
    let _server = echo(&broker.inside(), "up").await;
    let proxy = Proxy::start(&broker).await;
    let client = proxy.client().await;
    assert_eq!(in_time(client.call("up", "a", HANG)).await.unwrap(), "a");
    for round in 2..5 {
        proxy.inner.keeps.store(true, Ordering::SeqCst);
        proxy.cut();
        reaches(&proxy.inner.accepted, round).await;
        assert_eq!(in_time(client.call("up", "b", HANG)).await.unwrap(), "b");
    }
}

#[tokio::test]
async fn a_call_survives_that_somebody_takes_the_name_of_its_queue_for_answers() {
    let broker = Broker::start(None).await;
    let inside = broker.inside();
    let proxy = Proxy::start(&broker).await;
    let client = proxy.client().await;
    let caller = client.clone();
    let call = tokio::spawn(async move { caller.call("up", "a", None).await });
    until(&inside, "up", |all| all.len() == 1 && all[0].messages == 1).await;
    let name = inside.list("queue_client", false).await.unwrap()[0].name.to_string();
    proxy.open(false);
    proxy.cut();
    until(&inside, &name, |all| all.is_empty()).await;
    inside.create_transient(Some(&name), None).await.unwrap();
    proxy.open(true);
    in_time(client.list("", false)).await.unwrap();
    until(&inside, "queue_client", |all| all.len() == 2).await;
    let _server = echo(&inside, "up").await;
    assert_eq!(in_time(call).await.unwrap().unwrap(), "a");
    assert_eq!(in_time(client.call("up", "b", HANG)).await.unwrap(), "b");
}

#[tokio::test]
async fn a_call_that_a_server_has_fails_when_the_name_of_its_queue_for_answers_is_taken() {
    let broker = Broker::start(None).await;
    let inside = broker.inside();
    let proxy = Proxy::start(&broker).await;
    let client = proxy.client().await;
    let call = tokio::spawn(async move { client.call("up", "a", None).await });
    until(&inside, "up", |all| all.len() == 1 && all[0].messages == 1).await;
    let held = inside.receive(&["up"], ReceiveOptions::default().lease(LONG)).await.unwrap();
    let name = held[0].record.reply_to.clone().unwrap();
    proxy.open(false);
    proxy.cut();
    until(&inside, &name, |all| all.is_empty()).await;
    inside.create_transient(Some(&name), None).await.unwrap();
    proxy.open(true);
    let outcome = in_time(call).await.unwrap();
    assert!(matches!(outcome, Err(CallError::Queue(QueueError::Lost))), "{outcome:?}");
}

/// Whether nobody but this client takes messages from `q`.
async fn is_alone(inside: &Client) {
    inside.send("q", "x").await.unwrap();
    let receive = ReceiveOptions::default().wait(LONG);
    assert_eq!(in_time(inside.receive(&["q"], receive)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_consumer_that_is_dropped_while_there_is_no_connection_leaves_no_subscription() {
    let broker = Broker::start(None).await;
    let inside = broker.inside();
    inside.create("q", None).await.unwrap();
    let proxy = Proxy::start(&broker).await;
    let client = proxy.client().await;
    let options = SubscribeOptions::default().lease(LONG);
    let consumer = client.subscribe("q", options).await.unwrap();
    proxy.open(false);
    proxy.cut();
    until(&inside, "q", |all| all[0].consumers == 0).await;
    drop(consumer);
    proxy.open(true);
    settle(&client).await;
    is_alone(&inside).await;
}

#[tokio::test]
async fn a_subscription_that_is_given_up_when_it_was_asked_for_ends() {
    let broker = Broker::start(None).await;
    let inside = broker.inside();
    inside.create("q", None).await.unwrap();
    let proxy = Proxy::start(&broker).await;
    let client = proxy.client().await;
    client.list("", false).await.unwrap();
    proxy.flow(false);
    let said = *proxy.inner.up.borrow();
    tokio::select! {
        _ = client.subscribe("q", SubscribeOptions::default().lease(LONG)) => unreachable!(),
        () = reaches(&proxy.inner.up, said + 1) => {}
    }
    proxy.flow(true);
    settle(&client).await;
    is_alone(&inside).await;
}

#[tokio::test]
async fn what_ends_a_subscription_ends_none_that_has_its_number_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(Some(directory.path())).await;
    let (url, client) = (broker.url.clone(), broker.client().await);
    for queue in ["a", "b"] {
        client.create(queue, None).await.unwrap();
    }
    let gone = client.subscribe("a", SubscribeOptions::default()).await.unwrap();
    let mut stays = client.subscribe("b", SubscribeOptions::default()).await.unwrap();
    broker.end().await;
    drop(gone);
    let broker = Broker::start_at(Some(directory.path()), &url).await;
    settle(&client).await;
    broker.inside().send("b", "x").await.unwrap();
    assert_eq!(next(&mut stays).await.payload(), "x");
}

#[tokio::test]
async fn senders_that_wait_for_room_hold_no_acknowledgement_up() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    let full = QueueOptions::default().messages_max(1).policy(Policy::Block);
    // more than go out at once, of which 600 are so long that each fills a frame
    let queues: Vec<String> = (0..6).map(|n| format!("q{n}")).collect();
    let mut sends = Vec::new();
    for (at, queue) in queues.iter().enumerate() {
        in_time(client.create(queue, Some(full.clone()))).await.unwrap();
        let (count, length) = if at < 2 { (300, 30_000) } else { (1_000, 10) };
        for _ in 0..=count {
            let (client, queue) = (client.clone(), queue.clone());
            let body = Bytes::from(vec![7; length]);
            sends.push(tokio::spawn(async move { client.send(&queue, body).await }));
        }
    }
    until(&broker.client().await, "q", |all| all.iter().all(|queue| queue.messages == 1)).await;
    settle(&client).await;
    let options = SubscribeOptions::default().credit(1);
    let mut jobs = in_time(client.subscribe("q0", options)).await.unwrap();
    for _ in 0..=300 {
        let job = next(&mut jobs).await;
        in_time(client.ack(&job)).await.unwrap();
    }
    for queue in &queues[1..] {
        in_time(client.destroy(queue, false)).await.unwrap();
    }
    for send in sends {
        // what was in a queue, or waited for room in it, when that was destroyed
        if let Err(error) = in_time(send).await.unwrap() {
            assert_eq!(error.errno(), Some(errno::ENOENT));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sends_keep_their_order_over_a_new_connection() {
    let broker = Broker::start(None).await;
    let inside = broker.inside();
    for round in 0..4 {
        let queue = format!("q{round}");
        inside.create(&queue, None).await.unwrap();
        let proxy = Proxy::start(&broker).await;
        let client = proxy.client().await;
        client.list("", false).await.unwrap();
        let said = *proxy.inner.up.borrow();
        proxy.flow(false);
        let messages = (0..4_096).map(|n| OutMessage::from(format!("{n}").as_str()));
        let name = queue.clone();
        let all = tokio::spawn(async move { client.send_all(&name, messages).await });
        reaches(&proxy.inner.up, said + 4_096 * 60).await;
        if round > 0 {
            proxy.cut();
        }
        proxy.flow(true);
        let all = in_time(all).await.unwrap().unwrap();
        // of those that came over the first connection, too, some ids may not be known any more
        let ids: Vec<_> = all.iter().filter_map(|sent| sent.id).collect();
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        let receive = ReceiveOptions::default().messages_max(4_096);
        let got = inside.receive(&[&queue], receive).await.unwrap();
        assert_eq!(got.iter().map(number).collect::<Vec<_>>(), (0..4_096).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn what_is_received_over_a_new_connection_is_held_over_that_one() {
    let broker = Broker::start(None).await;
    let inside = broker.inside();
    inside.create("q", None).await.unwrap();
    let proxy = Proxy::start(&broker).await;
    let client = proxy.client().await;
    let receiver = client.clone();
    let options = ReceiveOptions::default().wait(LONG);
    let receive = tokio::spawn(async move { receiver.receive(&["q"], options).await });
    until(&inside, "q", |all| all[0].consumers == 1).await;
    proxy.open(false);
    proxy.cut();
    until(&inside, "q", |all| all[0].consumers == 0).await;
    proxy.open(true);
    until(&inside, "q", |all| all[0].consumers == 1).await;
    inside.send("q", "x").await.unwrap();
    let messages = in_time(receive).await.unwrap().unwrap();
    assert_eq!(messages[0].connection(), 2);
    client.extend(&messages[0], LONG).await.unwrap();
    client.ack(&messages[0]).await.unwrap();
}

#[tokio::test]
async fn what_was_held_over_an_earlier_connection_is_not_acknowledged() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    let url = broker.url.clone();
    client.send("q", OutMessage::from("old").create()).await.unwrap();
    let old = client.receive(&["q"], ReceiveOptions::default()).await.unwrap();
    broker.end().await;
    // without state: its ids begin again
    let broker = Broker::start_at(None, &url).await;
    in_time(client.send("q", OutMessage::from("new").create())).await.unwrap();
    assert!(matches!(in_time(client.ack(&old[0])).await, Err(QueueError::Lost)));
    let new = client.receive(&["q"], ReceiveOptions::default()).await.unwrap();
    assert_eq!((new[0].payload(), new[0].id), (&Bytes::from("new"), old[0].id));
    client.ack(&new[0]).await.unwrap();
    drop(broker);
}

#[tokio::test]
async fn an_answer_reaches_a_caller_that_was_away_when_it_was_given() {
    let broker = Broker::start(None).await;
    let inside = broker.inside();
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let handler = move |message: Message| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Ok(message.payload().clone())
        }
    };
    let behind = Proxy::start(&broker).await;
    let _server = Server::listen(&behind.client().await, "up", handler, 1).await.unwrap();
    let proxy = Proxy::start(&broker).await;
    let client = proxy.client().await;
    let call = tokio::spawn(async move { client.call("up", "a", None).await });
    until(&inside, "up", |all| all[0].leased == 1).await;
    proxy.open(false);
    proxy.cut();
    until(&inside, "queue_client", |all| all.is_empty()).await;
    let heard = *behind.inner.down.borrow();
    go.add_permits(1);
    // the broker says that there is no such queue
    reaches(&behind.inner.down, heard + 1).await;
    proxy.open(true);
    assert_eq!(in_time(call).await.unwrap().unwrap(), "a");
}

#[tokio::test]
async fn a_caller_learns_of_an_answer_that_is_refused_or_has_much_to_say() {
    let broker = Broker::start(None).await;
    let handler = |message: Message| async move {
        match number(&message) {
            0 => Ok(Bytes::from(vec![7; 15 << 20])),
            1 => Ok(Bytes::from(vec![7; 17 << 20])),
            _ => Err((errno::EACCES, "ä".repeat(50_000))),
        }
    };
    let _server = Server::listen(&broker.client().await, "up", handler, 1).await.unwrap();
    let client = broker.client().await;
    for (body, number) in [("0", errno::EMSGSIZE), ("1", errno::EMSGSIZE), ("2", errno::EACCES)] {
        match in_time(client.call("up", body, HANG)).await {
            Err(CallError::Refused { errno, text }) => {
                assert_eq!(errno, number);
                assert!(errno != errno::EACCES || text == "ä".repeat(32_765), "{}", text.len());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_client_that_is_dropped_does_not_connect_again() {
    let broker = Broker::start(None).await;
    let proxy = Proxy::start(&broker).await;
    let tasks = tokio::runtime::Handle::current().metrics();
    yield_now().await;
    let before = tasks.num_alive_tasks();
    let client = proxy.client().await;
    client.list("", false).await.unwrap();
    drop(client);
    in_time(async {
        while tasks.num_alive_tasks() > before {
            yield_now().await;
        }
    })
    .await;
    assert_eq!(*proxy.inner.accepted.borrow(), 1);
}

#[tokio::test]
async fn what_is_told_to_a_server_does_not_tell_how_the_caller_numbers_its_messages() {
    let broker = Broker::start(None).await;
    let (tell, mut told) = mpsc::channel(2);
    let handler = move |message: Message| {
        let tell = tell.clone();
        async move {
            tell.send(message).await.unwrap();
            Ok(Bytes::new())
        }
    };
    let _server = Server::listen(&broker.client().await, "up", handler, 1).await.unwrap();
    let client = broker.client().await;
    for _ in 0..2 {
        in_time(client.call("up", "", HANG)).await.unwrap();
    }
    let [one, two] = [told.recv().await.unwrap(), told.recv().await.unwrap()].map(|it| it.record);
    assert_ne!(one.correlation[..8], two.correlation[..8]);
    assert_ne!(one.correlation[8..], two.correlation[8..]);
    assert_eq!(one.reply_to, two.reply_to);
    let name = one.reply_to.unwrap();
    let half = u64::from_str_radix(name.rsplit_once('-').unwrap().1, 16).unwrap().to_le_bytes();
    assert!(!one.correlation.windows(8).any(|part| part == half));
}

#[tokio::test]
async fn a_server_that_handles_one_at_once_does_so_over_a_new_connection() {
    let broker = Broker::start(None).await;
    let inside = broker.inside();
    let go = Arc::new(Semaphore::new(0));
    let [at_once, most] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let (gate, seen) = (Arc::clone(&go), Arc::clone(&most));
    let handler = move |message: Message| {
        seen.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let (gate, at_once) = (Arc::clone(&gate), Arc::clone(&at_once));
        async move {
            gate.acquire().await.unwrap().forget();
            at_once.fetch_sub(1, Ordering::SeqCst);
            Ok(message.payload().clone())
        }
    };
    let proxy = Proxy::start(&broker).await;
    let client = proxy.client().await;
    let server = Server::listen(&client, "up", handler, 1).await.unwrap();
    let caller = inside.clone();
    let call = tokio::spawn(async move { caller.call("up", "a", HANG).await });
    until(&inside, "up", |all| all[0].leased == 1).await;
    proxy.cut();
    until(&inside, "up", |all| all[0].counters.redelivered == 1).await;
    settle(&client).await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
    go.add_permits(2);
    assert_eq!(in_time(call).await.unwrap().unwrap(), "a");
    until(&inside, "up", |all| all[0].messages == 0).await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
    in_time(server.stop()).await.unwrap();
}

#[tokio::test]
async fn any_number_of_ids_is_acknowledged() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    let messages = (0..20_000).map(|_| OutMessage::from("x").create());
    client.send_all("q", messages).await.unwrap();
    let ids: Vec<u64> = (1..=20_000).collect();
    client.ack_ids("q", &ids, true).await.unwrap();
    assert_eq!(client.list("q", false).await.unwrap()[0].messages, 0);
    client.ack_ids("q", &[], true).await.unwrap();
    let outcome = client.ack_ids("q", &ids[..8_001], true).await;
    assert_eq!(outcome.unwrap_err().errno(), Some(errno::ENOENT));
}

#[tokio::test]
async fn a_name_that_is_too_long_is_refused_before_it_is_sent() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    for length in [256, 70_000] {
        let name = "x".repeat(length);
        let dead = QueueOptions::default().dead_letter(Some(name.clone()));
        let outcomes = [
            client.create(&name, None).await.map(drop),
            client.create("q", Some(dead)).await.map(drop),
            client.destroy(&name, false).await,
            client.list(&name, false).await.map(drop),
            client.send(&name, "x").await.map(drop),
            client.receive(&["q", &name], ReceiveOptions::default()).await.map(drop),
            client.subscribe(&name, SubscribeOptions::default()).await.map(drop),
            client.ack_ids(&name, &[1], false).await,
            client.trace(0, Duration::ZERO, &name).await.map(drop),
        ];
        for outcome in outcomes {
            assert_eq!(outcome.unwrap_err().errno(), Some(errno::EINVAL));
        }
        let answers = OutMessage::from("x").reply_to(name);
        assert!(client.send("q", answers).await.unwrap_err().errno().is_some());
    }
}
