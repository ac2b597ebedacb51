//! Lays out rows in columns, and reads cells out of records.

use std::io;

use serde_json::Value;

use super::message::Record;

/// The width up to which a column is aligned; a longer cell, seldom honest, pushes the rest of its
/// line aside.
const WIDTH_MAX: usize = 64;

/// Writes a header line and the rows, columns two spaces apart. A column that no row fills is left
/// out.
pub(super) fn write<const N: usize>(
    columns: &[&str; N],
    rows: &[Vec<String>],
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let header = columns.iter().map(|column| (*column).to_owned()).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| visible(cell)).collect()).collect();
    let widths = (0..N).map(|column| width(column, columns[column], &rows)).collect::<Vec<_>>();
    for row in std::iter::once(&header).chain(&rows) {
        let cells = row.iter().zip(&widths).filter(|(_, width)| **width != 0);
        let line: String = cells.map(|(cell, &width)| format!("{cell:width$}  ")).collect();
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The width that a column needs, 0 if it is empty.
fn width(column: usize, name: &str, rows: &[Vec<String>]) -> usize {
    let cells = rows.iter().filter_map(|row| row.get(column));
    match cells.map(|cell| cell.chars().count()).max().unwrap_or(name.len()) {
        0 => 0,
        widest => widest.clamp(name.len(), WIDTH_MAX),
    }
}

/// The text without the power to move a terminal's cursor.
pub(crate) fn visible(text: &str) -> String {
    let escape = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    text.chars().map(escape).collect()
}

/// The text of a value, empty if there is none.
pub(super) fn cell(record: &Record, key: &str) -> String {
    record.get(key).map(text).unwrap_or_default()
}

/// The texts of an array.
pub(super) fn join(record: &Record, key: &str, separator: &str) -> String {
    let values = record.get(key).and_then(Value::as_array).into_iter().flatten();
    values.map(text).collect::<Vec<_>>().join(separator)
}

/// The objects of an array.
pub(super) fn objects<'a>(record: &'a Record, key: &str) -> impl Iterator<Item = &'a Record> {
    let values = record.get(key).and_then(Value::as_array);
    values.into_iter().flatten().filter_map(Value::as_object)
}

/// `word value`, or only the word if the key stands for itself, if the record has the key.
pub(super) fn phrase(record: &Record, key: &str, word: &str) -> Option<String> {
    match record.get(key)? {
        Value::Null => Some(word.to_owned()),
        value => Some(format!("{word} {}", text(value)).trim_start().to_owned()),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
