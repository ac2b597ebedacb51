//! PEM files (RFC 7468): the only module that knows `rustls-pemfile`.
//!
//! That crate is archived (RUSTSEC-2025-0134) and a thin wrapper over `rustls-pki-types`; the way
//! out is `rustls_pki_types::pem::PemObject`, here and nowhere else.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::error::TlsError;

/// The longest PEM file that is read, in bytes. The bundle of all public authorities has a quarter.
pub const PEM_BYTES_MAX: usize = 1024 * 1024;

/// All certificates of the file in its order, at least one. Other sections are skipped.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let certificates = rustls_pemfile::certs(&mut bytes.as_slice())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

/// The first private key of the file: PKCS #8, PKCS #1 or SEC 1, not encrypted.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(path)?;
    // The marks of PKCS #8 and of the older form (RFC 1421); neither can occur in base64.
    let marks = [b"BEGIN ENCRYPTED".as_slice(), b"4,ENCRYPTED"];
    if marks.iter().any(|mark| bytes.windows(mark.len()).any(|window| window == *mark)) {
        return Err(TlsError::EncryptedKey { path: path.to_owned() });
    }
    rustls_pemfile::private_key(&mut bytes.as_slice())
        .map_err(|source| TlsError::Pem { path: path.to_owned(), source })?
        .ok_or_else(|| TlsError::NoKey { path: path.to_owned() })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let limit = PEM_BYTES_MAX as u64 + 1;
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    if bytes.len() > PEM_BYTES_MAX {
        return Err(TlsError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}
