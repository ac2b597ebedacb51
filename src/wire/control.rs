//! Control messages: what a link says to the broker itself.
//!
//! `nlhdr (type 14), u8 command, u8 version = 0, u16 reserved = 0, attributes`: generic netlink's shape.
//! A stranger may send one, so everything is checked here, before any of it is used.

use super::attribute::{Attribute, Attributes, NLA_HEADER_LEN};
use super::envelope::CONTROL_TYPE;
use super::fault::{Fault, Malformed, Parsed, fault_of};
use super::header::{HEADER_LEN, Header, header};
use nom::Parser as _;

/// The version of the protocol, as HELLO carries it.
pub const PROTOCOL_VERSION: u32 = 1;

/// The version in the generic netlink header of a control message.
pub const CONTROL_VERSION: u8 = 0;

/// The number of a link's first subscription; the next ones count down, as in the original.
pub const CID_FIRST: u32 = 1023;

/// The lowest number of a subscription that a subscriber may choose itself.
pub const CID_CHOSEN_FIRST: u32 = 65_536;

const GENL_HEADER_LEN: usize = 4;
pub(super) const ATTRIBUTES_AT: usize = HEADER_LEN + GENL_HEADER_LEN;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const NLA_FLAGS: u16 = 0xc000;

macro_rules! commands {
    ($($name:ident $number:literal $symbol:literal $doc:literal)*) => {
        /// What a control message asks for, or answers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Command { $(#[doc = $doc] $name = $number,)* }

        impl Command {
            /// Every command, in the order of the specification.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The command with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// Its name in `proto-spec/control.yaml`.
            pub const fn symbol(self) -> &'static str {
                match self { $(Self::$name => $symbol,)* }
            }
        }
    };
}

commands! {
    Noop 0 "noop" "Does nothing and is never answered."
    Stop 1 "stop" "Stops the broker."
    Ack 2 "ack" "The answer to a command that was carried out; never answered."
    Err 3 "err" "The answer to a command that was not carried out; never answered."
    Register 4 "register" "Asks for the control right with the secret."
    Reload 5 "reload" "Reads certificates and configuration again."
    Route 6 "route" "Retired."
    Connect 7 "connect" "Makes the broker connect to a URL."
    Disconnect 8 "disconnect" "Undoes a CONNECT."
    Serve 9 "serve" "Makes the broker listen at a URL."
    Shutdown 10 "shutdown" "Undoes a SERVE."
    Subscribe 11 "subscribe" "Asks for broadcasts."
    Unsubscribe 12 "unsubscribe" "Ends a subscription."
    Provide 13 "provide" "Makes the sender a provider of a name."
    Remove 14 "remove" "Undoes a PROVIDE."
    Discover 15 "discover" "Turns a name into an address."
    Unregister 16 "unregister" "Gives the control right back."
    Hello 32 "hello" "Says which version and which frames the sender speaks."
    List 33 "list" "Asks for links, subsystems and subscriptions."
    Stats 34 "stats" "Asks for the counters."
    LogLevel 35 "log-level" "Sets what the broker logs."
    Release 36 "release" "Says that a port of the sender is no more."
}

/// The bits of [`ControlAttribute::Mode`].
pub mod mode {
    /// The provider takes pushes, over datagrams too, and answers nothing.
    pub const PULL: u32 = 0x1;
    /// The provider makes changes.
    pub const WRITE: u32 = 0x2;
    /// In HELLO: the sender is a broker.
    pub const BROKER: u32 = 0x4;
}

/// The bits of [`ControlAttribute::Rights`].
pub mod right {
    /// Send, subscribe, discover.
    pub const USE: u32 = 0x1;
    /// Provide subsystems.
    pub const PROVIDE: u32 = 0x2;
    /// Connect, serve, shut down, stop.
    pub const CONTROL: u32 = 0x4;
}

/// What a LIST asks for: the values of [`ControlAttribute::Kind`].
pub mod kind {
    /// Links that are up.
    pub const LINK: u32 = 1;
    /// Subsystems that somebody provides.
    pub const SUBSYSTEM: u32 = 2;
    /// URLs that are listened at.
    pub const LISTENER: u32 = 3;
    /// Links to other brokers that this one makes.
    pub const UPLINK: u32 = 4;
    /// Subscriptions.
    pub const SUBSCRIPTION: u32 = 5;
}

