//! Brokers linked to each other, as processes: what they reach, and what the death of one does.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

#[path = "transport/authority.rs"]
#[allow(dead_code, reason = "the tests of the transport use the rest")]
mod authority;
mod support_cli;
mod support_node;

use std::fs;
use std::path::Path;
use std::time::Duration;

use authority::Authority;
use nlbus::endpoint::{Endpoint, Event, Filter, RequestOptions, Subscription};
use nlbus::transport::TlsFiles;
use nlbus::wire::errno;
use support_cli::{Ended, Serve, nlbus, run, text};
use support_node::chain::eventually;
use support_node::frames::message;
use support_node::peer::within;

fn socket(directory: &Path, name: &str) -> String {
    format!("unix://{}/{name}.sock", text(directory))
}

async fn connect(url: &str) -> Endpoint {
    within(Endpoint::connect(&url.parse().unwrap())).await.unwrap()
}

/// Answers every request with its body.
async fn echo(url: &str, name: &str) -> tokio::task::JoinHandle<()> {
    let mut provider = connect(url).await.provide(name).await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = provider.next_request().await {
            let body = request.body();
            // an asker may have gone
            let _ = request.reply(&body).await;
        }
    })
}

async fn call(endpoint: &Endpoint, name: &str, body: &[u8]) -> Option<Vec<u8>> {
    let options = RequestOptions::default().deadline(Duration::from_secs(60));
    within(endpoint.call_with(name, body, options)).await.ok().map(|answer| answer.to_vec())
}

/// Runs a command again and again until it ends well.
async fn run_until_ok(arguments: &[&str]) -> Ended {
    eventually(async || {
        let ended = run(nlbus(arguments));
        (ended.code == Some(0)).then_some(ended)
    })
    .await
}

