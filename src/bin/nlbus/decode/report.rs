//! Writing what was found: indented text, or JSON, each node as soon as it is known.

use serde_json::{Map, Value, json};
use std::fmt::{self, Write as _};
use std::io::{self, Write};

const DUMP_LINE_BYTES: usize = 16;

/// One thing that was found.
pub(crate) struct Node<'a> {
    what: &'static str,
    /// In bytes from the start of the input.
    offset: usize,
    fields: Vec<Field>,
    /// Bytes to show as they are, and their offset.
    bytes: Option<(usize, &'a [u8])>,
}

struct Field {
    name: &'static str,
    value: Value,
    /// The value in the text form.
    text: String,
    /// What the value stands for; may be empty.
    meaning: String,
}

impl<'a> Node<'a> {
    pub(crate) fn new(what: &'static str, offset: usize) -> Self {
        Self { what, offset, fields: Vec::new(), bytes: None }
    }

    /// A decimal number.
    pub(crate) fn number(self, name: &'static str, number: impl Into<i64>) -> Self {
        self.named(name, number, "")
    }

    /// A decimal number and what it stands for.
    pub(crate) fn named(
        mut self,
        name: &'static str,
        number: impl Into<i64>,
        meaning: impl Into<String>,
    ) -> Self {
        let number = number.into();
        let (value, text) = (json!(number), number.to_string());
        self.fields.push(Field { name, value, text, meaning: meaning.into() });
        self
    }

    /// A number that reads better in hex.
    pub(crate) fn hex(
        mut self,
        name: &'static str,
        number: u32,
        meaning: impl Into<String>,
    ) -> Self {
        let text = if number == 0 { "0".to_owned() } else { format!("{number:#x}") };
        self.fields.push(Field { name, value: json!(number), text, meaning: meaning.into() });
        self
    }

    /// An address on the bus and what it stands for.
    pub(crate) fn address(mut self, name: &'static str, address: u32, meaning: String) -> Self {
        let text = if address == 0 { "0".to_owned() } else { format!("{address:#010x}") };
        self.fields.push(Field { name, value: json!(address), text, meaning });
        self
    }

    /// Words of this program.
    pub(crate) fn words(mut self, name: &'static str, words: impl Into<String>) -> Self {
        let text = words.into();
        let value = json!(text);
        self.fields.push(Field { name, value, text, meaning: String::new() });
        self
    }

    /// A string from the input, which may hold anything; the text form escapes it.
    pub(crate) fn string(mut self, name: &'static str, string: &str) -> Self {
        let text = format!("{string:?}");
        self.fields.push(Field { name, value: json!(string), text, meaning: String::new() });
        self
    }

    /// Bytes that stand at `offset` of the input, shown as they are.
    pub(crate) fn bytes(mut self, offset: usize, bytes: &'a [u8]) -> Self {
        self.bytes = Some((offset, bytes));
        self
    }
}

/// Where nodes are written to.
pub(crate) struct Report<'o> {
    out: &'o mut dyn Write,
    form: Form,
}

enum Form {
    /// How deep the next node stands.
    Text(usize),
    /// For each open array, whether something stands in it.
    Json(Vec<bool>),
}

impl<'o> Report<'o> {
    pub(crate) fn text(out: &'o mut dyn Write) -> Self {
        Self { out, form: Form::Text(0) }
    }

    pub(crate) fn json(out: &'o mut dyn Write) -> Self {
        Self { out, form: Form::Json(Vec::new()) }
    }

    pub(crate) fn begin(&mut self) -> io::Result<()> {
        if let Form::Json(open) = &mut self.form {
            open.push(false);
            self.out.write_all(b"[")?;
        }
        Ok(())
    }

    pub(crate) fn end(&mut self) -> io::Result<()> {
        if let Form::Json(_) = &self.form {
            self.out.write_all(b"\n]\n")?;
        }
        Ok(())
    }

    /// Writes `node`; what comes until the matching [`close`](Self::close) is its contents.
    pub(crate) fn open(&mut self, node: &Node<'_>) -> io::Result<()> {
        match &mut self.form {
            Form::Text(depth) => {
                write_text(self.out, *depth, node)?;
                *depth += 1;
            }
            Form::Json(open) => {
                separate(self.out, open)?;
                let mut object = serde_json::to_string(&json_of(node))?;
                object.pop();
                object.push_str(",\"contents\":[");
                self.out.write_all(object.as_bytes())?;
                open.push(false);
            }
        }
        Ok(())
    }

    pub(crate) fn close(&mut self) -> io::Result<()> {
        match &mut self.form {
            Form::Text(depth) => *depth = depth.saturating_sub(1),
            Form::Json(open) => {
                open.pop();
                self.out.write_all(b"]}")?;
            }
        }
        Ok(())
    }

    /// Writes a node without contents.
    pub(crate) fn leaf(&mut self, node: &Node<'_>) -> io::Result<()> {
        match &mut self.form {
            Form::Text(depth) => write_text(self.out, *depth, node),
            Form::Json(open) => {
                separate(self.out, open)?;
                serde_json::to_writer(&mut *self.out, &json_of(node)).map_err(io::Error::from)
            }
        }
    }
}

fn separate(out: &mut dyn Write, open: &mut [bool]) -> io::Result<()> {
    let top = open.len() == 1;
    if let Some(filled) = open.last_mut() {
        if *filled {
            out.write_all(b",")?;
        }
        *filled = true;
    }
    if top { out.write_all(b"\n") } else { Ok(()) }
}

fn json_of(node: &Node<'_>) -> Value {
    let mut object = Map::new();
    object.insert("what".to_owned(), json!(node.what));
    object.insert("offset".to_owned(), json!(node.offset));
    for field in &node.fields {
        object.insert(field.name.to_owned(), field.value.clone());
        if !field.meaning.is_empty() {
            object.insert(format!("{}_name", field.name), json!(field.meaning));
        }
    }
    if let Some((_, bytes)) = node.bytes {
        let mut hex = String::with_capacity(2 * bytes.len());
        for digit in bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]) {
            hex.extend(char::from_digit(digit.into(), 16));
        }
        object.insert("hex".to_owned(), json!(hex));
    }
    Value::Object(object)
}

fn write_text(out: &mut dyn Write, depth: usize, node: &Node<'_>) -> io::Result<()> {
    let indent = 2 * depth;
    write!(out, "{:#06x} {:indent$}{}", node.offset, "", node.what)?;
    for (index, field) in node.fields.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(out, "{comma} {} {}", field.name, field.text)?;
        if !field.meaning.is_empty() {
            write!(out, " ({})", field.meaning)?;
        }
    }
    match node.bytes {
        None | Some((_, [])) => writeln!(out),
        Some((_, bytes)) if bytes.len() <= DUMP_LINE_BYTES => writeln!(out, "  {}", Dump(bytes, 0)),
        Some((offset, bytes)) => {
            writeln!(out)?;
            for (index, line) in bytes.chunks(DUMP_LINE_BYTES).enumerate() {
                let at = offset + index * DUMP_LINE_BYTES;
                writeln!(out, "{at:#06x} {:indent$}  {}", "", Dump(line, DUMP_LINE_BYTES))?;
            }
            Ok(())
        }
    }
}

/// Bytes as hex, in a column as wide as so many bytes, and as text.
struct Dump<'a>(&'a [u8], usize);

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x} ")?;
        }
        write!(f, "{:width$} |", "", width = 3 * self.1.saturating_sub(self.0.len()))?;
        for byte in self.0 {
            f.write_char(if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '.' })?;
        }
        f.write_char('|')
    }
}
