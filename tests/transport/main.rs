//! Dialing and listening by URL, on real sockets of this host.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]
#![allow(clippy::print_stdout, reason = "a test that is skipped says why")]

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nlbus::transport::{
    DialError, DialOptions, ListenError, ListenOptions, Listener, Stream, dial, is_transient,
};
use nlbus::url::BusUrl;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

mod authority;
mod tls;
mod tls_files;
mod udp;

fn url(text: &str) -> BusUrl {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn unix_url(path: &Path) -> BusUrl {
    url(&format!("unix://{}", path.display()))
}

fn has_ipv6() -> bool {
    let outcome = std::net::TcpListener::bind("[::1]:0");
    if let Err(error) = &outcome {
        eprintln!("skipped: no IPv6 on this host: {error}");
    }
    outcome.is_ok()
}

async fn listen(at: &BusUrl) -> Listener {
    Listener::bind(at, &ListenOptions::default()).await.unwrap()
}

async fn listen_error(at: &BusUrl) -> ListenError {
    Listener::bind(at, &ListenOptions::default()).await.unwrap_err()
}

async fn dial_error(at: &BusUrl) -> DialError {
    dial(at, &DialOptions::default()).await.unwrap_err()
}

/// A dialed stream and its accepted other end.
async fn pair(listener: &Listener) -> (Stream, Stream) {
    let accept = async { listener.accept().await.unwrap().handshake().await.unwrap() };
    // Unwrapped before the join, or a failure to dial would wait for an accept that never comes.
    let dial = async { dial(listener.local_url(), &DialOptions::default()).await.unwrap() };
    tokio::join!(dial, accept)
}

async fn assert_carries(from: &mut Stream, to: &mut Stream, bytes: &[u8]) {
    from.writer.write_all(bytes).await.unwrap();
    from.writer.flush().await.unwrap();
    let mut received = vec![0; bytes.len()];
    to.reader.read_exact(&mut received).await.unwrap();
    assert_eq!(received, bytes);
}

/// Bytes go both ways, and the end of one direction arrives.
async fn assert_echo(listener: &Listener) -> (Stream, Stream) {
    let (mut dialed, mut accepted) = pair(listener).await;
    assert_carries(&mut dialed, &mut accepted, b"there").await;
    assert_carries(&mut accepted, &mut dialed, b"and back").await;
    dialed.writer.shutdown().await.unwrap();
    assert_eq!(accepted.reader.read(&mut [0]).await.unwrap(), 0);
    (dialed, accepted)
}

#[tokio::test]
async fn tcp_carries_bytes_over_ipv4_ipv6_and_names() {
    for text in ["tcp://127.0.0.1:0", "tcp://[::1]:0", "tcp://localhost:0"] {
        if text.contains("::1") && !has_ipv6() {
            continue;
        }
        let listener = listen(&url(text)).await;
        let local = listener.local_url();
        assert_ne!(local.port(), Some(0), "the real port is told");
        assert_eq!(local.host(), url(text).host());
        let (dialed, accepted) = assert_echo(&listener).await;
        assert!(dialed.peer.local && accepted.peer.local);
        assert_eq!((accepted.peer.uid, accepted.peer.name), (None, None));
    }
}

#[tokio::test]
async fn every_address_of_a_name_is_served() {
    let listener = listen(&url("tcp://localhost:0")).await;
    let port = listener.local_url().port().unwrap();
    for address in listener.local_addresses() {
        assert_eq!(address.port(), port);
        let (at, options) = (url(&format!("tcp://{address}")), DialOptions::default());
        let (dialed, accepted) = tokio::join!(dial(&at, &options), listener.accept());
        assert_eq!(dialed.unwrap().peer.address, address.to_string());
        assert!(accepted.unwrap().peer().local);
    }
}

#[tokio::test]
async fn all_ipv4_and_all_ipv6_addresses_share_a_port() {
    if !has_ipv6() {
        return;
    }
    // The port that is free for IPv6 may just be another test's on IPv4.
    let mut attempts = 0;
    let (v6, v4) = loop {
        let v6 = listen(&url("tcp://[::]:0")).await;
        let port = v6.local_url().port().unwrap();
        let same = url("tcp://0.0.0.0").with_port(port);
        match Listener::bind(&same, &ListenOptions::default()).await {
            Ok(v4) => break (v6, v4),
            Err(ListenError::InUse { .. }) if attempts < 100 => attempts += 1,
            Err(error) => panic!("{error:?}"),
        }
    };
    assert_echo(&v6).await;
    assert_echo(&v4).await;
}

#[tokio::test]
async fn a_unix_socket_file_carries_bytes_and_tells_the_user() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a b.sock");
    let listener = listen(&unix_url(&path)).await;
    assert_eq!(listener.local_url(), &unix_url(&path));
    let (dialed, accepted) = assert_echo(&listener).await;
    let uid = Some(fs::metadata(&path).unwrap().uid());
    assert_eq!((dialed.peer.uid, accepted.peer.uid), (uid, uid));
    assert!(dialed.peer.local && accepted.peer.local);
    assert_eq!(accepted.peer.address, format!("unix:pid {}", std::process::id()));
}

