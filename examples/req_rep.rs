//! REQ/REP: one side serves this machine's kernel over TCP, the other asks it for its addresses.
//!
//! cargo run --example req_rep

#![allow(clippy::print_stdout, reason = "that is what an example is for")]

use std::error::Error;
use std::net::IpAddr;

use nlbus::endpoint::Endpoint;
use nlbus::node::{Node, NodeOptions};
use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_ROUTE};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use nlbus::wire::{Attributes, MessageBuilder, nlm};

const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;

/// struct ifaddrmsg: u8 family, u8 prefix length, u8 flags, u8 scope, u32 index.
const IFADDRMSG: usize = 8;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // port 0 is any free one; a server would have tcp://localhost:9824
    let url = serve(&"tcp://127.0.0.1:0".parse()?).await?;
    for address in addresses(&url).await? {
        println!("{address}");
    }
    Ok(())
}

/// Serves the kernel, read-only, for as long as the program runs; where.
pub(crate) async fn serve(url: &BusUrl) -> Result<BusUrl, Box<dyn Error>> {
    let node = Node::new(NodeOptions::default());
    let kernel = Kernel::open(&KernelOptions::default())?;
    kernel.serve(&Endpoint::attach(&node)?, "route", NETLINK_ROUTE).await?;
    Ok(node.listen(url, &ListenOptions::default()).await?)
}

/// Asks for all addresses, as `ip address` does.
pub(crate) async fn addresses(url: &BusUrl) -> Result<Vec<String>, Box<dyn Error>> {
    let endpoint = Endpoint::connect(url).await?;
    let all =
        MessageBuilder::new(RTM_GETADDR, nlm::REQUEST | nlm::DUMP).body(&[0; IFADDRMSG]).finish();
    let mut replies = endpoint.request("route", &all).await?;
    let mut addresses = Vec::new();
    while let Some(reply) = replies.next().await {
        addresses.extend(address(reply?.body()));
    }
    Ok(addresses)
}

/// The address in an RTM_NEWADDR, such as 192.0.2.1/24.
fn address(body: &[u8]) -> Option<String> {
    let (fixed, attributes) = body.split_at_checked(IFADDRMSG)?;
    let address = Attributes::new(attributes, IFADDRMSG)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind == IFA_ADDRESS)?;
    let address = match *address.payload {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(<[u8; 16]>::try_from(address.payload).ok()?),
    };
    Some(format!("{address}/{}", fixed[1]))
}