/// The shape of a control attribute's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// Any bytes with at most one NUL, as the last.
    Bytes,
    /// UTF-8 with at most one NUL, as the last.
    String,
    /// Exactly 4 bytes.
    U32,
    /// Exactly 8 bytes.
    U64,
    /// Exactly 12 bytes: [`Key`].
    Key,
    /// Attributes of the same set, but for further entries.
    Entry,
}

macro_rules! attributes {
    ($($name:ident $number:literal $symbol:literal $type:ident $doc:literal)*) => {
        /// The attributes of control messages.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum ControlAttribute { $(#[doc = $doc] $name = $number,)* }

        impl ControlAttribute {
            /// Every attribute, in the order of the specification.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The attribute with this number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// Its name in `proto-spec/control.yaml`.
            pub const fn symbol(self) -> &'static str {
                match self { $(Self::$name => $symbol,)* }
            }

            /// The shape of its payload.
            pub const fn value_type(self) -> ValueType {
                match self { $(Self::$name => ValueType::$type,)* }
            }

            /// Whether it may stand more than once.
            pub const fn is_multi(self) -> bool {
                matches!(self, Self::Key | Self::Entry)
            }
        }
    };
}

attributes! {
    Secret 8 "secret" Bytes "The broker's secret."
    Host 9 "host" String "A URL, or the name of a subsystem."
    SslKey 10 "ssl-key" String "Path of a private key."
    SslCert 11 "ssl-cert" String "Path of a certificate."
    SslCa 12 "ssl-ca" String "Path of the certificates to trust."
    Addr 13 "addr" U32 "An address on this broker."
    Error 14 "error" String "Why a command was not carried out."
    Cid 15 "cid" U32 "The number of a subscription."
    Key 16 "key" Key "A condition of a subscription; may stand more than once."
    Errno 64 "errno" U32 "Why a command was not carried out, as a positive error number."
    Version 65 "version" U32 "The version of the protocol."
    FrameMax 66 "frame-max" U32 "The longest frame that the sender takes, in bytes."
    Port 67 "port" U32 "A port of the sending link."
    Mode 68 "mode" U32 "How a name is provided, or what a link is: bits of [`mode`]."
    Group 69 "group" String "A group of subscribers."
    Text 70 "text" String "A name, or what to log."
    Kind 71 "kind" U32 "What a list is of: one of [`kind`]."
    Value 72 "value" U64 "A count."
    Entry 73 "entry" Entry "One of a list; may stand more than once."
    Rights 74 "rights" U32 "What a link may do: bits of [`right`]."
    Link 75 "link" U32 "The slot of a link."
    Hops 76 "hops" U32 "How many brokers a subscription has come through."
}

/// A condition on the payload of a broadcast: the little-endian u32 at `offset` of the inner message,
/// masked, equals `key`, masked. An offset that reaches past the end matches nothing, unless the mask is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key {
    /// Byte offset in the inner message.
    pub offset: u32,
    /// The value to compare with.
    pub key: u32,
    /// The bits that are compared; 0 compares nothing and matches everything.
    pub mask: u32,
}

impl Key {
    fn from_bytes(bytes: &[u8; 12]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self { offset: word(0), key: word(4), mask: word(8) }
    }

    pub(super) fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[0..4].copy_from_slice(&self.offset.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.key.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.mask.to_le_bytes());
        bytes
    }

    /// Whether `message` meets the condition.
    #[inline]
    pub fn matches(&self, message: &[u8]) -> bool {
        if self.mask == 0 {
            return true;
        }
        match message.get(self.offset as usize..).and_then(<[u8]>::first_chunk::<4>) {
            Some(word) => u32::from_le_bytes(*word) & self.mask == self.key & self.mask,
            None => false,
        }
    }
}

/// The conditions of a SUBSCRIBE.
#[derive(Clone, Debug)]
pub struct Keys<'a>(Attributes<'a>);

impl Iterator for Keys<'_> {
    type Item = Key;

    fn next(&mut self) -> Option<Key> {
        let kind = ControlAttribute::Key as u16;
        self.0
            .by_ref()
            .map_while(Result::ok)
            .filter(|attribute| attribute.kind == kind)
            .find_map(|attribute| attribute.payload.first_chunk().map(Key::from_bytes))
    }
}