#[tokio::test]
async fn a_relative_unix_path_starts_at_the_working_directory() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let name = directory.path().file_name().unwrap().to_str().unwrap();
    for relative in [format!("{name}/x.sock"), format!("./{name}/y.sock")] {
        let listener = listen(&url(&format!("unix://{relative}"))).await;
        assert_echo(&listener).await;
        assert!(Path::new(&relative).exists());
        drop(listener);
        assert!(!Path::new(&relative).exists());
    }
}

#[tokio::test]
async fn an_abstract_name_is_the_same_in_all_spellings() {
    let name = format!("nlbus-test-{}", std::process::id());
    let listener = listen(&url(&format!("unix://@{name}"))).await;
    assert_echo(&listener).await;
    for mark in ["\0", "\\x00"] {
        let same = url(&format!("unix://{mark}{name}"));
        dial(&same, &DialOptions::default()).await.unwrap();
        let error = listen_error(&same).await;
        assert!(matches!(error, ListenError::InUse { .. }), "{error:?}");
    }
    drop(listener);
    let error = dial_error(&url(&format!("unix://@{name}"))).await;
    assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn a_stale_unix_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = dial_error(&unix_url(&path)).await;
    assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
    assert_echo(&listen(&unix_url(&path)).await).await;
}

#[tokio::test]
async fn a_live_unix_socket_is_left_alone_and_said_to_be_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let live = directory.path().join("live.sock");
    let listener = listen(&unix_url(&live)).await;
    let other_type = directory.path().join("datagram.sock");
    let datagrams = std::os::unix::net::UnixDatagram::bind(&other_type).unwrap();
    for path in [&live, &other_type] {
        let error = listen_error(&unix_url(path)).await;
        assert!(matches!(error, ListenError::InUse { .. }), "{error:?}");
        assert!(error.to_string().contains("a process is listening there"), "{error}");
    }
    // The look whether somebody listens arrives as a connection that ends at once.
    let mut probe = listener.accept().await.unwrap().handshake().await.unwrap();
    assert_eq!(probe.reader.read(&mut [0]).await.unwrap(), 0);
    assert_echo(&listener).await;
    drop(datagrams);
}

#[tokio::test]
async fn a_file_that_is_not_a_socket_is_never_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("notes");
    fs::write(&file, "dear").unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let folder = directory.path().join("folder");
    fs::create_dir(&folder).unwrap();
    for path in [&file, &link, &folder] {
        let error = listen_error(&unix_url(path)).await;
        assert!(
            matches!(&error, ListenError::NotASocket { path: p, .. } if p == path),
            "{error:?}"
        );
        assert!(error.to_string().contains("not a socket"), "{error}");
    }
    assert_eq!(fs::read_to_string(&link).unwrap(), "dear");
    assert!(folder.is_dir());
}

#[tokio::test]
async fn dropping_a_unix_listener_removes_its_own_file_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    drop(listen(&unix_url(&path)).await);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "neither socket nor lock is left");

    let first = listen(&unix_url(&path)).await;
    fs::remove_file(&path).unwrap();
    let second = listen(&unix_url(&path)).await;
    drop(first);
    assert_echo(&second).await;
}

#[tokio::test]
async fn a_unix_socket_file_gets_the_mode_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    for mode in [0o600, 0o660, 0o666] {
        let options = ListenOptions { unix_mode: Some(mode), ..Default::default() };
        let listener = Listener::bind(&unix_url(&path), &options).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        drop(listener);
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_another_one_at_the_same_path_but_not_forever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let lock = fs::File::create(directory.path().join("x.sock.lock")).unwrap();
    lock.lock().unwrap();
    let error = listen_error(&unix_url(&path)).await;
    assert!(matches!(error, ListenError::Locked { .. }), "{error:?}");
    drop(lock);
    listen(&unix_url(&path)).await;
}

