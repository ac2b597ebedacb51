//! A network namespace with one of every kind of thing that `ip` shows.

use std::{
    fs::File,
    os::fd::AsFd,
    process::{Command, id},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long the kernel may take to find a duplicate address.
const PATIENCE: Duration = Duration::from_secs(15);

/// Two namespaces, of which the second is there only to hold the far end of a device. They go with
/// the value.
pub(super) struct Namespace {
    near: String,
    far: String,
}

impl Namespace {
    /// `None`, and the reason printed, if this process may not make one.
    pub(super) fn with_everything() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let [near, far] = ["near", "far"].map(|end| format!("nlb-show-{}-{count}-{end}", id()));
        let namespace = Self { near, far };
        for name in [&namespace.near, &namespace.far] {
            if !ip(&format!("netns add {name}")) {
                println!("skipped: cannot make a network namespace, which only root can");
                return None;
            }
        }
        namespace.run(|| namespace.fill());
        Some(namespace)
    }

    /// Runs `body` on a thread of its own inside the namespace.
    pub(super) fn run(&self, body: impl FnOnce() + Send) {
        let file = File::open(format!("/run/netns/{}", self.near)).unwrap();
        let inside = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            body();
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| {
            std::panic::resume_unwind(panic);
        });
    }

    fn fill(&self) {
        all(LINKS);
        all(&[&format!("link add far0 type veth peer name far1 netns {}", self.far)]);
        for optional in OPTIONAL_LINKS {
            ip(optional);
        }
        all(ADDRESSES);
        write_sysctl("conf/v1/use_tempaddr", "2");
        all(TEMPORARY_ADDRESSES);
        all(ROUTES);
        all(NEIGHBOURS);
        all(RULES);
        wait_for("-6 addr show dadfailed", "dadfailed");
        wait_for("-6 addr show temporary", "temporary");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        for name in [&self.near, &self.far] {
            ip(&format!("netns del {name}"));
        }
    }
}

/// Whether `ip` did it; why not is printed.
fn ip(arguments: &str) -> bool {
    let Ok(output) = Command::new("ip").args(arguments.split(' ')).output() else {
        println!("no command `ip`");
        return false;
    };
    if !output.status.success() {
        println!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    output.status.success()
}

#[track_caller]
fn all(commands: &[&str]) {
    for command in commands {
        assert!(ip(command), "ip {command}");
    }
}

/// Below `/proc/sys/net/ipv6`, which is that of the thread's namespace.
fn write_sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/{name}"), value).unwrap();
}

/// Asks `ip` until its answer has the word.
fn wait_for(arguments: &str, word: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        if String::from_utf8_lossy(&output.stdout).contains(word) {
            return;
        }
        assert!(Instant::now() < deadline, "ip {arguments} never said {word}");
    }
}

const LINKS: &[&str] = &[
    "link set lo up",
    "link add v0 type veth peer name v1",
    "link add dup0 type veth peer name dup1",
    "link add lower0 type veth peer name lower1",
    "link add br0 type bridge",
    "link add port0 type veth peer name port1",
    "link set port0 master br0",
    "link set v0 up",
    "link set v1 alias an-alias",
    "link set v1 mtu 1400 txqueuelen 77 group 42 allmulticast on promisc on",
    "link property add dev v1 altname another-name altname a-third-name",
    "link set v1 addrgenmode random",
    "link set v1 up",
    "link set br0 up",
    "link set port0 up",
    "link set dup0 up",
    "link set dup1 up",
    "link set port1 mode dormant",
    "link set port1 txqueuelen 0",
];

/// Of kinds that a kernel may be built without.
const OPTIONAL_LINKS: &[&str] = &[
    "link add link lower0 name mv0 type macvlan mode bridge",
    "link set mv0 protodown on",
    "link set mv0 protodown_reason 3 on",
    "link set mv0 address 02:00:00:00:00:01",
    "link add vx0 type vxlan id 42 dev v0 remote 10.0.0.9 dstport 4789",
    "link add ifb7 type ifb",
    "tuntap add tun0 mode tun",
    "tuntap add tap0 mode tap",
    "link add vlan0 link v0 type vlan id 5",
    "link add dummy0 type dummy",
    "link add gre0x type gre local 10.0.0.1 remote 10.0.0.2",
    "link add sit0x type sit local 10.0.0.1 remote 10.0.0.2",
    "link add tnl6 type ip6tnl local fd00:1::1 remote fd00:1::2",
    "link add vrf0 type vrf table 77",
    "link add vcan0 type vcan",
];

