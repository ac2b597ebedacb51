//! Servers and brokers that fail, and clusters that cannot be used.

use std::collections::BTreeSet;

use bytes::Bytes;
use nlbus::service::queue::{
    Client, JetStream, JetStreamError, OutMessage, QueueOptions, Server, SubscribeOptions,
};
use nlbus::store::SendId;
use nlbus::wire::errno;

use crate::authority::Authority;
use crate::support_cli::{Serve, nlbus, run, text};
use crate::support_nats::{HANG, Nats, broker_at, in_time, next};
use crate::{drain, names, nats, now, refused, waiting};

#[tokio::test]
async fn what_was_acknowledged_by_the_cluster_is_there_after_its_server_was_killed() {
    let mut nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    let mut consumer = client.subscribe("q", SubscribeOptions::default()).await.unwrap();
    client.send("q", "before").await.unwrap();
    let held = next(&mut consumer).await;
    let transient = client.create_transient(None, None).await.unwrap();
    client.send(&transient, "lost").await.unwrap();
    client.create("kept", None).await.unwrap();
    let many = (0..100).map(|n| OutMessage::new(n.to_string()));
    client.send_all("kept", many).await.unwrap();
    nats.kill();
    // it is said, and does not hang
    loop {
        match in_time(client.send("q", "away")).await {
            Err(error) => break assert_eq!(error.errno(), Some(errno::EHOSTUNREACH)),
            Ok(_) => tokio::task::yield_now().await,
        }
    }
    nats.start_again();
    while in_time(client.send("q", "after")).await.is_err() {
        tokio::task::yield_now().await;
    }
    while next(&mut consumer).await.payload() != "after" {}
    client.ack(&held).await.unwrap();
    let kept = drain(&client, "kept", 100).await;
    assert!(kept.iter().enumerate().all(|(n, body)| *body == n.to_string().as_str()));
    // what the cluster had in memory is made again, empty
    let receiver = client.clone();
    let name = transient.clone();
    let waits = tokio::spawn(async move { receiver.receive(&[&name], waiting()).await });
    while in_time(client.send(&transient, "anew")).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(in_time(waits).await.unwrap().unwrap()[0].payload(), "anew");
}

#[tokio::test]
async fn a_server_that_does_not_answer_hangs_nobody_and_stores_what_is_sent_again_once() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    let message = OutMessage::from("once").send_id(SendId { sender: 5, sequence: 1 });
    nats.pause();
    let (sent, made) = in_time(async {
        tokio::join!(client.send("q", message.clone()), client.create("r", None))
    })
    .await;
    refused(sent, errno::EHOSTUNREACH);
    refused(made, errno::EHOSTUNREACH);
    nats.go_on();
    while in_time(client.send("q", message.clone())).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(drain(&client, "q", 1).await, ["once"]);
    assert!(client.receive(&["q"], now()).await.unwrap().is_empty());
}

fn serve(nats: &Nats, directory: &tempfile::TempDir, name: &str) -> (Serve, String) {
    let url = format!("unix://{}/{name}", text(directory.path()));
    (Serve::start(&["--queues", "--state", &nats.url(), &url], 1), url)
}

