//! Clusters of which so many servers are away that a queue has no leader.

use std::time::Duration;

use nlbus::service::queue::{Client, OutMessage, QueueError, SubscribeOptions};
use nlbus::wire::errno;

use crate::support_nats::{Nats, in_time, next};
use crate::{is_away, now, until_done, waiting};

/// Tries so often to send while it cannot be, if the cluster does not say earlier that it cannot.
const ATTEMPTS_MAX: usize = 40;

/// Fails to send until the cluster says that it cannot, and why.
async fn refused_send(client: &Client, queue: &str) -> Option<QueueError> {
    for _ in 0..ATTEMPTS_MAX {
        match in_time(client.send(queue, "away")).await {
            Ok(_) => {}
            Err(error) if error.to_string().contains("503") => return Some(error),
            Err(error) => is_away(&error),
        }
    }
    None
}

#[tokio::test]
async fn whoever_takes_messages_goes_on_after_most_servers_were_away() {
    let Some(mut servers) = Nats::start_cluster().await else { return };
    let broker = servers[0].broker_of_cluster(3).await;
    let client = broker.client().await;
    for queue in ["q", "other"] {
        until_done(|| client.create(queue, None)).await;
    }
    let mut consumer = client.subscribe("q", SubscribeOptions::default()).await.unwrap();
    let receiver = client.clone();
    let waits = tokio::spawn(async move { receiver.receive(&["other"], waiting()).await });
    until_done(|| client.send("q", "before")).await;
    let before = next(&mut consumer).await;
    until_done(|| client.ack(&before)).await;
    for server in &mut servers[1..] {
        server.kill();
    }
    if let Some(error) = refused_send(&client, "q").await {
        is_away(&error);
    }
    // for longer than a lost pull is taken to be there, and each time a queue is looked for
    for _ in 0..4 {
        let wait = now().wait(Duration::from_secs(3));
        is_away(&in_time(client.receive(&["q"], wait)).await.unwrap_err());
    }
    is_away(&in_time(client.create("third", None)).await.unwrap_err());
    is_away(&in_time(client.destroy("q", false)).await.unwrap_err());
    for server in &mut servers[1..] {
        server.start_again();
    }
    for queue in ["q", "other"] {
        until_done(|| client.send(queue, "after")).await;
    }
    while next(&mut consumer).await.payload() != "after" {}
    let received = in_time(waits).await.unwrap().unwrap();
    assert!(!received.is_empty());
}

/// Which of the servers has a queue.
async fn place_of(servers: &[Nats], queue: &str) -> usize {
    let client = in_time(async_nats::connect(servers[0].url())).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let stream = in_time(context.get_stream(format!("NLBUS_{queue}"))).await.unwrap();
    let leader = stream.cached_info().cluster.as_ref().unwrap().leader.clone().unwrap();
    servers.iter().position(|server| server.name() == leader).unwrap()
}

#[tokio::test]
async fn a_queue_whose_only_server_is_away_is_not_said_to_be_gone() {
    let Some(mut servers) = Nats::start_cluster().await else { return };
    let broker = servers[0].broker_of_cluster(1).await;
    let client = broker.client().await;
    until_done(|| client.create("q", None)).await;
    let place = place_of(&servers, "q").await;
    let broker = servers[(place + 1) % 3].broker_of_cluster(1).await;
    let client = broker.client().await;
    let mut consumer = client.subscribe("q", SubscribeOptions::default()).await.unwrap();
    until_done(|| client.send("q", "held")).await;
    let held = next(&mut consumer).await;
    servers[place].kill();
    is_away(&in_time(client.ack(&held)).await.unwrap_err());
    is_away(&in_time(client.ack_ids("q", &[held.id], true)).await.unwrap_err());
    is_away(&in_time(client.send("q", OutMessage::from("x").create())).await.unwrap_err());
    servers[place].start_again();
    until_done(|| client.send("q", "after")).await;
    while next(&mut consumer).await.payload() != "after" {}
    match in_time(client.ack(&held)).await {
        Ok(()) => {}
        Err(error) => is_away(&error),
    }
    in_time(client.destroy("q", false)).await.unwrap();
    let gone = in_time(client.ack(&held)).await.unwrap_err();
    assert_eq!(gone.errno(), Some(errno::ENOENT));
}