const ADDRESSES: &[&str] = &[
    "addr add 10.0.0.1/24 brd + dev v0",
    "addr add 10.0.0.2/24 dev v0 label v0:second",
    "addr add 10.1.0.1 peer 10.1.0.2/32 dev v0 scope link",
    "addr add 10.2.0.1/16 dev v0 scope 77 metric 300 noprefixroute",
    "addr add 10.3.0.1/16 dev v0 scope host",
    "addr add 10.4.0.1/16 dev v0 valid_lft 9000 preferred_lft 4000",
    "addr add 10.5.0.1/16 dev v0 valid_lft 9000 preferred_lft 0",
    "addr add 224.5.6.7/32 dev v0 autojoin",
    "addr add 169.254.1.1/16 dev lo",
    "addr add fd00:1::1/64 dev v0 nodad",
    "addr add fd00:2::1/64 dev v0 nodad noprefixroute",
    "addr add fd00:3::1/64 dev v0 nodad home",
    "addr add fd00:4::1/64 dev v0 nodad valid_lft 9000 preferred_lft 4000",
    "addr add fd00:5::1/64 dev v0 nodad preferred_lft 0",
    "addr add fd00:6::1 peer fd00:6::2/128 dev v0 nodad metric 700",
    "addr add fd00:7::1/64 dev v0 nodad scope site",
    "addr add ::10.9.8.7/128 dev lo",
    "addr add ::ffff:10.9.8.7/128 dev lo",
    "addr add fd00:8::1/64 dev port1",
    "addr add fd00:9::1/64 dev dup0 nodad",
    "addr add fd00:9::1/64 dev dup1",
];

const TEMPORARY_ADDRESSES: &[&str] =
    &["addr add fd00:a::1/64 dev v1 nodad mngtmpaddr valid_lft 9000 preferred_lft 4000"];

const ROUTES: &[&str] = &[
    "route add default via 10.0.0.254 dev v0",
    "route add default via 10.0.0.253 dev v0 metric 50 proto static src 10.0.0.2",
    "route add 10.20.0.0/16 dev v0 scope link proto dhcp",
    "route add 10.21.0.0/16 via 172.16.0.1 dev v0 onlink",
    "route add 10.22.0.0/16 nexthop via 10.0.0.3 dev v0 weight 1 nexthop via 10.0.0.4 dev v0 weight 256",
    "route add 10.23.0.0/16 nexthop dev v0 nexthop via 172.16.0.7 dev v1 onlink realm 7",
    "route add 10.24.0.0/16 dev v0 mtu lock 1300 advmss 1200 window 9000 rtt 300ms rttvar 5s ssthresh 9",
    "route add 10.25.0.0/16 dev v0 cwnd lock 4 initcwnd 5 initrwnd 6 hoplimit 9 quickack 1 rto_min 3s",
    "route add 10.26.0.0/16 dev v0 congctl cubic features ecn reordering 4 fastopen_no_cookie 1",
    "route add 10.27.0.0/16 dev v0 tos 0x10 realms 3/4",
    "route add 10.28.0.0/16 dev v0 tos 0x08 proto 77 realm 9",
    "route add blackhole 10.30.0.0/16",
    "route add unreachable 10.31.0.0/16 metric 9",
    "route add prohibit 10.32.0.0/16",
    "route add throw 10.33.0.0/16 table 100",
    "route add 10.34.0.9 via inet6 fe80::9 dev v0",
    "route add 10.35.0.0/16 via 10.0.0.9 table 100",
    "route add 10.36.0.0/16 via 10.0.0.9 table 1000",
    "route add local 10.37.0.0/16 dev lo table 1000",
    "route add broadcast 10.38.0.255 dev v0 table 1000",
    "route add multicast 239.1.0.0/16 dev v0",
    "route add 10.39.0.0/16 dev br0",
    "nexthop add id 5 via 10.0.0.5 dev v0",
    "route add 10.40.0.0/16 nhid 5",
    "route add 10.41.0.0/16 encap ip id 7 dst 10.0.0.8 dev v0",
    "route add 10.42.0.0/16 ttl-propagate disabled dev v0",
    "-6 route add default via fd00:1::fe dev v0",
    "-6 route add fd00:20::/64 via fd00:1::3 dev v0 metric 5 pref high",
    "-6 route add fd00:21::/64 via fe80::3 dev v0 pref low proto ra expires 5000",
    "-6 route add fd00:22::/64 nexthop via fd00:1::4 dev v0 weight 3 nexthop via fd00:1::5 dev v0",
    "-6 route add unreachable fd00:23::/64",
    "-6 route add blackhole fd00:24::/64",
    "-6 route add prohibit fd00:25::/64 metric 7",
    "-6 route add fd00:26::/64 dev v0 mtu 1400 hoplimit 9 src fd00:1::1",
    "-6 route add fd00:27::/64 from fd00:1::/64 dev v0",
    "-6 route add fd00:28::1 dev v0 table 100",
    "-6 route add fd00:29::1 dev v1 table 1000",
];

