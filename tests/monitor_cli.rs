//! `nlbus monitor` beside `ip monitor`: what the kernel says, in the same words.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

mod support_events;

use std::process::Command;

use serde_json::Value;
use support_events::{Namespace, Program, Served};

const START: &str = "30001:";
const END: &str = "30002:";

/// Says something that every monitor of rules hears, until `program` has heard it, and then once START.
fn wait_until_it_listens(namespace: &Namespace, program: &Program) {
    program.poke_until_it_speaks(|| {
        namespace.ip("rule add prio 30000 table 7");
        namespace.ip("rule del prio 30000");
    });
}

/// The events of `ip monitor`, each in one line, without those that we do not tell.
fn events_of_ip(lines: &[String]) -> Vec<String> {
    let mut events: Vec<String> = Vec::new();
    for line in lines {
        match events.last_mut() {
            Some(last) if line.starts_with([' ', '\t']) => last.push_str(line),
            _ => events.push(line.clone()),
        }
    }
    // what a bridge says of its ports has no queue, and is not told
    events.retain(|event| !event.starts_with("[LINK]") || event.contains(" qdisc "));
    // why a link is told of, which its table does not have
    let reason = " event FEATURE CHANGE ";
    words(&events.iter().map(|event| event.replace(reason, " ")).collect::<Vec<_>>())
}

/// The lines with one space between words.
fn words(lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

const CHANGES: &[&str] = &[
    "link set lo up",
    "link add v0 type veth peer name v1",
    "link set v0 up",
    "link set v1 up",
    "link set v1 mtu 1400",
    "addr add 10.0.0.1/24 brd + dev v0",
    "addr add 10.0.0.9/24 dev v0 valid_lft 9000 preferred_lft 4000",
    "addr add 10.1.0.1 peer 10.1.0.2/32 dev v0 scope link",
    "addr add fd00:1::1/64 dev v0 nodad",
    "route add 10.9.0.0/16 via 10.0.0.7",
    "route add default dev v0 metric 5 table 100",
    "route add 10.22.0.0/16 nexthop via 10.0.0.3 dev v0 weight 2 nexthop via 10.0.0.4 dev v0 weight 1",
    "route add 10.24.0.0/16 dev v0 mtu 1300 advmss 1200 proto static src 10.0.0.9 realm 7",
    "route add blackhole 10.30.0.0/16",
    "route add 10.34.0.9 via inet6 fe80::9 dev v0",
    "-6 route add fd00:20::/64 via fd00:1::3 dev v0 metric 5 pref high",
    "-6 route add unreachable fd00:23::/64",
    "route replace 10.9.0.0/16 via 10.0.0.8",
    "neigh add 10.0.0.50 lladdr 02:00:00:00:00:50 dev v0 nud permanent",
    "neigh add fd00:1::51 lladdr 02:00:00:00:00:51 dev v0 router nud permanent",
    "neigh add proxy 10.0.0.70 dev v0",
    "neigh del 10.0.0.50 dev v0",
    "rule add from 10.0.0.0/8 to 10.20.0.0/16 table 100 prio 100",
    "rule add not from 10.0.0.1 iif v0 fwmark 7 table 1000 prio 101",
    "rule add ipproto tcp sport 80 dport 1000-2000 table 100 prio 108",
    "rule add goto 32766 prio 113",
    "rule add goto 9999 prio 114",
    "rule add nop prio 115",
    "rule add fwmark 0/0xff iif lo table 100 prio 103",
    "rule add tos 0x10 table 100 realms 3/4 prio 104",
    "rule add table main suppress_prefixlength 0 prio 105",
    "rule add uidrange 1000-2000 table 100 prio 107",
    "rule add protocol static table 100 prio 116",
    "rule add dsfield 0x08 realms 9 oif gone0 table 100 prio 119",
    "rule add l3mdev prio 120",
    "rule add to 10.31.0.0/16 unreachable prio 111",
    "-6 rule add from fd00::/8 table 100 prio 100",
    "rule del prio 100",
    "route del 10.9.0.0/16",
    "addr del 10.0.0.9/24 dev v0",
    "link add br0 type bridge",
    "link set v1 master br0",
    "link set v1 nomaster",
    "link del br0",
    "link set v0 down",
    "link del v0",
];

#[test]
fn a_sequence_of_changes_reads_as_ip_monitor_tells_it() {
    let Some(namespace) = Namespace::new() else { return };
    let served = Served::start(Some(&namespace));
    let mut command = Command::new("ip");
    command.args(["-n", &namespace.name, "monitor", "label"]);
    command.args(["link", "address", "route", "neigh", "rule"]);
    let theirs = Program::start(command);
    wait_until_it_listens(&namespace, &theirs);
    let ours = served.command(&["monitor"]);
    wait_until_it_listens(&namespace, &ours);

    namespace.ip("rule add prio 30001 table 7");
    for change in CHANGES {
        namespace.ip(change);
    }
    namespace.ip("rule add prio 30002 table 7");

    let between = |program: &Program| {
        program.lines_until(|line| line.contains(START));
        program.lines_until(|line| line.contains(END))
    };
    let (mut theirs, mut ours) = (events_of_ip(&between(&theirs)), words(&between(&ours)));
    // a bridge has entries before the kernel has told of it: `ip` asks who that is
    let early = |event: &String| !event.contains("[NEIGH]dev ") && !event.contains("Deleted dev ");
    theirs.retain(early);
    ours.retain(early);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len(), "{:?}", ours.last());
    for label in ["[LINK]", "[ADDR]", "[ROUTE]", "[NEIGH]", "[RULE]"] {
        for deleted in ["", "Deleted "] {
            let start = format!("{label}{deleted}");
            assert!(ours.iter().any(|line| line.starts_with(&start)), "no {start} in {ours:#?}");
        }
    }
}

