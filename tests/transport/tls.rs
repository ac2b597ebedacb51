//! TLS on tcp and unix sockets: who gets in, who does not, and what they are told.

use std::error::Error;
use std::fs;
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use nlbus::transport::{
    DialError, DialOptions, HandshakeError, ListenError, ListenOptions, Listener, PEM_BYTES_MAX,
    Stream, TlsClient, TlsError, TlsFiles, TlsServer, dial,
};
use nlbus::url::BusUrl;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::{assert_carries, has_ipv6, url};

/// A certificate authority whose files lie in a directory of their own.
struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let directory = tempfile::tempdir().unwrap();
        let (issuer, pem) = new_issuer(|_| ());
        fs::write(directory.path().join("ca.crt"), pem).unwrap();
        Authority { directory, issuer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Issues a certificate for the names, changed by `edit`, into NAME.crt and NAME.key.
    fn issue_with(
        &self,
        name: &str,
        subject_names: &[&str],
        edit: impl FnOnce(&mut CertificateParams),
    ) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = subject_names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        edit(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsFiles {
            certificate: self.write(&format!("{name}.crt"), certificate.pem()),
            key: self.write(&format!("{name}.key"), key.serialize_pem()),
            ca: self.path("ca.crt"),
        }
    }

    fn issue(&self, name: &str, subject_names: &[&str]) -> TlsFiles {
        self.issue_with(name, subject_names, |_| ())
    }

    fn server(&self) -> TlsServer {
        TlsServer::load(self.issue("server", &["localhost", "127.0.0.1", "::1"])).unwrap()
    }

    fn client(&self) -> TlsClient {
        TlsClient::load(self.issue("client", &["client.test"])).unwrap()
    }

    /// A client that is not ours: this version, and this certificate or none.
    fn foreign_client(
        &self,
        version: &'static SupportedProtocolVersion,
        identity: Option<&TlsFiles>,
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.crt")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let chain = vec![CertificateDer::from_pem_file(&files.certificate).unwrap()];
                let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

fn new_issuer(edit: impl FnOnce(&mut CertificateParams)) -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "test authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    edit(&mut params);
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn dialing(client: &TlsClient) -> DialOptions {
    DialOptions { tls: Some(client.clone()), ..Default::default() }
}

async fn listen(at: &BusUrl, server: &TlsServer) -> Listener {
    let options = ListenOptions { tls: Some(server.clone()), ..Default::default() };
    Listener::bind(at, &options).await.unwrap()
}

async fn handshake(listener: &Listener) -> Result<Stream, HandshakeError> {
    listener.accept().await.unwrap().handshake().await
}

/// What both ends of one attempt see.
async fn attempt(
    listener: &Listener,
    options: &DialOptions,
) -> (Result<Stream, DialError>, Result<Stream, HandshakeError>) {
    tokio::join!(dial(listener.local_url(), options), handshake(listener))
}

async fn pair(listener: &Listener, options: &DialOptions) -> (Stream, Stream) {
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
async fn reloaded_certificates_are_for_new_connections_and_old_ones_live_on() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client());
    let listener = listen(&url("tls://localhost:0"), &server).await;
    let (mut old_dialed, mut old_accepted) = pair(&listener, &dialing(&client)).await;

    // Another authority takes over in the same files.
    let (issuer, pem) = new_issuer(|_| ());
    let authority = Authority { issuer, ..authority };
    authority.write("ca.crt", pem);
    authority.issue("server", &["localhost"]);
    authority.issue("client", &["new.test"]);
    pair(&listener, &dialing(&client)).await;

    server.reload().unwrap();
    let (dialed, accepted) = attempt(&listener, &dialing(&client)).await;
    assert!(dialed.is_err() && accepted.is_err(), "the old client does not know the new server");
    client.reload().unwrap();
    let (_, accepted) = pair(&listener, &dialing(&client)).await;
    assert_eq!(accepted.peer.name.as_deref(), Some("new.test"));

    assert_carries(&mut old_dialed, &mut old_accepted, b"still").await;
    assert_carries(&mut old_accepted, &mut old_dialed, b"here").await;
}

#[tokio::test]
async fn a_reload_that_fails_changes_nothing() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client());
    let listener = listen(&url("tls://localhost:0"), &server).await;
    authority.write("server.key", "");
    authority.write("client.key", "");
    assert!(matches!(server.reload(), Err(TlsError::NoKey { .. })));
    assert!(matches!(client.reload(), Err(TlsError::NoKey { .. })));
    pair(&listener, &dialing(&client)).await;
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

/// The error of loading the files, as a server and as a client.
fn load_error(files: &TlsFiles) -> TlsError {
    let error = TlsServer::load(files.clone()).unwrap_err();
    let same = TlsClient::load(files.clone()).unwrap_err();
    assert_eq!(error.to_string(), same.to_string());
    error
}

#[test]
fn a_missing_file_is_named() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let none = authority.path("none.pem");
    for files in [
        TlsFiles { certificate: none.clone(), ..files.clone() },
        TlsFiles { key: none.clone(), ..files.clone() },
        TlsFiles { ca: none.clone(), ..files },
    ] {
        let error = load_error(&files);
        assert!(matches!(&error, TlsError::Read { path, .. } if *path == none), "{error:?}");
        assert!(error.to_string().contains("none.pem"), "{error}");
    }
}

