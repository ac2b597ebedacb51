//! Where a bus is reached: [`BusUrl`] and its grammar.
//!
//! ```text
//! url       = net / local / memory
//! net       = ("tcp" / "tls" / "ssl" / "udp") "://" host [":" port]
//! host      = IPv4 / "[" IPv6 ["%" zone] "]" / DNS name
//! local     = ("unix" / "unix+tls" / "unix+ssl") "://" (path / abstract)
//! path      = absolute ("/run/x.sock") or relative ("x.sock", "./dir/x.sock")
//! abstract  = ("@" / NUL / the four characters "\x00") name
//! memory    = "mem:" / "mem://" [name]
//! ```
//!
//! - The port is [`DEFAULT_PORT`] when it is left out. Port 0 asks a listener for any free port.
//! - Nothing is percent-decoded: `%` stands for itself, and a path may hold spaces. A zone is
//!   written `[fe80::1%eth0]`, not `%25eth0`.
//! - There is no user, path, query or fragment behind a host. In a path `?` and `#` are plain
//!   characters.
//! - Schemes and DNS names ignore case and are printed in lower case.
//! - A file whose name begins with `@` is written `unix://./@name`.
//! - Control characters are refused everywhere, so that a URL can be logged on one line.
//!
//! Parsing is total: any text gives a [`BusUrl`] or a [`UrlError`] that names the part that is
//! wrong and says what would be right.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

mod error;

pub use error::{UrlError, UrlPart};

/// The TCP and UDP port of a URL that names none.
pub const DEFAULT_PORT: u16 = 9824;

/// The longest URL that is looked at, in bytes.
pub const URL_BYTES_MAX: usize = 1024;

/// The longest path of a unix socket, and the longest abstract name, in bytes.
///
/// The kernel keeps 108 bytes; one is the NUL behind a path or before an abstract name (unix(7)).
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// The longest name of a `mem://name` bus, in bytes.
pub const MEMORY_NAME_BYTES_MAX: usize = 64;

/// The longest interface name, in bytes: the kernel's `IFNAMSIZ` less its NUL.
const ZONE_BYTES_MAX: usize = 15;

/// The longest DNS name and label, in bytes (RFC 1035, section 2.3.4).
const DNS_NAME_BYTES_MAX: usize = 253;
const DNS_LABEL_BYTES_MAX: usize = 63;

/// A place where a bus is served or reached: scheme and address.
///
/// `Display` prints the canonical form (lower case, port always written, abstract names with `@`),
/// which parses back to an equal value.
///
/// ```
/// use nlbus::url::{BusUrl, DEFAULT_PORT};
///
/// let url: BusUrl = "tcp://[::1]".parse()?;
/// assert_eq!(url.port(), Some(DEFAULT_PORT));
/// assert_eq!(url.to_string(), "tcp://[::1]:9824");
/// # Ok::<(), nlbus::url::UrlError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BusUrl {
    scheme: Scheme,
    place: Place,
}

/// What stands behind the scheme; which arm follows from the scheme.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Net { host: Host, port: u16 },
    Unix(UnixAddress),
    Memory(Option<String>),
}

impl BusUrl {
    /// The scheme as it was written.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// What carries the bytes; TLS is on top of that, see [`BusUrl::is_tls`].
    pub fn transport(&self) -> TransportKind {
        self.scheme.transport()
    }

    /// Whether the bytes are wrapped in TLS.
    pub fn is_tls(&self) -> bool {
        self.scheme.is_tls()
    }

    /// The host of a tcp, tls, ssl or udp URL.
    pub fn host(&self) -> Option<&Host> {
        match &self.place {
            Place::Net { host, .. } => Some(host),
            _ => None,
        }
    }

    /// The port of a tcp, tls, ssl or udp URL; [`DEFAULT_PORT`] when the URL named none.
    pub fn port(&self) -> Option<u16> {
        match &self.place {
            Place::Net { port, .. } => Some(*port),
            _ => None,
        }
    }

    /// The socket of a unix, unix+tls or unix+ssl URL.
    pub fn unix_address(&self) -> Option<&UnixAddress> {
        match &self.place {
            Place::Unix(address) => Some(address),
            _ => None,
        }
    }

