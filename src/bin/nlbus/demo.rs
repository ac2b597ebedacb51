//! `nlbus demo`: the main job, end to end, in one go.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context as _;
use nlbus::endpoint::{Endpoint, Event, Filter};
use nlbus::node::{Node, NodeOptions};
use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_GENERIC, NETLINK_ROUTE};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use nlbus::wire::{MessageBuilder, Messages};
use tokio::time::timeout;

use crate::connect::Connect;
use crate::exit::Exit;
use crate::show::{self, Object, Options};

/// Serve this machine's kernel on a free loopback port and use it over that port, step by step.
///
/// Needs no root and changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nlbus demo")]
pub(crate) struct Args {}

/// How long each step may take.
const STEP_MAX: Duration = Duration::from_secs(10);

/// The type of the message that the demo broadcasts: above all of netlink's own and of rtnetlink's.
const HELLO_TYPE: u16 = 0x1000;

pub(crate) async fn run(_: Args) -> anyhow::Result<Exit> {
    let node = Node::new(NodeOptions::default());
    let shown = play(&node, &mut io::stdout().lock()).await;
    node.shutdown(Duration::from_secs(1)).await;
    shown.map(|()| Exit::Ok)
}

async fn play(node: &Node, out: &mut impl Write) -> anyhow::Result<()> {
    let url = serve(node, out).await?;
    step(out, 2, "connect to it by URL, as a program far away would", "")?;
    let endpoint = Endpoint::connect(&url).await?;
    let options = Options::default();
    let mut counts = Vec::new();
    for (number, object, what) in [(3, Object::Link, "interfaces"), (4, Object::Addr, "addresses")]
    {
        let name = if object == Object::Link { "link" } else { "addr" };
        let text = format!("ask the kernel for its {what}");
        step(out, number, &text, &format!("nlbus show {name} -u {url}"))?;
        let request = Connect::default().request_options();
        let dumps = show::fetch(&endpoint, "route", object, &options, request).await?;
        show::render_table(object, &options, &dumps, out)?;
        counts.push(format!("{} {what}", dumps.last().map_or(0, Vec::len)));
    }
    listen(&endpoint, &url, out).await?;
    ask(node, &endpoint, &url, out).await?;
    push(node, &endpoint, &url, out).await?;
    let counters = node.counters();
    writeln!(
        out,
        "\nnlbus demo: ok, {} from the kernel over {url}, {} frames routed, 1 event, 1 answer and 2 pushes \
         received",
        counts.join(" and "),
        counters.core.frames
    )?;
    out.flush()?;
    Ok(())
}

async fn serve(node: &Node, out: &mut impl Write) -> anyhow::Result<BusUrl> {
    step(out, 1, "serve this machine's kernel, read-only, on a free port", "nlbus serve")?;
    let kernel = Kernel::open(&KernelOptions::default())?;
    for (name, protocol) in [("route", NETLINK_ROUTE), ("generic", NETLINK_GENERIC)] {
        let address = kernel.serve(&Endpoint::attach(node)?, name, protocol).await?;
        writeln!(out, "   serving {name} at {address:#010x}")?;
    }
    let url = node.listen(&"tcp://127.0.0.1:0".parse()?, &ListenOptions::default()).await?;
    writeln!(out, "   listening on {url}")?;
    Ok(url)
}

/// Subscribes, has somebody else broadcast, and prints what arrives.
async fn listen(subscriber: &Endpoint, url: &BusUrl, out: &mut impl Write) -> anyhow::Result<()> {
    step(out, 5, "subscribe, and have another client broadcast a message", "")?;
    let mut subscription = subscriber.subscribe(Filter::all()).await?;
    let message = MessageBuilder::new(HELLO_TYPE, 0).body(b"hello, bus").finish();
    Endpoint::connect(url).await?.publish(&message).await?;
    let received = async {
        loop {
            match subscription.next().await {
                // the kernel's own events come here too
                Some(Event::Message { payload, .. }) if payload[..] == message[..] => {
                    return Some(payload);
                }
                Some(_) => {}
                None => return None,
            }
        }
    };
    let payload = timeout(STEP_MAX, received).await.context("the broadcast did not arrive")?;
    let payload = payload.context("the connection ended")?;
    for message in Messages::new(&payload) {
        let message = message?;
        let body = String::from_utf8_lossy(message.body());
        writeln!(out, "   received type {:#x}: {body:?}", message.header.kind)?;
    }
    Ok(())
}

/// Has a program answer a request.
async fn ask(
    node: &Node,
    asker: &Endpoint,
    url: &BusUrl,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let by_hand = format!(
        "nlbus reply shout -u unix://PATH -- tr a-z A-Z; nlbus request shout hello -u {url}"
    );
    step(out, 6, "make a program a subsystem, and ask it", &by_hand)?;
    let mut provider = Endpoint::attach(node)?.provide("shout").await?;
    let answer = async {
        let request = provider.next_request().await.context("nobody asks")?;
        let loud = String::from_utf8_lossy(&request.body()).to_uppercase();
        request.reply(loud.as_bytes()).await?;
        anyhow::Ok(())
    };
    let call = async { anyhow::Ok(asker.call("shout", b"hello").await?) };
    let (_, answer) = timeout(STEP_MAX, async { tokio::try_join!(answer, call) }).await??;
    writeln!(out, "   asked \"hello\", answered {:?}", String::from_utf8_lossy(&answer))?;
    Ok(())
}

/// Pushes two messages, which a puller takes in their order.
async fn push(
    node: &Node,
    pusher: &Endpoint,
    url: &BusUrl,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let by_hand = format!("nlbus pull jobs -u unix://PATH; nlbus push first --to jobs -u {url}");
    step(out, 7, "push to a puller: in order, without loss, without an answer", &by_hand)?;
    let mut puller = Endpoint::attach(node)?.pull("jobs").await?;
    for job in ["first", "second"] {
        pusher.push("jobs", job.as_bytes()).await?;
    }
    for job in ["first", "second"] {
        let message = timeout(STEP_MAX, puller.next()).await?.context("the connection ended")?;
        anyhow::ensure!(message.body == job, "the pushes came in another order");
        writeln!(out, "   pulled {job:?}")?;
    }
    Ok(())
}

fn step(out: &mut impl Write, number: u8, what: &str, by_hand: &str) -> io::Result<()> {
    writeln!(out, "\n{number}. {what}")?;
    if !by_hand.is_empty() {
        writeln!(out, "   by hand: {by_hand}")?;
    }
    out.flush()
}
