//! TLS by the command line: who gets in, who does not, what they are told, and what a running server
//! reads again.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

#[path = "transport/authority.rs"]
#[allow(dead_code, reason = "the tests of the transport use the rest")]
mod authority;
mod support_cli;

use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use authority::Authority;
use nlbus::endpoint::{ConnectError, ConnectOptions, Endpoint};
use nlbus::node::{Node, NodeOptions};
use nlbus::transport::{DialOptions, ListenOptions, TlsClient, TlsFiles, dial};
use nlbus::url::BusUrl;
use rustls::pki_types::ServerName;
use support_cli::{Ended, Serve, nlbus, run, text};
use tokio::io::AsyncReadExt as _;

const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

fn options(files: &TlsFiles) -> [&str; 6] {
    let TlsFiles { certificate, key, ca } = files;
    ["--cert", text(certificate), "--key", text(key), "--ca", text(ca)]
}

fn serve(urls: &[&str], files: &TlsFiles) -> Serve {
    let arguments: Vec<&str> = urls.iter().copied().chain(options(files)).collect();
    Serve::start(&arguments, urls.len())
}

fn show(url: &str, files: &TlsFiles, further: &[&str]) -> Ended {
    let mut command = nlbus(&["show", "link", "-u", url]);
    command.args(options(files)).args(further);
    run(command)
}

fn connect_options(files: TlsFiles) -> ConnectOptions {
    let mut options = ConnectOptions::default();
    options.dial.tls = Some(TlsClient::load(files).unwrap());
    options
}

#[test]
fn show_reads_a_kernel_over_tls_and_over_tls_on_a_unix_socket() {
    let authority = Authority::new();
    let socket = format!("unix+tls://{}", text(&authority.path("x.sock")));
    let server = serve(&["tls://localhost:0", &socket], &authority.issue("server", &LOCAL));
    let client = authority.issue("client", &["client.test"]);
    let shown = show(&server.urls[0], &client, &[]);
    shown.ok();
    assert!(shown.out.contains("lo"), "{shown:?}");
    let shown = show(&socket, &client, &["--server-name", "localhost"]);
    shown.ok();
    server.end();
}

#[test]
fn the_variables_of_the_environment_stand_for_the_options() {
    let authority = Authority::new();
    let server = serve(&["tls://127.0.0.1:0"], &authority.issue("server", &["bus.test"]));
    let client = authority.issue("client", &["client.test"]);
    let mut command = nlbus(&["show", "link"]);
    command.env("NLBUS_URL", &server.urls[0]).env("NLBUS_SERVER_NAME", "bus.test");
    command.env("NLBUS_CERT", &client.certificate).env("NLBUS_KEY", &client.key);
    command.env("NLBUS_CA", &client.ca);
    run(command).ok();
}

#[test]
fn a_tls_url_without_its_options_is_a_mistake_that_names_them() {
    let authority = Authority::new();
    let files = authority.issue("some", &LOCAL);
    let url = "tls://localhost:1";
    let key = ["--key", text(&files.key)];
    for command in [["serve", url].as_slice(), &["show", "link", "-u", url]] {
        run(nlbus(command)).failed(2, &["--cert, --key, --ca missing", url]);
        let command = [command, key.as_slice()].concat();
        run(nlbus(&command)).failed(2, &["--cert, --ca missing"]);
    }
    show("unix+tls:///nowhere", &files, &[]).failed(2, &["--server-name"]);
    show(url, &files, &["--server-name", "no name"]).failed(2, &["no name", "DNS name"]);
    let twice = show(url, &files, &["--key", "other.key"]);
    twice.failed(2, &["--key is given more than once"]);
}

