//! TLS on tcp and unix sockets: who gets in, who does not, and what they are told.

use std::error::Error;
use std::io::IoSlice;

use nlbus::transport::{
    DialError, DialOptions, HandshakeError, ListenError, ListenOptions, Listener, Stream,
    TlsClient, TlsServer, dial,
};
use nlbus::url::BusUrl;
use rcgen::string::Ia5String;
use rcgen::{DnType, SanType, date_time_ymd};
use rustls::pki_types::ServerName;
use rustls::version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::authority::Authority;
use super::{assert_carries, has_ipv6, url};

pub(crate) fn dialing(client: &TlsClient) -> DialOptions {
    DialOptions { tls: Some(client.clone()), ..Default::default() }
}

pub(crate) async fn listen(at: &BusUrl, server: &TlsServer) -> Listener {
    let options = ListenOptions { tls: Some(server.clone()), ..Default::default() };
    Listener::bind(at, &options).await.unwrap()
}

async fn handshake(listener: &Listener) -> Result<Stream, HandshakeError> {
    listener.accept().await.unwrap().handshake().await
}

/// What both ends of one attempt see.
pub(crate) async fn attempt(
    listener: &Listener,
    options: &DialOptions,
) -> (Result<Stream, DialError>, Result<Stream, HandshakeError>) {
    tokio::join!(dial(listener.local_url(), options), handshake(listener))
}

pub(crate) async fn pair(listener: &Listener, options: &DialOptions) -> (Stream, Stream) {
    let (dialed, accepted) = attempt(listener, options).await;
    (dialed.unwrap(), accepted.unwrap())
}

/// What a listener makes of a client that is not ours; the client's end is its stream or error.
async fn foreign_attempt(
    listener: &Listener,
    connector: TlsConnector,
) -> (std::io::Result<tokio_rustls::client::TlsStream<TcpStream>>, Result<Stream, HandshakeError>) {
    let address = listener.local_addresses()[0];
    let client = async {
        let socket = TcpStream::connect(address).await?;
        connector.connect(ServerName::try_from("localhost").unwrap(), socket).await
    };
    tokio::join!(client, handshake(listener))
}

