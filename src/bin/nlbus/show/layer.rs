//! Link layers: the names of their types, and how their addresses are written.

use super::message;

/// The name of an ARPHRD type, or the number in brackets.
pub(super) fn name(layer: u16) -> String {
    match NAMES.iter().find(|(known, _)| *known == layer) {
        Some((_, name)) => (*name).to_owned(),
        None if (787..800).contains(&layer) => format!("fcfb{}", layer - 787),
        None => format!("[{layer}]"),
    }
}

/// A link-layer address as `ip` writes it: that of an IP tunnel is an IP address.
pub(super) fn address(layer: u16, bytes: &[u8]) -> String {
    let tunnel = match (layer, bytes.len()) {
        (768 | 776 | 778, 4) => message::address(message::AF_INET, bytes),
        (769 | 823, 16) => message::address(message::AF_INET6, bytes),
        _ => None,
    };
    let octets = || bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    tunnel.unwrap_or_else(octets)
}

const NAMES: &[(u16, &str)] = &[
    (0, "generic"),
    (1, "ether"),
    (2, "eether"),
    (3, "ax25"),
    (4, "pronet"),
    (5, "chaos"),
    (6, "ieee802"),
    (7, "arcnet"),
    (8, "atalk"),
    (15, "dlci"),
    (19, "atm"),
    (23, "metricom"),
    (24, "ieee1394"),
    (27, "eui64"),
    (32, "infiniband"),
    (256, "slip"),
    (257, "cslip"),
    (258, "slip6"),
    (259, "cslip6"),
    (260, "rsrvd"),
    (264, "adapt"),
    (270, "rose"),
    (271, "x25"),
    (272, "hwx25"),
    (280, "can"),
    (512, "ppp"),
    (513, "hdlc"),
    (516, "lapb"),
    (517, "ddcmp"),
    (518, "rawhdlc"),
    (768, "ipip"),
    (769, "tunnel6"),
    (770, "frad"),
    (771, "skip"),
    (772, "loopback"),
    (773, "ltalk"),
    (774, "fddi"),
    (775, "bif"),
    (776, "sit"),
    (777, "ip/ddp"),
    (778, "gre"),
    (779, "pimreg"),
    (780, "hippi"),
    (781, "ash"),
    (782, "econet"),
    (783, "irda"),
    (784, "fcpp"),
    (785, "fcal"),
    (786, "fcpl"),
    (800, "tr"),
    (801, "ieee802.11"),
    (802, "ieee802.11/prism"),
    (803, "ieee802.11/radiotap"),
    (804, "ieee802.15.4"),
    (805, "ieee802.15.4/monitor"),
    (820, "phonet"),
    (821, "phonet_pipe"),
    (822, "caif"),
    (823, "gre6"),
    (824, "netlink"),
    (825, "6lowpan"),
    (0xfffe, "none"),
    (0xffff, "void"),
];
