//! A namespace's kernel, served over sockets by a node in this process.

use std::os::unix::net::UnixStream;

use nlbus::endpoint::{Endpoint, Replies, Reply, RequestError, RequestOptions};
use nlbus::node::{Node, NodeOptions};
use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_ROUTE};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use nlbus::wire::address;
use tempfile::TempDir;

use super::PATIENCE;
use super::netns::Netns;

pub(crate) struct Served {
    pub(crate) node: Node,
    /// Kept so that further families can be served.
    pub(crate) kernel: Option<Kernel>,
    pub(crate) tcp: BusUrl,
    pub(crate) unix: BusUrl,
    _directory: TempDir,
}

/// Serves NETLINK_ROUTE as `route`, read-only.
pub(crate) async fn serve(netns: &Netns) -> Served {
    serve_with(netns, NodeOptions::default(), |_| ()).await
}

/// The same, but askers may make changes.
pub(crate) async fn serve_writable(netns: &Netns) -> Served {
    serve_with(netns, NodeOptions::default(), |kernel| kernel.allow_write = true).await
}

pub(crate) async fn serve_with(
    netns: &Netns,
    options: NodeOptions,
    adjust: impl FnOnce(&mut KernelOptions),
) -> Served {
    let mut served = serve_nothing(options).await;
    let mut options = KernelOptions::default();
    options.netns = Some(netns.name().to_owned());
    adjust(&mut options);
    served.kernel = Some(Kernel::open(&options).unwrap());
    assert_eq!(served.add("route", NETLINK_ROUTE).await, address::SUBSYSTEM_FIRST);
    served
}

/// A bus without any subsystem.
pub(crate) async fn serve_nothing(options: NodeOptions) -> Served {
    let node = Node::new(options);
    let directory = tempfile::tempdir().unwrap();
    let unix = format!("unix://{}/socket", directory.path().display());
    let listen = async |url: &str| {
        node.listen(&url.parse().unwrap(), &ListenOptions::default()).await.unwrap()
    };
    let (tcp, unix) = (listen("tcp://127.0.0.1:0").await, listen(&unix).await);
    Served { node, kernel: None, tcp, unix, _directory: directory }
}

impl Served {
    /// A std socket, connected.
    pub(crate) fn unix_stream(&self) -> UnixStream {
        UnixStream::connect(self.unix.to_string().trim_start_matches("unix://")).unwrap()
    }

    /// Serves another family: its address.
    pub(crate) async fn add(&self, name: &str, protocol: u16) -> u32 {
        let endpoint = Endpoint::attach(&self.node).unwrap();
        self.kernel.as_ref().unwrap().serve(&endpoint, name, protocol).await.unwrap()
    }

    pub(crate) async fn endpoint(&self) -> Endpoint {
        Endpoint::connect(&self.unix).await.unwrap()
    }
}

/// Asks `route`, with all the time that there is.
pub(crate) async fn request(endpoint: &Endpoint, message: &[u8]) -> Replies {
    let options = RequestOptions::default().deadline(PATIENCE);
    endpoint.request_with("route", message, options).await.unwrap()
}

/// The whole answer of `route`.
pub(crate) async fn ask(endpoint: &Endpoint, message: &[u8]) -> Result<Vec<Reply>, RequestError> {
    request(endpoint, message).await.collect().await
}
