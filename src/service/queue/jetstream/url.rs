//! Where a cluster is and who asks it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The longest URL, in bytes.
const URL_BYTES_MAX: usize = 1_024;

/// The port of a NATS server.
const PORT: u16 = 4_222;

/// How many copies of a message a cluster can keep.
const REPLICAS_MAX: usize = 5;

/// `nats://[USER:PASSWORD@|TOKEN@]HOST[:PORT][,HOST[:PORT]…][?replicas=N]`, or the same with `nats+tls://`.
/// Of several servers of the cluster any one is enough.
///
/// It is shown without the user, the password and the token.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterUrl {
    pub(super) tls: bool,
    pub(super) user: Option<(String, Option<String>)>,
    places: Vec<(String, u16)>,
    pub(super) replicas: usize,
}

/// What is wrong with the URL of a cluster. The URL is not in the text: it may have a password.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterUrlError {
    /// It begins otherwise.
    #[error("the URL of a cluster begins with nats:// or nats+tls://")]
    Scheme,
    /// There is no host, or it has characters that a host has not.
    #[error("the URL of the cluster has no host, or one that is none")]
    Host,
    /// It is not a number from 1 to 65535.
    #[error("the port in the URL of the cluster is not a number from 1 to 65535")]
    Port,
    /// Something other than `replicas`, or not 1 to 5 of them.
    #[error("behind the ? of the URL of the cluster only replicas=1 to replicas=5 may stand")]
    Query,
    /// It is longer than 1,024 bytes.
    #[error("the URL of the cluster is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
}

impl ClusterUrl {
    /// Whether a text means the URL of a cluster, be it right or wrong.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with("nats://") || text.starts_with("nats+tls://")
    }

    /// As servers are named to the client.
    pub(super) fn servers(&self) -> Vec<String> {
        let scheme = if self.tls { "tls" } else { "nats" };
        self.places.iter().map(|(host, port)| format!("{scheme}://{host}:{port}")).collect()
    }
}

impl fmt::Display for ClusterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "nats+tls" } else { "nats" };
        write!(f, "{scheme}://")?;
        for (at, (host, port)) in self.places.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{host}:{port}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClusterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterUrl {
    type Err = ClusterUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > URL_BYTES_MAX {
            return Err(ClusterUrlError::TooLong);
        }
        let (tls, rest) = match (text.strip_prefix("nats://"), text.strip_prefix("nats+tls://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(ClusterUrlError::Scheme),
        };
        let (rest, query) = match rest.rsplit_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let replicas = match query.map(|query| query.strip_prefix("replicas=")) {
            None => 1,
            Some(Some(number)) => number
                .parse()
                .ok()
                .filter(|replicas| (1..=REPLICAS_MAX).contains(replicas))
                .ok_or(ClusterUrlError::Query)?,
            Some(None) => return Err(ClusterUrlError::Query),
        };
        // a password may have an @
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let user = user.map(|user| match user.split_once(':') {
            Some((user, password)) => (user.to_owned(), Some(password.to_owned())),
            None => (user.to_owned(), None),
        });
        let places = place.strip_suffix('/').unwrap_or(place).split(',').map(place_of);
        let places = places.collect::<Result<_, _>>()?;
        Ok(Self { tls, user, places, replicas })
    }
}

/// Reads one `HOST[:PORT]`.
fn place_of(place: &str) -> Result<(String, u16), ClusterUrlError> {
    let (host, port) = match place.rsplit_once(':') {
        Some((host, _)) if host.starts_with('[') && !host.ends_with(']') => (place, PORT),
        Some((host, port)) => {
            let port = port.parse().ok().filter(|port| *port > 0);
            (host, port.ok_or(ClusterUrlError::Port)?)
        }
        None => (place, PORT),
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let known = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(legal),
    };
    if known { Ok((host.to_owned(), port)) } else { Err(ClusterUrlError::Host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_what_is_secret() {
        for (text, shown) in [
            ("nats://127.0.0.1", "nats://127.0.0.1:4222"),
            ("nats://me:se:c@ret@host:99?replicas=3", "nats://host:99"),
            ("nats+tls://token@[::1]/", "nats+tls://[::1]:4222"),
            ("nats://[::1]:8", "nats://[::1]:8"),
            ("nats://me:se,c@a,b:99,[::1]?replicas=3", "nats://a:4222,b:99,[::1]:4222"),
        ] {
            let url: ClusterUrl = text.parse().unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
        }
        let url: ClusterUrl = "nats://me:se:c@ret@host:99?replicas=3".parse().unwrap();
        assert_eq!(url.user, Some(("me".to_owned(), Some("se:c@ret".to_owned()))));
        assert_eq!(url.replicas, 3);
    }

    #[test]
    fn a_wrong_url_is_told_what_is_wrong() {
        for (text, error) in [
            ("tcp://host", ClusterUrlError::Scheme),
            ("nats://", ClusterUrlError::Host),
            ("nats://a b", ClusterUrlError::Host),
            ("nats://a,,b", ClusterUrlError::Host),
            ("nats://a,b:0", ClusterUrlError::Port),
            ("nats://[::g]", ClusterUrlError::Host),
            ("nats://host:0", ClusterUrlError::Port),
            ("nats://host:port", ClusterUrlError::Port),
            ("nats://host?replicas=6", ClusterUrlError::Query),
            ("nats://host?retries=1", ClusterUrlError::Query),
        ] {
            assert_eq!(text.parse::<ClusterUrl>(), Err(error), "{text}");
        }
        let long = format!("nats://{}", "a".repeat(1_024));
        assert_eq!(long.parse::<ClusterUrl>(), Err(ClusterUrlError::TooLong));
    }
}