    /// The name of a `mem://name` URL; `None` for `mem:` and for every other scheme.
    pub fn memory_name(&self) -> Option<&str> {
        match &self.place {
            Place::Memory(name) => name.as_deref(),
            _ => None,
        }
    }

    /// The same URL with another port; a URL without ports is returned as it is.
    ///
    /// A listener that was asked for port 0 tells with this which port it got.
    #[must_use]
    pub fn with_port(&self, port: u16) -> BusUrl {
        let mut url = self.clone();
        if let Place::Net { port: current, .. } = &mut url.place {
            *current = port;
        }
        url
    }
}

impl FromStr for BusUrl {
    type Err = UrlError;

    fn from_str(input: &str) -> Result<BusUrl, UrlError> {
        if input.len() > URL_BYTES_MAX {
            let url = format!("{}…", input.chars().take(48).collect::<String>());
            return Err(UrlError::TooLong { url, length: input.len() });
        }
        let Some((before, after)) = input.split_once(':') else {
            return Err(UrlError::MissingScheme { url: without_user(input) });
        };
        let body = after.strip_prefix("//");
        let Some(scheme) = Scheme::from_text(before) else {
            let (url, scheme) = (without_user(input), before.to_owned());
            // `localhost:9824` is a host and a port, not a scheme.
            return Err(match body {
                Some(_) => UrlError::UnknownScheme { url, scheme },
                None => UrlError::MissingScheme { url },
            });
        };
        let place = match (scheme.transport(), body) {
            (TransportKind::Memory, Some(name)) => memory(input, name)?,
            (TransportKind::Memory, None) if after.is_empty() => Place::Memory(None),
            (_, None) => {
                return Err(UrlError::MissingSlashes { url: without_user(input), scheme });
            }
            (TransportKind::Unix, Some(path)) => Place::Unix(unix_address(input, path)?),
            (TransportKind::Tcp | TransportKind::Udp, Some(authority)) => {
                network(input, scheme, authority)?
            }
        };
        Ok(BusUrl { scheme, place })
    }
}

impl TryFrom<&str> for BusUrl {
    type Error = UrlError;

    fn try_from(input: &str) -> Result<BusUrl, UrlError> {
        input.parse()
    }
}

impl fmt::Display for BusUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Net { host, port } => write!(f, "{}://{host}:{port}", self.scheme),
            Place::Unix(address) => write!(f, "{}://{address}", self.scheme),
            Place::Memory(Some(name)) => write!(f, "{}://{name}", self.scheme),
            Place::Memory(None) => write!(f, "{}:", self.scheme),
        }
    }
}

/// The word before `://`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// TCP.
    Tcp,
    /// TLS 1.2 or 1.3 over TCP.
    Tls,
    /// Another name of [`Scheme::Tls`], kept for users of the original; SSL itself is not spoken.
    Ssl,
    /// UDP; each datagram is whole frames.
    Udp,
    /// A unix stream socket.
    Unix,
    /// TLS 1.2 or 1.3 over a unix stream socket.
    UnixTls,
    /// Another name of [`Scheme::UnixTls`].
    UnixSsl,
    /// A bus inside this process.
    Mem,
}

impl Scheme {
    /// All schemes, in the order in which an error lists them.
    pub const ALL: [Scheme; 8] = [
        Scheme::Tcp,
        Scheme::Tls,
        Scheme::Ssl,
        Scheme::Udp,
        Scheme::Unix,
        Scheme::UnixTls,
        Scheme::UnixSsl,
        Scheme::Mem,
    ];

