//! Certificates for a test.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use nlbus::transport::{TlsClient, TlsFiles, TlsServer};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

/// A certificate authority whose files lie in a directory of their own.
pub(crate) struct Authority {
    pub(crate) directory: TempDir,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let directory = tempfile::tempdir().unwrap();
        let (issuer, pem) = new_issuer(|_| ());
        fs::write(directory.path().join("ca.crt"), pem).unwrap();
        Authority { directory, issuer }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Issues a certificate for the names, changed by `edit`, into NAME.crt and NAME.key.
    pub(crate) fn issue_with(
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

    pub(crate) fn issue(&self, name: &str, subject_names: &[&str]) -> TlsFiles {
        self.issue_with(name, subject_names, |_| ())
    }

    pub(crate) fn server(&self) -> TlsServer {
        TlsServer::load(self.issue("server", &["localhost", "127.0.0.1", "::1"])).unwrap()
    }

    pub(crate) fn client(&self) -> TlsClient {
        TlsClient::load(self.issue("client", &["client.test"])).unwrap()
    }

    /// A client that is not ours: this version, and this certificate or none.
    pub(crate) fn foreign_client(
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

pub(crate) fn new_issuer(
    edit: impl FnOnce(&mut CertificateParams),
) -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "test authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    edit(&mut params);
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}
