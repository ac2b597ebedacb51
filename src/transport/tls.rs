//! TLS 1.2 and 1.3 on top of tcp and unix sockets, always mutual.
//!
//! - Each side shows a certificate, and takes only one that its authority signed. There is no
//!   revocation list: take the name out of the access list, or change the authority.
//! - The client checks the server's name: the host of the URL, or
//!   [`DialOptions::server_name`](super::DialOptions::server_name), which a unix URL needs.
//! - No session outlives its connection: no tickets under TLS 1.3 (clients of the original stall
//!   on them), no resumption under 1.2, so each connection is verified anew.
//! - The cryptography is that of *ring*, passed to each configuration. The process-wide default
//!   of rustls is neither used nor set.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Once, PoisonError, RwLock};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ConfigBuilder, ConfigSide, InconsistentKeys, RootCertStore, ServerConfig,
    SupportedProtocolVersion, WantsVerifier, WantsVersions, version,
};
use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::warn;

use super::error::{DialError, HandshakeError, TlsError};
use super::options::DialOptions;
use super::record::RecordWriter;
use super::{Peer, Stream, certificate, pem};
use crate::url::{BusUrl, Host, Scheme};

static VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// The three PEM files of one side, each of at most [`PEM_BYTES_MAX`](super::PEM_BYTES_MAX).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of this side, then those between it and the authority, if any.
    pub certificate: PathBuf,
    /// The private key of that certificate: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    pub key: PathBuf,
    /// The certificates of the authorities that may sign the other side's certificate.
    pub ca: PathBuf,
}

/// What a listener needs for TLS. Clones share one state: [`TlsServer::reload`] is for all.
#[derive(Clone)]
pub struct TlsServer {
    current: Arc<Current<ServerConfig>>,
}

impl TlsServer {
    /// Reads and checks the files; blocks while it reads them.
    ///
    /// # Errors
    /// A file that cannot be read or used, a key of another certificate, a certificate out of its
    /// time: see [`TlsError`].
    pub fn load(files: TlsFiles) -> Result<TlsServer, TlsError> {
        Ok(TlsServer { current: Arc::new(Current::load(files, server_config)?) })
    }

    /// Reads the files again. Later handshakes use them; connections that are open, and handshakes
    /// under way, keep what they began with.
    ///
    /// # Errors
    /// As [`TlsServer::load`]; then everything stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.reload(server_config)
    }

    pub(super) async fn accept<S>(
        &self,
        socket: S,
        mut peer: Peer,
    ) -> Result<Stream, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let acceptor = TlsAcceptor::from(self.current.config());
        let stream = acceptor.accept(socket).await.map_err(HandshakeError::from_io)?;
        let certificates = stream.get_ref().1.peer_certificates();
        peer.certified = certificates.is_some();
        peer.name = verified_name(certificates);
        Ok(into_stream(stream, peer))
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsServer").field(&self.current.files).finish()
    }
}

/// What [`dial`](super::dial) needs for TLS. Clones share one state: [`TlsClient::reload`] is for
/// all.
#[derive(Clone)]
pub struct TlsClient {
    current: Arc<Current<ClientConfig>>,
}

impl TlsClient {
    /// Reads and checks the files; blocks while it reads them.
    ///
    /// # Errors
    /// As [`TlsServer::load`].
    pub fn load(files: TlsFiles) -> Result<TlsClient, TlsError> {
        Ok(TlsClient { current: Arc::new(Current::load(files, client_config)?) })
    }

    /// Reads the files again, for connections dialed later.
    ///
    /// # Errors
    /// As [`TlsServer::load`]; then everything stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.reload(client_config)
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsClient").field(&self.current.files).finish()
    }
}

/// Who dials, and whom: complete before the first packet is sent.
pub(super) struct Dialer {
    client: TlsClient,
    name: ServerName<'static>,
}

impl Dialer {
    pub(super) fn new(url: &BusUrl, options: &DialOptions) -> Result<Dialer, DialError> {
        let url_owned = || url.clone();
        let client =
            options.tls.clone().ok_or_else(|| DialError::TlsMissing { url: url_owned() })?;
        let text = match (&options.server_name, url.host()) {
            (Some(name), _) => name.clone(),
            (None, Some(Host::Name(name))) => name.trim_end_matches('.').to_owned(),
            (None, Some(Host::V4(address))) => address.to_string(),
            (None, Some(Host::V6 { address, .. })) => address.to_string(),
            (None, None) => return Err(DialError::ServerNameMissing { url: url_owned() }),
        };
        let name = ServerName::try_from(text.clone())
            .map_err(|_| DialError::InvalidServerName { url: url_owned(), name: text })?;
        Ok(Dialer { client, name })
    }

