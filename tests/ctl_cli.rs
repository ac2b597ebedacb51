//! `nlbus ctl`: what each of its commands does to a server, prints, and ends with.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

#[path = "transport/authority.rs"]
#[allow(dead_code, reason = "the tests of the transport use the rest")]
mod authority;
mod support_cli;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use authority::Authority;
use nlbus::transport::TlsFiles;
use serde_json::Value;
use support_cli::{Ended, Serve, nlbus, run, text};

const SECRET: &str = "0123456789abcdef\n";

fn ctl(url: &str, arguments: &[&str]) -> Ended {
    let mut command = nlbus(&["ctl"]);
    command.args(arguments).args(["-u", url]);
    run(command)
}

fn show(url: &str, arguments: &[&str]) -> Ended {
    let mut command = nlbus(&["show", "link", "-u", url]);
    command.args(arguments);
    run(command)
}

fn socket(directory: &Path, name: &str) -> String {
    format!("unix://{}/{name}.sock", text(directory))
}

fn secret(directory: &Path, name: &str, content: &str, mode: u32) -> String {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    text(&path).to_owned()
}

/// The options of a client with these files, or of a broker that is told to use them.
fn options(files: &TlsFiles, prefix: &str) -> [String; 6] {
    let TlsFiles { certificate, key, ca } = files;
    let option = |name: &str| format!("--{prefix}{name}");
    let path = |path: &Path| text(path).to_owned();
    [option("cert"), path(certificate), option("key"), path(key), option("ca"), path(ca)]
}

#[test]
fn brokers_are_linked_listed_and_parted_by_name_or_by_address() {
    let place = tempfile::tempdir().unwrap();
    let (near, far) = (socket(place.path(), "near"), socket(place.path(), "far"));
    let (_near, _far) = (Serve::start(&[&near], 1), Serve::start(&[&far], 1));
    let connected = ctl(&near, &["connect", &far, "--name", "hub"]);
    connected.ok();
    let address = connected.out.trim_end();
    assert!(address.starts_with("0x0001") && address.len() == 10, "{connected:?}");
    // at once: it was answered when the link was up
    let found = ctl(&near, &["discover", "route@hub"]);
    found.ok();
    assert!(found.out.starts_with("0x0001"), "{found:?}");
    let shown = show(&near, &["--subsystem", "route@hub"]);
    shown.ok();
    assert_eq!(shown.out, show(&far, &[]).out);
    ctl(&near, &["discover", "nobody@hub"]).failed(5, &["nobody", "ENOENT"]);
    ctl(&near, &["connect", &far, "--name", "hub"]).failed(3, &["hub", "EEXIST"]);
    ctl(&near, &["connect", "unix:///nowhere.sock"]).failed(5, &["unix:///nowhere.sock", "ENOENT"]);
    ctl(&near, &["connect", "tcp://127.0.0.1:1"]).failed(3, &["ECONNREFUSED"]);
    ctl(&near, &["connect", "udp://127.0.0.1:1"]).failed(3, &["EPROTONOSUPPORT"]);

    let listed = ctl(&near, &["list", "uplinks"]);
    listed.ok();
    let line = format!("uplink name hub url {far} address {address} link ");
    assert!(listed.out.starts_with(&line) && listed.out.lines().count() == 1, "{listed:?}");
    ctl(&near, &["disconnect", "nobody"]).failed(5, &["nobody", "ENOENT"]);
    ctl(&near, &["disconnect", "hub"]).ok();
    ctl(&near, &["disconnect", "hub"]).failed(5, &["hub", "ENOENT"]);
    assert_eq!(ctl(&near, &["list", "uplinks"]).out, "");
    show(&near, &["--subsystem", "route@hub"]).failed(5, &["route@hub"]);
    let again = ctl(&near, &["connect", &far, "--name", "hub"]);
    assert_eq!(again.out, connected.out, "an address belongs to its name");
    ctl(&near, &["disconnect", address]).ok();
    ctl(&near, &["disconnect", address]).failed(5, &["ENOENT"]);
}

