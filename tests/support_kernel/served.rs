//! A namespace's kernel, served over sockets by a node in this process.

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
    pub(crate) kernel: Kernel,
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
    let node = Node::new(options);
    let mut options = KernelOptions::default();
    options.netns = Some(netns.name().to_owned());
    adjust(&mut options);
    let kernel = Kernel::open(&options).unwrap();
    let endpoint = Endpoint::attach(&node).unwrap();
    let served = kernel.serve(&endpoint, "route", NETLINK_ROUTE).await.unwrap();
    assert_eq!(served, address::SUBSYSTEM_FIRST);
    let directory = tempfile::tempdir().unwrap();
    let unix = format!("unix://{}/socket", directory.path().display());
    let listen = async |url: &str| {
        node.listen(&url.parse().unwrap(), &ListenOptions::default()).await.unwrap()
    };
    let (tcp, unix) = (listen("tcp://127.0.0.1:0").await, listen(&unix).await);
    Served { node, kernel, tcp, unix, _directory: directory }
}

impl Served {
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