#[tokio::test]
async fn what_a_killed_broker_held_goes_to_others_and_its_transient_queues_go_away() {
    let nats = nats!();
    let directory = tempfile::tempdir().unwrap();
    let (killed, url) = serve(&nats, &directory, "killed");
    let other = nats.quick_broker().await;
    let other = other.client().await;
    let victim = Client::connect(&url.parse().unwrap()).await.unwrap();
    let options = QueueOptions::default().lease_ms(500);
    victim.create("q", Some(options)).await.unwrap();
    let transient = victim.create_transient(None, None).await.unwrap();
    for n in 0..10 {
        victim.send("q", n.to_string().as_str()).await.unwrap();
    }
    let held = victim.receive(&["q"], now().messages_max(4)).await.unwrap();
    assert_eq!(held.len(), 4);
    victim.ack(&held[0]).await.unwrap();
    killed.kill();
    let found = drain(&other, "q", 9).await;
    let found: BTreeSet<_> = found.into_iter().collect();
    assert_eq!(found.len(), 9);
    assert!(!found.contains(&Bytes::from("0")), "acknowledged is gone");
    in_time(async {
        while !names(&other, &transient).await.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn callers_and_servers_outlive_their_broker() {
    let nats = nats!();
    let directory = tempfile::tempdir().unwrap();
    let (mut broker, url) = serve(&nats, &directory, "killed");
    let caller = Client::connect(&url.parse().unwrap()).await.unwrap();
    let serving = Client::connect(&url.parse().unwrap()).await.unwrap();
    let handler = |message: nlbus::service::queue::Message| async move {
        Ok::<Bytes, (i32, String)>(message.payload().clone())
    };
    let server = Server::listen(&serving, "echo", handler, 2).await.unwrap();
    for round in 0..4 {
        for n in 0..3 {
            let body = format!("{round} {n}");
            let answer = in_time(caller.call("echo", body.clone(), HANG)).await.unwrap();
            assert_eq!(answer, body.as_str());
        }
        if round % 2 == 0 {
            broker.kill();
        } else {
            broker.end();
        }
        broker = serve(&nats, &directory, "killed").0;
    }
    in_time(server.stop()).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_ends_in_good_order_gives_back_what_its_clients_held() {
    let nats = nats!();
    let directory = tempfile::tempdir().unwrap();
    let (ends, url) = serve(&nats, &directory, "ends");
    let client = Client::connect(&url.parse().unwrap()).await.unwrap();
    // the lease is much longer than the test waits
    client.create("q", Some(QueueOptions::default().lease_ms(3_600_000))).await.unwrap();
    client.send("q", "x").await.unwrap();
    let transient = client.create_transient(None, None).await.unwrap();
    assert_eq!(client.receive(&["q"], now()).await.unwrap().len(), 1);
    ends.end();
    let other = nats.broker().await;
    let other = other.client().await;
    let again = in_time(other.receive(&["q"], waiting())).await.unwrap();
    assert_eq!((again[0].payload(), again[0].attempt), (&Bytes::from("x"), 2));
    assert!(names(&other, &transient).await.is_empty());
}

#[tokio::test]
async fn a_cluster_that_cannot_be_used_is_told_of_without_what_is_secret() {
    async fn refused(url: &str) -> JetStreamError {
        let error = in_time(JetStream::connect(&url.parse().unwrap())).await.err().unwrap();
        assert!(!error.to_string().contains("s3cret"), "{error}");
        error
    }
    let Some(plain) = Nats::start_with("\n") else { return };
    let error = refused(&plain.url()).await;
    assert!(matches!(error, JetStreamError::NoJetStream { .. }), "{error}");
    assert!(error.to_string().contains("-js"), "{error}");
    let config = "jetstream { store_dir: \"STORE\" }\n\
                  authorization { user: me, password: s3cret }\n";
    let Some(locked) = Nats::start_with(config) else { return };
    let error = refused(&format!("nats://me:s3cretno@{}", locked.address())).await;
    assert!(matches!(error, JetStreamError::Denied { .. }), "{error}");
    assert!(matches!(refused(&locked.url()).await, JetStreamError::Denied { .. }));
    let url = format!("nats://me:s3cret@{}", locked.address());
    in_time(JetStream::connect(&url.parse().unwrap())).await.unwrap();
    let address = locked.address();
    drop(locked);
    let error = refused(&format!("nats://me:s3cret@{address}")).await;
    assert!(matches!(error, JetStreamError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&address), "{error}");

    // the command says the same
    let url = format!("nats://me:s3cret@{address}");
    let arguments = ["serve", "--queues", "--state", &url, "tcp://127.0.0.1:0"];
    let ended = run(nlbus(&arguments));
    ended.failed(6, &[&format!("nats://{address}")]);
    assert!(!ended.err.contains("s3cret"), "{ended:?}");
    let wrong = ["serve", "--queues", "--state", "nats://host:port", "tcp://127.0.0.1:0"];
    run(nlbus(&wrong)).failed(2, &["the port in the URL of the cluster"]);
}

#[tokio::test]
async fn one_server_that_is_there_of_those_in_the_url_is_enough() {
    let nats = nats!();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = free.local_addr().unwrap();
    drop(free);
    for url in [format!("nats://{gone},{}", nats.address()), format!("{},{gone}", nats.url())] {
        let broker = broker_at(&url).await;
        let client = broker.client().await;
        client.send("q", OutMessage::from("x").create()).await.unwrap();
        assert_eq!(drain(&client, "q", 1).await, ["x"]);
    }
}

#[tokio::test]
async fn a_configuration_file_and_the_commands_work_with_a_cluster_too() {
    let nats = nats!();
    let directory = tempfile::tempdir().unwrap();
    let url = format!("unix://{}/socket", text(directory.path()));
    let file = directory.path().join("serve.toml");
    let config = format!("listen = [{url:?}]\nqueues = true\nstate = {:?}\n", nats.url());
    std::fs::write(&file, config).unwrap();
    let broker = Serve::start(&["--config", text(&file)], 1);
    let queue = |arguments: &[&str]| run(nlbus(&[&["queue"], arguments, &["-u", &url]].concat()));
    assert_eq!(queue(&["send", "jobs", "build it", "--create"]).out, "1\n");
    assert!(queue(&["list", "--all", "--long"]).out.contains("jobs"));
    assert!(queue(&["diagnostics", "--payloads"]).out.contains("build it"));
    assert_eq!(queue(&["recv", "jobs"]).out, "build it");
    queue(&["recv", "jobs"]).failed(4, &[]);
    queue(&["send", "jobs", "two"]).ok();
    queue(&["ack", "jobs", "2"]).ok();
    queue(&["ack", "jobs", "2"]).failed(5, &["no message 2"]);
    queue(&["destroy", "jobs"]).ok();
    queue(&["destroy", "jobs"]).failed(5, &["there is no queue"]);
    broker.end();
}

#[test]
fn over_tls_a_cluster_is_used_whose_certificate_is_trusted_and_no_other() {
    let authority = Authority::new();
    let files = authority.issue("nats", &["localhost"]);
    let tls = |path: &std::path::Path| format!("{:?}", text(path));
    let config = format!(
        "jetstream {{ store_dir: \"STORE\" }}\ntls {{ cert_file: {}, key_file: {} }}\n",
        tls(&files.certificate),
        tls(&files.key),
    );
    let Some(nats) = Nats::start_with(&config) else { return };
    let directory = tempfile::tempdir().unwrap();
    let url = format!("unix://{}/socket", text(directory.path()));
    let port = nats.address().rsplit_once(':').map(|(_, port)| port.to_owned()).unwrap();
    let state = format!("nats+tls://localhost:{port}");
    let serve = ["serve", "--queues", "--state", &state, &url];
    let trusting = |file: &std::path::Path| {
        let mut command = nlbus(&serve);
        command.env("SSL_CERT_FILE", file);
        command
    };
    let stranger = Authority::new();
    run(trusting(&stranger.path("ca.crt"))).failed(6, &["certificate"]);
    let broker = Serve::spawn(trusting(&files.ca), 1);
    let queue = |arguments: &[&str]| run(nlbus(&[&["queue"], arguments, &["-u", &url]].concat()));
    queue(&["send", "jobs", "build it", "--create"]).ok();
    assert_eq!(queue(&["recv", "jobs"]).out, "build it");
    broker.end();
}
