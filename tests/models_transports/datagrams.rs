//! PUSH over udp, PULL over each stream transport.

use std::net::UdpSocket;

use nlbus::endpoint::{Event, Filter, Puller, UdpPusher, body_of};

use crate::carriers::Everywhere;
use crate::support_node::frames::{ask, message};
use crate::support_node::peer::{next_request, within};

async fn take(puller: &mut Puller) -> Vec<u8> {
    within(puller.next()).await.expect("the link is up").body.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_over_udp_is_pulled_over_each_transport() {
    let bus = Everywhere::start("udp").await;
    let pusher = UdpPusher::connect(&bus.udp).await.unwrap();
    for carrier in &bus.carriers {
        let mut puller = bus.connect(carrier).await.pull(carrier.name).await.unwrap();
        let mut listener =
            bus.connect(carrier).await.subscribe(Filter::all().from(0u32)).await.unwrap();
        // one at a time: a datagram may be lost where there is no room
        for number in 0..50 {
            let body = format!("{number} {}", "x".repeat(number * 1_000));
            pusher.push(puller.address(), body.as_bytes()).await.unwrap();
            assert!(take(&mut puller).await == body.as_bytes(), "{}: {number}", carrier.name);
            pusher.push(0, body.as_bytes()).await.unwrap();
            match within(listener.next()).await {
                Some(Event::Message { from: 0, payload, .. }) => {
                    assert!(body_of(&payload) == body, "{}: {number}", carrier.name);
                }
                other => panic!("{}: {other:?}", carrier.name),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pullers_share_what_is_pushed_over_udp() {
    const ALL: usize = 100;
    let bus = Everywhere::start("udp-share").await;
    let pusher = UdpPusher::connect(&bus.udp).await.unwrap();
    for carrier in &bus.carriers {
        let name = carrier.name;
        let mut one = bus.connect(carrier).await.pull(name).await.unwrap();
        let mut two = bus.connect(carrier).await.pull(name).await.unwrap();
        let mut counts = [0; 2];
        for number in 0..ALL {
            let body = number.to_string();
            pusher.push(one.address(), body.as_bytes()).await.unwrap();
            let (index, message) = within(async {
                tokio::select! {
                    message = one.next() => (0, message),
                    message = two.next() => (1, message),
                }
            })
            .await;
            assert_eq!(message.expect("the link is up").body, body, "{name}");
            counts[index] += 1;
        }
        assert_eq!(counts, [ALL / 2; 2], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_does_not_reach_a_provider_that_answers() {
    let bus = Everywhere::start("udp-answers").await;
    let pusher = UdpPusher::connect(&bus.udp).await.unwrap();
    for carrier in &bus.carriers {
        let mut provider = bus.connect(carrier).await.provide(carrier.name).await.unwrap();
        let asker = bus.connect(carrier).await;
        let mut listener = asker.subscribe(Filter::all().from(0u32)).await.unwrap();
        pusher.push(provider.address(), b"by datagram").await.unwrap();
        // it went to who subscribed, so the broker is done with it
        match within(listener.next()).await {
            Some(Event::Message { payload, .. }) => assert_eq!(body_of(&payload), "by datagram"),
            other => panic!("{}: {other:?}", carrier.name),
        }
        let (answer, ()) = tokio::join!(asker.call(carrier.name, b"by request"), async {
            let request = next_request(&mut provider).await;
            assert_eq!(request.body(), "by request", "{}", carrier.name);
            request.reply(b"yes").await.unwrap();
        });
        assert_eq!(answer.unwrap(), "yes");
    }
}

/// An answer to it would have nowhere to go but to everybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_that_asks_is_a_push_and_nobody_hears_of_an_answer() {
    let bus = Everywhere::start("udp-asks").await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", bus.udp.port().unwrap())).unwrap();
    socket.set_nonblocking(true).unwrap();
    for carrier in &bus.carriers {
        let owner = bus.connect(carrier).await;
        let mut puller = owner.pull(carrier.name).await.unwrap();
        let mut listener = bus.connect(carrier).await.subscribe(Filter::all()).await.unwrap();
        let asks = ask(puller.address(), 0, 1, &message(0, 1, b"well?"));
        socket.send(&asks).unwrap();
        assert_eq!(take(&mut puller).await, message(0, 1, b"well?"), "{}", carrier.name);
        // over the puller's own link, so behind whatever it would have answered
        owner.publish(b"nothing but this").await.unwrap();
        match within(listener.next()).await {
            Some(Event::Message { payload, .. }) => assert_eq!(payload, "nothing but this"),
            other => panic!("{}: {other:?}", carrier.name),
        }
        let nothing = socket.recv(&mut [0; 100]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "{}", carrier.name);
    }
}
