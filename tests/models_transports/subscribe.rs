//! SUBSCRIBE.

use nlbus::endpoint::{Event, Filter, body_of};
use nlbus::wire::{Key, MessageBuilder, PAYLOAD_OFFSET, align4};

use crate::carriers::Everywhere;
use crate::support_node::peer::within;

/// Two types of messages. The type is the u16 at offset 4.
const PLAIN: u16 = 0x20;
const CHOSEN: u16 = 0x31;
const TYPE_MASK: u32 = 0xffff;

const GROUP: &str = "alerts";

/// What one round of the test publishes, each on its own way.
const WAYS: [&str; 4] = ["plain", "chosen", "group", "subsystem"];

fn message(kind: u16, round: u32, way: &str) -> Vec<u8> {
    MessageBuilder::new(kind, 0).body(format!("{round} {way}").as_bytes()).finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_subscriber_hears_exactly_what_it_asked_for_over_each_transport() {
    const ROUNDS: u32 = 50;
    let bus = Everywhere::start("subscribe").await;
    for carrier in &bus.carriers {
        let source = bus.connect(carrier).await;
        let sensor = format!("sensor-{}", carrier.name);
        let provider = source.provide(&sensor).await.unwrap();
        let key = Key { offset: 4, key: CHOSEN.into(), mask: TYPE_MASK };
        let mut listeners = Vec::new();
        for (filter, wanted) in [
            (Filter::all(), &WAYS[..]),
            (Filter::all().key(key), &["chosen"]),
            (Filter::all().group_name(GROUP), &["group"]),
            (Filter::all().from(sensor.as_str()), &["subsystem"]),
            (Filter::all().from(sensor.as_str()).key(key), &[]),
        ] {
            let listener = bus.connect(carrier).await;
            listeners.push((listener.subscribe(filter).await.unwrap(), wanted));
        }
        for round in 0..ROUNDS {
            source.publish(&message(PLAIN, round, "plain")).await.unwrap();
            source.publish(&message(CHOSEN, round, "chosen")).await.unwrap();
            let grouped = message(PLAIN, round, "group");
            source.publish_to_group(GROUP, &grouped).await.unwrap();
            let told = message(PLAIN, round, "subsystem");
            let mut frame = vec![0; PAYLOAD_OFFSET + align4(told.len())];
            frame[PAYLOAD_OFFSET..][..told.len()].copy_from_slice(&told);
            provider.publisher().publish_in_place(&mut frame, told.len()).await.unwrap();
        }
        // wanted by all of them: nothing came in between that is not expected
        let last = message(CHOSEN, ROUNDS, "last");
        let mut frame = vec![0; PAYLOAD_OFFSET + align4(last.len())];
        frame[PAYLOAD_OFFSET..][..last.len()].copy_from_slice(&last);
        provider.publisher().publish_in_place(&mut frame, last.len()).await.unwrap();
        source.publish_to_group(GROUP, &last).await.unwrap();

        for (index, (subscription, wanted)) in listeners.iter_mut().enumerate() {
            let here = format!("{}, filter {index}", carrier.name);
            let mut expected: Vec<String> = (0..ROUNDS)
                .flat_map(|round| wanted.iter().map(move |way| format!("{round} {way}")))
                .collect();
            expected.push(format!("{ROUNDS} last"));
            for expected in expected {
                let Some(Event::Message { from, group, payload }) =
                    within(subscription.next()).await
                else {
                    panic!("{here}: something was lost before {expected}");
                };
                assert_eq!(&body_of(&payload)[16..], expected.as_bytes(), "{here}");
                if expected.ends_with("last") {
                    continue;
                }
                let subsystem = expected.ends_with("subsystem");
                assert_eq!(from, if subsystem { provider.address() } else { 0 }, "{here}");
                let in_group = expected.ends_with("group").then_some(GROUP);
                assert_eq!(group.as_deref(), in_group, "{here}");
            }
        }
    }
}