#[tokio::test]
async fn a_missing_directory_and_a_missing_socket_are_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let missing = unix_url(&directory.path().join("none/x.sock"));
    let error = listen_error(&missing).await;
    assert!(matches!(error, ListenError::NotFound { .. }), "{error:?}");
    let error = dial_error(&missing).await;
    assert!(matches!(error, DialError::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn a_tcp_port_in_use_is_told() {
    let listener = listen(&url("tcp://127.0.0.1:0")).await;
    let error = listen_error(listener.local_url()).await;
    assert!(matches!(error, ListenError::InUse { .. }), "{error:?}");
    assert!(error.to_string().starts_with(&listener.local_url().to_string()), "{error}");
}

#[tokio::test]
async fn a_port_without_a_listener_refuses() {
    // Bound, so that no other test listens there, and never listening.
    let closed = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    closed.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = closed.local_addr().unwrap().as_socket().unwrap().port();
    let error = dial_error(&url("tcp://127.0.0.1").with_port(port)).await;
    assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn a_name_without_an_address_is_told() {
    let nowhere = url("tcp://nowhere.invalid");
    match dial_error(&nowhere).await {
        DialError::Resolve { host, .. } => assert_eq!(host, "nowhere.invalid"),
        error => panic!("{error:?}"),
    }
    let error = listen_error(&nowhere).await;
    assert!(matches!(error, ListenError::Resolve { .. }), "{error:?}");
    let no_interface = url("tcp://[fe80::1%no-such-if]");
    let error = dial_error(&no_interface).await;
    assert!(matches!(error, DialError::Resolve { .. }), "{error:?}");
}

#[tokio::test]
async fn a_foreign_address_cannot_be_served() {
    // 192.0.2.0/24 is for documentation (RFC 5737).
    let error = listen_error(&url("tcp://192.0.2.1:0")).await;
    assert!(matches!(error, ListenError::NotLocal { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_ends_in_a_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let options = ListenOptions { backlog: 0, ..Default::default() };
    let full = unix_url(&directory.path().join("full.sock"));
    let _listener = Listener::bind(&full, &options).await.unwrap();
    let _first = dial(&full, &DialOptions::default()).await.unwrap();
    let short = Duration::from_millis(50);
    let options = DialOptions { connect_timeout: short, ..Default::default() };
    let error = dial(&full, &options).await.unwrap_err();
    assert!(matches!(error, DialError::Timeout { after, .. } if after == short), "{error:?}");
    assert!(error.to_string().contains("50ms"), "{error}");
    let error = listen_error(&full).await;
    assert!(matches!(error, ListenError::InUse { .. }), "{error:?}");
}

#[tokio::test]
async fn udp_and_memory_urls_are_not_streams() {
    for text in ["udp://127.0.0.1:0", "mem:"] {
        let error = dial_error(&url(text)).await;
        assert!(matches!(error, DialError::Unsupported { .. }), "{error:?}");
        let error = listen_error(&url(text)).await;
        assert!(matches!(error, ListenError::Unsupported { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_dropped_accept_loses_no_connection() {
    for text in ["tcp://127.0.0.1:0", "tcp://localhost:0"] {
        let listener = listen(&url(text)).await;
        // Polled once, then dropped.
        tokio::select! {
            biased;
            _ = listener.accept() => panic!("nobody has connected"),
            () = std::future::ready(()) => {}
        }
        assert_echo(&listener).await;
    }
}

#[test]
fn a_shortage_of_descriptors_is_transient_and_a_bad_descriptor_is_not() {
    use rustix::io::Errno;
    for errno in [Errno::MFILE, Errno::NFILE, Errno::CONNABORTED, Errno::NOBUFS, Errno::NOMEM] {
        assert!(is_transient(&errno.into()), "{errno:?}");
    }
    for errno in [Errno::BADF, Errno::INVAL, Errno::NOTSOCK] {
        assert!(!is_transient(&errno.into()), "{errno:?}");
    }
    assert!(!is_transient(&io::Error::other("no number")));
}
