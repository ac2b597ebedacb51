//! A node with real sockets, and peers that say what the test tells them to.

use std::future::Future;
use std::time::Duration;

use nlbus::endpoint::{Endpoint, Incoming, Provider, Request};
use nlbus::node::{Node, NodeOptions};
use nlbus::transport::{DialOptions, ListenOptions, Stream, dial};
use nlbus::url::BusUrl;
use nlbus::wire::{Command, ControlAttribute, EnvelopeHead, FRAME_MAX};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames::{Said, ask, control, head_of, message, payload_of};

/// Nothing here takes this long unless it hangs. Longer than any timeout of the library.
const HANGS: Duration = Duration::from_secs(90);

/// Waits for what must come.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, work).await.expect("this hangs")
}

/// Waits until `condition` holds, looking again and again.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A node that listens on tcp and unix.
pub(crate) struct Server {
    pub(crate) node: Node,
    pub(crate) tcp: BusUrl,
    pub(crate) unix: BusUrl,
    pub(crate) directory: TempDir,
}

impl Server {
    pub(crate) async fn start(options: NodeOptions) -> Self {
        Self::start_with(options, &ListenOptions::default()).await
    }

    pub(crate) async fn start_with(options: NodeOptions, listen: &ListenOptions) -> Self {
        let node = Node::new(options);
        let directory = tempfile::tempdir().unwrap();
        let unix = format!("unix://{}/bus.sock", directory.path().display());
        let tcp = node.listen(&"tcp://127.0.0.1:0".parse().unwrap(), listen).await.unwrap();
        let unix = node.listen(&unix.parse().unwrap(), listen).await.unwrap();
        Self { node, tcp, unix, directory }
    }

    pub(crate) fn urls(&self) -> [&BusUrl; 2] {
        [&self.tcp, &self.unix]
    }

    /// A provider on a link of its own.
    pub(crate) async fn provide(&self, name: &str) -> Provider {
        Endpoint::attach(&self.node).unwrap().provide(name).await.unwrap()
    }

    /// A service that answers each request with its own payload; its address.
    pub(crate) async fn echo(&self, name: &str) -> u32 {
        let mut provider = self.provide(name).await;
        let address = provider.address();
        tokio::spawn(async move {
            while let Some(incoming) = provider.next().await {
                if let Incoming::Request(request) = incoming {
                    let payload = request.payload().unwrap();
                    request.responder().send(&payload).await.unwrap();
                }
            }
        });
        address
    }

    pub(crate) async fn connect(&self) -> Endpoint {
        Endpoint::connect(&self.tcp).await.unwrap()
    }
}

/// The next request, whatever else comes before it.
pub(crate) async fn next_request(provider: &mut Provider) -> Request {
    within(async {
        loop {
            let incoming = provider.next().await.expect("the link is up");
            if let Incoming::Request(request) = incoming {
                return request;
            }
        }
    })
    .await
}

/// The other end of a socket, under the test's control.
pub(crate) struct Peer {
    pub(crate) stream: Stream,
    received: Vec<u8>,
    sequence: u32,
}

impl Peer {
    pub(crate) async fn dial(url: &BusUrl) -> Self {
        Self::dial_with(url, &DialOptions::default()).await
    }

    pub(crate) async fn dial_with(url: &BusUrl, options: &DialOptions) -> Self {
        let stream = dial(url, options).await.unwrap();
        Self { stream, received: Vec::new(), sequence: 0 }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        within(self.stream.writer.write_all(bytes)).await.unwrap();
        self.stream.writer.flush().await.unwrap();
    }

    /// Sends what the other end may not want to read to its end.
    pub(crate) async fn send_in_vain(&mut self, bytes: &[u8]) {
        let _ = within(self.stream.writer.write_all(bytes)).await;
    }

    /// The next whole frame; `None` when the other end has closed.
    pub(crate) async fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = self.received.first_chunk() {
                let length = u32::from_le_bytes(*length) as usize;
                if self.received.len() >= length {
                    return Some(self.received.drain(..length).collect());
                }
            }
            let mut buffer = vec![0; 64 * 1024];
            match within(self.stream.reader.read(&mut buffer)).await {
                // a close with bytes unread is a reset
                Ok(0) | Err(_) => return None,
                Ok(read) => self.received.extend_from_slice(&buffer[..read]),
            }
        }
    }

    /// Everything until the other end closes, bytes of half a frame included.
    pub(crate) async fn receive_to_end(&mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.received);
        let _ = within(self.stream.reader.read_to_end(&mut all)).await;
        all
    }

    pub(crate) async fn assert_closed(&mut self) {
        assert_eq!(self.receive().await.map(|frame| head_of(&frame)), None);
    }

    pub(crate) async fn control(&mut self, command: Command, frame: Vec<u8>) -> Said {
        self.send(&frame).await;
        let said = Said::of(&self.receive().await.expect("an answer"));
        assert!(said.is_ack(), "{command:?}: {said:?}");
        said
    }

    pub(crate) async fn hello(&mut self) {
        let hello = control(0, 1, Command::Hello, |control| {
            control
                .u32(ControlAttribute::Version, 1)?
                .u32(ControlAttribute::FrameMax, FRAME_MAX as u32)
        });
        self.control(Command::Hello, hello).await;
    }

    pub(crate) async fn subscribe(&mut self) {
        let subscribe = control(0, 2, Command::Subscribe, |control| Ok(control));
        self.control(Command::Subscribe, subscribe).await;
    }

    /// Asks an echo service and checks its answer.
    pub(crate) async fn assert_served(&mut self, address: u32) {
        self.sequence += 1;
        let payload = message(0, self.sequence, b"well-behaved");
        self.send(&ask(address, 3, self.sequence, &payload)).await;
        let answer = self.receive().await.expect("an answer");
        let head = head_of(&answer);
        let expected = EnvelopeHead { dst: 3, src: address, ..head };
        assert_eq!((head, head.sequence), (expected, self.sequence));
        assert_eq!(payload_of(&answer), payload);
    }
}
