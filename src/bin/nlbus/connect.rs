//! What every command that talks to a broker has in common.

use std::time::Duration;

use nlbus::endpoint::{ConnectError, Endpoint, REQUEST_DEADLINE, RequestOptions};
use nlbus::url::BusUrl;

/// Where the broker is.
#[derive(Debug, clap::Args)]
pub(crate) struct Connect {
    /// URL of the broker.
    #[arg(short, long, env = "NLBUS_URL", default_value = DEFAULT_URL)]
    pub(crate) url: BusUrl,
    /// How long a request may take, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    pub(crate) timeout: Duration,
}

/// Where `serve` listens and the other commands connect to, unless told otherwise.
pub(crate) const DEFAULT_URL: &str = "tcp://127.0.0.1:9824";

impl Connect {
    /// Connects.
    pub(crate) async fn endpoint(&self) -> Result<Endpoint, ConnectError> {
        Endpoint::connect(&self.url).await
    }

    /// What a request gets.
    pub(crate) fn request_options(&self) -> RequestOptions {
        RequestOptions::default().deadline(self.timeout)
    }
}

impl Default for Connect {
    fn default() -> Self {
        let url = DEFAULT_URL.parse().unwrap_or_else(|_| unreachable!("a test parses it"));
        Self { url, timeout: REQUEST_DEADLINE }
    }
}

/// Seconds, with a fraction if need be; above 0.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a number of seconds above 0, such as 5 or 0.5");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero()).ok_or_else(wrong)
}