/// What `nlbus show link` prints of the kernel that these tests run on.
fn links(url: &str) -> String {
    let ended = run(nlbus(&["show", "link", "-u", url]));
    ended.ok();
    ended.out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_two_brokers_away_is_shown_over_unix_and_tcp() {
    let place = tempfile::tempdir().unwrap();
    for at in [socket(place.path(), "hub"), "tcp://127.0.0.1:0".to_owned()] {
        let far = Serve::start(&[&at], 1);
        let up = format!("far={}", far.urls[0]);
        let middle = Serve::start(&["tcp://127.0.0.1:0", "--uplink", &up], 1);
        let up = format!("middle={}", middle.urls[0]);
        let near = Serve::start(&["tcp://127.0.0.1:0", "--uplink", &up], 1);
        let url = &near.urls[0];
        let show = ["show", "link", "--subsystem", "route@far@middle", "-u", url];
        let shown = run_until_ok(&show).await;
        assert_eq!(shown.out, links(&far.urls[0]));
        let unknown = run(nlbus(&["show", "link", "--subsystem", "none@far@middle", "-u", url]));
        unknown.failed(5, &["none"]);
        for server in [near, middle, far] {
            server.end();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_exports_its_kernel_and_a_service_at_a_hub_over_tls() {
    let authority = Authority::new();
    let files = |name: &str| {
        let TlsFiles { certificate, key, ca } = authority.issue(name, &[name]);
        format!("[tls]\ncert = {certificate:?}\nkey = {key:?}\nca = {ca:?}\n")
    };
    let hub_control = socket(authority.directory.path(), "hub");
    let hub = format!(
        "listen = [\"tls://localhost:0\", {hub_control:?}]\n{}\
         [access.name.\"edge1.test\"]\nrights = [\"use\", \"provide\"]\n",
        files("localhost")
    );
    let hub = authority.write("hub.toml", hub);
    let hub = Serve::start(&["--config", text(&hub)], 2);
    let edge_url = socket(authority.directory.path(), "edge");
    let edge = format!(
        "listen = [{edge_url:?}]\nname = \"edge1\"\n{}\
         [[uplink]]\nname = \"hub\"\nurl = {:?}\nexport = [\"route\", \"echo\"]\n",
        files("edge1.test"),
        hub.urls[0]
    );
    let edge = authority.write("edge.toml", edge);
    let edge = Serve::start(&["--config", text(&edge)], 1);
    let show = ["show", "link", "--subsystem", "route@edge1", "-u", &hub_control];
    assert_eq!(run_until_ok(&show).await.out, links(&edge_url));
    let asker = connect(&hub_control).await;
    assert!(asker.discover("generic@edge1").await.is_err(), "it is not exported");
    // a service that comes after the link was made
    let serving = echo(&edge_url, "echo").await;
    let body = vec![7; 3 << 20];
    eventually(async || asker.discover("echo@edge1").await.ok()).await;
    assert!(call(&asker, "echo@edge1", &body).await == Some(body));
    serving.abort();
    eventually(async || call(&asker, "echo@edge1", b"").await.is_none().then_some(())).await;
    let listed = run(nlbus(&["ctl", "list", "links", "-u", &hub_control]));
    assert!(listed.out.contains("broker true"), "{listed:?}");
    edge.end();
    let gone = ["ctl", "discover", "route@edge1", "-u", &hub_control];
    eventually(async || (run(nlbus(&gone)).code == Some(5)).then_some(())).await;
    hub.end();
}

async fn next(subscription: &mut Subscription) -> Event {
    within(subscription.next()).await.expect("the link is up")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_middle_broker_is_told_at_once_and_its_successor_is_used_again() {
    let place = tempfile::tempdir().unwrap();
    let [near_url, middle_url, far_url] =
        ["near", "middle", "far"].map(|name| socket(place.path(), name));
    let _far = Serve::start(&[&far_url], 1);
    let far_up = format!("far={far_url}");
    let start_middle = || Serve::start(&[&middle_url, "--uplink", &far_up], 1);
    let mut middle = start_middle();
    let middle_up = format!("middle={middle_url}");
    let _near = Serve::start(&[&near_url, "--uplink", &middle_up], 1);
    let _serving = echo(&far_url, "echo").await;
    let provider = connect(&far_url).await;
    let mut silent = provider.provide("silent").await.unwrap();
    let asker = connect(&near_url).await;
    eventually(async || asker.discover("echo@far@middle").await.ok()).await;
    asker.discover("silent@far@middle").await.unwrap();
    let mut hears = asker.subscribe(Filter::all()).await.unwrap();
    let publisher = connect(&far_url).await;

    for round in 0..3u32 {
        assert_eq!(call(&asker, "echo@far@middle", b"hello").await.as_deref(), Some(&b"hello"[..]));
        let heard = eventually(async || {
            let _ = publisher.publish(&message(0, round, b"event")).await;
            hears.try_next()
        })
        .await;
        assert!(matches!(heard, Event::Message { .. }), "{heard:?}");
        // nothing but the link's end ends these
        let options = || RequestOptions::default().deadline(None);
        let mut waiting = Vec::new();
        for n in 0..10 {
            let request = message(0, n, b"no answer");
            let asked = asker.request_with("silent@far@middle", &request, options()).await;
            // held, as one that is dropped is an answer
            let held = within(silent.next_request()).await.unwrap();
            waiting.push((asked.unwrap(), held));
        }
        middle.kill();
        for (replies, _held) in waiting {
            let error = within(replies.collect()).await.unwrap_err();
            assert_eq!(error.errno(), Some(errno::EHOSTUNREACH), "{error}");
        }
        while !matches!(next(&mut hears).await, Event::Lost(_)) {}
        middle = start_middle();
        // by the addresses that the endpoint knows
        eventually(async || call(&asker, "echo@far@middle", b"again").await).await;
        eventually(async || {
            let request = message(0, 1, b"no answer");
            drop(asker.request_with("silent@far@middle", &request, options()).await.ok()?);
            tokio::time::timeout(Duration::from_millis(50), silent.next_request()).await.ok()
        })
        .await
        .unwrap();
    }
    let uplinks = run(nlbus(&["ctl", "list", "uplinks", "-u", &near_url]));
    assert!(uplinks.out.contains(" link "), "{uplinks:?}");
    middle.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_uplink_is_not_there_serves_all_the_same_and_links_later() {
    let place = tempfile::tempdir().unwrap();
    let (near_url, far_url) = (socket(place.path(), "near"), socket(place.path(), "far"));
    let near = Serve::start(&[&near_url, "--uplink", &format!("far={far_url}")], 1);
    near.wait_for_log("cannot link; trying on");
    links(&near_url);
    let lost = run(nlbus(&["show", "link", "--subsystem", "route@far", "-u", &near_url]));
    lost.failed(3, &["route@far", "EHOSTUNREACH"]);
    let _far = Serve::start(&[&far_url], 1);
    run_until_ok(&["show", "link", "--subsystem", "route@far", "-u", &near_url]).await;
    near.end();
}

#[test]
fn what_makes_no_sense_about_other_brokers_is_a_mistake_that_names_it() {
    let place = tempfile::tempdir().unwrap();
    let url = socket(place.path(), "x");
    for (arguments, parts) in [
        (&["--uplink", "hub=ftp://a"][..], &["ftp"][..]),
        (&["--uplink", "a@b=unix:///x"], &["a@b", "@"]),
        (&["--uplink", "a=unix:///x", "--uplink", "a=unix:///y"], &["\"a\"", "already"]),
        (&["--export", "route"], &["--uplink"]),
        (&["--uplink", "unix:///x", "--name", "a@b"], &["a@b", "@"]),
        (&["--uplink", "unix:///x", "--name", ""], &["empty"]),
        (&["--uplink", "tls://a"], &["--cert, --key, --ca missing"]),
    ] {
        let mut command = nlbus(&["serve", &url]);
        command.args(arguments);
        run(command).failed(2, parts);
    }
    assert!(fs::read_dir(place.path()).unwrap().all(|entry| entry.is_ok()));
}
