//! What the bus reads in a certificate (RFC 5280) itself: its time and its name. Signatures, chains
//! and host names are the business of rustls.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::error::TlsError;

/// The longest name of a certificate that is used, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Whether the certificate, read from `path`, is readable and valid now.
pub(super) fn check(der: &CertificateDer<'_>, path: &Path) -> Result<(), TlsError> {
    let path = || path.to_owned();
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| TlsError::Certificate { path: path(), source: Box::new(error) })?;
    let validity = certificate.validity();
    let now = ASN1Time::now();
    if now > validity.not_after {
        return Err(TlsError::Expired { path: path(), since: validity.not_after.to_string() });
    }
    if now < validity.not_before {
        return Err(TlsError::NotYetValid { path: path(), until: validity.not_before.to_string() });
    }
    Ok(())
}

/// The name that a verified certificate gives its owner: the first DNS name of the subject
/// alternative names, else the first URI there, else the first common name of the subject. Names
/// that are empty, longer than 255 bytes or hold control characters are passed over.
pub(super) fn name(der: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let extension = certificate.subject_alternative_name().ok().flatten();
    let alternatives = extension.map_or([].as_slice(), |extension| &extension.value.general_names);
    let dns = alternatives.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let uris = alternatives.iter().filter_map(|name| match name {
        GeneralName::URI(name) => Some(*name),
        _ => None,
    });
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    dns.chain(uris).chain(common).find(|name| is_usable(name)).map(str::to_owned)
}

fn is_usable(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control)
}
