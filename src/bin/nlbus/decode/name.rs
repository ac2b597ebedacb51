//! Names for the numbers: message types, flags, addresses.

use nlbus::wire::{CONTROL_TYPE, TRANSPORT_TYPE, flag, nlm};

/// The first address that a broker gives to a subsystem.
const SUBSYSTEM_MIN: u32 = 0x0001_0003;
const SUBSYSTEM_MAX: u32 = 0x0001_ffff;
const RETURN_MIN: u32 = 0x8000_0000;

const NEW: u8 = 1;
const DEL: u8 = 2;
const GET: u8 = 4;
const SET: u8 = 8;
const TABLE: u8 = NEW | DEL | GET;

/// One kind of rtnetlink object: four message types from `first`, in the order NEW, DEL, GET, SET.
pub(crate) struct Object {
    first: u16,
    name: &'static str,
    verbs: u8,
    /// Length of the structure between the header and the attributes, padded to 4.
    pub(crate) fixed_bytes: usize,
    /// Its name in the kernel's headers.
    pub(crate) fixed_name: &'static str,
}

const fn object(
    first: u16,
    name: &'static str,
    verbs: u8,
    fixed_bytes: usize,
    fixed_name: &'static str,
) -> Object {
    Object { first, name, verbs, fixed_bytes, fixed_name }
}

/// rtnetlink(7) and `linux/rtnetlink.h`; what is not followed by plain attributes stands apart, in
/// [`rtnetlink`].
const OBJECTS: &[Object] = &[
    object(16, "LINK", TABLE | SET, 16, "ifinfomsg"),
    object(20, "ADDR", TABLE, 8, "ifaddrmsg"),
    object(24, "ROUTE", TABLE, 12, "rtmsg"),
    object(28, "NEIGH", TABLE, 12, "ndmsg"),
    object(32, "RULE", TABLE, 12, "fib_rule_hdr"),
    object(36, "QDISC", TABLE, 20, "tcmsg"),
    object(40, "TCLASS", TABLE, 20, "tcmsg"),
    object(44, "TFILTER", TABLE, 20, "tcmsg"),
    object(48, "ACTION", TABLE, 4, "tcamsg"),
    object(52, "PREFIX", NEW, 12, "prefixmsg"),
    object(56, "MULTICAST", TABLE, 8, "ifaddrmsg"),
    object(60, "ANYCAST", TABLE, 8, "ifaddrmsg"),
    object(64, "NEIGHTBL", NEW | GET | SET, 4, "ndtmsg"),
    object(68, "NDUSEROPT", NEW, usize::MAX, "nduseroptmsg"),
    object(72, "ADDRLABEL", TABLE, 12, "ifaddrlblmsg"),
    object(76, "DCB", GET | SET, 4, "dcbmsg"),
    object(80, "NETCONF", TABLE, 4, "netconfmsg"),
    object(84, "MDB", TABLE, 8, "br_port_msg"),
    object(88, "NSID", TABLE, 4, "rtgenmsg"),
    object(92, "STATS", NEW | GET | SET, 12, "if_stats_msg"),
    object(96, "CACHEREPORT", NEW, 4, "rtgenmsg"),
    object(100, "CHAIN", TABLE, 20, "tcmsg"),
    object(104, "NEXTHOP", TABLE, 8, "nhmsg"),
    object(108, "LINKPROP", TABLE, 16, "ifinfomsg"),
    object(112, "VLAN", TABLE, 8, "br_vlan_msg"),
    object(116, "NEXTHOPBUCKET", TABLE, 8, "nhmsg"),
    object(120, "TUNNEL", TABLE, 8, "tunnel_msg"),
];

/// The object and the verb that an rtnetlink message type speaks of.
pub(crate) fn rtnetlink(kind: u16) -> Option<(&'static Object, &'static str)> {
    let verb = kind & 3;
    let at = OBJECTS.binary_search_by_key(&(kind & !3), |object| object.first).ok()?;
    let object = &OBJECTS[at];
    (object.verbs & (1 << verb) != 0)
        .then_some((object, ["NEW", "DEL", "GET", "SET"][usize::from(verb)]))
}

/// The name of a message type that netlink itself or the bus gives.
pub(crate) fn shared_type(kind: u16) -> Option<&'static str> {
    Some(match kind {
        nlm::NOOP => "NLMSG_NOOP",
        nlm::ERROR => "NLMSG_ERROR",
        nlm::DONE => "NLMSG_DONE",
        nlm::OVERRUN => "NLMSG_OVERRUN",
        CONTROL_TYPE => "CONTROL",
        TRANSPORT_TYPE => "TRANSPORT",
        _ => return None,
    })
}

/// The name of an rtnetlink message type.
pub(crate) fn rtnetlink_type(kind: u16) -> Option<String> {
    rtnetlink(kind).map(|(object, verb)| format!("RTM_{verb}{}", object.name))
}

const COMMON_FLAGS: &[(u16, &str)] = &[
    (nlm::REQUEST, "REQUEST"),
    (nlm::MULTI, "MULTI"),
    (nlm::ACK, "ACK"),
    (nlm::ECHO, "ECHO"),
    (nlm::DUMP_INTR, "DUMP_INTR"),
    (0x20, "DUMP_FILTERED"),
];
const NEW_FLAGS: &[(u16, &str)] = &[
    (nlm::REPLACE, "REPLACE"),
    (nlm::EXCL, "EXCL"),
    (nlm::CREATE, "CREATE"),
    (nlm::APPEND, "APPEND"),
];
const DEL_FLAGS: &[(u16, &str)] = &[(0x100, "NONREC"), (0x200, "BULK")];
const GET_FLAGS: &[(u16, &str)] =
    &[(nlm::DUMP, "DUMP"), (0x100, "ROOT"), (0x200, "MATCH"), (0x400, "ATOMIC")];
