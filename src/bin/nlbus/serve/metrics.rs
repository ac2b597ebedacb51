//! `nlbus serve --metrics`: as much HTTP/1.1 as a scraper needs, one request on each connection.

use std::sync::Arc;
use std::time::Duration;

use nlbus::endpoint::Endpoint;
use nlbus::node::Node;
use nlbus::service::queue::{Client, ClientOptions};
use nlbus::transport::{Accepted, ListenOptions, Listener, is_exposed, is_transient};
use nlbus::url::{BusUrl, TransportKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::exit::UsageError;
use crate::metrics::{CONTENT_TYPE, Exposition};

/// Connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 8;

/// The longest request, in bytes, its headers included.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// How long a connection may take, from the first byte to the last.
const CONNECTION_MAX: Duration = Duration::from_secs(10);

/// How long accepting pauses when the system is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is measured.
pub(super) struct Source {
    node: Node,
    queues: Option<Client>,
}

/// The listener; dropping it ends it.
pub(super) struct Metrics(JoinHandle<()>);

impl Drop for Metrics {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Refuses to tell strangers, unless that was insisted on.
pub(super) async fn check(url: &BusUrl, insecure: bool) -> anyhow::Result<()> {
    if url.transport() == TransportKind::Udp {
        return Err(UsageError(format!("{url}: metrics are asked for over a stream")).into());
    }
    if !insecure && is_exposed(url).await? {
        let text = format!(
            "{url} would tell anybody who reaches it what the queues are called and how full they are; \
             listen on a loopback address or a unix socket, or say --insecure"
        );
        return Err(UsageError(text).into());
    }
    Ok(())
}

impl Metrics {
    /// Serves `url` from now on: the URL with the port that was bound.
    pub(super) async fn start(
        node: &Node,
        with_queues: bool,
        url: &BusUrl,
        options: &ListenOptions,
    ) -> anyhow::Result<(Self, BusUrl)> {
        let listener = Listener::bind(url, options).await?;
        let bound = listener.local_url().clone();
        let queues = match with_queues {
            true => Some(Client::over(Endpoint::attach(node)?, &ClientOptions::default())),
            false => None,
        };
        let source = Arc::new(Source { node: node.clone(), queues });
        Ok((Self(tokio::spawn(accept(listener, source))), bound))
    }
}

async fn accept(listener: Listener, source: Arc<Source>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok(accepted) => {
                let source = Arc::clone(&source);
                tokio::spawn(async move {
                    let _place = place;
                    match timeout(CONNECTION_MAX, answer(accepted, &source)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "metrics were not told"),
                        Err(_) => tracing::debug!("metrics took too long to tell"),
                    }
                });
            }
            Err(error) if is_transient(&error) => {
                tracing::warn!(%error, "cannot accept for now");
                sleep(ACCEPT_PAUSE).await;
            }
            Err(error) => return tracing::warn!(%error, "metrics are not told any more"),
        }
    }
}

async fn answer(accepted: Accepted, source: &Source) -> anyhow::Result<()> {
    let mut stream = accepted.handshake().await?;
    let mut head = Vec::new();
    let asked = loop {
        if let Some(asked) = Asked::read(&head) {
            break asked;
        }
        if head.len() >= REQUEST_BYTES_MAX {
            break Asked::TooLong;
        }
        let room = (REQUEST_BYTES_MAX - head.len()) as u64;
        if (&mut stream.reader).take(room).read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    };
    let (status, body) = match asked {
        Asked::Metrics { .. } => match source.tell().await {
            Ok(text) => ("200 OK", text),
            Err(error) => {
                tracing::warn!(%error, "the queues cannot be asked");
                ("503 Service Unavailable", "the queues cannot be asked\n".to_owned())
            }
        },
        Asked::Other => ("404 Not Found", "there is /metrics, and nothing else\n".to_owned()),
        Asked::Method => ("405 Method Not Allowed", "GET /metrics\n".to_owned()),
        Asked::Malformed => ("400 Bad Request", "GET /metrics HTTP/1.1\n".to_owned()),
        Asked::TooLong => ("431 Request Header Fields Too Large", "too long\n".to_owned()),
    };
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    if asked != (Asked::Metrics { head: true }) {
        text.push_str(&body);
    }
    stream.writer.write_all(text.as_bytes()).await?;
    stream.writer.shutdown().await?;
    // until the peer has it and closes: closing before would cut what it has not read
    while stream.reader.read(&mut [0; 512]).await? > 0 {}
    Ok(())
}

impl Source {
    async fn tell(&self) -> anyhow::Result<String> {
        let mut exposition = Exposition::default();
        exposition.node(&self.node.counters().named());
        if let Some(queues) = &self.queues {
            let (broker, queues) = queues.diagnostics("", 0, 0).await?;
            exposition.queues(&broker, &queues);
        }
        Ok(exposition.into_text())
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Metrics { head: bool },
    Other,
    Method,
    Malformed,
    TooLong,
}

impl Asked {
    /// Reads the request line once the headers are whole; those are not looked at.
    fn read(head: &[u8]) -> Option<Self> {
        let end = head.windows(4).position(|window| window == b"\r\n\r\n")?;
        let line = head[..end].split(|byte| *byte == b'\r').next().unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let [method, target, version] = words[..] else { return Some(Self::Malformed) };
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        Some(match (method, path) {
            _ if !version.starts_with(b"HTTP/1.") => Self::Malformed,
            (b"GET" | b"HEAD", b"/metrics") => Self::Metrics { head: method == b"HEAD" },
            (b"GET" | b"HEAD", _) => Self::Other,
            _ => Self::Method,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Asked;

    #[test]
    fn a_request_is_read_once_it_is_whole() {
        let read = |text: &str| Asked::read(text.as_bytes());
        assert_eq!(read("GET /metrics HTTP/1.1\r\nHost: a\r\n"), None);
        for (text, asked) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Asked::Metrics { head: false }),
            ("HEAD /metrics?x=1 HTTP/1.0\r\n\r\n", Asked::Metrics { head: true }),
            ("GET / HTTP/1.1\r\n\r\n", Asked::Other),
            ("POST /metrics HTTP/1.1\r\n\r\n", Asked::Method),
            ("GET /metrics HTTP/2\r\n\r\n", Asked::Malformed),
            ("GET  /metrics HTTP/1.1\r\n\r\n", Asked::Malformed),
            ("\r\n\r\n", Asked::Malformed),
            ("\0\u{80} \r\n\r\n", Asked::Malformed),
        ] {
            assert_eq!(read(text), Some(asked), "{text:?}");
        }
    }
}
