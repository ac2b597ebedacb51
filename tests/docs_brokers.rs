//! What the documents show of several brokers, done as it stands there.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

#[path = "transport/authority.rs"]
#[allow(dead_code, reason = "the tests of the transport use the rest")]
mod authority;
mod support_cli;
mod support_node;

use std::fs;
use std::path::Path;
use std::process::Command;

use authority::Authority;
use nlbus::endpoint::{ConnectOptions, Endpoint, RequestError};
use nlbus::transport::{TlsClient, TlsFiles};
use nlbus::wire::{MessageBuilder, errno, nlm};
use rustix::process::{getegid, geteuid};
use support_cli::{Ended, Serve, nlbus, program, run, text};
use support_node::chain::eventually;

const RTM_NEWLINK: u16 = 16;

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The part of a document under this heading.
fn section<'d>(document: &'d str, heading: &str) -> &'d str {
    let (_, rest) = document.split_once(&format!("\n## {heading}\n")).unwrap();
    rest.split_once("\n## ").map_or(rest, |(section, _)| section)
}

/// The blocks of one language.
fn blocks<'d>(document: &'d str, language: &str) -> Vec<&'d str> {
    let begin = format!("```{language}\n");
    document.split(&begin).skip(1).map(|rest| rest.split_once("\n```").unwrap().0).collect()
}

/// The commands of a section, each as its arguments and whether it runs on.
fn commands(section: &str, replace: &[(&str, &str)]) -> Vec<(Vec<String>, bool)> {
    let lines = section.lines().filter_map(|line| line.strip_prefix("$ nlbus "));
    lines
        .map(|line| {
            let mut line = line.to_owned();
            for (from, to) in replace {
                line = line.replace(from, to);
            }
            let runs_on = line.ends_with(" &");
            let arguments = line.trim_end_matches(" &").split(' ');
            (arguments.map(str::to_owned).collect(), runs_on)
        })
        .collect()
}

/// A link may not be up yet.
async fn run_until_ok(arguments: &[String]) -> Ended {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    eventually(async || {
        let ended = run(nlbus(&arguments));
        assert_ne!(ended.code, Some(2), "{ended:?}");
        (ended.code == Some(0)).then_some(ended)
    })
    .await
}

