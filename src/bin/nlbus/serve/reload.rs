//! SIGHUP: certificates and access list anew, for connections to come.

use anyhow::Context as _;
use tracing::{error, info};

use super::Server;
use crate::config::{AccessRows, ServeConfig};
use crate::exit::one_line;

impl Server {
    /// Reads the certificates and the access list again. What cannot be used stays as it was; links that are
    /// up keep what they have.
    pub(super) async fn reload(&mut self) {
        let certificates = self.reload_certificates().await;
        report("certificates", certificates);
        let access = self.reload_access().await;
        report("access list", access);
    }

    /// Whether there is any to read.
    async fn reload_certificates(&self) -> anyhow::Result<bool> {
        let Some(tls) = self.settings.tls.clone() else { return Ok(false) };
        tokio::task::spawn_blocking(move || tls.reload()).await??;
        Ok(true)
    }

    async fn reload_access(&mut self) -> anyhow::Result<bool> {
        let Some(path) = self.path.clone() else { return Ok(false) };
        let config = tokio::task::spawn_blocking(move || ServeConfig::read(&path)).await??;
        let access: AccessRows = config.file.access;
        self.let_in(access).await.context("cannot let somebody write")?;
        Ok(true)
    }
}

fn report(what: &str, outcome: anyhow::Result<bool>) {
    match outcome {
        Ok(true) => info!("read again: {what}"),
        Ok(false) => {}
        Err(failure) => error!(error = one_line(&failure), "not read again, as before: {what}"),
    }
}