const NEIGHBOURS: &[&str] = &[
    "neigh add 10.0.0.50 lladdr 02:00:00:00:00:50 dev v0 nud permanent",
    "neigh add 10.0.0.51 lladdr 02:00:00:00:00:51 dev v0 nud reachable",
    "neigh add 10.0.0.52 lladdr 02:00:00:00:00:52 dev v0 nud stale protocol static",
    "neigh add 10.0.0.53 lladdr 02:00:00:00:00:53 dev v0 nud noarp",
    "neigh add 10.0.0.54 lladdr 02:00:00:00:00:54 dev v0 nud delay",
    "neigh add 10.0.0.55 lladdr 02:00:00:00:00:55 dev v0 nud probe",
    "neigh add 10.0.0.56 dev v0 nud incomplete",
    "neigh add 10.0.0.57 dev v0 nud failed",
    "neigh add 10.0.0.58 dev v0 nud none",
    "neigh add 10.0.0.59 lladdr 02:00:00:00:00:59 dev v0 extern_learn",
    "neigh add 10.0.0.60 dev v0 managed",
    "neigh add fd00:1::50 lladdr 02:00:00:00:00:50 dev v0 nud permanent router",
    "neigh add fd00:1::51 lladdr 02:00:00:00:00:51 dev v1 nud reachable protocol 77",
    "neigh add proxy 10.0.0.70 dev v0",
    "neigh add proxy fd00:1::70 dev v0 router protocol static",
    "neigh add proxy 10.0.0.71",
];

const RULES: &[&str] = &[
    "rule add from 10.0.0.0/8 to 10.20.0.0/16 table 100 prio 100",
    "rule add not from 10.0.0.1 iif v0 oif gone0 table 1000 prio 101",
    "rule add fwmark 0x10 table 100 prio 102",
    "rule add fwmark 0/0xff iif lo table 100 prio 103",
    "rule add tos 0x10 table 100 realms 3/4 prio 104",
    "rule add table main suppress_prefixlength 0 prio 105",
    "rule add table main suppress_ifgroup 42 suppress_prefixlength 8 prio 106",
    "rule add uidrange 1000-2000 table 100 prio 107",
    "rule add ipproto tcp sport 80 dport 1000-2000 table 100 prio 108",
    "rule add ipproto 250 sport 80-81 dport 53 table 100 prio 109",
    "rule add to 10.30.0.1 blackhole prio 110",
    "rule add to 10.31.0.0/16 unreachable prio 111",
    "rule add prohibit iif gone1 prio 112",
    "rule add goto 32766 prio 113",
    "rule add goto 9999 prio 114",
    "rule add nop prio 115",
    "rule add protocol static table 100 prio 116",
    "rule add from 0.0.0.0/0 l3mdev prio 117",
    "rule add tun_id 7 table 100 prio 118",
    "rule add dsfield 0x08 realms 9 table 100 prio 119",
    "-6 rule add from fd00::/8 to fd00:1::1 table 100 prio 100",
    "-6 rule add from fd00:1::1 iif v0 fwmark 7 table 1000 prio 101",
];