#[test]
fn what_there_is_is_printed_as_lines_and_as_json() {
    let place = tempfile::tempdir().unwrap();
    let url = socket(place.path(), "x");
    let server = Serve::start(&[&url, "tcp://127.0.0.1:0"], 2);
    let all = ctl(&url, &["list"]);
    all.ok();
    let listeners = server.urls.iter().map(|url| format!("listener url {url}"));
    let lines: Vec<&str> = all.out.lines().collect();
    assert_eq!(lines[..2], listeners.collect::<Vec<_>>());
    assert_eq!(lines[2], "subsystem name route address 0x00010003 providers 1");
    assert_eq!(lines[3], "subsystem name generic address 0x00010004 providers 1");
    assert!(all.out.contains(" rights use,provide,control ports "), "{all:?}");

    let json = |arguments: &[&str]| -> Value {
        let ended = ctl(&url, arguments);
        ended.ok();
        serde_json::from_str(&ended.out).unwrap()
    };
    let all = json(&["list", "--json"]);
    let keys: Vec<_> = all.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["listeners", "subsystems", "uplinks", "links", "subscriptions"]);
    assert_eq!(all["subsystems"][0]["name"], "route");
    assert_eq!(all["subsystems"][0]["address"], 0x1_0003);
    assert_eq!(
        (&all["uplinks"], &all["subscriptions"]),
        (&Value::Array(vec![]), &Value::Array(vec![]))
    );
    let some = json(&["list", "links", "listeners", "-j"]);
    assert_eq!(some.as_object().unwrap().len(), 2);
    assert_eq!(some["links"][0]["rights"][0], "use");

    let stats = json(&["stats", "--json"]);
    assert!(stats["frames"].as_u64().unwrap() > 5, "{stats}");
    let lines = ctl(&url, &["stats"]);
    lines.ok();
    assert_eq!(lines.out.lines().count(), stats.as_object().unwrap().len());
    assert!(lines.out.lines().any(|line| line.starts_with("frames  ")), "{lines:?}");
    ctl(&url, &["list", "everything"]).failed(2, &["everything"]);
}

#[test]
fn the_secret_lets_a_stranger_control_and_nothing_else_does() {
    let place = tempfile::tempdir().unwrap();
    let right = secret(place.path(), "right", SECRET, 0o600);
    let wrong = secret(place.path(), "wrong", "0123456789abcdefg", 0o600);
    let short = secret(place.path(), "short", "0123456789abcde\n", 0o600);
    let open = secret(place.path(), "open", SECRET, 0o644);
    let server = Serve::start(&["tcp://127.0.0.1:0", "--secret-file", &right], 1);
    let url = &server.urls[0];
    ctl(url, &["stats"]).failed(3, &["stats needs the right \"control\"", "EPERM"]);
    let said = ctl(url, &["stats", "--secret-file", &right]);
    said.ok();
    assert_eq!(said.err, "");
    ctl(url, &["--secret-file", &right, "list"]).ok();
    ctl(url, &["stats", "--secret-file", &wrong]).failed(3, &["that is not the secret"]);
    ctl(url, &["stats", "--secret-file", &short]).failed(2, &[&short, "at least 16 bytes"]);
    ctl(url, &["stats", "--secret-file", "/nowhere/secret"]).failed(5, &["/nowhere/secret"]);
    ctl(url, &["stats", "--secret-file", text(place.path())])
        .failed(1, &["cannot read the secret"]);
    let warned = ctl(url, &["stats", "--secret-file", &open]);
    warned.ok();
    assert!(warned.err.contains("can be read by other users"), "{warned:?}");
    for ended in [&said, &warned] {
        assert!(!ended.err.contains("0123456789"), "{ended:?}");
    }
    let mut command = nlbus(&["ctl", "stats", "-u", url]);
    command.env("NLBUS_SECRET_FILE", &right);
    run(command).ok();
    // `discover` takes the right to use only
    ctl(url, &["discover", "route"]).ok();
    run(nlbus(&["serve", "tcp://127.0.0.1:0", "--secret-file", &short]))
        .failed(2, &[&short, "at least 16 bytes"]);

    fs::copy(&wrong, &right).unwrap();
    ctl(url, &["reload", "--secret-file", &open]).ok();
    ctl(url, &["stats", "--secret-file", &open]).failed(3, &["that is not the secret"]);
    ctl(url, &["stats", "--secret-file", &wrong]).ok();
    fs::copy(&short, &right).unwrap();
    let refused = ctl(url, &["reload", "--secret-file", &wrong]);
    refused.failed(3, &["secret: ", &right, "at least 16 bytes", "EINVAL"]);
    ctl(url, &["stats", "--secret-file", &wrong]).ok();
}

