//! What `serve` is to others on this machine: files it leaves, who may open its sockets, what it measures.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;

use crate::config::{Group, ServeFile, User};
use crate::replace::replace;

#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Process")]
pub(crate) struct ProcessArgs {
    /// Read and check everything that was given here and in the configuration file, start nothing, and end with 0 if
    /// `serve` could.
    #[arg(long)]
    pub(super) check_config: bool,
    /// Write the process id to this file once all URLs are served, and remove it at the end.
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Permissions of unix sockets, in octal: who may write may connect [default: as the umask says].
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<SocketMode>,
    /// The user that unix sockets belong to, by name or number.
    #[arg(long, value_name = "USER")]
    socket_user: Option<User>,
    /// The group likewise.
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<Group>,
    /// Answer GET /metrics here over HTTP, for Prometheus: tcp://127.0.0.1:9825, unix://PATH, tls://HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub(super) metrics: Option<BusUrl>,
}

impl ProcessArgs {
    /// What the command line does not say, the file may.
    pub(super) fn or(self, file: &ServeFile) -> Self {
        Self {
            check_config: self.check_config,
            pidfile: self.pidfile.or_else(|| file.pidfile.clone()),
            socket_mode: self.socket_mode.or(file.socket_mode.as_ref().map(|mode| mode.0)),
            socket_user: self.socket_user.or(file.socket_user.as_ref().map(|user| user.0)),
            socket_group: self.socket_group.or(file.socket_group.as_ref().map(|group| group.0)),
            metrics: self.metrics.or_else(|| file.metrics.as_ref().map(|url| url.0.clone())),
        }
    }

    /// Who may open the sockets.
    pub(super) fn own(&self, options: &mut ListenOptions) {
        options.unix_mode = self.socket_mode.map(|mode| mode.0);
        options.unix_user = self.socket_user.map(|user| user.id);
        options.unix_group = self.socket_group.map(|group| group.id);
    }

    /// Writes the process id, if that is wanted.
    pub(super) fn pidfile(&self) -> anyhow::Result<Option<Pidfile>> {
        self.pidfile.as_deref().map(Pidfile::write).transpose()
    }
}

/// As for chmod(1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketMode(u32);

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = !text.is_empty() && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
        match u32::from_str_radix(text, 8) {
            Ok(mode @ 0..=0o777) if digits => Ok(Self(mode)),
            _ => Err(format!("{text:?} is no mode from 0 to 0777, in octal")),
        }
    }
}

/// A file with the process id. It is removed when this is dropped, unless another process has taken it.
pub(super) struct Pidfile {
    path: PathBuf,
    content: String,
}

impl Pidfile {
    fn write(path: &Path) -> anyhow::Result<Self> {
        // the working directory may be another one at the end
        let path = std::path::absolute(path)?;
        let content = format!("{}\n", std::process::id());
        replace(&path, content.as_bytes())
            .with_context(|| format!("cannot write the process id to {}", path.display()))?;
        Ok(Self { path, content })
    }

    fn remove(&self) -> io::Result<()> {
        if fs::read_to_string(&self.path)? == self.content {
            fs::remove_file(&self.path)?;
        }
        Ok(())
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, path = %self.path.display(), "the pidfile is not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SocketMode;

    #[test]
    fn a_mode_is_octal_and_has_nine_bits() {
        assert_eq!("0660".parse::<SocketMode>().unwrap().0, 0o660);
        assert_eq!("777".parse::<SocketMode>().unwrap().0, 0o777);
        for wrong in ["", "8", "1000", "-1", "+7", "0o660", "rw"] {
            assert!(wrong.parse::<SocketMode>().is_err(), "{wrong:?}");
        }
    }
}
