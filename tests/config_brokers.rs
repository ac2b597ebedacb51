//! Configuration files: what they say of other brokers.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

#[path = "transport/authority.rs"]
#[allow(dead_code, reason = "the tests of the transport use the rest")]
mod authority;
mod support_cli;
mod support_node;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use authority::Authority;
use nlbus::endpoint::{Endpoint, RequestError};
use nlbus::wire::{MessageBuilder, errno, nlm};
use rustix::process::geteuid;
use support_cli::{Ended, Serve, nlbus, program, run, text};
use support_node::chain::{eventually, refused};
use tempfile::TempDir;

const RTM_NEWLINK: u16 = 16;

/// A directory for sockets and files.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn socket(&self, name: &str) -> String {
        format!("unix://{}", text(&self.0.path().join(name)))
    }

    /// A server with this configuration, at `name` and `count` further URLs of its file.
    fn serve(&self, name: &str, content: &str) -> Serve {
        let listen =
            format!("listen = [{:?}, \"tcp://127.0.0.1:0\"]\n{content}", self.socket(name));
        let config = self.write(&format!("{name}.toml"), &listen);
        Serve::start(&["--config", text(&config)], 2)
    }
}

fn show(url: &str, subsystem: &str) -> Ended {
    run(nlbus(&["show", "link", "-u", url, "--subsystem", subsystem]))
}

