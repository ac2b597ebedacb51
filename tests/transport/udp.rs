//! Datagrams by URL.

use nlbus::transport::{
    DialError, DialOptions, ListenError, ListenOptions, SocketOptions, UDP_DATAGRAM_BYTES_MAX,
    bind_udp, connect_udp,
};
use socket2::SockRef;

use super::{has_ipv6, url};

#[tokio::test]
async fn datagrams_keep_their_borders_over_ipv4_ipv6_and_names() {
    for text in ["udp://127.0.0.1:0", "udp://[::1]:0", "udp://localhost:0"] {
        if text.contains("::1") && !has_ipv6() {
            continue;
        }
        let receiver = bind_udp(&url(text), &ListenOptions::default()).await.unwrap();
        let there = receiver.local_addr().unwrap();
        assert_ne!(there.port(), 0);
        let there = url(&format!("udp://{there}"));
        let sender = connect_udp(&there, &DialOptions::default()).await.unwrap();
        let longest = vec![7; UDP_DATAGRAM_BYTES_MAX];
        for sent in [b"one".as_slice(), b"", b"three", &longest] {
            sender.send(sent).await.unwrap();
            let mut bytes = vec![0; UDP_DATAGRAM_BYTES_MAX + 1];
            let (length, from) = receiver.recv_from(&mut bytes).await.unwrap();
            assert_eq!(&bytes[..length], sent);
            assert_eq!(from, sender.local_addr().unwrap());
        }
    }
}

#[tokio::test]
async fn a_datagram_one_byte_too_long_is_refused() {
    let receiver = bind_udp(&url("udp://127.0.0.1:0"), &ListenOptions::default()).await.unwrap();
    let there = url(&format!("udp://{}", receiver.local_addr().unwrap()));
    let sender = connect_udp(&there, &DialOptions::default()).await.unwrap();
    let error = sender.send(&vec![0; UDP_DATAGRAM_BYTES_MAX + 1]).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::MSGSIZE.raw_os_error()));
}

#[tokio::test]
async fn a_udp_port_in_use_is_told() {
    let options = ListenOptions::default();
    let receiver = bind_udp(&url("udp://127.0.0.1:0"), &options).await.unwrap();
    let there = url(&format!("udp://{}", receiver.local_addr().unwrap()));
    let error = bind_udp(&there, &options).await.unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error:?}");
}

#[tokio::test]
async fn a_udp_socket_gets_the_buffer_sizes_asked_for() {
    let socket = SocketOptions {
        send_buffer_bytes: Some(16 * 1024),
        receive_buffer_bytes: Some(32 * 1024),
        ..Default::default()
    };
    let options = ListenOptions { socket: socket.clone(), ..Default::default() };
    let receiver = bind_udp(&url("udp://127.0.0.1:0"), &options).await.unwrap();
    let there = url(&format!("udp://{}", receiver.local_addr().unwrap()));
    let options = DialOptions { socket, ..Default::default() };
    let sender = connect_udp(&there, &options).await.unwrap();
    for socket in [&receiver, &sender] {
        // The kernel doubles what is asked for.
        assert_eq!(SockRef::from(socket).send_buffer_size().unwrap(), 2 * 16 * 1024);
        assert_eq!(SockRef::from(socket).recv_buffer_size().unwrap(), 2 * 32 * 1024);
    }
}

#[tokio::test]
async fn stream_urls_and_unknown_names_are_not_udp() {
    for text in ["tcp://127.0.0.1:0", "unix://@nlbus-never", "mem:"] {
        let error = connect_udp(&url(text), &DialOptions::default()).await.unwrap_err();
        assert!(matches!(error, DialError::Unsupported { .. }), "{error:?}");
        let error = bind_udp(&url(text), &ListenOptions::default()).await.unwrap_err();
        assert!(matches!(error, ListenError::Unsupported { .. }), "{error:?}");
    }
    let nowhere = url("udp://nowhere.invalid");
    let error = connect_udp(&nowhere, &DialOptions::default()).await.unwrap_err();
    assert!(matches!(error, DialError::Resolve { .. }), "{error:?}");
    let error = bind_udp(&nowhere, &ListenOptions::default()).await.unwrap_err();
    assert!(matches!(error, ListenError::Resolve { .. }), "{error:?}");
}