async fn run_all(commands: &[(Vec<String>, bool)]) -> Vec<Serve> {
    let mut servers = Vec::new();
    for (arguments, runs_on) in commands {
        if *runs_on {
            assert_eq!(arguments[0], "serve");
            let arguments: Vec<&str> = arguments[1..].iter().map(String::as_str).collect();
            servers.push(Serve::start(&arguments, 1));
        } else {
            run_until_ok(arguments).await;
        }
    }
    servers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_in_the_front_page_works() {
    let place = tempfile::tempdir().unwrap();
    let directory = format!("{}/", text(place.path()));
    let readme = document("README.md");
    let commands = commands(section(&readme, "Several brokers"), &[("/tmp/", &directory)]);
    assert_eq!(commands.len(), 8);
    let mut servers = run_all(&commands).await;
    assert_eq!(servers.remove(1).wait(), Some(0), "it was told to stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_asks_works_as_documented() {
    let authority = Authority::new();
    authority.issue("a", &["a.example"]);
    authority.issue("hub", &["localhost"]);
    let directory = authority.directory.path();
    let path = |name: &str| text(&directory.join(name)).to_owned();
    let [cert, key, ca] = ["hub.crt", "hub.key", "ca.crt"].map(path);
    let tls = ["--cert", &cert, "--key", &key, "--ca", &ca];
    let hub = Serve::start(&[&["tls://localhost:0"][..], &tls[..]].concat(), 1);
    let document = document("docs/brokers.md");
    let [cert, key, ca] = ["a.crt", "a.key", "ca.crt"].map(path);
    let replace = [
        ("/run/", path("")),
        ("tls://hub.example", hub.urls[0].clone()),
        (" a.crt", format!(" {cert}")),
        (" a.key", format!(" {key}")),
        (" ca.crt", format!(" {ca}")),
    ];
    let replace: Vec<_> = replace.iter().map(|(from, to)| (*from, to.as_str())).collect();
    let commands = commands(section(&document, "The other way: a broker that asks"), &replace);
    assert_eq!(commands.len(), 6);
    run_all(&commands).await;
}

async fn set_loopback_up(endpoint: &Endpoint, kernel: &str) -> Result<(), RequestError> {
    const INDEX: u32 = 1;
    const UP: u32 = 1;
    let words = [0, INDEX, UP, UP];
    let body: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let message = MessageBuilder::new(RTM_NEWLINK, nlm::REQUEST | nlm::ACK).body(&body).finish();
    endpoint.request(kernel, &message).await?.collect().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_edge_and_the_hub_let_alice_look_and_bob_change_as_documented() {
    let authority = Authority::new();
    for (name, host) in [("hub", "localhost"), ("edge1", "edge1.example")] {
        authority.issue(name, &[host]);
    }
    let document = document("docs/brokers.md");
    let configurations = blocks(&document, "toml");
    let [hub, edge] = &configurations[..] else { panic!("{configurations:?}") };
    let socket = |name: &str| format!("unix://{}", text(&authority.path(name)));
    // the edge is in a network of its own
    let inward = format!("unix+tls://{}", text(&authority.path("inward.sock")));
    let hub = hub
        .replace("tls://0.0.0.0:9824", &format!("tls://localhost:0\", \"{inward}"))
        .replace("unix:///run/nlbus.sock", &socket("hub.sock"));
    let hub = authority.write("hub.toml", hub);
    let hub = Serve::start(&["--config", text(&hub)], 3);
    let edge = edge
        .replace("tls://hub.example\"", &format!("{inward}\"\nserver_name = \"localhost\""))
        .replace("unix:///run/nlbus.sock", &socket("edge.sock"));
    let edge = authority.write("edge.toml", edge);
    let isolated = geteuid().is_root() && Command::new("unshare").arg("--version").output().is_ok();
    let mut command = if isolated {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", program()]);
        command
    } else {
        Command::new(program())
    };
    command.args(["serve", "--config", text(&edge)]);
    let _edge = Serve::spawn(command, 1);

    let as_who = |name: &str| authority.issue(name, &[&format!("{name}.example")]);
    let TlsFiles { certificate, key, ca } = as_who("alice");
    let show = section(&document, "An edge behind NAT, and a hub");
    let replace = [
        ("tls://hub.example", hub.urls[0].as_str()),
        ("alice.crt", text(&certificate)),
        ("alice.key", text(&key)),
        (" ca.crt", &format!(" {}", text(&ca))),
    ];
    let commands = commands(show, &replace);
    let [(show, false)] = &commands[..] else { panic!("{commands:?}") };
    run_until_ok(show).await;
    let link = async |files: TlsFiles| {
        let mut options = ConnectOptions::default();
        options.dial.tls = Some(TlsClient::load(files).unwrap());
        Endpoint::connect_with(&hub.urls[0].parse().unwrap(), &options).await.unwrap()
    };
    if !isolated {
        println!("skipped in part: changes need root and unshare, for a network namespace");
        return;
    }
    let alice = set_loopback_up(&link(as_who("alice")).await, "route@edge1").await;
    assert_eq!(alice.unwrap_err().errno(), Some(errno::EPERM));
    let bob = link(as_who("bob")).await;
    // the second link may not be up yet
    eventually(async || set_loopback_up(&bob, "route@edge1").await.ok()).await;
    let own = set_loopback_up(&bob, "route").await;
    assert_eq!(own.unwrap_err().errno(), Some(errno::EPERM), "the hub's own kernel is not his");
}

#[test]
fn the_configuration_files_of_the_reference_can_be_used() {
    let document = document("docs/config.md");
    let authority = Authority::new();
    for name in ["server", "client", "edge1"] {
        authority.issue(name, &["localhost"]);
    }
    authority.write("secret", "0123456789abcdef");
    let configurations = blocks(&document, "toml");
    let [serve, client] = &configurations[..] else { panic!("{configurations:?}") };
    let socket = format!("unix://{}", text(&authority.path("x.sock")));
    let state = authority.path("state");
    std::fs::create_dir(&state).unwrap();
    let serve = serve
        .replace("/var/lib/nlbus", text(&state))
        .replace("tls://0.0.0.0:9824", "tls://localhost:0")
        .replace("unix:///run/nlbus.sock", &socket)
        .replace("/run/nlbus.pid", text(&authority.path("pid")))
        .replace("127.0.0.1:9825", "127.0.0.1:0")
        .replace("\"nlbus\"", &format!("\"{}\"", geteuid().as_raw()))
        .replace("\"bus\"", &format!("\"{}\"", getegid().as_raw()))
        .replace("netns = \"blue\"", "netns = \"/proc/self/ns/net\"")
        .replace("tls://hub.example", "tls://127.0.0.1:1");
    let serve = authority.write("serve.toml", serve);
    let server = Serve::start(&["--config", text(&serve)], 2);
    let uplinks = run(nlbus(&["ctl", "list", "uplinks", "-u", &socket]));
    // the access list lets the user root control, and nobody else
    if geteuid().is_root() {
        assert!(uplinks.out.starts_with("uplink name hub url tls://127.0.0.1:1 "), "{uplinks:?}");
    }
    let client = client
        .replace("tls://bus.example:9824", &server.urls[0])
        .replace("bus.example", "localhost");
    let client = authority.write("client.toml", client);
    run(nlbus(&["show", "link", "--config", text(&client)])).ok();
}
