//! From the host of a URL to socket addresses.

use std::io;
use std::net::{SocketAddr, SocketAddrV6};

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use crate::url::{BusUrl, Host};

/// How many addresses of one name are used; further ones are ignored.
const ADDRESSES_MAX: usize = 16;

/// All addresses of the URL, each once, in the order of the resolver (RFC 6724); never empty.
///
/// Cancel-safe: a dropped lookup ends in the background.
pub(super) async fn resolve(url: &BusUrl) -> io::Result<Vec<SocketAddr>> {
    let (Some(host), Some(port)) = (url.host(), url.port()) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let name = match host {
        Host::V4(address) => return Ok(vec![(*address, port).into()]),
        Host::V6 { address, zone } => {
            let scope = zone.as_deref().map_or(Ok(0), interface_index)?;
            return Ok(vec![SocketAddrV6::new(*address, port, 0, scope).into()]);
        }
        Host::Name(name) => name,
    };
    let mut addresses = Vec::new();
    for address in tokio::net::lookup_host((name.as_str(), port)).await? {
        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

fn interface_index(zone: &str) -> io::Result<u32> {
    if let Ok(index) = zone.parse() {
        return Ok(index);
    }
    let any = socket(AddressFamily::INET6, SocketType::DGRAM, None)
        .or_else(|_| socket(AddressFamily::UNIX, SocketType::DGRAM, None))?;
    Ok(netdevice::name_to_index(&any, zone)?)
}