#[test]
fn key_means_a_condition_and_a_file_to_subscribe() {
    let authority = Authority::new();
    let server = serve(&["tls://localhost:0"], &authority.issue("server", &LOCAL));
    let client = authority.issue("client", &["client.test"]);
    let subscribe = |url: &str, further: &[&str]| {
        let mut command = nlbus(&["subscribe", "-u", url, "-W", "0.1"]);
        command.args(further);
        run(command)
    };
    let never = ["--key", "0:0:0", "--key", "0:1:0xffffffff"];
    let subscribed = subscribe(&server.urls[0], &[&options(&client)[..], &never].concat());
    assert_eq!(subscribed.code, Some(4), "no such event, and no error: {subscribed:?}");
    for (wrong, part) in
        [("0:1", "OFFSET:KEY:MASK"), ("5", "OFFSET:KEY:MASK"), ("0:x:1", "KEY \"x\"")]
    {
        subscribe("tcp://localhost:1", &["--key", wrong]).failed(2, &[part]);
    }
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let mut files = authority.issue("some", &LOCAL);
    files.key = authority.issue("other", &LOCAL).key;
    show("tls://localhost:1", &files, &[]).failed(1, &["other.key", "some.crt"]);
    files.key = authority.path("absent.key");
    show("tls://localhost:1", &files, &[]).failed(5, &["absent.key"]);
}

#[test]
fn a_client_of_another_authority_is_refused_and_told_so() {
    let (authority, other) = (Authority::new(), Authority::new());
    let socket = format!("unix+tls://{}", text(&authority.path("x.sock")));
    let server = serve(&["tls://localhost:0", &socket], &authority.issue("server", &LOCAL));
    let mut files = other.issue("client", &["client.test"]);
    files.ca = authority.path("ca.crt");
    for url in &server.urls {
        let refused = show(url, &files, &["--server-name", "localhost"]);
        refused.failed(3, &["refused this side", "certificate"]);
        server.wait_for_log("certificate is not accepted");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let authority = Authority::new();
    let server = serve(&["tls://127.0.0.1:0"], &authority.issue("server", &LOCAL));
    let address = server.urls[0].strip_prefix("tls://").unwrap().to_owned();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let connector = authority.foreign_client(version, None);
        let socket = tokio::net::TcpStream::connect(&address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        // under TLS 1.3 the client is done before the server looks
        if let Ok(mut stream) = connector.connect(name, socket).await {
            stream.read(&mut [0]).await.unwrap_err();
        }
        server.wait_for_log("showed no certificate");
    }
}

#[tokio::test]
async fn the_library_reports_a_refused_certificate_as_a_refusal() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = serve(&["tls://localhost:0"], &authority.issue("server", &LOCAL));
    let url: BusUrl = server.urls[0].parse().unwrap();
    let mut files = other.issue("client", &["client.test"]);
    files.ca = authority.path("ca.crt");
    let refused = Endpoint::connect_with(&url, &connect_options(files)).await;
    assert!(matches!(refused, Err(ConnectError::Refused { .. })), "{refused:?}");
}

#[test]
fn a_server_of_another_authority_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = serve(&["tls://localhost:0"], &authority.issue("server", &LOCAL));
    let client = other.issue("client", &["client.test"]);
    show(&server.urls[0], &client, &[]).failed(3, &["certificate is not accepted"]);
}

#[test]
fn a_server_of_another_name_is_refused_unless_that_name_is_asked_for() {
    let authority = Authority::new();
    let server = serve(&["tls://127.0.0.1:0"], &authority.issue("server", &["bus.test"]));
    let client = authority.issue("client", &["client.test"]);
    let url = &server.urls[0];
    show(url, &client, &[]).failed(3, &["certificate is not accepted", "bus.test"]);
    show(url, &client, &["--server-name", "127.0.0.1"]).failed(3, &["bus.test"]);
    show(url, &client, &["--server-name", "bus.test"]).ok();
}

#[test]
fn a_connection_that_says_nothing_delays_nobody_and_is_closed() {
    let authority = Authority::new();
    let server = serve(&["tls://127.0.0.1:0"], &authority.issue("server", &LOCAL));
    let address = server.urls[0].strip_prefix("tls://").unwrap();
    let mut silent = TcpStream::connect(address).unwrap();
    let client = authority.issue("client", &["client.test"]);
    show(&server.urls[0], &client, &[]).ok();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    server.wait_for_log("no handshake within");
}

/// A node of this process that serves TLS.
async fn tls_node(authority: &Authority, options: NodeOptions) -> (Node, BusUrl) {
    let node = Node::new(options);
    let listen = ListenOptions { tls: Some(authority.server()), ..ListenOptions::default() };
    let url = node.listen(&"tls://localhost:0".parse().unwrap(), &listen).await.unwrap();
    (node, url)
}

