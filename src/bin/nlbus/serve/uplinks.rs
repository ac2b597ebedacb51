//! Links to other brokers: from the command line and the configuration file.

use nlbus::broker::{Access, Export, Names, Rights};
use nlbus::node::UplinkOptions;
use nlbus::transport::{TlsClient, TlsFiles};
use nlbus::url::BusUrl;
use nlbus::wire::mode;

use crate::config::{TlsKeys, UplinkTable};
use crate::exit::UsageError;
use crate::tls::TlsArgs;

/// An uplink as the command line has it: `[NAME=]URL`.
#[derive(Clone, Debug)]
pub(crate) struct Uplink {
    name: String,
    url: BusUrl,
}

impl std::str::FromStr for Uplink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, url) = match text.split_once('=') {
            // a URL may have one too, behind its scheme
            Some((name, url)) if !name.contains("://") => (name, url),
            _ => ("", text),
        };
        if name.is_empty() && text.starts_with('=') {
            return Err(format!("the name in {text:?} is empty; write [NAME=]URL"));
        }
        let url = url.parse().map_err(|error: nlbus::url::UrlError| error.to_string())?;
        Ok(Self { name: name.to_owned(), url })
    }
}

/// An uplink, ready to be made.
#[derive(Clone, Debug)]
pub(super) struct UplinkSetting {
    pub(super) url: BusUrl,
    pub(super) options: UplinkOptions,
}

impl UplinkSetting {
    /// One of the command line, which exports `exports`.
    pub(super) fn given(
        uplink: Uplink,
        exports: &[String],
        node: &str,
        files: impl FnOnce(&BusUrl) -> Result<TlsFiles, UsageError>,
    ) -> anyhow::Result<Self> {
        let mut options = UplinkOptions::default();
        options.name = uplink.name;
        options.exports = exported(exports, &[], node);
        Self { url: uplink.url, options }.load(files)
    }

    /// One of the configuration file.
    pub(super) fn written(
        table: UplinkTable,
        node: &str,
        args: &TlsArgs,
        tls: &TlsKeys,
    ) -> anyhow::Result<Self> {
        if let Some(name) = table.write.iter().find(|name| !table.export.contains(name)) {
            let url = &table.url.0;
            let text = format!("uplink {url}: {name:?} is in `write` and not in `export`");
            return Err(UsageError(text).into());
        }
        let mut options = UplinkOptions::default();
        options.name = table.name.unwrap_or_default();
        options.exports = exported(&table.export, &table.write, node);
        options.writes = table.for_writers;
        options.access = Some(Access {
            rights: Rights::USE,
            read: Names::Only(table.export.into()),
            write: Names::Only(table.write.into()),
        });
        options.dial.server_name = table.server_name;
        let own = table.tls;
        let files = |url: &BusUrl| match own == TlsKeys::default() {
            true => args.files(url, tls),
            false => TlsArgs::default().files(url, &own),
        };
        Self { url: table.url.0, options }.load(files)
    }

    /// Reads the certificates if the URL needs them.
    fn load(
        mut self,
        files: impl FnOnce(&BusUrl) -> Result<TlsFiles, UsageError>,
    ) -> anyhow::Result<Self> {
        if self.url.is_tls() {
            self.options.dial.tls = Some(TlsClient::load(files(&self.url)?)?);
            if self.url.host().is_none() && self.options.dial.server_name.is_none() {
                let text = format!(
                    "{} has no host whose name its certificate could have: server_name is missing in \
                     its [[uplink]] in a --config file",
                    self.url
                );
                return Err(UsageError(text).into());
            }
        }
        Ok(self)
    }

    /// Whether the other broker may have the subsystem `name` changed.
    pub(super) fn lets_write(&self, name: &str) -> bool {
        self.options.access.as_ref().is_some_and(|access| access.write.contains(name))
    }
}

/// `NAME` here is `NAME@node` there.
fn exported(names: &[String], write: &[String], node: &str) -> Vec<Export> {
    let export = |name: &String| Export {
        name: name.clone(),
        alias: format!("{name}@{node}"),
        mode: if write.contains(name) { mode::WRITE } else { 0 },
    };
    names.iter().map(export).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uplink_is_a_url_with_a_name_or_without() {
        let uplink: Uplink = "hub=tls://bus.example:9".parse().unwrap();
        assert_eq!(
            (uplink.name.as_str(), uplink.url.to_string().as_str()),
            ("hub", "tls://bus.example:9")
        );
        let uplink: Uplink = "unix:///run/a=b.sock".parse().unwrap();
        assert_eq!(
            (uplink.name.as_str(), uplink.url.to_string().as_str()),
            ("", "unix:///run/a=b.sock")
        );
    }

    #[test]
    fn a_wrong_uplink_is_told_what_is_wrong() {
        for (text, part) in [("=tcp://a", "empty"), ("hub=", "://"), ("hub=ftp://a", "ftp")] {
            let error = text.parse::<Uplink>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_exported_gets_this_nodes_name_and_writing_only_where_that_is_said() {
        let names = ["route".to_owned(), "jobs".to_owned()];
        let exports = exported(&names, &names[..1], "edge1");
        let all: Vec<_> = exports.iter().map(|e| (e.alias.as_str(), e.mode)).collect();
        assert_eq!(all, [("route@edge1", mode::WRITE), ("jobs@edge1", 0)]);
    }
}