async fn shown(url: &str, subsystem: &str) {
    eventually(async || (show(url, subsystem).code == Some(0)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uplink_has_a_name_and_exports_under_the_name_of_the_broker() {
    let place = Place::new();
    let hub = place.serve("hub", "");
    let uplinks = format!(
        "name = \"edge1\"\n\
         [[uplink]]\nurl = {0:?}\nname = \"hub\"\nexport = [\"route\"]\n\
         [[uplink]]\nurl = {0:?}\n",
        hub.urls[0]
    );
    let edge = place.serve("edge", &uplinks);
    for name in ["generic@hub", "route@hub", "route@uplink", "route"] {
        let discover = ["ctl", "discover", name, "-u", &edge.urls[0]];
        eventually(async || (run(nlbus(&discover)).code == Some(0)).then_some(())).await;
    }
    shown(&edge.urls[0], "route@hub").await;
    shown(&hub.urls[0], "route@edge1").await;
    show(&hub.urls[0], "generic@edge1").failed(5, &["generic@edge1"]);
    let command_line = Serve::start(
        &[
            &place.socket("other"),
            "--config",
            text(&place.0.path().join("edge.toml")),
            "--name",
            "e2",
        ],
        1,
    );
    shown(&hub.urls[0], "route@e2").await;
    command_line.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uplink_has_certificates_and_a_server_name_of_its_own() {
    let (authority, place) = (Authority::new(), Place::new());
    for (name, host) in [("hub", "hub.test"), ("edge", "edge.test")] {
        let files = authority.issue(name, &[host]);
        for (from, to) in [(files.certificate, "crt"), (files.key, "key"), (files.ca, "ca")] {
            place.write(&format!("tls/{name}.{to}"), &fs::read_to_string(from).unwrap());
        }
    }
    let tls = |name| {
        format!("cert = \"tls/{name}.crt\"\nkey = \"tls/{name}.key\"\nca = \"tls/{name}.ca\"\n")
    };
    let hub = format!(
        "listen = [\"tls://localhost:0\", \"unix+tls://{}/tls.sock\"]\n[tls]\n{}",
        text(place.0.path()),
        tls("hub")
    );
    let hub = Serve::start(&["--config", text(&place.write("hub.toml", &hub))], 2);
    let uplink = |name: &str, url: &str| {
        format!(
            "[[uplink]]\nurl = {url:?}\nname = {name:?}\nserver_name = \"hub.test\"\n[uplink.tls]\n{}",
            tls("edge")
        )
    };
    let edge = place.serve("edge", &(uplink("tcp", &hub.urls[0]) + &uplink("unix", &hub.urls[1])));
    shown(&edge.urls[0], "route@tcp").await;
    shown(&edge.urls[0], "route@unix").await;
    let without =
        format!("listen = [{:?}]\n[[uplink]]\nurl = {:?}\n", place.socket("w"), hub.urls[1]);
    let path = place.write("without.toml", &format!("{without}[uplink.tls]\n{}", tls("edge")));
    run(nlbus(&["serve", "--config", text(&path)])).failed(2, &["server_name is missing"]);
    let path = place.write("without.toml", &without);
    run(nlbus(&["serve", "--config", text(&path)])).failed(2, &["--cert, --key, --ca missing"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uplink_for_writers_is_reached_by_them_alone() {
    let place = Place::new();
    let hub = place.serve("hub", "");
    let edge = place.serve(
        "edge",
        &format!(
            "[[uplink]]\nurl = {:?}\nname = \"hub\"\nfor_writers = true\n\
             [access.own]\nrights = [\"use\"]\nwrite = [\"route@hub\"]\n",
            hub.urls[0]
        ),
    );
    shown(&edge.urls[0], "route@hub").await;
    show(&edge.urls[1], "route@hub").failed(3, &["EPERM"]);
    show(&edge.urls[1], "route").ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_with_write_lets_the_hub_have_the_kernel_changed() {
    if !geteuid().is_root() || Command::new("unshare").arg("--version").output().is_err() {
        println!("skipped: needs root and unshare, for a network namespace");
        return;
    }
    let place = Place::new();
    let hub =
        place.serve("hub", "[access.own]\nrights = [\"use\", \"provide\"]\nwrite = [\"*\"]\n");
    let start = |name: &str, write: &str| {
        let config = format!(
            "name = {name:?}\nlisten = [{:?}]\n\
             [[uplink]]\nurl = {:?}\nexport = [\"route\"]\n{write}\n",
            place.socket(name),
            hub.urls[0]
        );
        let config = place.write(&format!("{name}.toml"), &config);
        let mut command = Command::new("unshare");
        command.args(["--net", "--", program(), "serve", "--config", text(&config)]);
        Serve::spawn(command, 1)
    };
    let (reading, writing) = (start("r", ""), start("w", "write = [\"route\"]"));
    assert!(reading.said[0].ends_with("read-only"), "{:?}", reading.said);
    assert!(writing.said[0].ends_with("writable for some"), "{:?}", writing.said);
    shown(&hub.urls[0], "route@r").await;
    shown(&hub.urls[0], "route@w").await;
    let owner = Endpoint::connect(&hub.urls[0].parse().unwrap()).await.unwrap();
    assert_eq!(refused(set_loopback_up(&owner, "route@r").await), errno::EPERM);
    set_loopback_up(&owner, "route@w").await.unwrap();
    let stranger = Endpoint::connect(&hub.urls[1].parse().unwrap()).await.unwrap();
    let outcome = set_loopback_up(&stranger, "route@w").await;
    assert_eq!(outcome.unwrap_err().errno(), Some(errno::EPERM));
}

async fn set_loopback_up(endpoint: &Endpoint, kernel: &str) -> Result<(), RequestError> {
    const INDEX: u32 = 1;
    const UP: u32 = 1;
    let words = [0, INDEX, UP, UP];
    let body: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let message = MessageBuilder::new(RTM_NEWLINK, nlm::REQUEST | nlm::ACK).body(&body).finish();
    endpoint.request(kernel, &message).await?.collect().await.map(drop)
}

#[test]
fn a_secret_file_is_relative_to_the_configuration_file() {
    let place = Place::new();
    let secret = place.write("secret", "0123456789abcdef\n");
    let server = place.serve("x", "secret_file = \"secret\"\n");
    let stats = |arguments: &[&str]| {
        let mut command = nlbus(&["ctl", "stats", "-u", &server.urls[1]]);
        command.args(arguments);
        run(command)
    };
    stats(&[]).failed(3, &["EPERM"]);
    stats(&["--secret-file", text(&secret)]).ok();
    place.write("secret", "fedcba9876543210");
    server.hang_up();
    server.wait_for_log("read again: secret");
    stats(&["--secret-file", text(&secret)]).ok();
}

#[test]
fn what_makes_no_sense_together_is_told_with_what_it_is_about() {
    let place = Place::new();
    let listen = format!("listen = [{:?}]\n", place.socket("x"));
    for (content, parts) in [
        ("name = \"a@b\"", &["\"a@b\"", "@"][..]),
        ("name = \"a b\"", &["\"a b\"", "space"]),
        ("secret_file = \"nowhere\"", &["cannot read the secret", "nowhere"]),
        (
            "[[uplink]]\nurl = \"unix:///y\"\nexport = [\"route\"]\nwrite = [\"generic\"]",
            &["unix:///y", "\"generic\"", "`write`", "`export`"],
        ),
        (
            "[[uplink]]\nurl = \"unix:///y\"\nname = \"a\"\n[[uplink]]\nurl = \"unix:///z\"\nname = \"a\"",
            &["unix:///z", "\"a\"", "already"],
        ),
        ("[[uplink]]\nurl = \"unix:///y\"\nname = \"a@b\"", &["unix:///y", "a@b"]),
    ] {
        let path = place.write("x.toml", &format!("{listen}{content}"));
        let code = if content.contains("nowhere") { 5 } else { 2 };
        run(nlbus(&["serve", "--config", text(&path)])).failed(code, parts);
    }
}
