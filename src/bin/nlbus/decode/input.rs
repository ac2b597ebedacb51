//! Bytes from text: plain hex and the dumps that common tools print.

use thiserror::Error;

/// Why text is not hex; lines count from 1.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum HexError {
    #[error("line {line}: {found:?} is not a hex digit")]
    NotADigit { line: usize, found: char },
    #[error("line {line}: a prefixed number needs an even number of digits")]
    PrefixedOdd { line: usize },
    #[error("the number of hex digits is odd")]
    Odd,
    #[error(
        "line {line}: the dump goes on at offset {found:#x}, but only {expected:#x} bytes came before"
    )]
    Gap { line: usize, found: usize, expected: usize },
    #[error(
        "line {line}: `*` stands for lines that were left out; dump again with `hexdump -v -C`"
    )]
    Squeezed { line: usize },
}

/// Whether `bytes` are printable text. A netlink message never is: its length field would be above 2^27.
pub(crate) fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t'..=b'\r'))
}

/// Reads hex. Each line is taken for what it looks like:
///
/// | line | is |
/// |---|---|
/// | `00000010: 0300 0100  ....` | `xxd`, `tcpdump -x`: an offset with a colon, groups, two spaces, text |
/// | `00000010  03 00 \|..\|` | `hexdump -C`: an offset, bytes, text between bars; an offset alone ends it |
/// | `0x03, 0x00` and `\x03\x00` | numbers with a prefix, each of an even number of digits |
/// | `0300 01 00` | digits; white space, commas and quotes mean nothing |
///
/// An offset must continue the dump that it belongs to; offset 0 begins a new one.
pub(crate) fn from_hex(text: &[u8]) -> Result<Vec<u8>, HexError> {
    let mut digits = Digits::default();
    let mut dump_start = 0;
    let mut canonical = false;
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line_number = index + 1;
        let line = line.trim_ascii();
        if line == b"*" {
            return Err(HexError::Squeezed { line: line_number });
        }
        let expected = digits.bytes.len() - dump_start;
        let Some((offset, groups)) = dump_line(line) else {
            if !(canonical && line == format!("{expected:08x}").as_bytes()) {
                digits.plain(line, line_number)?;
            }
            continue;
        };
        canonical = line.contains(&b'|');
        if offset == 0 {
            dump_start = digits.bytes.len();
        }
        let expected = digits.bytes.len() - dump_start;
        if offset != expected || digits.half.is_some() {
            return Err(HexError::Gap { line: line_number, found: offset, expected });
        }
        digits.plain(groups, line_number)?;
    }
    match digits.half {
        None => Ok(digits.bytes),
        Some(_) => Err(HexError::Odd),
    }
}

/// The offset and the hex groups of a line that a dump tool wrote.
fn dump_line(line: &[u8]) -> Option<(usize, &[u8])> {
    let number = line.strip_prefix(b"0x").unwrap_or(line);
    let digits = number.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, rest) = number.split_at(digits);
    if !(4..=8).contains(&digits) {
        return None;
    }
    let offset = usize::from_str_radix(str::from_utf8(number).ok()?, 16).ok()?;
    if let Some(rest) = rest.strip_prefix(b":") {
        let groups = rest.trim_ascii_start();
        let end = groups.windows(2).position(|pair| pair == b"  ").unwrap_or(groups.len());
        return Some((offset, &groups[..end]));
    }
    let bar = rest.iter().position(|byte| *byte == b'|')?;
    (digits == 8 && rest.starts_with(b"  ")).then_some((offset, &rest[..bar]))
}

#[derive(Default)]
struct Digits {
    bytes: Vec<u8>,
    /// The high half of a byte whose low half has not come yet.
    half: Option<u8>,
}

impl Digits {
    fn plain(&mut self, line: &[u8], line_number: usize) -> Result<(), HexError> {
        let separator = |byte: &u8| byte.is_ascii_whitespace() || b",;\"'{}".contains(byte);
        for token in line.split(separator).filter(|token| !token.is_empty()) {
            if let Some(number) = token.strip_prefix(b"0x").or(token.strip_prefix(b"0X")) {
                self.prefixed(number, line_number)?;
            } else if let Some(numbers) = token.strip_prefix(b"\\x") {
                let mut numbers = numbers;
                while let Some(at) = numbers.windows(2).position(|pair| pair == b"\\x") {
                    self.prefixed(&numbers[..at], line_number)?;
                    numbers = &numbers[at + 2..];
                }
                self.prefixed(numbers, line_number)?;
            } else {
                self.push(token, line_number)?;
            }
        }
        Ok(())
    }

