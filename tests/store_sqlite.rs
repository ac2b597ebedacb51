//! The store on disk: what is there after it was opened again, and what happens when it cannot write.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use nlbus::store::{
    Judgement, Loaded, Op, OpenError, SENDERS_MAX, SendId, Store, StoreError, StoreOptions, Stored,
    Time,
};
use tokio::time::timeout;

/// When a test gives up.
const HANG: Duration = Duration::from_secs(60);

fn put(key: u64, record: impl Into<Bytes>) -> Op {
    Op::Put(Stored {
        key,
        queue: 1,
        id: key + 10,
        arrived: Time(5),
        expires: key.is_multiple_of(2).then_some(Time(u64::MAX >> 1)),
        attempts: 0,
        send_id: Some(SendId { sender: 1 << 100, sequence: key }),
        record: record.into(),
    })
}

fn create() -> Op {
    Op::Create { queue: 1, name: "jobs".into(), options: Bytes::from_static(b"opt"), first_id: 1 }
}

async fn store(store: &mut Store, batch: Vec<Op>) -> Result<(), StoreError> {
    store.submit(batch).unwrap();
    timeout(HANG, store.completed()).await.unwrap()
}

/// Opens a directory that another store has just let go.
fn reopen(path: &Path, options: StoreOptions) -> (Store, Loaded) {
    for _ in 0..1_000_000 {
        match Store::open(path, options) {
            Err(OpenError::InUse { .. }) => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
    panic!("the directory stays locked");
}

#[tokio::test]
async fn what_was_stored_is_there_again_and_ids_and_keys_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (mut first, loaded) = Store::open(directory.path(), StoreOptions::default()).unwrap();
    assert_eq!((loaded.epoch, loaded.id_floor, loaded.queues.len()), (1, 1, 0));
    store(&mut first, vec![create(), put(1, "one"), put(2, "two"), put(3, "three")]).await.unwrap();
    let gone = vec![Op::Delete { key: 3 }, Op::Attempts { key: 2, attempts: 4 }];
    store(&mut first, gone).await.unwrap();
    drop(first);

    let (mut second, loaded) = reopen(directory.path(), StoreOptions::default());
    assert_eq!((loaded.epoch, loaded.last_key), (2, 3));
    assert_eq!((loaded.queues[0].name.as_str(), loaded.queues[0].next_id), ("jobs", 14));
    assert_eq!(&loaded.queues[0].options[..], b"opt");
    let mut expected = [put(1, "one"), put(2, "two")].map(|op| match op {
        Op::Put(message) => message,
        _ => panic!("a message"),
    });
    expected[1].attempts = 4;
    assert_eq!(loaded.messages, expected);
    let (sender, seen) = &loaded.senders[0];
    assert_eq!(*sender, 1 << 100);
    let judged = [3, 4].map(|sequence| seen.judge(sequence));
    assert_eq!(judged, [Judgement::Seen, Judgement::New]);

    store(&mut second, vec![Op::Destroy { queue: 1, id_floor: 14, keys: vec![1, 2] }])
        .await
        .unwrap();
    drop(second);
    let (_, loaded) = reopen(directory.path(), StoreOptions::default());
    assert_eq!((loaded.id_floor, loaded.last_key), (14, 3));
    assert!(loaded.queues.is_empty() && loaded.messages.is_empty());
}

#[tokio::test]
async fn the_last_key_is_known_whether_its_message_stays_goes_or_never_was_alone() {
    let directory = tempfile::tempdir().unwrap();
    let delete = |key| Op::Delete { key };
    let steps = [
        (vec![vec![create(), put(1, "one")], vec![put(2, "two"), put(3, "three")]], 3),
        (vec![vec![delete(2)]], 3),
        (vec![vec![put(4, "four")], vec![delete(1)], vec![delete(4)]], 4),
        (vec![vec![put(5, "five"), delete(5)]], 5),
        (vec![vec![delete(3)]], 5),
    ];
    for (batches, last_key) in steps {
        let (mut one, _) = reopen(directory.path(), StoreOptions::default());
        for batch in batches {
            store(&mut one, batch).await.unwrap();
        }
        drop(one);
        let (_, loaded) = reopen(directory.path(), StoreOptions::default());
        assert_eq!(loaded.last_key, last_key);
    }
}

#[tokio::test]
async fn a_second_broker_a_missing_directory_and_a_file_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let open = |path: &Path| Store::open(path, StoreOptions::default()).err();
    let (_first, _) = Store::open(directory.path(), StoreOptions::default()).unwrap();
    assert!(matches!(open(directory.path()), Some(OpenError::InUse { .. })));
    assert!(matches!(open(&directory.path().join("none")), Some(OpenError::Missing { .. })));
    let file = directory.path().join("lock");
    assert!(matches!(open(&file), Some(OpenError::NotADirectory { .. })));
    for file in ["lock", "queues.db", "queues.db-wal"] {
        let mode = std::fs::metadata(directory.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_damaged_message_is_put_aside_and_told_of_and_the_others_stay() {
    let directory = tempfile::tempdir().unwrap();
    let (mut first, _) = Store::open(directory.path(), StoreOptions::default()).unwrap();
    let batch = vec![create(), put(1, "untouched"), put(2, "to be damaged"), put(3, "last")];
    store(&mut first, batch).await.unwrap();
    drop(first);
    // opening it waits for the writer, and leaves the log written back
    drop(reopen(directory.path(), StoreOptions::default()));
    drop(reopen(directory.path(), StoreOptions::default()));
    let mut damaged = 0;
    for file in ["queues.db", "queues.db-wal"] {
        let path = directory.path().join(file);
        let Ok(mut bytes) = std::fs::read(&path) else { continue };
        let text = b"to be damaged";
        while let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            bytes[at] ^= 1;
            damaged += usize::from(file == "queues.db");
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert_eq!(damaged, 1);
    for _ in 0..2 {
        let (_, loaded) = reopen(directory.path(), StoreOptions::default());
        let keys: Vec<u64> = loaded.messages.iter().map(|message| message.key).collect();
        assert_eq!(keys, [1, 3]);
        assert_eq!(loaded.quarantined, [("jobs".to_owned(), 12)]);
    }
}

#[tokio::test]
async fn when_it_is_full_messages_are_refused_and_deletions_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let small = StoreOptions::default().bytes_max(300_000);
    let (mut first, _) = Store::open(directory.path(), small).unwrap();
    store(&mut first, vec![create()]).await.unwrap();
    let mut key = 0;
    let full = loop {
        key += 1;
        let record = vec![7; 20_000];
        if let Err(error) = store(&mut first, vec![put(key, record)]).await {
            break error;
        }
        assert!(key < 100, "it is never full");
    };
    assert_eq!(full, StoreError::Full);
    assert!(key > 5, "the limit is reached too early: at {key}");
    for gone in 1..key {
        // with a message that does not fit, too
        let outcome =
            store(&mut first, vec![Op::Delete { key: gone }, put(key + gone, vec![7; 400_000])]);
        assert_eq!(outcome.await, Err(StoreError::Full));
    }
    store(&mut first, vec![put(3 * key, "fits again")]).await.unwrap();
    drop(first);
    let (_, loaded) = reopen(directory.path(), small);
    let keys: Vec<u64> = loaded.messages.iter().map(|message| message.key).collect();
    assert_eq!(keys, [3 * key]);
}

#[tokio::test]
async fn many_batches_are_committed_together_and_complete_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let (mut first, _) = Store::open(directory.path(), StoreOptions::default()).unwrap();
    first.submit(vec![create()]).unwrap();
    for key in 1..200 {
        first.submit(vec![put(key, "x")]).unwrap();
    }
    for _ in 0..200 {
        timeout(HANG, first.completed()).await.unwrap().unwrap();
    }
    assert!(first.try_completed().is_none());
    drop(first);
    let (_, loaded) = reopen(directory.path(), StoreOptions::default());
    assert_eq!(loaded.messages.len(), 199);
}

#[tokio::test]
async fn who_sent_last_is_remembered_over_any_number_of_restarts_and_the_others_take_no_room() {
    let directory = tempfile::tempdir().unwrap();
    let (mut opened, _) = Store::open(directory.path(), StoreOptions::default()).unwrap();
    let mut key = 0;
    let mut puts = |senders: std::ops::Range<u128>| -> Vec<Op> {
        let put = |sender| {
            key += 1;
            let Op::Put(message) = put(key, "x") else { panic!("a message") };
            let send_id = Some(SendId { sender, sequence: 1 });
            Op::Put(Stored { send_id, expires: None, ..message })
        };
        senders.map(put).collect()
    };
    store(&mut opened, vec![create()]).await.unwrap();
    let max = SENDERS_MAX as u128;
    for from in (0..max).step_by(1_000) {
        store(&mut opened, puts(from..from + 1_000)).await.unwrap();
    }
    // each of these comes after all of the time before
    for start in 0..3_u128 {
        drop(opened);
        let loaded;
        (opened, loaded) = reopen(directory.path(), StoreOptions::default());
        assert!(loaded.senders.len() <= SENDERS_MAX + 1_000, "{}", loaded.senders.len());
        let late = 10 * max + start * 8_000;
        store(&mut opened, puts(late..late + 8_000)).await.unwrap();
    }
    drop(opened);
    let (_, loaded) = reopen(directory.path(), StoreOptions::default());
    let late = 10 * max + 3 * 8_000;
    let found: Vec<u128> = loaded.senders.iter().rev().map(|(sender, _)| *sender).collect();
    let newest = found.iter().take(16_000).filter(|sender| (late - 16_000..late).contains(sender));
    assert_eq!(newest.count(), 16_000);
}
