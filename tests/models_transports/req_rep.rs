//! REQ/REP.

use std::sync::Arc;

use nlbus::endpoint::{Endpoint, RequestError, RequestOptions};
use nlbus::wire::errno;

use crate::carriers::Everywhere;
use crate::numbered;
use crate::support_node::peer::within;

/// Waits as long as the test does.
fn unhurried() -> RequestOptions {
    RequestOptions::default().deadline(None)
}

/// What [`answer_for`] does with a request.
const REVERSE: u8 = b'r';
const MANY: u8 = b'm';
const FAIL: u8 = b'f';
const FAIL_LATE: u8 = b'l';
const FORGET: u8 = b'd';

/// The lengths of the bodies that answer [`MANY`].
const LENGTHS: [usize; 4] = [3, 0, 100_000, 7];

/// Answers for `name`, each request as its first byte says.
async fn answer_for(endpoint: &Endpoint, name: &str) {
    let mut provider = endpoint.provide(name).await.unwrap();
    tokio::spawn(async move {
        while let Some(mut request) = provider.next_request().await {
            let body = request.body();
            match body[0] {
                REVERSE => request.reply(&backwards(&body)).await.unwrap(),
                FAIL => request.fail(errno::EBUSY, "not on a Sunday").await.unwrap(),
                kind @ (MANY | FAIL_LATE) => {
                    for length in LENGTHS {
                        request.part(&numbered(length)).await.unwrap();
                    }
                    if kind == MANY {
                        request.finish().await.unwrap();
                    } else {
                        request.fail(errno::ENOSPC, "enough").await.unwrap();
                    }
                }
                _ => drop(request),
            }
        }
    });
}

fn backwards(body: &[u8]) -> Vec<u8> {
    body.iter().rev().copied().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_over_any_transport_is_answered_from_over_any_other() {
    let bus = Everywhere::start("pairs").await;
    let mut askers = Vec::new();
    for carrier in &bus.carriers {
        answer_for(&bus.connect(carrier).await, carrier.name).await;
        askers.push((carrier.name, bus.connect(carrier).await));
    }
    for (here, asker) in &askers {
        for there in bus.carriers.iter().map(|carrier| carrier.name) {
            let body = [&[REVERSE][..], here.as_bytes(), b" asks ", there.as_bytes()].concat();
            let answer = within(asker.call_with(there, &body, unhurried())).await;
            assert_eq!(answer.unwrap(), backwards(&body), "{here} {there}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bodies_and_errors_come_back_over_each_transport() {
    let bus = Everywhere::start("many").await;
    for carrier in &bus.carriers {
        let here = carrier.name;
        let provider = bus.connect(carrier).await;
        answer_for(&provider, here).await;
        let asker = bus.connect(carrier).await;
        for kind in [MANY, FAIL_LATE] {
            let mut answers = asker.ask_with(here, &[kind], unhurried()).await.unwrap();
            for length in LENGTHS {
                let body = within(answers.next()).await.unwrap().unwrap();
                assert!(body == numbered(length), "{here}: {} of {length} bytes", body.len());
            }
            let end = within(answers.next()).await;
            match (kind, end) {
                (MANY, None) => {}
                (FAIL_LATE, Some(Err(RequestError::Refused { errno: errno::ENOSPC, text }))) => {
                    assert_eq!(text.as_deref(), Some("enough"), "{here}");
                    assert!(within(answers.next()).await.is_none(), "{here}");
                }
                (_, end) => panic!("{here}: {end:?}"),
            }
        }
        for (kind, number, text) in [
            (FAIL, errno::EBUSY, "not on a Sunday"),
            (FORGET, errno::EIO, "the provider gave no answer"),
        ] {
            match within(asker.call_with(here, &[kind], unhurried())).await {
                Err(RequestError::Refused { errno, text: Some(said) }) => {
                    assert_eq!((errno, said.as_str()), (number, text), "{here}");
                }
                other => panic!("{here}: {other:?}"),
            }
        }
        match within(asker.call_with("nobody", b"?", unhurried())).await {
            Err(RequestError::Undeliverable { errno: errno::ENOENT, .. }) => {}
            other => panic!("{here}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_several_mib_goes_there_and_back_over_each_transport() {
    let bus = Everywhere::start("long").await;
    let body: Arc<[u8]> = [&[REVERSE][..], &numbered((5 << 20) + 1)].concat().into();
    let answer: Arc<[u8]> = backwards(&body).into();
    for carrier in &bus.carriers {
        answer_for(&bus.connect(carrier).await, carrier.name).await;
        let asker = bus.connect(carrier).await;
        // two at once, so that the parts of one lie between those of the other
        let mut asking = tokio::task::JoinSet::new();
        for asker in [asker.open(), bus.connect(carrier).await] {
            let (name, body, answer) = (carrier.name, Arc::clone(&body), Arc::clone(&answer));
            asking.spawn(async move {
                let got = asker.call_with(name, &body, unhurried()).await.unwrap();
                assert!(got[..] == answer[..], "{name}");
            });
        }
        while let Some(done) = within(asking.join_next()).await {
            done.unwrap();
        }
    }
}