const ERROR_FLAGS: &[(u16, &str)] = &[(nlm::CAPPED, "CAPPED"), (nlm::ACK_TLVS, "ACK_TLVS")];
const ENVELOPE_FLAGS: &[(u16, &str)] = &[
    (flag::CONTROL, "CONTROL"),
    (flag::RESPONSE, "RESPONSE"),
    (flag::EXCEPTION, "EXCEPTION"),
    (flag::ASK, "ASK"),
    (flag::LAST, "LAST"),
];

/// The flags of an inner message; bits from 0x100 up mean what the type makes of them.
pub(crate) fn message_flags(kind: u16, flags: u16, rtnetlink: bool) -> String {
    let special = match kind {
        nlm::ERROR | nlm::DONE => ERROR_FLAGS,
        _ if !rtnetlink || kind < nlm::MIN_TYPE => &[],
        _ => [NEW_FLAGS, DEL_FLAGS, GET_FLAGS, NEW_FLAGS][usize::from(kind & 3)],
    };
    flag_names(flags, &[COMMON_FLAGS, special])
}

/// The flags of an envelope, without the hop count.
pub(crate) fn envelope_flags(flags: u16) -> String {
    flag_names(flags & !flag::HOPS_MASK, &[ENVELOPE_FLAGS])
}

fn flag_names(mut flags: u16, tables: &[&[(u16, &str)]]) -> String {
    let mut names = Vec::new();
    for (bits, name) in tables.iter().flat_map(|table| table.iter()) {
        if flags & bits == *bits {
            names.push((*name).to_owned());
            flags &= !bits;
        }
    }
    if flags != 0 {
        names.push(format!("{flags:#x}"));
    }
    names.join("|")
}

/// What an address stands for. One below the subsystems is a number that a link gave to one of its own
/// endpoints; 0 as a destination is both that and the subscribers, as in the original.
pub(crate) fn address(address: u32, destination: bool) -> String {
    match address {
        u32::MAX => "subscribers".to_owned(),
        0 if destination => "subscribers, or port 0 of the link".to_owned(),
        0..SUBSYSTEM_MIN => format!("port {address} of the link"),
        SUBSYSTEM_MIN..=SUBSYSTEM_MAX => format!("subsystem #{}", address - SUBSYSTEM_MIN + 1),
        RETURN_MIN.. => "return address".to_owned(),
        _ => "unassigned".to_owned(),
    }
}

/// Paths of attributes that hold attributes, though not every kernel marks them with NLA_F_NESTED; 0
/// stands for any kind.
const NESTED: &[(&str, &[u16])] = &[
    ("LINK", &[18]),    // IFLA_LINKINFO
    ("LINK", &[18, 2]), // IFLA_INFO_DATA
    ("LINK", &[18, 5]), // IFLA_INFO_SLAVE_DATA
    ("LINK", &[26]),    // IFLA_AF_SPEC
    ("LINK", &[26, 0]), // one per address family
    ("LINK", &[43]),    // IFLA_XDP
    ("ROUTE", &[8]),    // RTA_METRICS
];

/// Whether the attribute at `path` in a message about `object` is known to hold attributes.
pub(crate) fn is_nested(object: &Object, path: &[u16]) -> bool {
    NESTED.iter().any(|(name, known)| {
        *name == object.name
            && known.len() == path.len()
            && known.iter().zip(path).all(|(known, kind)| *known == 0 || known == kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rtnetlink_types_have_the_names_of_the_kernels_header() {
        let name = |kind| rtnetlink_type(kind).unwrap_or_default();
        assert_eq!(name(16), "RTM_NEWLINK");
        assert_eq!(name(19), "RTM_SETLINK");
        assert_eq!(name(22), "RTM_GETADDR");
        assert_eq!(name(67), "RTM_SETNEIGHTBL");
        assert_eq!(name(122), "RTM_GETTUNNEL");
        assert_eq!(name(23), "");
        assert_eq!(name(15), "");
        assert_eq!(name(124), "");
    }

    #[test]
    fn objects_are_in_ascending_order_four_types_apart() {
        for pair in OBJECTS.windows(2) {
            assert!(pair[0].first < pair[1].first && pair[1].first % 4 == 0, "{}", pair[1].name);
        }
    }

    #[test]
    fn flags_above_the_low_byte_are_named_after_the_type() {
        assert_eq!(message_flags(18, 0x301, true), "REQUEST|DUMP");
        assert_eq!(message_flags(18, 0x101, true), "REQUEST|ROOT");
        assert_eq!(message_flags(16, 0x605, true), "REQUEST|ACK|EXCL|CREATE");
        assert_eq!(message_flags(17, 0x301, true), "REQUEST|NONREC|BULK");
        assert_eq!(message_flags(2, 0x300, true), "CAPPED|ACK_TLVS");
        assert_eq!(message_flags(18, 0x8301, false), "REQUEST|0x8300");
    }

    #[test]
    fn addresses_are_named_at_the_borders_of_their_ranges() {
        let cases: &[(u32, &str)] = &[
            (0, "subscribers, or port 0 of the link"),
            (1, "port 1 of the link"),
            (0x0001_0002, "port 65538 of the link"),
            (0x0001_0003, "subsystem #1"),
            (0x0001_ffff, "subsystem #65533"),
            (0x0002_0000, "unassigned"),
            (0x7fff_ffff, "unassigned"),
            (0x8000_0000, "return address"),
            (0xffff_fffe, "return address"),
            (0xffff_ffff, "subscribers"),
        ];
        for (number, name) in cases {
            assert_eq!(address(*number, true), *name, "{number:#x}");
        }
        assert_eq!(address(0, false), "port 0 of the link");
    }
}