    fn prefixed(&mut self, number: &[u8], line: usize) -> Result<(), HexError> {
        if self.half.is_some() || number.is_empty() || !number.len().is_multiple_of(2) {
            return Err(HexError::PrefixedOdd { line });
        }
        self.push(number, line)
    }

    fn push(&mut self, digits: &[u8], line: usize) -> Result<(), HexError> {
        for byte in digits {
            let found = char::from(*byte);
            let digit = found.to_digit(16).ok_or(HexError::NotADigit { line, found })? as u8;
            match self.half.take() {
                None => self.half = Some(digit << 4),
                Some(high) => self.bytes.push(high | digit),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, bytes: &[u8]) {
        assert_eq!(from_hex(text.as_bytes()).as_deref(), Ok(bytes), "{text}");
    }

    #[track_caller]
    fn refuses(text: &str, error: HexError) {
        assert_eq!(from_hex(text.as_bytes()), Err(error), "{text}");
    }

    #[test]
    fn digits_may_be_grouped_in_any_way() {
        reads("", &[]);
        reads(" 3400 00\t00\r\n0 f\n", &[0x34, 0, 0, 0, 0x0f]);
        reads("0x3400000F", &[0x34, 0, 0, 0x0f]);
        reads("0x34, 0x00,\n0XfF", &[0x34, 0, 0xff]);
        reads(r#""\x34\x00\xff""#, &[0x34, 0, 0xff]);
    }

    #[test]
    fn dumps_of_common_tools_are_read_without_their_offsets_and_text() {
        reads(
            "00000000: 3400 0000 0f00 0000 feff 0000 036d 0000  4............m..\n\
             00000010: 0300 01                                  ...\n",
            &[0x34, 0, 0, 0, 0xf, 0, 0, 0, 0xfe, 0xff, 0, 0, 3, 0x6d, 0, 0, 3, 0, 1],
        );
        reads(
            "00000000  34 00 00 00 0f 00 00 00  fe ff 00 00 03 6d 00 00  |4..| 00..|\n\
             00000010  03 00 01                                          |...|\n\
             00000013\n",
            &[0x34, 0, 0, 0, 0xf, 0, 0, 0, 0xfe, 0xff, 0, 0, 3, 0x6d, 0, 0, 3, 0, 1],
        );
        reads(
            "\t0x0000:  3400 0000\n\t0x0004:  0f00\n\t0x0000:  01\n",
            &[0x34, 0, 0, 0, 0xf, 0, 1],
        );
    }

    #[test]
    fn an_offset_alone_ends_a_canonical_dump_and_no_other() {
        reads("00000000  34 00  |4.|\n00000002\n", &[0x34, 0]);
        reads("00000000  34 00  |4.|\n00000003\n", &[0x34, 0, 0, 0, 0, 3]);
        reads("34 00\n00000002\n", &[0x34, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn a_dump_that_leaves_bytes_out_is_refused() {
        let first = "00000000  34 00  |4.|\n";
        refuses(&format!("{first}*\n"), HexError::Squeezed { line: 2 });
        refuses(
            &format!("{first}00000010  34 00  |4.|\n"),
            HexError::Gap { line: 2, found: 0x10, expected: 2 },
        );
    }

    #[test]
    fn what_is_not_hex_is_named_with_its_line() {
        refuses("34\n3g", HexError::NotADigit { line: 2, found: 'g' });
        refuses("345", HexError::Odd);
        refuses("0x4, 0x0", HexError::PrefixedOdd { line: 1 });
        refuses("3 0x40", HexError::PrefixedOdd { line: 1 });
        refuses(r"\x", HexError::PrefixedOdd { line: 1 });
    }

    #[test]
    fn binary_is_not_taken_for_text() {
        assert!(is_text(b"34 00\r\n\t0f"));
        assert!(!is_text(&[0x34, 0, 0, 0, 0x0f, 0, 0, 0]));
        assert!(!is_text("34 \u{e9}".as_bytes()));
    }
}