#[test]
fn a_file_without_the_section_that_is_looked_for_is_named() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let empty = authority.write("empty.pem", "nothing\n");
    for path in [&empty, &files.key] {
        let error = load_error(&TlsFiles { certificate: path.clone(), ..files.clone() });
        assert!(matches!(&error, TlsError::NoCertificate { path: p } if p == path), "{error:?}");
        let error = load_error(&TlsFiles { ca: path.clone(), ..files.clone() });
        assert!(matches!(&error, TlsError::NoCertificate { path: p } if p == path), "{error:?}");
    }
    for path in [&empty, &files.certificate] {
        let error = load_error(&TlsFiles { key: path.clone(), ..files.clone() });
        assert!(matches!(&error, TlsError::NoKey { path: p } if p == path), "{error:?}");
    }
}

#[test]
fn a_garbled_file_is_named() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let pem = fs::read_to_string(&files.certificate).unwrap();
    let cut = authority.write("cut.pem", &pem[..pem.len() / 2]);
    let error = load_error(&TlsFiles { certificate: cut.clone(), ..files.clone() });
    assert!(matches!(&error, TlsError::Pem { path, .. } if *path == cut), "{error:?}");

    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let garbled = authority.write("garbled.pem", text);
    for files in [
        TlsFiles { certificate: garbled.clone(), ..files.clone() },
        TlsFiles { ca: garbled.clone(), ..files.clone() },
    ] {
        let error = load_error(&files);
        assert!(
            matches!(&error, TlsError::Certificate { path, .. } if *path == garbled),
            "{error:?}"
        );
    }

    let text = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let garbled = authority.write("garbled.key", text);
    let error = load_error(&TlsFiles { key: garbled.clone(), ..files });
    assert!(matches!(&error, TlsError::Key { path, .. } if *path == garbled), "{error:?}");
}

#[test]
fn an_encrypted_key_is_told() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    for text in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n\
         -----END RSA PRIVATE KEY-----\n",
    ] {
        let key = authority.write("encrypted.key", text);
        let error = load_error(&TlsFiles { key, ..files.clone() });
        assert!(matches!(error, TlsError::EncryptedKey { .. }), "{error:?}");
        assert!(error.to_string().contains("without a passphrase"), "{error}");
    }
}

#[test]
fn a_key_of_another_certificate_is_told() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let other = authority.issue("other", &["localhost"]);
    let error = load_error(&TlsFiles { key: other.key, ..files });
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("other.key") && text.contains("server.crt"), "{text}");
}

#[test]
fn a_certificate_out_of_its_time_is_told() {
    let authority = Authority::new();
    let old = authority.issue_with("old", &["localhost"], |params| {
        params.not_after = date_time_ymd(2001, 2, 3);
    });
    let error = load_error(&old);
    assert!(matches!(&error, TlsError::Expired { path, .. } if *path == old.certificate));
    assert!(error.to_string().contains("2001"), "{error}");
    let young = authority.issue_with("young", &["localhost"], |params| {
        params.not_before = date_time_ymd(3001, 2, 3);
    });
    let error = load_error(&young);
    assert!(matches!(&error, TlsError::NotYetValid { path, .. } if *path == young.certificate));
    assert!(error.to_string().contains("3001"), "{error}");
}

#[tokio::test]
async fn an_authority_out_of_its_time_vouches_for_nobody() {
    let (old, old_pem) = new_issuer(|params| params.not_after = date_time_ymd(2001, 2, 3));
    let authority = Authority { issuer: old, ..Authority::new() };
    let good_pem = fs::read_to_string(authority.path("ca.crt")).unwrap();
    let of_old = authority.issue("client", &["client.test"]);
    authority.write("ca.crt", &old_pem);
    let error = load_error(&of_old);
    assert!(matches!(&error, TlsError::Expired { path, .. } if *path == of_old.ca), "{error:?}");

    // Beside a good one it is left out, and what it signed is refused.
    authority.write("ca.crt", old_pem + &good_pem);
    let listener =
        listen(&url("tls://localhost:0"), &TlsServer::load(of_old.clone()).unwrap()).await;
    let client = TlsClient::load(of_old).unwrap();
    let error = attempt(&listener, &dialing(&client)).await.0.unwrap_err();
    assert!(
        matches!(error, DialError::Tls { source: HandshakeError::Certificate { .. }, .. }),
        "{error:?}"
    );
}

#[test]
fn a_pem_file_is_read_up_to_its_limit() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let pem = fs::read_to_string(&files.certificate).unwrap();
    let padding = "\n".repeat(PEM_BYTES_MAX - pem.len());
    authority.write("server.crt", format!("{pem}{padding}"));
    TlsServer::load(files.clone()).unwrap();
    authority.write("server.crt", format!("{pem}{padding}\n"));
    let error = load_error(&files);
    assert!(matches!(error, TlsError::TooLarge { .. }), "{error:?}");
}

#[test]
fn keys_do_not_show_in_debug_output() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client());
    let text = format!("{server:?} {client:?}");
    assert!(text.contains("server.key") && text.len() < 1000, "{text}");
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
