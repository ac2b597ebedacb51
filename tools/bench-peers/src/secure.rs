//! TLS as plain as it can be: rustls over a socket, for the relay and for the load on both of them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig};
use rustls::{ServerConnection, SideData};

/// The name in the server's certificate.
const HOST: &str = "localhost";

#[derive(Clone)]
/// An authority, and one certificate that it signed for both sides, as PEM.
pub(crate) struct Papers {
    pub(crate) authority: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Papers {
    pub(crate) fn make() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut params = CertificateParams::new(vec![HOST.to_owned()])?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;
        Ok(Self {
            authority: authority.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Writes them where `nlbus serve` can read them.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        std::fs::write(directory.join("ca.crt"), &self.authority)?;
        std::fs::write(directory.join("server.crt"), &self.certificate)?;
        Ok(std::fs::write(directory.join("server.key"), &self.key)?)
    }

    /// All in one, for the standard input of the relay.
    pub(crate) fn together(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }

    /// Connects, and shakes hands.
    pub(crate) fn connect(&self, stream: TcpStream) -> anyhow::Result<Secured<ClientConnection>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(self.certificate.as_bytes())?],
                PrivateKeyDer::from_pem_slice(self.key.as_bytes())?,
            )?;
        let mut session = ClientConnection::new(Arc::new(config), ServerName::try_from(HOST)?)?;
        let mut stream = stream;
        while session.is_handshaking() {
            session.complete_io(&mut stream).context("the TLS handshake failed")?;
        }
        Ok(Secured { session, stream })
    }
}

/// Takes TLS connections.
pub(crate) struct Acceptor(Arc<ServerConfig>);

impl Acceptor {
    /// With the certificate and the key on standard input.
    pub(crate) fn from_input() -> anyhow::Result<Self> {
        let text = io::read_to_string(io::stdin())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(text.as_bytes())?],
                PrivateKeyDer::from_pem_slice(text.as_bytes())?,
            )?;
        Ok(Self(Arc::new(config)))
    }

    /// Shakes hands; the socket does not block any more then.
    pub(crate) fn accept(
        &self,
        mut stream: TcpStream,
    ) -> anyhow::Result<Secured<ServerConnection>> {
        let mut session = ServerConnection::new(Arc::clone(&self.0))?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        stream.set_nonblocking(true)?;
        Ok(Secured { session, stream })
    }
}

/// A TLS session over a socket.
pub(crate) struct Secured<C> {
    session: C,
    stream: TcpStream,
}

impl<C, S> Read for Secured<C>
where
    C: DerefMut + Deref<Target = ConnectionCommon<S>>,
    S: SideData,
{
    /// Takes all there is, as far as there is room.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.session.reader().read(&mut bytes[filled..]) {
                Ok(0) => return Ok(filled),
                Ok(count) => {
                    filled += count;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            match self.session.read_tls(&mut self.stream) {
                Ok(0) => return Ok(filled),
                Ok(_) => {
                    self.session.process_new_packets().map_err(io::Error::other)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock && filled > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl<C, S> Write for Secured<C>
where
    C: DerefMut + Deref<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.stream)?;
        }
        let count = self.session.writer().write(bytes)?;
        match self.flush() {
            Ok(()) => Ok(count),
            // what the session has taken is its own; flush tells when it is out
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(count),
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.stream)?;
        }
        Ok(())
    }
}

impl<C> AsFd for Secured<C> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
