//! Configuration files: what they say counts unless the command line or the environment says otherwise,
//! what is wrong in them is told with its line, and the access list lets people do what it says.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

#[path = "transport/authority.rs"]
#[allow(dead_code, reason = "the tests of the transport use the rest")]
mod authority;
mod support_cli;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use authority::Authority;
use nlbus::endpoint::{ConnectOptions, Endpoint, RequestError};
use nlbus::transport::{TlsClient, TlsFiles};
use nlbus::url::BusUrl;
use nlbus::wire::{MessageBuilder, errno, nlm};
use rustix::process::geteuid;
use support_cli::{Ended, Serve, nlbus, program, run, text};
use tempfile::TempDir;

const RTM_NEWLINK: u16 = 16;

/// A directory for sockets and files.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn socket(&self, scheme: &str) -> String {
        format!("{scheme}://{}", text(&self.path("x.sock")))
    }
}

fn serve(config: &Path, count: usize) -> Serve {
    Serve::start(&["--config", text(config)], count)
}

fn show(arguments: &[&str]) -> Ended {
    let mut command = nlbus(&["show", "link"]);
    command.args(arguments);
    run(command)
}

#[test]
fn what_is_wrong_in_a_file_is_told_with_file_line_key_and_what_would_be_right() {
    let place = Place::new();
    let serve = |config: &str| run(nlbus(&["serve", "--config", config]));
    let client = |config: &str| {
        run(nlbus(&["show", "link", "-u", "unix:///nowhere.sock", "--config", config]))
    };
    type Run<'a> = &'a dyn Fn(&str) -> Ended;
    let uplink = |line: &str| format!("[[uplink]]\nurl = \"tcp://a\"\n{line}");
    let table: [(Run<'_>, &str, &[&str]); 31] = [
        (&serve, "\nlissten = []", &[":2: ", "`lissten`", "`listen`"]),
        (&serve, "url = \"tcp://a\"", &[":1: ", "`url`", "`listen`"]),
        (&serve, "listen = \"tcp://a\"", &[":1: listen: ", "a sequence"]),
        (&serve, "listen = [\"ftp://a\"]", &[":1: listen: ", "ftp"]),
        (&serve, "listen = [\"unix://x.sock\"]", &[":1: listen: ", "x.sock", "absolute"]),
        (&serve, "\n\nallow_write = 1", &[":3: allow_write: ", "a boolean"]),
        (&serve, "subsystems = [\"a=netlink:32\"]", &[":1: subsystems: ", "0 to 31"]),
        (&serve, "[tls]\ncrt = \"a\"", &[":2: tls: ", "`crt`", "`cert`"]),
        (&serve, "[tls]\ncert = 5", &[":2: tls.cert: ", "integer `5`"]),
        (&serve, "[access.anybody]", &[":1: access: ", "`anybody`", "`anonymous`"]),
        (&serve, "[access.anonymous]\nread = []", &["access.anonymous: ", "`rights`"]),
        (
            &serve,
            "[access.anonymous]\nrights = [\"read\"]",
            &[":2: access.anonymous.rights: ", "`read`", "`use`"],
        ),
        (&serve, "[access.user.\"no such\"]\nrights = []", &["no such", "/etc/passwd", "number"]),
        (
            &serve,
            "[access.user.7]\nrights = []\n[access.user.007]\nrights = []",
            &["access.user: ", "two rows are for user 7"],
        ),
        (&serve, "netns = \"a", &[":1: ", "string"]),
        (&serve, "name = 5", &[":1: name: ", "a string"]),
        (&serve, "secret_file = []", &[":1: secret_file: ", "path string"]),
        (&serve, "uplink = 5", &[":1: uplink: ", "a sequence"]),
        (&serve, "\n[[uplink]]\nname = \"a\"", &[":2: uplink: ", "`url`"]),
        (&serve, "[[uplink]]\nurl = \"ftp://a\"", &[":2: uplink.url: ", "ftp"]),
        (&serve, "[[uplink]]\nurl = \"unix://x\"", &[":2: uplink.url: ", "absolute"]),
        (&serve, &uplink("names = []"), &[":3: uplink: ", "`names`", "`export`"]),
        (&serve, &uplink("name = 5"), &[":3: uplink.name: ", "a string"]),
        (&serve, &uplink("export = \"a\""), &[":3: uplink.export: ", "a sequence"]),
        (&serve, &uplink("write = [5]"), &[":3: uplink.write: ", "a string"]),
        (&serve, &uplink("for_writers = \"a\""), &[":3: uplink.for_writers: ", "a boolean"]),
        (&serve, &uplink("server_name = 5"), &[":3: uplink.server_name: ", "a string"]),
        (&serve, &uplink("[uplink.tls]\ncrt = \"a\""), &[":4: uplink.tls: ", "`crt`", "`cert`"]),
        (&client, "listen = []", &[":1: ", "`listen`", "`url`"]),
        (&client, "timeout = 0", &[":1: timeout: ", "above 0"]),
        (&client, "server_name = []", &[":1: server_name: ", "a string"]),
    ];
    for (run, content, parts) in table {
        let path = place.write("x.toml", content);
        let ended = run(text(&path));
        ended.failed(2, parts);
        ended.failed(2, &[&format!("{}:", text(&path))]);
    }
    serve("nowhere.toml").failed(2, &["nowhere.toml: cannot read it"]);
    let longest = "#\n".repeat(1 << 19);
    let path = place.write("longest.toml", &longest);
    client(text(&path)).failed(5, &["nowhere.sock"]);
    let path = place.write("long.toml", &format!("{longest}#"));
    client(text(&path)).failed(2, &["long.toml: longer than 1048576 bytes"]);
}

#[test]
fn the_command_line_goes_before_the_environment_and_that_before_the_file() {
    let place = Place::new();
    let socket = place.socket("unix");
    let config = place.write("serve.toml", &format!("listen = [{socket:?}]"));
    let _server = serve(&config, 1);
    let there = place.write("there.toml", &format!("url = {socket:?}\ntimeout = 60"));
    let elsewhere = place.write("else.toml", "url = \"unix:///nowhere\"");
    show(&["--config", text(&there)]).ok();

    let environment = |config: &Path, url: &str, arguments: &[&str]| {
        let mut command = nlbus(&["show", "link", "--config", text(config)]);
        command.env("NLBUS_URL", url).args(arguments);
        run(command)
    };
    environment(&elsewhere, &socket, &[]).ok();
    environment(&there, "unix:///nowhere", &[]).failed(5, &["unix:///nowhere"]);
    environment(&elsewhere, "unix:///nowhere", &["-u", &socket]).ok();
}

#[test]
fn urls_on_the_command_line_stand_in_for_those_of_the_file() {
    let place = Place::new();
    let config = place.write("serve.toml", "listen = [\"unix:///nowhere/x.sock\"]");
    let socket = place.socket("unix");
    let server = Serve::start(&["--config", text(&config), &socket], 1);
    assert_eq!(server.urls, [socket]);
}

#[test]
fn paths_in_a_file_are_relative_to_its_directory() {
    let (authority, place) = (Authority::new(), Place::new());
    for (name, names) in [("server", ["localhost"]), ("client", ["client.test"])] {
        let TlsFiles { certificate, key, ca } = authority.issue(name, &names);
        for (from, to) in [(certificate, "crt"), (key, "key")] {
            place.write(&format!("sub/{name}.{to}"), &fs::read_to_string(from).unwrap());
        }
        place.write("ca.crt", &fs::read_to_string(ca).unwrap());
    }
    let tls =
        |name| format!("[tls]\ncert = \"{name}.crt\"\nkey = \"{name}.key\"\nca = \"../ca.crt\"\n");
    let listen = format!("listen = [\"tls://localhost:0\"]\n{}", tls("server"));
    let server = serve(&place.write("sub/serve.toml", &listen), 1);
    let client = format!("url = {:?}\n{}", server.urls[0], tls("client"));
    place.write("sub/client.toml", &client);
    for (directory, file) in [("/", place.path("sub/client.toml")), ("sub", "client.toml".into())] {
        let mut command = nlbus(&["show", "link", "--config", text(&file)]);
        command.current_dir(place.path(directory));
        run(command).ok();
    }
}

#[test]
fn a_strangers_listener_needs_its_word_in_the_file_too() {
    let place = Place::new();
    let config = place.write("serve.toml", "listen = [\"tcp://0.0.0.0:0\"]");
    run(nlbus(&["serve", "--config", text(&config)])).failed(2, &["--insecure"]);
    let config = place.write("serve.toml", "listen = [\"tcp://0.0.0.0:0\"]\ninsecure = true");
    serve(&config, 1).end();
}

#[test]
fn the_user_at_a_unix_socket_decides_and_sighup_reads_the_list_again() {
    let place = Place::new();
    let socket = place.socket("unix");
    let user = geteuid().as_raw();
    let write = |content: &str| {
        place
            .write("serve.toml", &format!("listen = [{socket:?}]\n[access.user.{user}]\n{content}"))
    };
    let shown = || show(&["-u", &socket]);
    let server = serve(&write("rights = []"), 1);
    shown().failed(3, &["EPERM"]);
    for (content, may) in [
        ("rights = [\"use\"]", true),
        ("rights = [\"use\"]\nread = [\"generic\"]", false),
        ("rights = [\"use\"]\nread = [\"generic\", \"route\"]", true),
        ("rights = [\"provide\", \"control\"]", false),
        ("rights = [\"use\"]\nread = [\"*\"]", true),
    ] {
        write(content);
        server.hang_up();
        server.wait_for_log("read again: access list");
        match may {
            true => shown().ok(),
            false => shown().failed(3, &["EPERM"]),
        }
    }
    write("rights = [\"everything\"]");
    server.hang_up();
    let line = server.wait_for_log("not read again");
    assert!(line.contains("serve.toml:3: ") && line.contains("everything"), "{line}");
    shown().ok();
}

#[test]
fn a_plain_tcp_link_gets_what_anonymous_gets() {
    let place = Place::new();
    let listen = "listen = [\"tcp://127.0.0.1:0\"]\n[access.anonymous]\n";
    let server = serve(&place.write("a.toml", &format!("{listen}rights = []")), 1);
    show(&["-u", &server.urls[0]]).failed(3, &["EPERM"]);
    let server = serve(&place.write("b.toml", &format!("{listen}rights = [\"use\"]")), 1);
    show(&["-u", &server.urls[0]]).ok();
}

#[test]
fn the_name_in_a_certificate_decides() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let config = format!(
        "listen = [\"tls://localhost:0\"]\n\
         [tls]\ncert = {:?}\nkey = {:?}\nca = {:?}\n\
         [access.certified]\nrights = []\n\
         [access.name.\"let.in.test\"]\nrights = [\"use\"]\n",
        files.certificate, files.key, files.ca
    );
    let server = serve(&authority.write("serve.toml", config), 1);
    for (name, may) in [("let.in.test", true), ("left.out.test", false)] {
        let TlsFiles { certificate, key, ca } = authority.issue(name, &[name]);
        let files = [text(&certificate), text(&key), text(&ca)];
        let [cert, key, ca] = files;
        let shown = show(&["-u", &server.urls[0], "--cert", cert, "--key", key, "--ca", ca]);
        match may {
            true => shown.ok(),
            false => shown.failed(3, &["EPERM"]),
        }
    }
}