/// A checked control message. Every attribute has the shape that [`ControlAttribute`] promises.
#[derive(Clone, Debug)]
pub struct Control<'a> {
    /// The inner header.
    pub header: Header,
    /// The command's number; [`command`](Self::command) names it.
    pub number: u8,
    /// [`ControlAttribute::Secret`].
    pub secret: Option<&'a [u8]>,
    /// [`ControlAttribute::Host`].
    pub host: Option<&'a str>,
    /// [`ControlAttribute::SslKey`].
    pub ssl_key: Option<&'a str>,
    /// [`ControlAttribute::SslCert`].
    pub ssl_cert: Option<&'a str>,
    /// [`ControlAttribute::SslCa`].
    pub ssl_ca: Option<&'a str>,
    /// [`ControlAttribute::Addr`].
    pub addr: Option<u32>,
    /// [`ControlAttribute::Error`].
    pub error: Option<&'a str>,
    /// [`ControlAttribute::Cid`].
    pub cid: Option<u32>,
    /// [`ControlAttribute::Errno`].
    pub errno: Option<u32>,
    /// [`ControlAttribute::Version`].
    pub version: Option<u32>,
    /// [`ControlAttribute::FrameMax`].
    pub frame_max: Option<u32>,
    /// [`ControlAttribute::Port`].
    pub port: Option<u32>,
    /// [`ControlAttribute::Mode`].
    pub mode: Option<u32>,
    /// [`ControlAttribute::Group`].
    pub group: Option<&'a str>,
    /// [`ControlAttribute::Text`].
    pub text: Option<&'a str>,
    /// [`ControlAttribute::Kind`].
    pub kind: Option<u32>,
    /// [`ControlAttribute::Value`].
    pub value: Option<u64>,
    /// [`ControlAttribute::Rights`].
    pub rights: Option<u32>,
    /// [`ControlAttribute::Link`].
    pub link: Option<u32>,
    /// [`ControlAttribute::Hops`].
    pub hops: Option<u32>,
    region: &'a [u8],
}

