//! SIGHUP and RELOAD: certificates, access list and secret anew, for connections to come.

use anyhow::Context as _;
use tracing::{error, info};

use super::Server;
use crate::config::{AccessRows, ServeConfig};
use crate::exit::one_line;
use crate::secret;

impl Server {
    /// Reads the certificates, the access list and the secret again. What cannot be used stays as it was;
    /// links that are up keep what they have.
    ///
    /// # Errors
    /// What could not be used, in one line; the log says it too.
    pub(super) async fn reload(&mut self) -> Result<(), String> {
        let certificates = self.reload_certificates().await;
        let access = self.reload_access().await;
        let secret = self.reload_secret().await;
        let outcomes =
            [("certificates", certificates), ("access list", access), ("secret", secret)];
        let failures = outcomes.into_iter().filter_map(|(what, outcome)| report(what, outcome));
        let failures: Vec<String> = failures.collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    /// Whether there is any to read.
    async fn reload_certificates(&self) -> anyhow::Result<bool> {
        let node = self.node.clone();
        let outcomes = tokio::task::spawn_blocking(move || node.reload_tls()).await?;
        let any = !outcomes.is_empty();
        let failures = outcomes.into_iter().filter_map(Result::err);
        let mut failures: Vec<_> = failures.map(|error| one_line(&error.into())).collect();
        failures.sort();
        failures.dedup();
        if failures.is_empty() { Ok(any) } else { Err(anyhow::anyhow!(failures.join("; "))) }
    }

    async fn reload_access(&mut self) -> anyhow::Result<bool> {
        let Some(path) = self.path.clone() else { return Ok(false) };
        let config = tokio::task::spawn_blocking(move || ServeConfig::read(&path)).await??;
        let access: AccessRows = config.file.access;
        self.let_in(access).await.context("cannot let somebody write")?;
        Ok(true)
    }

    async fn reload_secret(&self) -> anyhow::Result<bool> {
        let Some(path) = self.settings.secret_file.clone() else { return Ok(false) };
        let secret = tokio::task::spawn_blocking(move || secret::read(&path)).await??;
        self.node.set_secret(Some(&secret));
        Ok(true)
    }
}

/// Tells the log; what went wrong, if anything did.
fn report(what: &str, outcome: anyhow::Result<bool>) -> Option<String> {
    match outcome {
        Ok(true) => {
            info!("read again: {what}");
            None
        }
        Ok(false) => None,
        Err(failure) => {
            let failure = one_line(&failure);
            error!(error = failure, "not read again, as before: {what}");
            Some(format!("{what}: {failure}"))
        }
    }
}
