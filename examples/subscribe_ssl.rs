//! SUBSCRIBE: one side serves this machine's kernel with certificates, the other hears of each change.
//!
//! tools/certs.sh certs && cargo run --example subscribe_ssl certs
//!
//! Then change something, such as `ip address add 192.0.2.7/32 dev lo`.

#![allow(clippy::print_stdout, reason = "that is what an example is for")]

use std::error::Error;
use std::path::Path;

use nlbus::endpoint::{ConnectOptions, Endpoint, Event, Filter, Subscription};
use nlbus::node::{Node, NodeOptions};
use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_ROUTE};
use nlbus::transport::{ListenOptions, TlsClient, TlsFiles, TlsServer};
use nlbus::url::BusUrl;
use nlbus::wire::Messages;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let certs = std::env::args_os().nth(1).ok_or("the directory of the certificates is missing")?;
    // port 0 is any free one; a server would have ssl://localhost:9824
    let url = "ssl://127.0.0.1:0".parse()?;
    let url = serve(&url, certs.as_ref(), &KernelOptions::default()).await?;
    let mut events = subscribe(&url, certs.as_ref()).await?;
    while let Some(event) = events.next().await {
        for line in lines(event) {
            println!("{line}");
        }
    }
    Ok(())
}

fn files(certs: &Path, name: &str) -> TlsFiles {
    TlsFiles {
        certificate: certs.join(format!("{name}.crt")),
        key: certs.join(format!("{name}.key")),
        ca: certs.join("ca.crt"),
    }
}

/// Serves the kernel, read-only, for as long as the program runs, to whoever shows a certificate; where.
pub(crate) async fn serve(
    url: &BusUrl,
    certs: &Path,
    kernel: &KernelOptions,
) -> Result<BusUrl, Box<dyn Error>> {
    let node = Node::new(NodeOptions::default());
    let kernel = Kernel::open(kernel)?;
    kernel.serve(&Endpoint::attach(&node)?, "route", NETLINK_ROUTE).await?;
    let tls = Some(TlsServer::load(files(certs, "server"))?);
    Ok(node.listen(url, &ListenOptions { tls, ..ListenOptions::default() }).await?)
}

/// Subscribes to what the kernel tells.
pub(crate) async fn subscribe(url: &BusUrl, certs: &Path) -> Result<Subscription, Box<dyn Error>> {
    let mut options = ConnectOptions::default();
    options.dial.tls = Some(TlsClient::load(files(certs, "client"))?);
    let endpoint = Endpoint::connect_with(url, &options).await?;
    Ok(endpoint.subscribe(Filter::all().from("route")).await?)
}

/// What happened, in a line for each message.
pub(crate) fn lines(event: Event) -> Vec<String> {
    match event {
        Event::Message { payload, .. } => Messages::new(&payload)
            .map_while(Result::ok)
            .map(|message| {
                let header = message.header;
                format!("a message of type {}, {} bytes", header.kind, header.length)
            })
            .collect(),
        Event::Lost(count) => vec![format!("{count} events were lost")],
    }
}