#[tokio::test]
async fn a_tls_link_without_a_first_frame_is_closed_in_good_order() {
    let authority = Authority::new();
    let mut options = NodeOptions::default();
    options.first_frame_max = Duration::from_millis(20);
    let (node, url) = tls_node(&authority, options).await;
    let dialing = DialOptions { tls: Some(authority.client()), ..DialOptions::default() };
    let mut silent = dial(&url, &dialing).await.unwrap();
    assert_eq!(silent.reader.read(&mut [0]).await.unwrap(), 0, "no cut, an end");
    assert_eq!(node.counters().silent, 1);
}

#[tokio::test]
async fn a_tls_link_with_a_first_frame_may_be_silent_for_an_hour() {
    let authority = Authority::new();
    let (node, url) = tls_node(&authority, NodeOptions::default()).await;
    let mut options = ConnectOptions::default();
    options.dial.tls = Some(authority.client());
    let endpoint = Endpoint::connect_with(&url, &options).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3_600)).await;
    tokio::time::resume();
    endpoint.discover("nobody").await.unwrap_err().errno().expect("the broker answers");
    assert_eq!(node.counters().silent, 0);
}

#[tokio::test]
async fn a_node_that_shuts_down_says_goodbye_to_tls_links() {
    let authority = Authority::new();
    let (node, url) = tls_node(&authority, NodeOptions::default()).await;
    let dialing = DialOptions { tls: Some(authority.client()), ..DialOptions::default() };
    let mut stream = dial(&url, &dialing).await.unwrap();
    while node.counters().links == 0 {
        tokio::task::yield_now().await;
    }
    let (_, read) = tokio::join!(node.shutdown(Duration::from_secs(5)), async {
        let mut buffer = [0];
        stream.reader.read(&mut buffer).await
    });
    assert_eq!(read.unwrap(), 0);
}

#[tokio::test]
async fn sighup_shows_new_connections_a_new_certificate_and_old_ones_live_on() {
    let authority = Authority::new();
    let files = authority.issue("server", &LOCAL);
    let server = serve(&["tls://127.0.0.1:0"], &files);
    let client = authority.issue("client", &["client.test"]);
    let url = server.urls[0].clone();
    let old = connect_options(client.clone());
    let old = Endpoint::connect_with(&url.parse().unwrap(), &old).await.unwrap();

    assert_eq!(authority.issue("server", &["new.test"]), files, "in the same places");
    server.hang_up();
    server.wait_for_log("read again: certificates");
    show(&url, &client, &[]).failed(3, &["new.test"]);
    show(&url, &client, &["--server-name", "new.test"]).ok();
    old.discover("route").await.unwrap();

    std::fs::write(&files.key, "no key").unwrap();
    server.hang_up();
    let line = server.wait_for_log("not read again");
    assert!(line.contains("server.key") && line.contains("ERROR"), "{line}");
    show(&url, &client, &["--server-name", "new.test"]).ok();
    old.discover("generic").await.unwrap();
    server.end();
}

#[test]
fn certs_sh_makes_what_a_first_try_needs_and_overwrites_nothing() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: no openssl");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("certs");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/certs.sh");
    let certs = || {
        let mut command = Command::new(script);
        command.arg(&at);
        run(command)
    };
    certs().ok();
    let files = |name: &str| TlsFiles {
        certificate: at.join(format!("{name}.crt")),
        key: at.join(format!("{name}.key")),
        ca: at.join("ca.crt"),
    };
    for name in ["ca", "server", "client"] {
        let mode = std::fs::metadata(files(name).key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let server = serve(&["tls://localhost:0", "tls://127.0.0.1:0"], &files("server"));
    for url in &server.urls {
        show(url, &files("client"), &[]).ok();
    }

    let before = std::fs::read(at.join("client.key")).unwrap();
    std::fs::remove_file(at.join("ca.crt")).unwrap();
    certs().failed(1, &["exists and was left alone"]);
    assert_eq!(std::fs::read(at.join("client.key")).unwrap(), before);
    assert!(!at.join("ca.crt").exists());
}