    /// The scheme as it is written in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Tcp => "tcp",
            Scheme::Tls => "tls",
            Scheme::Ssl => "ssl",
            Scheme::Udp => "udp",
            Scheme::Unix => "unix",
            Scheme::UnixTls => "unix+tls",
            Scheme::UnixSsl => "unix+ssl",
            Scheme::Mem => "mem",
        }
    }

    /// What carries the bytes of this scheme.
    pub fn transport(self) -> TransportKind {
        match self {
            Scheme::Tcp | Scheme::Tls | Scheme::Ssl => TransportKind::Tcp,
            Scheme::Udp => TransportKind::Udp,
            Scheme::Unix | Scheme::UnixTls | Scheme::UnixSsl => TransportKind::Unix,
            Scheme::Mem => TransportKind::Memory,
        }
    }

    /// Whether the bytes are wrapped in TLS.
    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Tls | Scheme::Ssl | Scheme::UnixTls | Scheme::UnixSsl)
    }

    fn from_text(text: &str) -> Option<Scheme> {
        Scheme::ALL.into_iter().find(|scheme| scheme.as_str().eq_ignore_ascii_case(text))
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What carries the bytes below TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportKind {
    /// A TCP connection.
    Tcp,
    /// UDP datagrams.
    Udp,
    /// A unix stream socket.
    Unix,
    /// No socket: both ends are in this process.
    Memory,
}

/// The host of a network URL. `Display` prints it as in a URL, IPv6 in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An IPv4 address in dotted decimal.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6 {
        /// The address without its zone.
        address: Ipv6Addr,
        /// The interface of a link-local address: its name or its decimal index.
        zone: Option<String>,
    },
    /// A DNS name in lower case; it was not looked up.
    Name(String),
}

impl Host {
    /// The address, when the URL gave one and not a name.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Host::V4(address) => Some(IpAddr::V4(*address)),
            Host::V6 { address, .. } => Some(IpAddr::V6(*address)),
            Host::Name(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::V4(address) => write!(f, "{address}"),
            Host::V6 { address, zone: None } => write!(f, "[{address}]"),
            Host::V6 { address, zone: Some(zone) } => write!(f, "[{address}%{zone}]"),
            Host::Name(name) => f.write_str(name),
        }
    }
}

/// The socket of a unix URL. `Display` prints it as in a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UnixAddress {
    /// A socket file; a relative path starts at the working directory of the process.
    /// 1 to [`UNIX_PATH_BYTES_MAX`] bytes of UTF-8.
    Path(PathBuf),
    /// A name in the abstract namespace, without its leading NUL byte.
    /// 1 to [`UNIX_PATH_BYTES_MAX`] bytes of UTF-8. Any process of the same network namespace can
    /// connect to it: there are no file permissions.
    Abstract(String),
}

impl UnixAddress {
    /// The socket file; `None` for an abstract name.
    pub fn path(&self) -> Option<&Path> {
        match self {
            UnixAddress::Path(path) => Some(path),
            UnixAddress::Abstract(_) => None,
        }
    }
}

impl fmt::Display for UnixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnixAddress::Path(path) => write!(f, "{}", path.display()),
            UnixAddress::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

/// The input with `***` for what stands before the last `@`: it may be a password, and errors are
/// logged.
fn without_user(input: &str) -> String {
    let (start, text) = match input.find("://") {
        Some(at) => input.split_at(at + 3),
        None => ("", input),
    };
    match text.rsplit_once('@') {
        Some((_, tail)) => format!("{start}***@{tail}"),
        None => input.to_owned(),
    }
}

/// `memory = "mem://" [name]`
fn memory(input: &str, name: &str) -> Result<Place, UrlError> {
    if name.is_empty() {
        return Ok(Place::Memory(None));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.len() > MEMORY_NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(UrlError::InvalidMemoryName { url: input.to_owned(), name: name.to_owned() });
    }
    Ok(Place::Memory(Some(name.to_owned())))
}

/// `path / abstract`
fn unix_address(input: &str, text: &str) -> Result<UnixAddress, UrlError> {
    let url = || input.to_owned();
    let marks = ["@", "\0", "\\x00"];
    let name = marks.iter().find_map(|mark| text.strip_prefix(mark));
    let body = name.unwrap_or(text);
    if body.is_empty() {
        return Err(UrlError::MissingPath { url: url() });
    }
    if body.len() > UNIX_PATH_BYTES_MAX {
        return Err(UrlError::PathTooLong { url: url(), length: body.len() });
    }
    if let Some(character) = body.chars().find(|character| character.is_control()) {
        return Err(UrlError::ControlCharacter { url: url(), character });
    }
    match name {
        Some(name) => Ok(UnixAddress::Abstract(name.to_owned())),
        None if matches!(body.rsplit('/').next(), Some("" | "." | "..")) => {
            Err(UrlError::PathIsDirectory { url: url() })
        }
        None => Ok(UnixAddress::Path(PathBuf::from(body))),
    }
}

