//! Names of numbers: those of iproute2's own files when they are there, else the well-known ones.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Where iproute2 looks for its files; a file in the first hides the one in the second.
const DIRECTORIES: [&str; 2] = ["/etc/iproute2", "/usr/share/iproute2"];

/// The tables of iproute2 that users extend.
///
/// The names are those of this machine, also for numbers that a kernel far away sent: as with `ip`
/// in a container, the number is the truth and the name a local habit.
pub(super) struct Names {
    protocols: Table,
    scopes: Table,
    tables: Table,
    groups: Table,
    realms: Table,
    dsfields: Table,
    protodown_reasons: Table,
    ip_protocols: Table,
}

type Table = BTreeMap<u32, String>;

impl Names {
    /// Reads the files; one that is absent or unreadable adds nothing.
    pub(super) fn load() -> Self {
        Self {
            protocols: load("rt_protos", PROTOCOLS),
            scopes: load("rt_scopes", SCOPES),
            tables: load("rt_tables", TABLES),
            groups: load("group", &[(0, "default")]),
            realms: load("rt_realms", &[(0, "unknown")]),
            dsfields: load("rt_dsfield", &[(0, "0")]),
            protodown_reasons: load("protodown_reasons", &[]),
            ip_protocols: ip_protocols(),
        }
    }

    pub(super) fn protocol(&self, protocol: u8) -> String {
        name(&self.protocols, protocol)
    }

    pub(super) fn scope(&self, scope: u8) -> String {
        name(&self.scopes, scope)
    }

    pub(super) fn table(&self, table: u32) -> String {
        name(&self.tables, table)
    }

    /// The number of the routing table of this name.
    pub(super) fn table_of_name(&self, name: &str) -> Option<u32> {
        self.tables.iter().find_map(|(table, known)| (known == name).then_some(*table))
    }

    /// Signed where unknown, as `ip` writes it.
    pub(super) fn group(&self, group: u32) -> String {
        self.groups.get(&group).cloned().unwrap_or_else(|| (group as i32).to_string())
    }

    pub(super) fn realm(&self, realm: u16) -> String {
        name(&self.realms, realm)
    }

    pub(super) fn dsfield(&self, tos: u8) -> String {
        self.dsfields.get(&u32::from(tos)).cloned().unwrap_or_else(|| format!("{tos:#04x}"))
    }

    pub(super) fn protodown_reason(&self, bit: u32) -> String {
        name(&self.protodown_reasons, bit)
    }

    pub(super) fn ip_protocol(&self, protocol: u8) -> String {
        let name = self.ip_protocols.get(&u32::from(protocol)).cloned();
        name.unwrap_or_else(|| format!("ipproto-{protocol}"))
    }
}

fn name(table: &Table, number: impl Into<u32>) -> String {
    let number = number.into();
    table.get(&number).cloned().unwrap_or_else(|| number.to_string())
}

fn load(file: &str, well_known: &[(u32, &str)]) -> Table {
    let mut table: Table =
        well_known.iter().map(|&(number, name)| (number, name.to_owned())).collect();
    let main = DIRECTORIES.iter().map(|directory| Path::new(directory).join(file));
    let text = main.into_iter().find_map(|path| fs::read_to_string(path).ok());
    table.extend(text.iter().flat_map(|text| entries(text)));
    for path in additions(file) {
        let text = fs::read_to_string(path).unwrap_or_default();
        table.extend(entries(&text));
    }
    table
}

/// The `*.conf` files of the directory beside `file`.
fn additions(file: &str) -> Vec<PathBuf> {
    let directories =
        DIRECTORIES.iter().rev().map(|root| Path::new(root).join(format!("{file}.d")));
    let files = directories.filter_map(|directory| fs::read_dir(directory).ok()).flatten();
    let paths = files.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "conf")).collect()
}

/// Lines of a number, decimal or `0x`, and a name; `#` starts a comment.
fn entries(text: &str) -> impl Iterator<Item = (u32, String)> {
    text.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        Some((number(words.next()?)?, words.next()?.to_owned()))
    })
}

/// A number as `ip` takes it: decimal, or hexadecimal after `0x`.
pub(super) fn number(word: &str) -> Option<u32> {
    match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

/// `/etc/protocols` has the name first.
fn ip_protocols() -> Table {
    let text = fs::read_to_string("/etc/protocols").unwrap_or_default();
    let mut table: Table =
        IP_PROTOCOLS.iter().map(|&(number, name)| (number, name.to_owned())).collect();
    table.extend(text.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let name = words.next()?.to_owned();
        Some((words.next()?.parse().ok()?, name))
    }));
    table
}

/// The names of the bits set in `bits`, in the order of `table`, and the bits that it has no name
/// for.
pub(super) fn flags(bits: u32, table: &[(u32, &str)]) -> (Vec<Value>, u32) {
    let set = table.iter().filter(|(bit, _)| bits & bit != 0);
    let names = set.map(|&(_, name)| name.into()).collect();
    (names, table.iter().fold(bits, |rest, (bit, _)| rest & !bit))
}

/// The name of a route's type, which is also that of a rule's action and of a multicast neighbour.
pub(super) fn route_type(kind: u8) -> String {
    const TYPES: [&str; 12] = [
        "none",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
        "throw",
        "nat",
        "xresolve",
    ];
    TYPES.get(usize::from(kind)).map_or_else(|| kind.to_string(), |&name| name.to_owned())
}

const PROTOCOLS: &[(u32, &str)] = &[
    (0, "unspec"),
    (1, "redirect"),
    (2, "kernel"),
    (3, "boot"),
    (4, "static"),
    (8, "gated"),
    (9, "ra"),
    (10, "mrt"),
    (11, "zebra"),
    (12, "bird"),
    (13, "dnrouted"),
    (14, "xorp"),
    (15, "ntk"),
    (16, "dhcp"),
    (18, "keepalived"),
    (42, "babel"),
    (186, "bgp"),
    (187, "isis"),
    (188, "ospf"),
    (189, "rip"),
    (192, "eigrp"),
];

const SCOPES: &[(u32, &str)] =
    &[(0, "global"), (200, "site"), (253, "link"), (254, "host"), (255, "nowhere")];

const TABLES: &[(u32, &str)] = &[(253, "default"), (254, "main"), (255, "local")];

const IP_PROTOCOLS: &[(u32, &str)] = &[
    (1, "icmp"),
    (2, "igmp"),
    (4, "ipencap"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (41, "ipv6"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "ipv6-icmp"),
    (89, "ospf"),
    (132, "sctp"),
    (136, "udplite"),
];

#[cfg(test)]
mod tests {
    use super::{TABLES, entries, flags, load};

    #[test]
    fn a_file_of_names_holds_numbers_of_either_base_and_comments() {
        let text = "# reserved\n\n254\tmain\n0x10 sixteen # mine\nnonsense\n7\n99999999999 big\n";
        let entries: Vec<_> = entries(text).collect();
        assert_eq!(entries, [(254, "main".to_owned()), (16, "sixteen".to_owned())]);
    }

    #[test]
    fn well_known_names_need_no_file() {
        let table = load("a-file-that-nobody-has", TABLES);
        assert_eq!(table.get(&254).map(String::as_str), Some("main"));
    }

    #[test]
    fn flags_keep_the_order_of_their_table_and_the_bits_without_a_name() {
        let (names, rest) = flags(0b1111, &[(0b100, "late"), (0b1, "early")]);
        assert_eq!((names, rest), (vec!["late".into(), "early".into()], 0b1010));
    }
}
