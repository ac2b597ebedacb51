//! The `nlbus` command: parse, set up logging, call the library.
fn main() {}
