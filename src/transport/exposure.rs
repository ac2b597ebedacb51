//! Who could reach a listener.

use std::io;
use std::net::IpAddr;

use crate::url::{BusUrl, Host, TransportKind};

/// Whether anybody beyond this machine could reach what listens at `url`, without showing a certificate:
/// plain tcp and udp on an address that is not loopback. A name is looked up, and counts if any of its
/// addresses does.
///
/// # Errors
/// A name that cannot be looked up. Cancel-safe.
pub async fn is_exposed(url: &BusUrl) -> io::Result<bool> {
    let by_address = matches!(url.transport(), TransportKind::Tcp | TransportKind::Udp);
    if url.is_tls() || !by_address {
        return Ok(false);
    }
    let (Some(host), Some(port)) = (url.host(), url.port()) else { return Ok(false) };
    Ok(match (host.ip(), host) {
        (Some(ip), _) => !ip.is_loopback(),
        (None, Host::Name(name)) => {
            let mut found = tokio::net::lookup_host((name.as_str(), port)).await?;
            !found.all(|address| IpAddr::is_loopback(&address.ip()))
        }
        _ => true,
    })
}
