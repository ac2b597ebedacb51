//! The `nlbus` command: parse, set up logging, call the library.

#[allow(dead_code, reason = "nothing calls it yet")]
mod show;

fn main() {}