#[test]
fn json_has_the_fields_of_ip_and_says_what_happened_to_which_object() {
    let Some(namespace) = Namespace::new() else { return };
    let served = Served::start(Some(&namespace));
    let monitor = served.command(&["monitor", "-j", "route", "rule", "-v"]);
    monitor.error_line("subscribed");
    namespace.ip("link set lo up");
    namespace.ip("link add v0 type veth peer name v1");
    namespace.ip("link set v0 up");
    namespace.ip("route add 10.9.0.0/16 dev v0 metric 7");
    let line = monitor.lines_until(|line| line.contains("10.9.0.0/16"));
    assert!(line.iter().all(|line| line.contains("\"object\":\"route\"")), "{line:?}");
    namespace.ip("link set v0 name w0");
    namespace.ip("route add 10.10.0.0/16 dev w0 metric 7");
    let mut added: Value = monitor.line().parse().unwrap();
    let listed: Value = namespace.ip("-j route show 10.10.0.0/16").parse().unwrap();
    let what = ["event", "object"].map(|key| added.as_object_mut().unwrap().shift_remove(key));
    assert_eq!(what, ["new", "route"].map(|value| Some(value.into())));
    assert_eq!((&added["dev"], &added["metric"]), (&"w0".into(), &7.into()), "the new name");
    // what a carrier does meanwhile is no matter here
    for key in ["dst", "dev", "scope", "metric"] {
        assert_eq!(added[key], listed[0][key], "{key}");
    }
    namespace.ip("rule add from 10.0.0.0/8 table 100 prio 100");
    let added: Value = monitor.line().parse().unwrap();
    let listed: Value = namespace.ip("-j rule show prio 100").parse().unwrap();
    for (key, value) in listed[0].as_object().unwrap() {
        assert_eq!(&added[key], value, "{key}");
    }
    namespace.ip("rule del prio 100");
    let deleted: Value = monitor.line().parse().unwrap();
    assert_eq!(deleted["event"], "deleted");
    monitor.signal("TERM");
    monitor.assert_ends_with(0);
}

#[test]
fn one_kind_needs_no_label_and_a_timestamp_stands_first() {
    let Some(namespace) = Namespace::new() else { return };
    let served = Served::start(Some(&namespace));
    let monitor = served.command(&["monitor", "-t", "link", "-C", "1", "-v"]);
    monitor.error_line("subscribed");
    namespace.ip("rule add prio 30001 table 7");
    namespace.ip("link add v0 type veth peer name v1");
    let line = monitor.line();
    let (time, event) = line.strip_prefix('[').unwrap().split_once("Z] ").unwrap();
    assert_eq!((time.len(), time.as_bytes()[10]), (26, b'T'), "{line}");
    assert!(event.starts_with("2: v"), "{line}");
    assert!(monitor.assert_ends_with(0).is_empty(), "-C 1");
}

#[test]
fn a_monitor_ends_as_its_help_says() {
    let served = Served::start(None);
    let waited = served.command(&["monitor", "rule", "-W", "0.01"]);
    waited.assert_ends_with(4);
    let unknown = served.command(&["monitor", "--subsystem", "none"]);
    unknown.assert_ends_with(5);
    let wrong = served.command(&["monitor", "links"]);
    wrong.error_line("links");
    wrong.assert_ends_with(2);
    let interrupted = served.command(&["monitor", "-v"]);
    interrupted.error_line("subscribed");
    interrupted.signal("INT");
    interrupted.assert_ends_with(0);
    let lost = served.command(&["monitor", "-v"]);
    lost.error_line("subscribed");
    drop(served);
    lost.assert_ends_with(6);
}
