//! How queues and messages are printed.

use std::io::{self, Write};

use nlbus::service::queue::machine::{BrokerInfo, Counters, EntryInfo, QueueInfo, Service};
use nlbus::service::queue::protocol::Record;
use nlbus::service::queue::{Kind, Message, Mode};
use serde_json::{Value, json};

/// Whether somebody takes a queue's messages, in words.
pub(super) fn service(service: Service) -> &'static str {
    match service {
        Service::Running => "running",
        Service::NeverStarted => "never started",
        Service::SeemsDead => "seems dead",
    }
}

pub(super) fn table(
    broker: &BrokerInfo,
    queues: &[QueueInfo],
    out: &mut impl Write,
) -> io::Result<()> {
    let widest = queues.iter().map(|queue| queue.name.chars().count()).max().unwrap_or(0).max(5);
    let head = ["SERVICE", "CONSUMERS", "READY", "HELD", "BYTES", "OLDEST"];
    let [service, consumers, ready, held, bytes, oldest] = head;
    writeln!(
        out,
        "{:<widest$}  {service:<13}  {consumers:>9}  {ready:>9}  {held:>9}  {bytes:>11}  {oldest:>9}",
        "QUEUE"
    )?;
    for queue in queues {
        let service = self::service(queue.service);
        let QueueInfo { name, consumers, ready, leased, bytes, .. } = queue;
        let oldest = queue.oldest.map(|oldest| ago(broker.now.ms_since(oldest)));
        let oldest = oldest.as_deref().unwrap_or("-");
        writeln!(
            out,
            "{name:<widest$}  {service:<13}  {consumers:>9}  {ready:>9}  {leased:>9}  {bytes:>11}  {oldest:>9}"
        )?;
    }
    Ok(())
}

/// A time in the unit that suits it.
pub(super) fn ago(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{:03} s", ms / 1_000, ms % 1_000),
        10_000..600_000 => format!("{} s", ms / 1_000),
        _ => format!("{} min", ms / 60_000),
    }
}

pub(super) fn queue(queue: &QueueInfo) -> Value {
    let Counters { sent, delivered, acked, returned, expired, dropped, dead, refused, .. } =
        queue.counters;
    let Counters { redelivered, waited_us, done_us, .. } = queue.counters;
    json!({
        "name": &*queue.name,
        "kind": if queue.kind == Kind::Transient { "transient" } else { "persistent" },
        "mode": if queue.mode == Mode::Fanout { "fanout" } else { "share" },
        "service": service(queue.service),
        "consumers": queue.consumers,
        "ready": queue.ready,
        "held": queue.leased,
        "messages": queue.messages,
        "bytes": queue.bytes,
        "oldest_us": queue.oldest.map(|time| time.0),
        "last_taken_us": queue.last_taken.map(|time| time.0),
        "sent": sent,
        "delivered": delivered,
        "acked": acked,
        "returned": returned,
        "expired": expired,
        "dropped": dropped,
        "dead": dead,
        "refused": refused,
        "redelivered": redelivered,
        "waited_us": waited_us,
        "done_us": done_us,
    })
}

pub(super) fn message(message: &Message) -> Value {
    let mut object = record(&message.record);
    object["queue"] = json!(&*message.queue);
    object["id"] = json!(message.id);
    object["attempt"] = json!(message.attempt);
    object["arrived_us"] = json!(message.arrived.0);
    object
}

pub(super) fn entry(entry: &EntryInfo) -> Value {
    let mut object = record(&Record::read(&entry.record));
    object["id"] = json!(entry.id);
    object["arrived_us"] = json!(entry.arrived.0);
    object["expires_us"] = json!(entry.expires.map(|time| time.0));
    object["attempts"] = json!(entry.attempts);
    object["held"] = json!(entry.holder.is_some());
    object["length"] = json!(entry.length);
    object["reply_alive"] = json!(entry.reply_alive);
    object
}

pub(super) fn record(record: &Record) -> Value {
    let headers: Vec<Value> =
        record.headers.iter().map(|(name, value)| json!([name, text(value)])).collect();
    json!({
        "payload": text(&record.payload),
        "correlation": text(&record.correlation),
        "reply_to": record.reply_to,
        "headers": headers,
    })
}

/// Text, or for what is not UTF-8 an object with its hexadecimal digits.
pub(super) fn text(bytes: &[u8]) -> Value {
    match str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One line of a payload, without anything that could move a terminal's cursor.
pub(super) fn line(payload: &[u8], max: usize) -> String {
    let text = String::from_utf8_lossy(payload);
    let shown: String = text.chars().take(max).flat_map(char::escape_debug).collect();
    if text.chars().count() > max { format!("{shown}…") } else { shown }
}
