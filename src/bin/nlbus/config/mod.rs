//! Configuration files: TOML, one kind for `serve` and one for the commands that connect.
//!
//! The command line goes before the environment, that before the file, and that before the default. A key
//! that is not known is an error. A relative path is relative to the directory of the file.

mod access;
mod user;

pub(crate) use access::AccessRows;
pub(crate) use user::{Group, User};

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nlbus::url::BusUrl;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::serve::{SocketMode, Subsystem};

/// The longest configuration file that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// The file of `nlbus serve`, and what it says.
#[derive(Clone, Debug)]
pub(crate) struct ServeConfig {
    pub(crate) path: PathBuf,
    pub(crate) file: ServeFile,
}

/// What the file of `nlbus serve` can say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServeFile {
    /// URLs.
    pub(crate) listen: Vec<FileUrl>,
    /// NAME=netlink:PROTOCOL.
    pub(crate) subsystems: Vec<Text<Subsystem>>,
    pub(crate) netns: Option<String>,
    pub(crate) allow_write: bool,
    pub(crate) insecure: bool,
    /// What this broker is called by others.
    pub(crate) name: Option<String>,
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) uplink: Vec<UplinkTable>,
    pub(crate) queues: bool,
    pub(crate) state: Option<PathBuf>,
    pub(crate) state_max: Option<u64>,
    pub(crate) allow_shutdown: bool,
    pub(crate) queues_managed: bool,
    pub(crate) chaos_duplicate: Option<u32>,
    pub(crate) pidfile: Option<PathBuf>,
    /// In octal, so a string.
    pub(crate) socket_mode: Option<Text<SocketMode>>,
    pub(crate) socket_user: Option<Text<User>>,
    pub(crate) socket_group: Option<Text<Group>>,
    pub(crate) metrics: Option<FileUrl>,
    pub(crate) tls: TlsKeys,
    pub(crate) access: AccessRows,
}

/// A table `uplink`: another broker.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UplinkTable {
    pub(crate) url: FileUrl,
    pub(crate) name: Option<String>,
    /// Subsystems of this broker that are provided there.
    #[serde(default)]
    pub(crate) export: Vec<String>,
    /// Those of them that the other broker may have changed.
    #[serde(default)]
    pub(crate) write: Vec<String>,
    /// Who may not have `SUBSYSTEM@NAME` changed does not reach it.
    #[serde(default)]
    pub(crate) for_writers: bool,
    pub(crate) server_name: Option<String>,
    #[serde(default)]
    pub(crate) tls: TlsKeys,
}

/// What the file of a command that connects says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ClientFile {
    pub(crate) url: Option<FileUrl>,
    pub(crate) timeout: Option<Seconds>,
    pub(crate) server_name: Option<String>,
    pub(crate) tls: TlsKeys,
}

/// The table `tls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TlsKeys {
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
}

impl ServeConfig {
    /// Reads and checks the file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut file: ServeFile = read(path)?;
        let directory = directory(path);
        file.tls.settle(directory);
        for uplink in &mut file.uplink {
            uplink.tls.settle(directory);
        }
        if let Some(path) = &mut file.secret_file {
            *path = directory.join(&*path);
        }
        file.state = file.state.map(|state| match crate::serve::cluster_url(&state) {
            Some(_) => state,
            None => directory.join(state),
        });
        file.pidfile = file.pidfile.map(|pidfile| directory.join(pidfile));
        // a name of `ip netns` has no slash in it
        if let Some(netns) = file.netns.as_mut().filter(|netns| netns.contains('/')) {
            *netns = directory.join(&*netns).to_string_lossy().into_owned();
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// For the command line.
    pub(crate) fn parse(path: &str) -> Result<Self, ConfigError> {
        Self::read(Path::new(path))
    }
}

impl ClientFile {
    /// For the command line.
    pub(crate) fn parse(path: &str) -> Result<Self, ConfigError> {
        let path = Path::new(path);
        let mut file: Self = read(path)?;
        file.tls.settle(directory(path));
        Ok(file)
    }
}

impl TlsKeys {
    fn settle(&mut self, directory: &Path) {
        for path in [&mut self.cert, &mut self.key, &mut self.ca].into_iter().flatten() {
            *path = directory.join(&*path);
        }
    }
}

/// Why a configuration file cannot be used. The text is one line, causes included.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("{}: cannot read it: {reason}", path.display())]
    Read { path: PathBuf, reason: io::Error },
    #[error("{}: longer than {CONFIG_BYTES_MAX} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("{}:{line}: {}{text}", path.display(), place(key))]
    Wrong { path: PathBuf, line: usize, key: String, text: String },
}

fn place(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{key}: ") }
}

impl ConfigError {
    fn new(path: &Path, text: &str, mut error: toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let message = error.message().replace('\n', ", ");
        // toml tells where it was only as the last line of its text, and only without its input
        error.set_input(None);
        let whole = error.to_string();
        let key = whole.lines().last().and_then(|line| line.strip_prefix("in `"));
        let key = key.and_then(|key| key.strip_suffix('`')).unwrap_or_default().to_owned();
        Self::Wrong { path: path.to_owned(), line, key, text: message }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|reason| ConfigError::Read { path: path.to_owned(), reason })?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    toml::from_str(&text).map_err(|error| ConfigError::new(path, &text, error))
}

/// A value that stands in the file as a string, and on the command line as it is.
#[derive(Clone, Debug)]
pub(crate) struct Text<T>(pub(crate) T);

impl<'de, T: FromStr<Err: std::fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

/// A URL. A unix socket has an absolute path: unlike other paths, a URL is the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct FileUrl(pub(crate) BusUrl);

impl<'de> Deserialize<'de> for FileUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(url) = Text::<BusUrl>::deserialize(deserializer)?;
        let path = url.unix_address().and_then(|address| address.path());
        if path.is_some_and(Path::is_relative) {
            let text = format!("{url}: the path of a unix socket in a file has to be absolute");
            return Err(D::Error::custom(text));
        }
        Ok(Self(url))
    }
}

/// A time in seconds, with a fraction if need be; above 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seconds(pub(crate) Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        crate::connect::seconds(&number.to_string()).map(Self).map_err(D::Error::custom)
    }
}