impl<'a> Control<'a> {
    /// Checks the whole of `message`, which is the CDATA of a control frame.
    ///
    /// # Errors
    /// The first [`Fault`] and its offset in `message`. Nothing of a message that has one is used.
    pub fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let (region, (header, genl)) = head(message)
            .map_err(|error| Malformed::new(fault_of(error), message.len().min(ATTRIBUTES_AT)))?;
        if header.length as usize != message.len() {
            return Err(Malformed::new(Fault::LengthMismatch, 0));
        }
        if header.kind != CONTROL_TYPE {
            return Err(Malformed::new(Fault::NotControl, 4));
        }
        let [number, version, reserved @ ..] = genl;
        if version != CONTROL_VERSION {
            return Err(Malformed::new(Fault::VersionUnknown, HEADER_LEN + 1));
        }
        if reserved != [0, 0] {
            return Err(Malformed::new(Fault::ReservedNotZero, HEADER_LEN + 2));
        }
        let mut control = Self::empty(header, number, region);
        control.read_attributes(ATTRIBUTES_AT, false)?;
        Ok(control)
    }

    /// The command, if its number has a name.
    pub fn command(&self) -> Option<Command> {
        Command::from_number(self.number)
    }

    /// The conditions of a SUBSCRIBE, in their order.
    pub fn keys(&self) -> Keys<'a> {
        Keys(Attributes::new(self.region, ATTRIBUTES_AT))
    }

    /// The entries of a list, in their order; header and number of each are this message's.
    pub fn entries(&self) -> impl Iterator<Item = Control<'a>> + use<'a> {
        let (header, number) = (self.header, self.number);
        Attributes::new(self.region, ATTRIBUTES_AT)
            .map_while(Result::ok)
            .filter(|attribute| attribute.kind == ControlAttribute::Entry as u16)
            .filter_map(move |attribute| {
                let mut entry = Self::empty(header, number, attribute.payload);
                entry.read_attributes(0, true).ok().map(|()| entry)
            })
    }

    fn empty(header: Header, number: u8, region: &'a [u8]) -> Self {
        Self {
            header,
            number,
            secret: None,
            host: None,
            ssl_key: None,
            ssl_cert: None,
            ssl_ca: None,
            addr: None,
            error: None,
            cid: None,
            errno: None,
            version: None,
            frame_max: None,
            port: None,
            mode: None,
            group: None,
            text: None,
            kind: None,
            value: None,
            rights: None,
            link: None,
            hops: None,
            region,
        }
    }

    /// Reads the attributes, whose first stands at `start` of the message.
    fn read_attributes(&mut self, start: usize, in_entry: bool) -> Result<(), Malformed> {
        let mut seen = 0u128;
        let mut attributes = Attributes::new(self.region, start);
        loop {
            let at = attributes.offset();
            let Some(attribute) = attributes.next() else { return Ok(()) };
            let attribute = attribute?;
            let kind = known(attribute.kind).map_err(|fault| Malformed::new(fault, at))?;
            let bit = 1u128 << (kind as u16);
            if seen & bit != 0 && !kind.is_multi() {
                return Err(Malformed::new(Fault::AttributeTwice, at));
            }
            seen |= bit;
            if kind == ControlAttribute::Entry {
                if in_entry {
                    return Err(Malformed::new(Fault::AttributeUnknown, at));
                }
                // checked here, read by `entries`
                let mut entry = Self::empty(self.header, self.number, attribute.payload);
                entry.read_attributes(at + NLA_HEADER_LEN, true)?;
                continue;
            }
            self.take(kind, attribute)
                .map_err(|fault| Malformed::new(fault, at + NLA_HEADER_LEN))?;
        }
    }

    fn take(&mut self, kind: ControlAttribute, attribute: Attribute<'a>) -> Result<(), Fault> {
        let payload = attribute.payload;
        match kind {
            ControlAttribute::Secret => self.secret = Some(terminated(payload)?),
            ControlAttribute::Host => self.host = Some(string(payload)?),
            ControlAttribute::SslKey => self.ssl_key = Some(string(payload)?),
            ControlAttribute::SslCert => self.ssl_cert = Some(string(payload)?),
            ControlAttribute::SslCa => self.ssl_ca = Some(string(payload)?),
            ControlAttribute::Addr => self.addr = Some(word(payload)?),
            ControlAttribute::Error => self.error = Some(string(payload)?),
            ControlAttribute::Cid => self.cid = Some(word(payload)?),
            ControlAttribute::Key if payload.len() == 12 => {}
            ControlAttribute::Key => return Err(Fault::ValueLength),
            ControlAttribute::Errno => self.errno = Some(word(payload)?),
            ControlAttribute::Version => self.version = Some(word(payload)?),
            ControlAttribute::FrameMax => self.frame_max = Some(word(payload)?),
            ControlAttribute::Port => self.port = Some(word(payload)?),
            ControlAttribute::Mode => self.mode = Some(word(payload)?),
            ControlAttribute::Group => self.group = Some(string(payload)?),
            ControlAttribute::Text => self.text = Some(string(payload)?),
            ControlAttribute::Kind => self.kind = Some(word(payload)?),
            ControlAttribute::Value => {
                let bytes = payload.try_into().map_err(|_| Fault::ValueLength)?;
                self.value = Some(u64::from_le_bytes(bytes));
            }
            ControlAttribute::Entry => {}
            ControlAttribute::Rights => self.rights = Some(word(payload)?),
            ControlAttribute::Link => self.link = Some(word(payload)?),
            ControlAttribute::Hops => self.hops = Some(word(payload)?),
        }
        Ok(())
    }
}

/// `control-head = header command:u8 version:u8 reserved:u16`
fn head(input: &[u8]) -> Parsed<'_, (Header, [u8; GENL_HEADER_LEN])> {
    (header, genl_header).parse(input)
}

fn genl_header(input: &[u8]) -> Parsed<'_, [u8; GENL_HEADER_LEN]> {
    match input.split_first_chunk() {
        Some((bytes, rest)) => Ok((rest, *bytes)),
        None => Err(nom::Err::Error(Fault::HeaderCut)),
    }
}

fn known(kind: u16) -> Result<ControlAttribute, Fault> {
    if kind & NLA_FLAGS != 0 {
        return Err(Fault::AttributeFlags);
    }
    ControlAttribute::from_number(kind).ok_or(Fault::AttributeUnknown)
}

fn word(payload: &[u8]) -> Result<u32, Fault> {
    payload.try_into().map(u32::from_le_bytes).map_err(|_| Fault::ValueLength)
}

/// At most one NUL, as the last byte; the original leaves it out at times.
fn terminated(payload: &[u8]) -> Result<&[u8], Fault> {
    let bytes = payload.strip_suffix(&[0]).unwrap_or(payload);
    if bytes.contains(&0) { Err(Fault::StringNul) } else { Ok(bytes) }
}

fn string(payload: &[u8]) -> Result<&str, Fault> {
    str::from_utf8(terminated(payload)?).map_err(|_| Fault::StringUtf8)
}