#[tokio::test]
async fn only_who_is_granted_it_may_change_the_kernel() {
    if !geteuid().is_root() || Command::new("unshare").arg("--version").output().is_err() {
        println!("skipped: needs root and unshare, for a network namespace");
        return;
    }
    let authority = Authority::new();
    let socket = format!("unix+tls://{}", text(&authority.path("x.sock")));
    let files = authority.issue("server", &["localhost"]);
    let config = format!(
        "listen = [{socket:?}]\n\
         [tls]\ncert = {:?}\nkey = {:?}\nca = {:?}\n\
         [access.name.\"reader.test\"]\nrights = [\"use\"]\n\
         [access.name.\"writer.test\"]\nrights = [\"use\"]\nwrite = [\"route\"]\n",
        files.certificate, files.key, files.ca
    );
    let config = authority.write("serve.toml", config);
    let mut command = Command::new("unshare");
    command.args(["--net", "--", program(), "serve", "--config", text(&config)]);
    let server = Serve::spawn(command, 1);
    assert!(server.said[0].ends_with("writable for some"), "{:?}", server.said);
    assert!(server.said[1].ends_with("read-only"), "{:?}", server.said);

    let url: BusUrl = socket.parse().unwrap();
    let link = async |name: &str| {
        let mut options = ConnectOptions::default();
        options.dial.tls = Some(TlsClient::load(authority.issue(name, &[name])).unwrap());
        options.dial.server_name = Some("localhost".to_owned());
        Endpoint::connect_with(&url, &options).await.unwrap()
    };
    let reader = set_loopback_up(&link("reader.test").await).await;
    assert!(matches!(reader, Err(RequestError::Refused { errno: errno::EPERM, .. })), "{reader:?}");
    set_loopback_up(&link("writer.test").await).await.unwrap();
}

async fn set_loopback_up(endpoint: &Endpoint) -> Result<(), RequestError> {
    const INDEX: u32 = 1;
    const UP: u32 = 1;
    let mut body = vec![0; 4];
    for word in [INDEX, UP, UP] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    let message = MessageBuilder::new(RTM_NEWLINK, nlm::REQUEST | nlm::ACK).body(&body).finish();
    let mut replies = endpoint.request("route", &message).await?;
    while let Some(reply) = replies.next().await {
        reply?;
    }
    Ok(())
}
