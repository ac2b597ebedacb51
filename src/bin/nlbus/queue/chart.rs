//! `nlbus queue tail --chart`: who sends to which queue and who takes from it.

use std::io::{self, Write};

use nlbus::service::queue::machine::{Event, What};
use nlbus::service::queue::protocol::Record;
use serde_json::Value;

/// For which program.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub(super) enum Chart {
    Mscgen,
    Mermaid,
}

struct Arrow {
    from: String,
    to: String,
    /// It goes back to a caller.
    answers: bool,
    label: String,
}

pub(super) fn print(chart: Chart, events: &[Event], out: &mut impl Write) -> io::Result<()> {
    let arrows: Vec<Arrow> = events.iter().filter_map(Arrow::of).collect();
    let mut ends: Vec<&String> = arrows.iter().flat_map(|arrow| [&arrow.from, &arrow.to]).collect();
    ends.sort();
    ends.dedup();
    match chart {
        Chart::Mscgen => {
            let ends: Vec<String> = ends.iter().map(|end| format!("\"{end}\"")).collect();
            writeln!(out, "msc {{\n  {};", ends.join(", "))?;
            for Arrow { from, to, answers, label } in &arrows {
                let arc = if *answers { ">>" } else { "=>" };
                writeln!(out, "  \"{from}\" {arc} \"{to}\" [label=\"{label}\"];")?;
            }
            writeln!(out, "}}")
        }
        Chart::Mermaid => {
            writeln!(out, "sequenceDiagram")?;
            for (number, end) in ends.iter().enumerate() {
                writeln!(out, "  participant p{number} as {end}")?;
            }
            let number = |end: &String| ends.iter().position(|other| *other == end).unwrap_or(0);
            for Arrow { from, to, answers, label } in &arrows {
                let arc = if *answers { "-->>" } else { "->>" };
                writeln!(out, "  p{}{arc}p{}: {label}", number(from), number(to))?;
            }
            Ok(())
        }
    }
}

impl Arrow {
    /// What was sent or delivered.
    fn of(event: &Event) -> Option<Self> {
        let session = format!("{:#010x}", event.session);
        let queue = event.queue.replace(|c: char| c.is_control() || "\"\\;#".contains(c), "_");
        let (from, to) = match event.what {
            What::Sent => (session, queue),
            What::Delivered => (queue, session),
            _ => return None,
        };
        let record = Record::read_cut(&event.record);
        let answers = record.reply_to.is_none() && !record.correlation.is_empty();
        Some(Self { from, to, answers, label: label(&record) })
    }
}

/// Of JSON-RPC the method, or how the call went; else how the payload begins.
fn label(record: &Record) -> String {
    let failed = "FAILURE".to_owned();
    if record.error.is_some() {
        return failed;
    }
    let start = || String::from_utf8_lossy(&record.payload).chars().take(10).collect();
    let text = match serde_json::from_slice::<Value>(&record.payload) {
        Ok(Value::Object(object)) => match object.get("method") {
            Some(Value::String(method)) => method.chars().take(64).collect(),
            _ if object.get("error").is_some_and(|error| !error.is_null()) => failed,
            _ if object.contains_key("result") => "OK".to_owned(),
            _ => start(),
        },
        _ => method_in(&String::from_utf8_lossy(&record.payload)).unwrap_or_else(start),
    };
    text.replace(|c: char| !c.is_alphanumeric() && !" ._-".contains(c), "_")
}

/// The method in JSON that is cut.
fn method_in(text: &str) -> Option<String> {
    let (_, rest) = text.strip_prefix('{')?.split_once("\"method\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    rest.split_once('"').map(|(method, _)| method.chars().take(64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(payload: &'static str) -> String {
        label(&Record { payload: payload.into(), ..Record::default() })
    }

    #[test]
    fn json_rpc_is_labelled_by_its_method_and_its_outcome() {
        assert_eq!(labelled(r#"{"method": "VM.start\"]", "params": [1]}"#), "VM.start__");
        assert_eq!(labelled(r#"{"method": "VM.list", "params": ["#), "VM.list");
        assert_eq!(labelled(r#"{"result": null, "error": null, "id": 1}"#), "OK");
        assert_eq!(labelled(r#"{"result": null, "error": {"code": 1}}"#), "FAILURE");
        let record = Record { error: Some((5, String::new())), ..Record::default() };
        assert_eq!(label(&record), "FAILURE");
    }

    #[test]
    fn anything_else_by_its_first_ten_characters_without_what_a_chart_would_read() {
        assert_eq!(labelled("\"];} quit\u{1b}[31m and more"), "____ quit_");
        assert_eq!(labelled("[1, 2]"), "_1_ 2_");
        assert_eq!(labelled(""), "");
    }
}
