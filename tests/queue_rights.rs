//! Queues with managers: what others get around them with.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use nlbus::endpoint::Endpoint;
use nlbus::node::{Node, NodeOptions};
use nlbus::service::queue::{
    Client, ClientOptions, QueueOptions, ReceiveOptions, ServeOptions, serve,
};
use nlbus::store::{Loaded, Store};
use nlbus::transport::ListenOptions;
use nlbus::wire::errno;

#[tokio::test]
async fn who_may_only_use_queues_makes_no_lasting_one_for_dead_letters_either() {
    let node = Node::new(NodeOptions::default());
    let endpoint = Endpoint::attach(&node).unwrap();
    let options = ServeOptions::default().managed(true);
    serve(&endpoint, Store::memory(), Loaded::default(), options).await.unwrap();
    let url = "tcp://127.0.0.1:0".parse().unwrap();
    let url = node.listen(&url, &ListenOptions::default()).await.unwrap();
    let manager = Client::over(Endpoint::attach(&node).unwrap(), &ClientOptions::default());
    let user = Client::connect(&url).await.unwrap();
    let letters =
        |name: &str| QueueOptions::default().dead_letter(Some(name.to_owned())).attempts_max(1);
    let refused = user.create_transient(None, Some(letters("letters"))).await.unwrap_err();
    assert_eq!(refused.errno(), Some(errno::EPERM), "{refused}");
    assert!(manager.list("", false).await.unwrap().is_empty());

    // one that a manager made can be used, and is not made again once he has removed it
    manager.create("letters", None).await.unwrap();
    let own = user.create_transient(None, Some(letters("letters"))).await.unwrap();
    manager.destroy("letters", false).await.unwrap();
    user.send(&own, "x").await.unwrap();
    let held = user.receive(&[&own], ReceiveOptions::default()).await.unwrap();
    user.nack(&held[0]).await.unwrap();
    let again = user.receive(&[&own], ReceiveOptions::default()).await.unwrap();
    assert_eq!((again.len(), again[0].attempt), (1, 2), "it stays where it is");
    let names = manager.list("", false).await.unwrap();
    assert_eq!(names.iter().map(|queue| &*queue.name).collect::<Vec<_>>(), [own.as_str()]);
}

#[tokio::test]
async fn a_queue_that_cannot_be_made_leaves_no_queue_for_its_dead_letters() {
    let node = Node::new(NodeOptions::default());
    let endpoint = Endpoint::attach(&node).unwrap();
    serve(&endpoint, Store::memory(), Loaded::default(), ServeOptions::default()).await.unwrap();
    let client = Client::over(Endpoint::attach(&node).unwrap(), &ClientOptions::default());
    let options = QueueOptions::default().dead_letter(Some("letters".to_owned()));
    let refused = client.create("line\nend", Some(options)).await.unwrap_err();
    assert_eq!(refused.errno(), Some(errno::EINVAL), "{refused}");
    assert!(client.list("", false).await.unwrap().is_empty());
}