#[test]
fn a_server_listens_where_it_is_told_to_and_no_more_when_that_is_taken_back() {
    let place = tempfile::tempdir().unwrap();
    let (url, more) = (socket(place.path(), "x"), socket(place.path(), "more"));
    let _server = Serve::start(&[&url], 1);
    ctl(&url, &["serve", &more]).ok();
    show(&more, &[]).ok();
    ctl(&url, &["serve", &more]).failed(3, &["EADDRINUSE"]);
    let line = format!("listener url {more}");
    assert!(ctl(&url, &["list", "listeners"]).out.lines().any(|one| one == line));
    ctl(&more, &["shutdown", &more]).ok();
    show(&more, &[]).failed(5, &[&more]);
    ctl(&url, &["shutdown", &more]).failed(5, &[&more, "ENOENT"]);
    ctl(&url, &["serve", "tcp://0.0.0.0:0"]).failed(3, &["EACCES"]);
    ctl(&url, &["serve", "tls://127.0.0.1:0"]).failed(3, &["EINVAL"]);
    ctl(&url, &["serve", "ftp://127.0.0.1"]).failed(2, &["ftp"]);
    ctl(&more, &["list"]).failed(5, &[&more]);
    // the system chooses a port
    ctl(&url, &["serve", "tcp://127.0.0.1:0"]).ok();
    let listed = ctl(&url, &["list", "listeners"]).out;
    let bound = listed.lines().find_map(|line| line.strip_prefix("listener url tcp")).unwrap();
    show(&format!("tcp{bound}"), &[]).ok();
}

#[test]
fn a_server_that_is_told_to_stop_ends_with_0() {
    let place = tempfile::tempdir().unwrap();
    let url = socket(place.path(), "x");
    let server = Serve::start(&[&url], 1);
    ctl(&url, &["stop"]).ok();
    assert_eq!(server.wait(), Some(0));
    ctl(&url, &["stop"]).failed(5, &[&url]);
}

#[test]
fn the_log_says_as_much_as_it_is_told_to() {
    let place = tempfile::tempdir().unwrap();
    let url = socket(place.path(), "x");
    let server = Serve::start(&[&url], 1);
    ctl(&url, &["log-level", "error"]).ok();
    ctl(&url, &["serve", &socket(place.path(), "quiet")]).ok();
    ctl(&url, &["log-level", "error,nlbus::node=info"]).ok();
    ctl(&url, &["serve", &socket(place.path(), "loud")]).ok();
    let before = server.log_to("loud.sock");
    assert!(before.iter().all(|line| !line.contains("quiet.sock")), "{before:#?}");
    let refused = ctl(&url, &["log-level", "nlbus=loud"]);
    refused.failed(3, &["nlbus=loud", "EINVAL"]);
    ctl(&url, &["serve", &socket(place.path(), "as-before")]).ok();
    server.log_to("as-before.sock");
}

/// As `server`, with its certificate for `name` now.
fn issue_again(authority: &Authority, server: &TlsFiles, name: &str) {
    let fresh = authority.issue("fresh", &[name]);
    fs::copy(fresh.certificate, &server.certificate).unwrap();
    fs::copy(fresh.key, &server.key).unwrap();
}

#[test]
fn reloaded_certificates_are_shown_by_all_listeners_and_broken_ones_are_named_and_not_used() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let later = authority.issue("later", &["localhost"]);
    let client = authority.issue("client", &["client.test"]);
    let client = options(&client, "");
    let control = socket(authority.directory.path(), "control");
    let own_options = options(&own, "");
    let mut arguments = vec!["tls://localhost:0", &control];
    arguments.extend(own_options.iter().map(String::as_str));
    let server = Serve::start(&arguments, 2);
    let second = format!("unix+tls://{}", text(&authority.path("second.sock")));
    let mut serve = vec!["serve".to_owned(), second.clone()];
    serve.extend(options(&later, "broker-"));
    ctl(&control, &serve.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    let shown = |url: &str, name: &str| {
        let mut arguments = vec!["--server-name", name];
        arguments.extend(client.iter().map(String::as_str));
        show(url, &arguments)
    };
    shown(&server.urls[0], "localhost").ok();
    shown(&second, "localhost").ok();

    issue_again(&authority, &own, "own.test");
    issue_again(&authority, &later, "later.test");
    ctl(&control, &["reload"]).ok();
    shown(&server.urls[0], "own.test").ok();
    shown(&second, "later.test").ok();
    shown(&server.urls[0], "localhost").failed(3, &["localhost"]);

    fs::write(&later.certificate, "not a certificate").unwrap();
    issue_again(&authority, &own, "again.test");
    let refused = ctl(&control, &["reload"]);
    refused.failed(3, &["certificates: ", text(&later.certificate), "EINVAL"]);
    shown(&second, "later.test").ok();
    shown(&server.urls[0], "again.test").ok();
    server.wait_for_log("not read again, as before: certificates");
}