/// `host [":" port]`, and nothing else
fn network(input: &str, scheme: Scheme, text: &str) -> Result<Place, UrlError> {
    let end = text.find(['/', '?', '#']).unwrap_or(text.len());
    let (authority, rest) = text.split_at(end);
    let part = match rest.as_bytes().first() {
        _ if authority.contains('@') => Some(UrlPart::User),
        Some(b'/') => Some(UrlPart::Path),
        Some(b'?') => Some(UrlPart::Query),
        Some(_) => Some(UrlPart::Fragment),
        None => None,
    };
    if let Some(part) = part {
        return Err(UrlError::UnexpectedPart { url: without_user(input), scheme, part });
    }
    let (host, port_text) = split_port(input, authority)?;
    let host = parse_host(input, host)?;
    let port = match port_text {
        Some(digits) => parse_port(input, digits)?,
        None => DEFAULT_PORT,
    };
    Ok(Place::Net { host, port })
}

/// Splits at the colon before the port, which IPv6 hides behind its bracket.
fn split_port<'a>(input: &str, authority: &'a str) -> Result<(&'a str, Option<&'a str>), UrlError> {
    let owned = |host: &str| (input.to_owned(), host.to_owned());
    if authority.starts_with('[') {
        let invalid = || {
            let (url, host) = owned(authority);
            UrlError::InvalidIpv6 { url, host }
        };
        let end = authority.find(']').ok_or_else(invalid)? + 1;
        let (host, rest) = authority.split_at(end);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(invalid()),
        };
    }
    match authority.split_once(':') {
        None => Ok((authority, None)),
        Some((_, port)) if port.contains(':') => {
            let (url, host) = owned(authority);
            Err(UrlError::Ipv6WithoutBrackets { url, host })
        }
        Some((host, port)) => Ok((host, Some(port))),
    }
}

fn parse_port(input: &str, digits: &str) -> Result<u16, UrlError> {
    // u16::from_str alone would take "+80".
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .parse()
        .ok()
        .filter(|_| all_digits)
        .ok_or_else(|| UrlError::InvalidPort { url: input.to_owned(), port: digits.to_owned() })
}

fn parse_host(input: &str, host: &str) -> Result<Host, UrlError> {
    let (url, text) = (|| input.to_owned(), || host.to_owned());
    if host.is_empty() || host == "*" {
        return Err(UrlError::MissingHost { url: url(), host: text() });
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let (address, zone) = match inner.split_once('%') {
            Some((address, zone)) => (address, Some(zone)),
            None => (inner, None),
        };
        let Ok(address) = address.parse::<Ipv6Addr>() else {
            return Err(UrlError::InvalidIpv6 { url: url(), host: text() });
        };
        if let Some(zone) = zone.filter(|zone| !is_zone(zone)) {
            return Err(UrlError::InvalidZone { url: url(), zone: zone.to_owned() });
        }
        return Ok(Host::V6 { address, zone: zone.map(str::to_owned) });
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok(Host::V4(address));
    }
    // `127.1` and `1.2.3.999` would be taken by some resolvers as addresses; no top-level domain
    // is a number.
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UrlError::InvalidIpv4 { url: url(), host: text() });
    }
    if !is_dns_name(host) {
        return Err(UrlError::InvalidName { url: url(), host: text() });
    }
    Ok(Host::Name(host.to_ascii_lowercase()))
}

fn is_zone(zone: &str) -> bool {
    let printable = |byte: u8| byte.is_ascii_graphic() && !b"/%[]".contains(&byte);
    (1..=ZONE_BYTES_MAX).contains(&zone.len()) && zone.bytes().all(printable)
}

/// One final dot (the root) is allowed.
fn is_dns_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=DNS_LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= DNS_NAME_BYTES_MAX && name.split('.').all(is_label)
}
