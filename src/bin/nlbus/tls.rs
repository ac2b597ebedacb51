//! The certificate options of every command that serves or connects.

use std::path::PathBuf;

use nlbus::transport::TlsFiles;
use nlbus::url::BusUrl;

use crate::config::TlsKeys;
use crate::exit::UsageError;

/// Certificates for `tls://` and `unix+tls://`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsArgs {
    /// This side's certificate, then those between it and the authority: a PEM file.
    #[arg(long, value_name = "FILE", env = "NLBUS_CERT", hide_env_values = true)]
    cert: Option<PathBuf>,
    /// The private key of that certificate, without a passphrase: a PEM file.
    #[arg(long = "key", id = "key", value_name = "FILE", env = KEY_VARIABLE, hide_env_values = true)]
    keys: Vec<PathBuf>,
    /// The authorities that may have signed the other side's certificate: a PEM file.
    #[arg(long, value_name = "FILE", env = "NLBUS_CA", hide_env_values = true)]
    ca: Option<PathBuf>,
}

/// The environment variable of `--key`.
const KEY_VARIABLE: &str = "NLBUS_KEY";

impl TlsArgs {
    /// Takes the conditions out of what was given as `--key`, for `subscribe`, where the option means a
    /// condition too: `OFFSET:KEY:MASK` has a colon. A file with a colon in its path is told apart by
    /// a slash or a dot at its beginning.
    pub(crate) fn take_conditions(&mut self, url: &BusUrl) -> Result<Vec<String>, UsageError> {
        let mut conditions = Vec::new();
        let variable = std::env::var_os(KEY_VARIABLE).map(PathBuf::from);
        for given in std::mem::take(&mut self.keys) {
            match given.to_str() {
                Some(text) if text.contains(':') && !text.starts_with(['/', '.']) => {
                    conditions.push(text.to_owned());
                }
                _ if !url.is_tls() && variable.as_ref() != Some(&given) => {
                    return Err(UsageError(format!(
                        "--key {} is not OFFSET:KEY:MASK, and {url} needs no file with a key",
                        given.display()
                    )));
                }
                _ => self.keys.push(given),
            }
        }
        if self.keys.is_empty() {
            // a condition on the command line has kept clap from looking there
            self.keys.extend(variable);
        }
        Ok(conditions)
    }

    /// The files for `url`: those of the command line and the environment, else those of the file.
    pub(crate) fn files(&self, url: &BusUrl, file: &TlsKeys) -> Result<TlsFiles, UsageError> {
        let cert = self.cert.as_ref().or(file.cert.as_ref());
        let key = match self.keys.as_slice() {
            [] => file.key.as_ref(),
            [key] => Some(key),
            _ => return Err(UsageError("--key is given more than once".to_owned())),
        };
        let ca = self.ca.as_ref().or(file.ca.as_ref());
        match (cert, key, ca) {
            (Some(cert), Some(key), Some(ca)) => {
                Ok(TlsFiles { certificate: cert.clone(), key: key.clone(), ca: ca.clone() })
            }
            _ => {
                let options = [(cert, "--cert"), (key, "--key"), (ca, "--ca")];
                let missing = options.iter().filter(|(given, _)| given.is_none());
                let missing: Vec<&str> = missing.map(|(_, option)| *option).collect();
                Err(UsageError(format!(
                    "{url} needs certificates: {} missing (or in the table [tls] of a --config file)",
                    missing.join(", ")
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(keys: &[&str]) -> TlsArgs {
        TlsArgs { keys: keys.iter().map(PathBuf::from).collect(), ..TlsArgs::default() }
    }

    #[test]
    fn conditions_are_told_from_files_by_their_colon() {
        let url = "tls://localhost".parse().unwrap();
        let mut args = given(&["0:1:0xff", "/a:b.key", "4:5:6"]);
        assert_eq!(args.take_conditions(&url).unwrap(), ["0:1:0xff", "4:5:6"]);
        assert_eq!(args.keys, [PathBuf::from("/a:b.key")]);
    }

    #[test]
    fn a_key_that_is_neither_condition_nor_needed_is_refused() {
        let url = "tcp://localhost".parse().unwrap();
        let error = given(&["5"]).take_conditions(&url).unwrap_err().to_string();
        assert!(error.contains("OFFSET:KEY:MASK"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named_and_the_file_fills_in() {
        let url = "tls://localhost".parse().unwrap();
        let error = given(&["a.key"]).files(&url, &TlsKeys::default()).unwrap_err().to_string();
        assert!(error.contains("--cert, --ca missing"), "{error}");
        let path = |name: &str| Some(PathBuf::from(name));
        let file = TlsKeys { cert: path("f.crt"), key: path("f.key"), ca: path("f-ca.crt") };
        let files = given(&["a.key"]).files(&url, &file).unwrap();
        assert_eq!((files.key, files.ca), (PathBuf::from("a.key"), PathBuf::from("f-ca.crt")));
    }
}
