//! A node that listens on every transport, and endpoints of it.

use std::collections::HashMap;

use nlbus::broker::{Access, Rights};
use nlbus::endpoint::{ConnectOptions, Endpoint};
use nlbus::node::{AccessList, Node, NodeOptions};
use nlbus::transport::{ListenOptions, TlsClient};
use nlbus::url::BusUrl;
use tempfile::TempDir;

use crate::authority::Authority;

/// A stream transport, and a URL of it at which the node listens.
pub(crate) struct Carrier {
    pub(crate) name: &'static str,
    pub(crate) url: BusUrl,
}

/// A node at one URL of each stream transport and at one of udp, where everybody may provide.
pub(crate) struct Everywhere {
    pub(crate) node: Node,
    pub(crate) carriers: Vec<Carrier>,
    pub(crate) udp: BusUrl,
    client: TlsClient,
    _directory: TempDir,
}

/// The name in the certificate of [`Authority::client`].
const CLIENT: &str = "client.test";

impl Everywhere {
    /// `word` keeps its abstract name apart from those of other tests.
    pub(crate) async fn start(word: &str) -> Self {
        let authority = Authority::new();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        let node = Node::new(NodeOptions::default());
        node.set_access(everybody_provides());
        let listen = ListenOptions { tls: Some(authority.server()), ..ListenOptions::default() };
        let mut carriers = Vec::new();
        for (name, url) in [
            ("tcp", "tcp://127.0.0.1:0".to_owned()),
            ("tls", "tls://127.0.0.1:0".to_owned()),
            ("ssl", "ssl://127.0.0.1:0".to_owned()),
            ("unix", format!("unix://{path}/plain.sock")),
            ("abstract", format!("unix://@nlbus-models-{word}-{}", std::process::id())),
            ("unix+tls", format!("unix+tls://{path}/tls.sock")),
            ("unix+ssl", format!("unix+ssl://{path}/ssl.sock")),
        ] {
            let url = node.listen(&url.parse().unwrap(), &listen).await.unwrap();
            let scheme = if name == "abstract" { "unix" } else { name };
            assert_eq!(url.scheme().as_str(), scheme);
            carriers.push(Carrier { name, url });
        }
        let udp = node.listen(&"udp://127.0.0.1:0".parse().unwrap(), &listen).await.unwrap();
        Self { node, carriers, udp, client: authority.client(), _directory: directory }
    }

    /// An endpoint on a connection of its own.
    pub(crate) async fn connect(&self, carrier: &Carrier) -> Endpoint {
        let mut options = ConnectOptions::default();
        if carrier.url.is_tls() {
            options.dial.tls = Some(self.client.clone());
            options.dial.server_name = Some("localhost".to_owned());
        }
        let connected = Endpoint::connect_with(&carrier.url, &options).await;
        connected.unwrap_or_else(|error| panic!("{}: {error}", carrier.name))
    }
}

/// A TLS link may provide for its certificate, another for its user, and one over tcp like anybody. Whoever
/// came in otherwise than his transport says may do nothing.
fn everybody_provides() -> AccessList {
    let rights = Rights { use_bus: true, provide: true, control: false };
    let access = Access::reading(rights);
    AccessList {
        names: HashMap::from([(CLIENT.to_owned(), access.clone())]),
        certified: Access::reading(Rights::NONE),
        own: access.clone(),
        anonymous: access,
        ..AccessList::default()
    }
}
