//! `docs/message-switch.md` is whole: each row of the list is there, and each test that it names.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

/// The rows that there are.
const ROWS: [(char, RangeInclusive<u32>); 5] =
    [('M', 1..=8), ('M', 10..=26), ('M', 30..=36), ('M', 40..=51), ('C', 1..=10)];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Each row: its number, and its last column.
fn rows(page: &str) -> Vec<(String, String)> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = rows.filter_map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        let number = cells.first()?.split(' ').next()?;
        let digits = number.strip_prefix(['M', 'C'])?;
        let is_row = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        is_row.then(|| (number.to_owned(), cells.last().unwrap().to_string()))
    });
    rows.collect()
}

/// `file.rs::function` in back quotes.
fn tests(cell: &str) -> Vec<(&str, &str)> {
    cell.split('`').filter_map(|part| part.split_once("::")).collect()
}

#[test]
fn every_row_of_the_list_is_in_the_table_once_and_has_a_test() {
    let page = read("docs/message-switch.md");
    let found = rows(&page);
    let numbers: Vec<&str> = found.iter().map(|(number, _)| number.as_str()).collect();
    let wanted = ROWS
        .into_iter()
        .flat_map(|(letter, numbers)| numbers.map(move |number| format!("{letter}{number}")));
    assert_eq!(numbers, wanted.collect::<Vec<_>>());
    for (number, cell) in &found {
        assert!(!tests(cell).is_empty(), "{number} names no test: {cell}");
    }
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let page = read("docs/message-switch.md");
    for (number, cell) in rows(&page) {
        for (file, function) in tests(&cell) {
            let source = read(&format!("tests/{file}"));
            let declared = source
                .split("fn ")
                .skip(1)
                .any(|rest| rest.strip_prefix(function).is_some_and(|rest| rest.starts_with('(')));
            assert!(declared, "{number}: there is no {function} in {file}");
        }
    }
}

#[test]
fn every_test_of_a_row_is_in_the_table() {
    let page = read("docs/message-switch.md");
    let found = rows(&page);
    let named: BTreeSet<&str> =
        found.iter().flat_map(|(_, cell)| tests(cell)).map(|(_, function)| function).collect();
    for file in ["rows_broker.rs", "rows_queues.rs", "rows_clients.rs", "rows_cli.rs"] {
        let source = read(&format!("tests/{file}"));
        for rest in source.split("fn ").skip(1) {
            let function = rest.split('(').next().unwrap();
            let letter = function.starts_with(['m', 'c']);
            let of_row = letter && function[1..].starts_with(|c: char| c.is_ascii_digit());
            assert!(!of_row || named.contains(function), "{function} in {file}");
        }
    }
}
