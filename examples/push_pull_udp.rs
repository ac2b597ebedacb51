//! PUSH/PULL: one side listens on UDP and takes what comes, the other pushes to it what its own kernel says
//! of its addresses.
//!
//! cargo run --example push_pull_udp

#![allow(clippy::print_stdout, reason = "that is what an example is for")]

use std::error::Error;

use nlbus::endpoint::{Endpoint, Event, Filter, Subscription, UdpPusher, body_of};
use nlbus::node::{Node, NodeOptions};
use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_ROUTE};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use nlbus::wire::{Message, MessageBuilder, nlm};

const RTM_GETADDR: u16 = 22;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // port 0 is any free one; a server would have udp://localhost:9824
    let (url, mut pulled) = serve(&"udp://127.0.0.1:0".parse()?).await?;
    for _ in 0..push_addresses(&url).await? {
        let message = next(&mut pulled).await?;
        println!("a message of type {}, {} bytes", message.0, message.1);
    }
    Ok(())
}

/// Listens; where, and what comes for no one in particular.
pub(crate) async fn serve(url: &BusUrl) -> Result<(BusUrl, Subscription), Box<dyn Error>> {
    let node = Node::new(NodeOptions::default());
    let pulled = Endpoint::attach(&node)?.subscribe(Filter::all().from(0u32)).await?;
    Ok((node.listen(url, &ListenOptions::default()).await?, pulled))
}

/// The type and the length of the next message that was pushed.
pub(crate) async fn next(pulled: &mut Subscription) -> Result<(u16, u32), Box<dyn Error>> {
    match pulled.next().await {
        Some(Event::Message { payload, .. }) => {
            let header = Message::parse(&body_of(&payload))?.header;
            Ok((header.kind, header.length))
        }
        Some(Event::Lost(count)) => Err(format!("{count} were lost").into()),
        None => Err("the node has ended".into()),
    }
}

/// Pushes each of this machine's addresses, as the kernel tells it; how many.
pub(crate) async fn push_addresses(url: &BusUrl) -> Result<usize, Box<dyn Error>> {
    // a bus of its own, within the process, to ask the kernel
    let node = Node::new(NodeOptions::default());
    let endpoint = Endpoint::attach(&node)?;
    let kernel = Kernel::open(&KernelOptions::default())?;
    kernel.serve(&endpoint.open(), "route", NETLINK_ROUTE).await?;
    let all = MessageBuilder::new(RTM_GETADDR, nlm::REQUEST | nlm::DUMP).body(&[0; 8]).finish();
    let mut replies = endpoint.request("route", &all).await?;

    let pusher = UdpPusher::connect(url).await?;
    let mut count = 0;
    while let Some(reply) = replies.next().await {
        // address 0: for no one in particular
        pusher.push(0, reply?.bytes()).await?;
        count += 1;
    }
    Ok(count)
}