#[test]
fn certificates_on_the_brokers_machine_are_given_whole_and_what_is_wrong_with_them_is_said() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let url = socket(authority.directory.path(), "x");
    let _server = Serve::start(&[&url], 1);
    let part = ["serve", "tls://localhost:0", "--broker-cert", text(&files.certificate)];
    ctl(&url, &part).failed(2, &["--broker-key"]);
    let mut missing = vec!["serve".to_owned(), "tls://localhost:0".to_owned()];
    missing.extend(options(&TlsFiles { key: "/nowhere.key".into(), ..files }, "broker-"));
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    ctl(&url, &missing).failed(3, &["/nowhere.key", "EINVAL"]);
}

#[test]
fn a_server_with_certificates_links_to_a_tls_broker_with_them_when_it_is_told_to() {
    let authority = Authority::new();
    let start = |name: &str| {
        let files = authority.issue(name, &["localhost"]);
        let control = socket(authority.directory.path(), name);
        let mut arguments = vec!["tls://localhost:0".to_owned(), control];
        arguments.extend(options(&files, ""));
        Serve::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 2)
    };
    let (hub, edge) = (start("hub"), start("edge"));
    ctl(&edge.urls[1], &["connect", &hub.urls[0], "--name", "hub"]).ok();
    show(&edge.urls[1], &["--subsystem", "route@hub"]).ok();
    // another authority's are refused, also where that comes after the handshake
    let stranger = Authority::new();
    let files = stranger.issue("stranger", &["localhost"]);
    let files = TlsFiles { ca: authority.path("ca.crt"), ..files };
    let mut connect = vec!["connect".to_owned(), hub.urls[0].clone()];
    connect.extend(options(&files, "broker-"));
    let connect: Vec<&str> = connect.iter().map(String::as_str).collect();
    let refused = ctl(&edge.urls[1], &connect);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert_eq!(ctl(&edge.urls[1], &["list", "uplinks"]).out.lines().count(), 1);
    // one that was started without any says what is missing
    let bare_url = socket(authority.directory.path(), "bare");
    let bare = Serve::start(&[&bare_url], 1);
    ctl(&bare.urls[0], &["connect", &hub.urls[0]]).failed(3, &["EINVAL"]);
}

#[test]
fn broadcasts_are_printed_as_by_subscribe() {
    let place = tempfile::tempdir().unwrap();
    let url = socket(place.path(), "x");
    let _server = Serve::start(&[&url], 1);
    ctl(&url, &["subscribe", "--group", "alerts", "-W", "0.01"]).failed(4, &[]);
    ctl(&url, &["subscribe", "--from", "nobody", "-W", "60"]).failed(5, &["nobody"]);
}

#[test]
fn every_command_has_a_help_with_an_example_that_names_it() {
    let help = run(nlbus(&["ctl", "--help"]));
    help.ok();
    let commands = [
        "connect",
        "disconnect",
        "serve",
        "shutdown",
        "subscribe",
        "discover",
        "list",
        "stats",
        "log-level",
        "reload",
        "stop",
    ];
    for command in commands {
        assert!(help.out.contains(&format!("  {command} ")), "{command}");
        let help = run(nlbus(&["ctl", command, "--help"]));
        help.ok();
        let example = format!("Example:\n  nlbus ctl {command}");
        assert!(help.out.contains(&example), "{help:?}");
    }
    run(nlbus(&["ctl"])).failed(2, &["Usage: nlbus ctl"]);
}