#[tokio::test]
async fn tls_carries_bytes_and_both_ends_know_the_name_of_the_other() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client());
    for text in [
        "tls://127.0.0.1:0",
        "tls://localhost:0",
        "ssl://localhost:0",
        "tls://LOCALHOST:0",
        "tls://[::1]:0",
    ] {
        if text.contains("::1") && !has_ipv6() {
            continue;
        }
        let listener = listen(&url(text), &server).await;
        let (mut dialed, mut accepted) = pair(&listener, &dialing(&client)).await;
        assert_eq!(dialed.peer.name.as_deref(), Some("localhost"));
        assert_eq!(accepted.peer.name.as_deref(), Some("client.test"));
        assert_carries(&mut dialed, &mut accepted, &vec![1; 100_000]).await;
        assert_carries(&mut accepted, &mut dialed, &vec![2; 100_000]).await;
        dialed.writer.shutdown().await.unwrap();
        assert_eq!(accepted.reader.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn tls_over_a_unix_socket_needs_a_server_name() {
    let authority = Authority::new();
    let path = authority.path("x.sock");
    let at = url(&format!("unix+tls://{}", path.display()));
    let listener = listen(&at, &authority.server()).await;
    let nameless = dialing(&authority.client());
    let error = dial(&at, &nameless).await.unwrap_err();
    assert!(matches!(error, DialError::ServerNameMissing { .. }), "{error:?}");

    let options = DialOptions { server_name: Some("localhost".to_owned()), ..nameless };
    let (mut dialed, mut accepted) = pair(&listener, &options).await;
    assert_carries(&mut dialed, &mut accepted, b"there").await;
    assert_carries(&mut accepted, &mut dialed, b"and back").await;
    assert_eq!(accepted.peer.name.as_deref(), Some("client.test"));
    assert!(accepted.peer.uid.is_some(), "the unix socket still tells the user");
}

#[tokio::test]
async fn a_tls_url_needs_certificates_and_a_plain_one_does_not_use_them() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client());
    let error = Listener::bind(&url("tls://127.0.0.1:0"), &ListenOptions::default()).await;
    assert!(matches!(error, Err(ListenError::TlsMissing { .. })), "{error:?}");
    let error = dial(&url("unix+ssl://@nobody"), &DialOptions::default()).await;
    assert!(matches!(error, Err(DialError::TlsMissing { .. })), "{error:?}");

    let listener = listen(&url("tcp://127.0.0.1:0"), &server).await;
    let (mut dialed, mut accepted) = pair(&listener, &dialing(&client)).await;
    assert_carries(&mut dialed, &mut accepted, b"plain").await;
    assert_eq!(accepted.peer.name, None);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let authority = Authority::new();
    let listener = listen(&url("tls://localhost:0"), &authority.server()).await;
    for version in [&version::TLS12, &version::TLS13] {
        let connector = authority.foreign_client(version, None);
        let (client, accepted) = foreign_attempt(&listener, connector).await;
        let error = accepted.unwrap_err();
        assert!(matches!(error, HandshakeError::NoCertificate { .. }), "{error:?}");
        // Under TLS 1.3 the client is done before the server looks.
        let end = match client {
            Ok(mut stream) => stream.read(&mut [0]).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(!end.to_string().is_empty());
    }
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let listener = listen(&url("tls://localhost:0"), &authority.server()).await;
    let mut files = other.issue("client", &["client.test"]);
    files.ca = authority.path("ca.crt");
    let client = TlsClient::load(files).unwrap();
    let (dialed, accepted) = attempt(&listener, &dialing(&client)).await;
    let error = accepted.unwrap_err();
    assert!(matches!(error, HandshakeError::Certificate { .. }), "{error:?}");
    let end = dialed.unwrap().reader.read(&mut [0]).await.unwrap_err();
    assert!(!end.to_string().is_empty());
}

#[tokio::test]
async fn a_client_whose_certificate_expired_is_refused() {
    let authority = Authority::new();
    let listener = listen(&url("tls://localhost:0"), &authority.server()).await;
    let files = authority.issue_with("old", &["client.test"], |params| {
        params.not_after = date_time_ymd(2001, 1, 1);
    });
    for version in [&version::TLS12, &version::TLS13] {
        let connector = authority.foreign_client(version, Some(&files));
        let (_, accepted) = foreign_attempt(&listener, connector).await;
        let error = accepted.unwrap_err();
        assert!(matches!(error, HandshakeError::Certificate { .. }), "{error:?}");
        let source = error.source().unwrap().to_string();
        assert!(source.contains("expired"), "{source}");
    }
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let mut files = other.issue("server", &["localhost"]);
    files.ca = authority.path("ca.crt");
    let listener = listen(&url("tls://localhost:0"), &TlsServer::load(files).unwrap()).await;
    let (dialed, accepted) = attempt(&listener, &dialing(&authority.client())).await;
    let error = dialed.unwrap_err();
    assert!(
        matches!(error, DialError::Tls { source: HandshakeError::Certificate { .. }, .. }),
        "{error:?}"
    );
    let error = accepted.unwrap_err();
    assert!(matches!(error, HandshakeError::RefusedByPeer { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_with_another_name_is_refused_unless_that_name_is_asked_for() {
    let authority = Authority::new();
    let server = TlsServer::load(authority.issue("server", &["bus.test", "192.0.2.1"])).unwrap();
    let listener = listen(&url("tls://127.0.0.1:0"), &server).await;
    let client = authority.client();
    for wrong in [None, Some("other.test"), Some("127.0.0.1")] {
        let server_name = wrong.map(str::to_owned);
        let options = DialOptions { server_name, ..dialing(&client) };
        let error = attempt(&listener, &options).await.0.unwrap_err();
        assert!(
            matches!(error, DialError::Tls { source: HandshakeError::Certificate { .. }, .. }),
            "{error:?}"
        );
    }
    for right in ["bus.test", "192.0.2.1"] {
        let server_name = Some(right.to_owned());
        let options = DialOptions { server_name, ..dialing(&client) };
        pair(&listener, &options).await;
    }
    let server_name = Some("no name".to_owned());
    let options = DialOptions { server_name, ..dialing(&client) };
    let error = dial(listener.local_url(), &options).await.unwrap_err();
    assert!(matches!(error, DialError::InvalidServerName { .. }), "{error:?}");
}

#[tokio::test]
async fn both_versions_are_served_without_session_tickets() {
    let authority = Authority::new();
    let listener = listen(&url("tls://localhost:0"), &authority.server()).await;
    let files = authority.issue("client", &["client.test"]);
    for version in [&version::TLS12, &version::TLS13] {
        let connector = authority.foreign_client(version, Some(&files));
        // The second connection would resume the session of the first one.
        for _ in 0..2 {
            let (client, accepted) = foreign_attempt(&listener, connector.clone()).await;
            let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap());
            accepted.writer.write_all(b"x").await.unwrap();
            accepted.writer.flush().await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
            let session = client.get_ref().1;
            assert_eq!(session.protocol_version(), Some(version.version));
            assert_eq!(session.tls13_tickets_received(), 0);
            assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
            assert_eq!(accepted.peer.name.as_deref(), Some("client.test"));
        }
    }
}

#[tokio::test]
async fn a_silent_client_does_not_delay_another() {
    let authority = Authority::new();
    let listener = listen(&url("tls://localhost:0"), &authority.server()).await;
    let _silent = TcpStream::connect(listener.local_addresses()[0]).await.unwrap();
    let waiting = tokio::spawn(listener.accept().await.unwrap().handshake());
    let (mut dialed, mut accepted) = pair(&listener, &dialing(&authority.client())).await;
    assert_carries(&mut dialed, &mut accepted, b"not delayed").await;
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_given_up_after_the_handshake_timeout() {
    let authority = Authority::new();
    let listener = listen(&url("tls://127.0.0.1:0"), &authority.server()).await;
    let _silent = TcpStream::connect(listener.local_addresses()[0]).await.unwrap();
    let error = handshake(&listener).await.unwrap_err();
    let default = ListenOptions::default().handshake_timeout;
    assert!(matches!(error, HandshakeError::Timeout { after } if after == default), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_after_the_connect_timeout() {
    let authority = Authority::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = url(&format!("tls://{}", silent.local_addr().unwrap()));
    let error = dial(&at, &dialing(&authority.client())).await.unwrap_err();
    assert!(matches!(error, DialError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_is_told_apart() {
    let authority = Authority::new();
    let listener = listen(&url("tls://127.0.0.1:0"), &authority.server()).await;
    let mut plain = TcpStream::connect(listener.local_addresses()[0]).await.unwrap();
    plain.write_all(&[28, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
    let error = handshake(&listener).await.unwrap_err();
    assert!(matches!(error, HandshakeError::Protocol { .. }), "{error:?}");

    let gone = TcpStream::connect(listener.local_addresses()[0]).await.unwrap();
    drop(gone);
    let error = handshake(&listener).await.unwrap_err();
    assert!(matches!(error, HandshakeError::Io { .. }), "{error:?}");
}

#[tokio::test]
async fn the_name_is_the_first_dns_name_else_the_first_uri_else_the_common_name() {
    let authority = Authority::new();
    let listener = listen(&url("tls://localhost:0"), &authority.server()).await;
    let uri = |text: &str| SanType::URI(Ia5String::try_from(text).unwrap());
    let address = SanType::IpAddress([127, 0, 0, 1].into());
    let dns = |text: &str| SanType::DnsName(Ia5String::try_from(text).unwrap());
    for (names, expected) in [
        (vec![uri("bus:a"), dns("first"), dns("second")], Some("first")),
        (vec![address.clone(), uri("bus:a"), uri("bus:b")], Some("bus:a")),
        (vec![address], Some("common")),
        (vec![], Some("common")),
    ] {
        let files = authority.issue_with("common", &[], |params| params.subject_alt_names = names);
        let client = TlsClient::load(files).unwrap();
        let (_, accepted) = pair(&listener, &dialing(&client)).await;
        assert_eq!(accepted.peer.name.as_deref(), expected);
    }
    for unusable in ["", "a\nb", &"n".repeat(256)] {
        let files = authority.issue_with("common", &[], |params| {
            params.distinguished_name.push(DnType::CommonName, unusable);
        });
        let client = TlsClient::load(files).unwrap();
        let (_, accepted) = pair(&listener, &dialing(&client)).await;
        assert_eq!(accepted.peer.name, None);
    }
}

/// Passes bytes on between a client and `to`, and returns all that the client sent.
async fn wiretap(listener: TcpListener, to: std::net::SocketAddr) -> Vec<u8> {
    let (client, _) = listener.accept().await.unwrap();
    let server = TcpStream::connect(to).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    });
    let mut tapped = Vec::new();
    let mut bytes = vec![0; 3000];
    while let Ok(length @ 1..) = from_client.read(&mut bytes).await {
        tapped.extend_from_slice(&bytes[..length]);
        to_server.write_all(&bytes[..length]).await.unwrap();
    }
    back.abort();
    tapped
}

/// The lengths of the application data in TLS records of version 1.3 (RFC 8446, section 5.2).
fn record_lengths(mut bytes: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind == 23 {
            // One byte of content type and 16 of authentication.
            lengths.push(length - 17);
        }
        bytes = &rest[length..];
    }
    lengths
}

#[tokio::test]
async fn each_write_up_to_16_kib_is_one_record_also_when_the_socket_is_busy() {
    let authority = Authority::new();
    let listener = listen(&url("tls://127.0.0.1:0"), &authority.server()).await;
    let tap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through_tap = url(&format!("tls://{}", tap.local_addr().unwrap()));
    let tapped = tokio::spawn(wiretap(tap, listener.local_addresses()[0]));
    let options = dialing(&authority.client());
    let (dialed, accepted) = tokio::join!(dial(&through_tap, &options), handshake(&listener));
    let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());

    // 8 MiB: many times what the sockets between take.
    let lengths: Vec<usize> = [16_384, 100, 9_000, 16_383].repeat(200);
    let total = lengths.iter().sum::<usize>() + 300;
    let (mut writer, mut reader) = (dialed.writer, accepted.reader);
    let bytes = vec![7; 16_384];
    let write = async {
        for &length in &lengths {
            // Not write_all: it must be taken whole.
            assert_eq!(writer.write(&bytes[..length]).await.unwrap(), length);
        }
        let slices = [IoSlice::new(&bytes[..100]), IoSlice::new(&bytes[..200])];
        assert_eq!(writer.write_vectored(&slices).await.unwrap(), 300);
        writer.shutdown().await.unwrap();
    };
    let mut received = vec![0; total];
    let (_, read) = tokio::join!(write, reader.read_exact(&mut received));
    read.unwrap();
    assert!(received.iter().all(|&byte| byte == 7));
    drop((reader, writer, accepted.writer, dialed.reader));

    let records = record_lengths(&tapped.await.unwrap());
    // Before them, the end of the handshake; behind them, the goodbye.
    let end = records.len() - 1;
    assert_eq!(&records[end - lengths.len() - 1..end - 1], lengths);
    assert_eq!(records[end - 1], 300);
}
