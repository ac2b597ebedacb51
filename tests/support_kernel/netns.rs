//! A network namespace for one test.

use std::fs::{self, DirEntry, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio, id};
use std::thread;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, geteuid, getpid, pidfd_getfd, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

/// Goes with the value.
pub(crate) struct Netns {
    name: String,
}

/// A line of `/proc/net/netlink`: a netlink socket of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) protocol: u16,
    pub(crate) port_id: u32,
    /// The first 32 groups that it is in, a bit each.
    pub(crate) groups: u32,
    pub(crate) inode: u64,
}

impl Netns {
    /// A namespace with `lo` up; `None`, and the reason printed, where none can be made.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("skipped: only root can make a network namespace");
            return None;
        }
        if Command::new("ip").arg("-V").output().is_err() {
            eprintln!("skipped: no command `ip`");
            return None;
        }
        let netns = Self { name: format!("nlb-{test}-{}", id()) };
        run("ip", &format!("netns add {}", netns.name));
        netns.ip("link set lo up");
        Some(netns)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Has `ip` do something in the namespace.
    #[track_caller]
    pub(crate) fn ip(&self, arguments: &str) {
        run("ip", &format!("-n {} {arguments}", self.name));
    }

    /// What `ip` says of the namespace.
    #[track_caller]
    pub(crate) fn ip_json(&self, arguments: &str) -> Value {
        json(&run("ip", &format!("-n {} -j {arguments}", self.name)))
    }

    /// What `tc` says of the namespace.
    #[track_caller]
    pub(crate) fn tc_json(&self, arguments: &str) -> Value {
        json(&run("tc", &format!("-n {} -j {arguments}", self.name)))
    }

    /// Has `ip` do many things at once.
    #[track_caller]
    pub(crate) fn batch(&self, lines: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// A pair of devices, `<name>` and `<name>p`: the index of the first.
    pub(crate) fn veth(&self, name: &str) -> u32 {
        self.ip(&format!("link add {name} type veth peer name {name}p"));
        self.index(name)
    }

    pub(crate) fn index(&self, name: &str) -> u32 {
        let found = self.ip_json(&format!("link show {name}"));
        u32::try_from(found[0]["ifindex"].as_u64().unwrap()).unwrap()
    }

    /// This process's descriptors of the sockets of a netlink protocol in the namespace, duplicated.
    pub(crate) fn descriptors(&self, protocol: u16) -> Vec<OwnedFd> {
        let process = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let sockets = self.sockets(protocol);
        let is_one = |entry: &DirEntry| {
            let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
            sockets.iter().any(|socket| target == format!("socket:[{}]", socket.inode))
        };
        // the whole list first: duplicates would be listed as well
        let entries: Vec<_> = fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap).collect();
        let numbers = entries.iter().filter(|entry| is_one(entry)).map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.parse().unwrap()
        });
        let numbers: Vec<_> = numbers.collect();
        let duplicate = |number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).unwrap();
        numbers.into_iter().map(duplicate).collect()
    }

    /// `10.64.0.1` and those after it, on a device of their own that is up.
    pub(crate) fn addresses(&self, count: u32) {
        self.veth("many");
        self.ip("link set many up");
        let line = |n| format!("addr add {}/32 dev many\n", address(n));
        self.batch(&(1..=count).map(line).collect::<String>());
    }

    /// Runs `body` on a thread of its own inside the namespace.
    pub(crate) fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        let inside = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            body()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| {
            std::panic::resume_unwind(panic);
        })
    }

    /// What a thread in here has as the inode of `/proc/thread-self/ns/net`.
    pub(crate) fn inode(&self) -> u64 {
        fs::metadata(self.path()).unwrap().ino()
    }

    /// The sockets of a netlink protocol; the kernel's own, of port 0, are left out.
    pub(crate) fn sockets(&self, protocol: u16) -> Vec<Listed> {
        // the kernel walks a table that all namespaces share, and a walk may miss some when it grows
        let mut before = self.inside(|| listed(protocol));
        loop {
            let now = self.inside(|| listed(protocol));
            if now == before {
                return now;
            }
            before = now;
        }
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// `10.64.0.0` and those after it.
pub(crate) fn address(number: u32) -> std::net::Ipv4Addr {
    (0x0a40_0000 + number).into()
}

/// What this thread's namespace lists, in the order of port ids.
fn listed(protocol: u16) -> Vec<Listed> {
    let table = fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let listed = table.lines().skip(1).map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        Listed {
            protocol: columns[1].parse().unwrap(),
            port_id: columns[2].parse().unwrap(),
            groups: u32::from_str_radix(columns[3], 16).unwrap(),
            inode: columns[9].parse().unwrap(),
        }
    });
    let mut found: Vec<_> =
        listed.filter(|socket| socket.protocol == protocol && socket.port_id != 0).collect();
    found.sort_by_key(|socket| socket.port_id);
    found.dedup();
    found
}

#[track_caller]
fn run(program: &str, arguments: &str) -> Vec<u8> {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    output.stdout
}

fn json(text: &[u8]) -> Value {
    match text.trim_ascii() {
        b"" => Value::Array(Vec::new()),
        text => serde_json::from_slice(text).unwrap(),
    }
}
