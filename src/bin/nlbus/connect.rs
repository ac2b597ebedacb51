//! What every command that talks to a broker has in common.

use std::time::Duration;

use nlbus::endpoint::{ConnectOptions, Endpoint, REQUEST_DEADLINE, RequestOptions};
use nlbus::transport::TlsClient;
use nlbus::url::BusUrl;

use crate::config::ClientFile;
use crate::exit::UsageError;
use crate::tls::TlsArgs;

/// Where the broker is.
#[derive(Clone, Debug, Default, clap::Args)]
// `nlbus ctl connect` is a group of that name already
#[group(skip)]
pub(crate) struct Connect {
    /// URL of the broker [default: tcp://127.0.0.1:9824].
    #[arg(short, long, env = "NLBUS_URL")]
    url: Option<BusUrl>,
    /// How long connecting, a command to the broker and a request may take, each, in seconds [default: 5].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// A TOML file with defaults: `url`, `timeout`, `server_name`, and `cert`, `key` and `ca` under `[tls]`.
    #[arg(long, value_name = "FILE", value_parser = ClientFile::parse)]
    config: Option<ClientFile>,
    #[command(flatten)]
    tls: TlsArgs,
    /// The name that the broker's certificate must have; default: the host of the URL. A unix socket has
    /// none, so there it must be given.
    #[arg(long, value_name = "NAME", env = "NLBUS_SERVER_NAME", help_heading = "TLS")]
    server_name: Option<String>,
}

/// Where `serve` listens and the other commands connect to, unless told otherwise.
pub(crate) const DEFAULT_URL: &str = "tcp://127.0.0.1:9824";

/// [`DEFAULT_URL`] as a URL.
pub(crate) fn default_url() -> BusUrl {
    DEFAULT_URL.parse().unwrap_or_else(|_| unreachable!("a test parses it"))
}

impl Connect {
    /// Connects.
    pub(crate) async fn endpoint(&self) -> anyhow::Result<Endpoint> {
        Ok(Endpoint::connect_with(&self.url(), &self.options()?).await?)
    }

    /// Where the broker is.
    pub(crate) fn url(&self) -> BusUrl {
        let file = self.config.as_ref().and_then(|file| file.url.as_ref());
        self.url.as_ref().or(file.map(|url| &url.0)).cloned().unwrap_or_else(default_url)
    }

    /// What of `--key` is no file, see [`TlsArgs::take_conditions`].
    pub(crate) fn take_conditions(&mut self) -> Result<Vec<String>, UsageError> {
        let url = self.url();
        self.tls.take_conditions(&url)
    }

    /// How it is reached. Reads the certificates if the URL needs them.
    pub(crate) fn options(&self) -> anyhow::Result<ConnectOptions> {
        let mut options = ConnectOptions::default();
        if let Some(given) = self.timeout_given() {
            options.dial.connect_timeout = given;
            options.command_max = Some(given);
        }
        let url = self.url();
        if url.is_tls() {
            let file = self.config.clone().unwrap_or_default();
            options.dial.tls = Some(TlsClient::load(self.tls.files(&url, &file.tls)?)?);
            options.dial.server_name = self.server_name.clone().or(file.server_name);
            if url.host().is_none() && options.dial.server_name.is_none() {
                let text = format!(
                    "{url} has no host whose name its certificate could have: --server-name NAME is \
                     missing (or server_name in a --config file)"
                );
                return Err(UsageError(text).into());
            }
        }
        Ok(options)
    }

    /// How long a request may take.
    pub(crate) fn timeout(&self) -> Duration {
        let file = self.config.as_ref().and_then(|file| file.timeout);
        self.timeout.or(file.map(|timeout| timeout.0)).unwrap_or(REQUEST_DEADLINE)
    }

    /// How long a request may take, if that was said.
    pub(crate) fn timeout_given(&self) -> Option<Duration> {
        let file = self.config.as_ref().and_then(|file| file.timeout);
        self.timeout.or(file.map(|timeout| timeout.0))
    }

    /// What a request gets.
    pub(crate) fn request_options(&self) -> RequestOptions {
        RequestOptions::default().deadline(self.timeout())
    }
}

/// Seconds, with a fraction if need be; above 0.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a number of seconds above 0, such as 5 or 0.5");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_default_url_is_a_url() {
        assert_eq!(super::default_url().to_string(), super::DEFAULT_URL);
    }
}
