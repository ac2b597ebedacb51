//! A NATS server with JetStream, if one is installed, and brokers of this process that keep queues in it.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nlbus::endpoint::Endpoint;
use nlbus::node::{Node, NodeOptions};
use nlbus::service::queue::{
    Client, ClusterUrl, Consumer, JetStream, Message, ServeOptions, serve_jetstream,
};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

/// When a test gives up. Nothing passes or fails by being faster or slower than it.
pub(crate) const HANG: Duration = Duration::from_secs(180);

/// A server on loopback. Dropping it ends it.
pub(crate) struct Nats {
    directory: tempfile::TempDir,
    child: Child,
    port: u16,
    config: String,
}

impl Nats {
    /// Starts one with JetStream; says so and returns none if there is no server to start.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("jetstream { store_dir: \"STORE\" }\nmax_payload: 8MB\n")
    }

    /// The same with this configuration, in which `STORE` stands for a directory.
    pub(crate) fn start_with(config: &str) -> Option<Self> {
        if Command::new("nats-server").arg("-v").stdout(Stdio::null()).status().is_err() {
            eprintln!("skipped: there is no nats-server; Debian has it as a package of this name");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let config = config.replace("STORE", directory.path().to_str().unwrap());
        // one more server may have taken a port that was free before
        for _ in 0..20 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            if let Some(child) = run(directory.path(), port, &config) {
                return Some(Self { directory, child, port, config });
            }
        }
        panic!("no nats-server starts");
    }

    /// Three servers that are one cluster; says so and returns none if there is no server to start.
    pub(crate) async fn start_cluster() -> Option<Vec<Self>> {
        for _ in 0..20 {
            let free = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
            let ports = free.each_ref().map(|free| free.local_addr().unwrap().port());
            drop(free);
            let routes = ports.map(|port| format!("\"nats://127.0.0.1:{port}\"")).join(", ");
            let servers = ports.iter().map(|port| {
                Self::start_with(&format!(
                    "server_name: s{port}\njetstream {{ store_dir: \"STORE\" }}\n\
                     cluster {{ name: c, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n"
                ))
            });
            let mut servers = servers.collect::<Option<Vec<_>>>()?;
            if Self::is_one(&mut servers).await {
                return Some(servers);
            }
        }
        panic!("no cluster starts");
    }

    /// Whether they find each other; one that finds its port for the others taken ends.
    async fn is_one(servers: &mut [Self]) -> bool {
        let urls: Vec<ClusterUrl> =
            servers.iter().map(|server| server.url().parse().unwrap()).collect();
        in_time(async {
            for url in &urls {
                while JetStream::connect(url).await.is_err() {
                    if servers.iter_mut().any(Self::has_ended) {
                        return false;
                    }
                    tokio::task::yield_now().await;
                }
            }
            !servers.iter_mut().any(Self::has_ended)
        })
        .await
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// What it calls itself in a cluster.
    pub(crate) fn name(&self) -> &str {
        let named = self.config.strip_prefix("server_name: ").unwrap();
        named.split_once('\n').unwrap().0
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends it without any order.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Has it do nothing, with its connections open.
    pub(crate) fn pause(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    pub(crate) fn go_on(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Starts it again, with what it has on disk.
    pub(crate) fn start_again(&mut self) {
        self.child = run(self.directory.path(), self.port, &self.config).expect("it starts again");
    }

    /// A broker of this process.
    pub(crate) async fn broker(&self) -> Broker {
        broker_at(&self.url()).await
    }

    /// The same, but it does not wait for long until it takes another broker to be gone.
    pub(crate) async fn quick_broker(&self) -> Broker {
        let cluster = in_time(JetStream::connect(&self.url().parse().unwrap())).await.unwrap();
        serve(cluster.look_pause(Duration::from_millis(50))).await
    }

    /// A broker of this process that keeps each queue on so many servers.
    pub(crate) async fn broker_of_cluster(&self, replicas: u8) -> Broker {
        broker_at(&format!("{}?replicas={replicas}", self.url())).await
    }
}

/// A broker of this process with the cluster at this URL.
pub(crate) async fn broker_at(url: &str) -> Broker {
    serve(in_time(JetStream::connect(&url.parse().unwrap())).await.unwrap()).await
}

async fn serve(cluster: JetStream) -> Broker {
    let node = Node::new(NodeOptions::default());
    let endpoint = Endpoint::attach(&node).unwrap();
    let served = serve_jetstream(&endpoint, cluster, ServeOptions::default()).await.unwrap();
    let url: BusUrl = "tcp://127.0.0.1:0".parse().unwrap();
    let url = node.listen(&url, &ListenOptions::default()).await.unwrap();
    Broker { node, url, served }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server and waits until it takes connections; none if it ends instead.
fn run(directory: &Path, port: u16, config: &str) -> Option<Child> {
    let file = directory.join("nats.conf");
    std::fs::write(&file, config).unwrap();
    let mut child = Command::new("nats-server")
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-c"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::yield_now();
    }
    Some(child)
}

pub(crate) struct Broker {
    pub(crate) node: Node,
    pub(crate) url: BusUrl,
    pub(crate) served: nlbus::service::queue::Served,
}

impl Broker {
    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.url).await.unwrap()
    }

    pub(crate) async fn end(mut self) {
        self.node.shutdown(HANG).await;
        in_time(self.served.ended()).await;
    }
}

/// Not later than a test gives up.
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(HANG, future).await.expect("it takes too long")
}

/// The next message.
pub(crate) async fn next(consumer: &mut Consumer) -> Message {
    in_time(consumer.next()).await.expect("the subscription ended").unwrap()
}
