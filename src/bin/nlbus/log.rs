//! The log: where it goes and what is in it.

use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

type Set = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// Replaces the filter.
static SET: OnceLock<Set> = OnceLock::new();

/// Starts it, on standard error. A server tells of its links without being asked; the other commands only of
/// what is wrong.
pub(crate) fn start(verbose: u8, server: bool) {
    let level = match verbose + u8::from(server) {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("NLBUS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_filter_reloading();
    let handle = log.reload_handle();
    let set = move |filter| handle.reload(filter).map_err(|error| error.to_string());
    let _ = SET.set(Box::new(set));
    log.init();
}

/// Logs what `directives` say from now on.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn set(directives: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(directives)
        .map_err(|error| format!("{directives:?} is no log level: {error}"))?;
    SET.get().map_or(Ok(()), |set| set(filter))
}