    pub(super) async fn connect<S>(
        self,
        socket: S,
        mut peer: Peer,
    ) -> Result<Stream, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connector = TlsConnector::from(self.client.current.config());
        let stream = connector.connect(self.name, socket).await.map_err(HandshakeError::from_io)?;
        let certificates = stream.get_ref().1.peer_certificates();
        peer.certified = certificates.is_some();
        peer.name = verified_name(certificates);
        Ok(into_stream(stream, peer))
    }
}

/// Says once in the life of the process that `ssl` is another name of `tls`.
pub(super) fn warn_of_ssl(url: &BusUrl) {
    static SAID: Once = Once::new();
    if matches!(url.scheme(), Scheme::Ssl | Scheme::UnixSsl) {
        SAID.call_once(
            || warn!(%url, "ssl is served as TLS 1.2 and 1.3; SSL itself is not spoken"),
        );
    }
}

fn verified_name(certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
    certificates?.first().and_then(certificate::name)
}

fn into_stream<S>(stream: S, peer: Peer) -> Stream
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, writer) = split(stream);
    Stream { reader: Box::new(reader), writer: Box::new(RecordWriter::new(writer)), peer }
}

/// A configuration and the files that it came from.
struct Current<C> {
    files: TlsFiles,
    config: RwLock<Arc<C>>,
}

type Build<C> = fn(&TlsFiles) -> Result<C, TlsError>;

impl<C> Current<C> {
    fn load(files: TlsFiles, build: Build<C>) -> Result<Current<C>, TlsError> {
        let config = RwLock::new(Arc::new(build(&files)?));
        Ok(Current { files, config })
    }

    fn reload(&self, build: Build<C>) -> Result<(), TlsError> {
        let config = Arc::new(build(&self.files)?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn config(&self) -> Arc<C> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let identity = identity(files, &provider)?;
    let unusable = |source| TlsError::Authority { path: files.ca.clone(), source };
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(authorities(files)?),
        provider.clone(),
    )
    .build()
    .map_err(|error| unusable(Box::new(error)))?;
    let mut config = with_versions(ServerConfig::builder_with_provider(provider))
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(identity));
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

fn client_config(files: &TlsFiles) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let identity = identity(files, &provider)?;
    let mut config = with_versions(ClientConfig::builder_with_provider(provider))
        .with_root_certificates(authorities(files)?)
        .with_client_cert_resolver(Arc::new(identity));
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn with_versions<Side: ConfigSide>(
    builder: ConfigBuilder<Side, WantsVersions>,
) -> ConfigBuilder<Side, WantsVerifier> {
    builder.with_protocol_versions(&VERSIONS).expect("ring has cipher suites for both versions")
}

fn identity(files: &TlsFiles, provider: &CryptoProvider) -> Result<SingleCertAndKey, TlsError> {
    let chain = pem::certificates(&files.certificate)?;
    for der in &chain {
        certificate::check(der, &files.certificate)?;
    }
    let key = pem::private_key(&files.key)?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::KeyMismatch { certificate: files.certificate.clone(), key: files.key.clone() }
        }
        error => TlsError::Key { path: files.key.clone(), source: Box::new(error) },
    })?;
    Ok(SingleCertAndKey::from(key))
}

/// The authorities that are valid now. Verifying does not look at their time, so those that are
/// not are left out, and it is an error when none is left.
fn authorities(files: &TlsFiles) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let mut out_of_time = None;
    for der in pem::certificates(&files.ca)? {
        match certificate::check(&der, &files.ca) {
            Ok(()) => store.add(der).map_err(|error| TlsError::Authority {
                path: files.ca.clone(),
                source: Box::new(error),
            })?,
            Err(error @ (TlsError::Expired { .. } | TlsError::NotYetValid { .. })) => {
                warn!(%error, "certificate authority left out");
                out_of_time = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match out_of_time {
        Some(error) if store.is_empty() => Err(error),
        _ => Ok(store),
    }
}

impl HandshakeError {
    fn from_io(source: io::Error) -> HandshakeError {
        use rustls::Error;
        let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match inner {
            Some(Error::NoCertificatesPresented) => HandshakeError::NoCertificate { source },
            Some(Error::InvalidCertificate(_)) => HandshakeError::Certificate { source },
            Some(Error::AlertReceived(_)) => HandshakeError::RefusedByPeer { source },
            Some(_) => HandshakeError::Protocol { source },
            None => HandshakeError::Io { source },
        }
    }
}
