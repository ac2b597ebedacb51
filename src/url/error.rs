//! Why a text is not a bus URL.

use std::fmt;

use thiserror::Error;

use super::{
    DNS_LABEL_BYTES_MAX, DNS_NAME_BYTES_MAX, MEMORY_NAME_BYTES_MAX, Scheme, UNIX_PATH_BYTES_MAX,
    URL_BYTES_MAX, ZONE_BYTES_MAX,
};

/// Why a text is not a bus URL: which part of which input, and what would be right.
///
/// `url` is the input; one that is too long is cut, and a user and password are masked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UrlError {
    /// The input is longer than [`URL_BYTES_MAX`].
    #[error("url {url:?}: {length} bytes, at most {URL_BYTES_MAX} are allowed")]
    TooLong {
        /// The beginning of the input.
        url: String,
        /// The length of the input in bytes.
        length: usize,
    },
    /// No scheme before the address.
    #[error("url {url:?}: the scheme is missing; write for example tcp://HOST:PORT or unix://PATH")]
    MissingScheme {
        /// The input.
        url: String,
    },
    /// A scheme that is not of this bus.
    #[error("url {url:?}: unknown scheme {scheme:?}; known are {}", known_schemes())]
    UnknownScheme {
        /// The input.
        url: String,
        /// The text before `://`.
        scheme: String,
    },
    /// A known scheme without `//`.
    #[error("url {url:?}: `//` is missing behind the scheme; write {scheme}://…")]
    MissingSlashes {
        /// The input.
        url: String,
        /// The scheme that was recognised.
        scheme: Scheme,
    },
    /// A control character in the path or abstract name of a unix socket.
    #[error("url {url:?}: the path holds the control character {character:?}; remove it")]
    ControlCharacter {
        /// The input.
        url: String,
        /// The first such character.
        character: char,
    },
    /// An empty host, or `*`: all addresses must be asked for by name.
    #[error(
        "url {url:?}: the host is {}; for all addresses of this machine write 0.0.0.0 or [::]",
        if host.is_empty() { "missing" } else { "`*`" }
    )]
    MissingHost {
        /// The input.
        url: String,
        /// The host as written: nothing or `*`.
        host: String,
    },
    /// An IPv6 address without brackets, which hides where the port begins.
    #[error("url {url:?}: host {host:?} looks like IPv6; put it in brackets: [ADDRESS]:PORT")]
    Ipv6WithoutBrackets {
        /// The input.
        url: String,
        /// The text behind `://`.
        host: String,
    },
    /// Brackets around something that is not an IPv6 address, or an unclosed bracket.
    #[error("url {url:?}: host {host:?} is not an IPv6 address in brackets such as [::1]")]
    InvalidIpv6 {
        /// The input.
        url: String,
        /// The host as written.
        host: String,
    },
    /// A zone that cannot be the name or index of an interface.
    #[error(
        "url {url:?}: host: zone {zone:?} is not an interface name of 1 to {ZONE_BYTES_MAX} bytes, \
         as in [fe80::1%eth0]"
    )]
    InvalidZone {
        /// The input.
        url: String,
        /// The text behind `%`.
        zone: String,
    },
    /// A host that ends in a number, but is not an IPv4 address.
    #[error("url {url:?}: host {host:?} is not an IPv4 address: four numbers from 0 to 255")]
    InvalidIpv4 {
        /// The input.
        url: String,
        /// The host as written.
        host: String,
    },
    /// A host that cannot be a DNS name.
    #[error(
        "url {url:?}: host {host:?} is not a DNS name: labels of 1 to {DNS_LABEL_BYTES_MAX} \
         letters, digits, `-` and `_`, at most {DNS_NAME_BYTES_MAX} bytes; write other letters as \
         punycode (xn--…)"
    )]
    InvalidName {
        /// The input.
        url: String,
        /// The host as written.
        host: String,
    },
    /// A port that is not a number from 0 to 65535.
    #[error("url {url:?}: port {port:?} is not a number from 0 to 65535")]
    InvalidPort {
        /// The input.
        url: String,
        /// The text behind the colon.
        port: String,
    },
    /// A part that a network URL does not have.
    #[error("url {url:?}: {scheme} urls have no {part}; write {scheme}://HOST:PORT and no more")]
    UnexpectedPart {
        /// The input; a user and password are masked.
        url: String,
        /// The scheme.
        scheme: Scheme,
        /// What was found.
        part: UrlPart,
    },
    /// Nothing behind `unix://`, or nothing behind the mark of an abstract name.
    #[error(
        "url {url:?}: the path is missing; write unix:///ABSOLUTE, unix://RELATIVE or unix://@NAME"
    )]
    MissingPath {
        /// The input.
        url: String,
    },
    /// A path or abstract name longer than [`UNIX_PATH_BYTES_MAX`].
    #[error(
        "url {url:?}: path of {length} bytes, a unix socket takes at most {UNIX_PATH_BYTES_MAX}"
    )]
    PathTooLong {
        /// The input.
        url: String,
        /// The length of the path or name in bytes.
        length: usize,
    },
    /// A path that ends in `/`, `.` or `..`.
    #[error("url {url:?}: the path is a directory; add the name of the socket file")]
    PathIsDirectory {
        /// The input.
        url: String,
    },
    /// A `mem://` name that is too long or has other characters.
    #[error(
        "url {url:?}: name {name:?} is not 1 to {MEMORY_NAME_BYTES_MAX} letters, digits, `-`, `_` \
         and `.`"
    )]
    InvalidMemoryName {
        /// The input.
        url: String,
        /// The text behind `mem://`.
        name: String,
    },
}

/// A part of a URL, for [`UrlError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UrlPart {
    /// `user:password@` before the host.
    User,
    /// What follows the first `/` behind the host.
    Path,
    /// What follows `?`.
    Query,
    /// What follows `#`.
    Fragment,
}

impl fmt::Display for UrlPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UrlPart::User => "user",
            UrlPart::Path => "path",
            UrlPart::Query => "query",
            UrlPart::Fragment => "fragment",
        })
    }
}

fn known_schemes() -> String {
    Scheme::ALL.map(Scheme::as_str).join(", ")
}
