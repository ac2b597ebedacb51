//! Bus URLs: what is understood, how it is printed, and what an error says.

use std::path::Path;

use nlbus::url::{
    BusUrl, DEFAULT_PORT, Host, MEMORY_NAME_BYTES_MAX, Scheme, TransportKind, UNIX_PATH_BYTES_MAX,
    URL_BYTES_MAX, UnixAddress, UrlError, UrlPart,
};
use proptest::prelude::*;

fn parse(text: &str) -> BusUrl {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn error(text: &str) -> UrlError {
    text.parse::<BusUrl>().expect_err(text)
}

/// The error of `text`; each of `words` must be in what it says.
fn error_saying(text: &str, words: &[&str]) -> UrlError {
    let error = error(text);
    let said = error.to_string();
    for word in words {
        assert!(said.contains(word), "{said:?} does not say {word:?}");
    }
    error
}

#[test]
fn a_network_url_has_host_and_port() {
    for (text, scheme, transport, is_tls) in [
        ("tcp://192.0.2.1:80", Scheme::Tcp, TransportKind::Tcp, false),
        ("tls://192.0.2.1:80", Scheme::Tls, TransportKind::Tcp, true),
        ("ssl://192.0.2.1:80", Scheme::Ssl, TransportKind::Tcp, true),
        ("udp://192.0.2.1:80", Scheme::Udp, TransportKind::Udp, false),
    ] {
        let url = parse(text);
        assert_eq!(url.scheme(), scheme);
        assert_eq!(url.transport(), transport);
        assert_eq!(url.is_tls(), is_tls);
        assert_eq!(url.host(), Some(&Host::V4([192, 0, 2, 1].into())));
        assert_eq!(url.port(), Some(80));
        assert_eq!(url.unix_address(), None);
        assert_eq!(url.to_string(), text);
    }
}

#[test]
fn the_port_is_9824_when_it_is_left_out() {
    assert_eq!(DEFAULT_PORT, 9824);
    for text in ["tcp://localhost", "udp://127.0.0.1", "tls://[::1]"] {
        assert_eq!(parse(text).port(), Some(DEFAULT_PORT), "{text}");
    }
}

#[test]
fn scheme_and_name_ignore_case_and_print_in_lower_case() {
    assert_eq!(parse("TCP://LocalHost:1").to_string(), "tcp://localhost:1");
    assert_eq!(parse("Unix+TLS://X.sock").to_string(), "unix+tls://X.sock");
}

#[test]
fn ipv6_stands_in_brackets_and_may_have_a_zone() {
    let url = parse("tcp://[FE80::1%eth0]:7");
    let zone = Some("eth0".to_owned());
    assert_eq!(url.host(), Some(&Host::V6 { address: "fe80::1".parse().unwrap(), zone }));
    assert_eq!(url.to_string(), "tcp://[fe80::1%eth0]:7");
    assert_eq!(parse("tcp://[::]").to_string(), "tcp://[::]:9824");
}

#[test]
fn dns_names_may_have_digits_underscores_and_a_final_dot() {
    for name in ["a", "xn--bcher-kva.example", "_bus.example.", "10.1.2.3.nip.example", "7up"] {
        assert_eq!(parse(&format!("tcp://{name}")).host(), Some(&Host::Name(name.to_owned())));
    }
}

#[test]
fn unix_paths_are_absolute_or_relative_and_are_not_decoded() {
    for path in ["/run/x.sock", "x.sock", "./dir/x.sock", "/run/a b%20?c#d@e:1", "./@x", ".x"] {
        for scheme in ["unix", "unix+tls", "unix+ssl"] {
            let url = parse(&format!("{scheme}://{path}"));
            assert_eq!(url.transport(), TransportKind::Unix);
            assert_eq!(url.is_tls(), scheme != "unix");
            assert_eq!(url.unix_address().unwrap().path(), Some(Path::new(path)));
            assert_eq!((url.host(), url.port()), (None, None));
            assert_eq!(url.to_string(), format!("{scheme}://{path}"));
        }
    }
}

#[test]
fn abstract_names_are_marked_by_an_at_a_nul_byte_or_a_typed_nul() {
    for text in ["unix://@bus", "unix://\0bus", "unix://\\x00bus"] {
        let url = parse(text);
        assert_eq!(url.unix_address(), Some(&UnixAddress::Abstract("bus".to_owned())));
        assert_eq!(url.to_string(), "unix://@bus");
    }
}

#[test]
fn a_memory_url_may_have_a_name() {
    for (text, name, canonical) in [
        ("mem:", None, "mem:"),
        ("mem://", None, "mem:"),
        ("mem://a.b-c_1", Some("a.b-c_1"), "mem://a.b-c_1"),
    ] {
        let url = parse(text);
        assert_eq!((url.scheme(), url.transport()), (Scheme::Mem, TransportKind::Memory));
        assert_eq!(url.memory_name(), name);
        assert_eq!(url.to_string(), canonical);
    }
}

#[test]
fn with_port_changes_network_urls_alone() {
    assert_eq!(parse("tls://[::1]:0").with_port(9).to_string(), "tls://[::1]:9");
    assert_eq!(parse("unix://x").with_port(9).to_string(), "unix://x");
}

#[test]
fn a_missing_scheme_is_named_with_an_example() {
    for text in ["", "localhost", "localhost:9824", "//localhost", "/run/x.sock"] {
        let error = error_saying(text, &["scheme is missing", "tcp://HOST:PORT"]);
        assert!(matches!(error, UrlError::MissingScheme { .. }), "{error:?}");
    }
}

#[test]
fn an_unknown_scheme_is_answered_with_the_known_ones() {
    let known = "tcp, tls, ssl, udp, unix, unix+tls, unix+ssl, mem";
    for scheme in ["http", "tcps", "unix+tcp", " tcp", "netlink", ""] {
        let error = error_saying(&format!("{scheme}://localhost"), &["scheme", known]);
        assert!(matches!(error, UrlError::UnknownScheme { .. }), "{error:?}");
    }
}

#[test]
fn missing_slashes_are_named() {
    for text in ["unix:/run/x.sock", "tcp:localhost", "mem:name", "tcp:"] {
        let error = error_saying(text, &["`//` is missing", "://…"]);
        assert!(matches!(error, UrlError::MissingSlashes { .. }), "{error:?}");
    }
}

#[test]
fn a_missing_host_and_a_star_are_answered_with_what_all_addresses_are_called() {
    for text in ["tcp://:9824", "tcp://*:9824", "tls://", "udp://*"] {
        let error = error_saying(text, &["host", "0.0.0.0", "[::]"]);
        assert!(matches!(error, UrlError::MissingHost { .. }), "{error:?}");
    }
}

#[test]
fn ipv6_without_brackets_is_named() {
    for text in ["tcp://::1", "tcp://fe80::1:9824", "tcp://::"] {
        let error = error_saying(text, &["IPv6", "brackets"]);
        assert!(matches!(error, UrlError::Ipv6WithoutBrackets { .. }), "{error:?}");
    }
}

#[test]
fn a_bad_ipv6_address_is_named() {
    for text in ["tcp://[::1", "tcp://[]", "tcp://[1.2.3.4]", "tcp://[::1]x", "tcp://[:::]:1"] {
        let error = error_saying(text, &["host", "[::1]"]);
        assert!(matches!(error, UrlError::InvalidIpv6 { .. }), "{error:?}");
    }
}

#[test]
fn a_bad_zone_is_named() {
    for zone in ["", "0123456789abcdef", "a b", "25%eth0"] {
        let error = error_saying(&format!("tcp://[fe80::1%{zone}]"), &["zone", "interface"]);
        assert!(matches!(error, UrlError::InvalidZone { .. }), "{error:?}");
    }
    parse("tcp://[fe80::1%0123456789abcde]");
}

#[test]
fn a_host_that_ends_in_a_number_must_be_ipv4() {
    for text in ["tcp://1.2.3.999", "tcp://127.1", "tcp://1.2.3.4.5:1", "tcp://2130706433"] {
        let error = error_saying(text, &["host", "IPv4"]);
        assert!(matches!(error, UrlError::InvalidIpv4 { .. }), "{error:?}");
    }
}

#[test]
fn a_host_that_is_no_dns_name_is_named() {
    let label = "a".repeat(64);
    let name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(62)].join(".");
    for host in ["a b", "bücher", "a..b", ".", "-a", "a-", "a%20b", "a\n", &label, &name] {
        let error = error_saying(&format!("tcp://{host}:1"), &["host", "DNS name", "punycode"]);
        assert!(matches!(error, UrlError::InvalidName { .. }), "{error:?}");
    }
    parse(&format!("tcp://{}", &label[1..]));
    parse(&format!("tcp://{}", &name[1..]));
}

#[test]
fn a_port_that_is_no_number_to_65535_is_named() {
    for port in ["", "99999", "65536", "-1", "+80", "80 ", "http", "٣"] {
        let error = error_saying(&format!("tcp://host:{port}"), &["port", "0 to 65535"]);
        assert_eq!(
            error,
            UrlError::InvalidPort { url: format!("tcp://host:{port}"), port: port.into() }
        );
    }
    assert_eq!(parse("tcp://host:65535").port(), Some(65535));
    assert_eq!(parse("tcp://host:0").port(), Some(0));
}

#[test]
fn parts_that_a_network_url_does_not_have_are_named() {
    for (text, part, word) in [
        ("tcp://host:1/", UrlPart::Path, "path"),
        ("tls://host/a?b#c", UrlPart::Path, "path"),
        ("udp://host?a", UrlPart::Query, "query"),
        ("tcp://[::1]:1#a", UrlPart::Fragment, "fragment"),
        ("tcp://me@host", UrlPart::User, "user"),
    ] {
        let error = error_saying(text, &[word, "HOST:PORT"]);
        assert!(
            matches!(error, UrlError::UnexpectedPart { part: p, .. } if p == part),
            "{error:?}"
        );
    }
}

#[test]
fn a_password_does_not_show_in_the_error() {
    for text in [
        "tcp://me:s3cret@host",
        "tcp://me:s3cret@host:x/y",
        "tcp://me:s3c/s3cret@host",
        "http://me:s3cret@host",
        "tcp:me:s3cret@host",
        "me:s3cret@host",
    ] {
        let error = error(text);
        assert!(!format!("{error} {error:?}").contains("s3c"), "{error:?}");
    }
}

#[test]
fn a_missing_path_is_named() {
    for text in ["unix://", "unix://@", "unix://\0", "unix+tls://\\x00"] {
        let error = error_saying(text, &["path is missing", "unix://@NAME"]);
        assert!(matches!(error, UrlError::MissingPath { .. }), "{error:?}");
    }
}

#[test]
fn paths_and_abstract_names_fit_up_to_107_bytes() {
    for mark in ["", "@", "\0", "\\x00"] {
        parse(&format!("unix://{mark}{}", "p".repeat(UNIX_PATH_BYTES_MAX)));
        let error = error_saying(&format!("unix://{mark}{}", "p".repeat(108)), &["path", "107"]);
        assert!(matches!(error, UrlError::PathTooLong { length: 108, .. }), "{error:?}");
    }
}

#[test]
fn a_control_character_in_a_path_is_named() {
    for path in ["a\0b", "\0\0", "a\nb", "@a\x1b[1m", "\u{85}"] {
        let error = error_saying(&format!("unix://{path}"), &["path", "control character"]);
        assert!(matches!(error, UrlError::ControlCharacter { .. }), "{error:?}");
        assert!(!error.to_string().contains(char::is_control));
    }
}

#[test]
fn a_path_that_is_a_directory_is_named() {
    for path in ["/", "/run/", ".", "..", "a/..", "./"] {
        let error = error_saying(&format!("unix://{path}"), &["path", "directory"]);
        assert!(matches!(error, UrlError::PathIsDirectory { .. }), "{error:?}");
    }
}

#[test]
fn a_bad_memory_name_is_named() {
    let long = "m".repeat(MEMORY_NAME_BYTES_MAX + 1);
    for name in ["a/b", "a b", "ä", "a:1", &long] {
        let error = error_saying(&format!("mem://{name}"), &["name", "letters"]);
        assert!(matches!(error, UrlError::InvalidMemoryName { .. }), "{error:?}");
    }
    parse(&format!("mem://{}", &long[1..]));
}

#[test]
fn a_url_beyond_the_limit_is_not_repeated_whole() {
    let text = format!("tcp://{}", "ä".repeat(URL_BYTES_MAX));
    let error = error_saying(&text, &["at most 1024"]);
    assert!(matches!(error, UrlError::TooLong { length, .. } if length == text.len()));
    assert!(error.to_string().len() < 200);
}

fn any_host() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<std::net::Ipv4Addr>().prop_map(|address| address.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|address| format!("[{address}]")),
        (any::<std::net::Ipv6Addr>(), "[a-z][a-z0-9.@_-]{0,14}")
            .prop_map(|(address, zone)| format!("[{address}%{zone}]"))
            .prop_filter("an @ is a user", |host| !host.contains('@')),
        "[a-zA-Z_]([a-zA-Z0-9_-]{0,8}[a-z])?(\\.[a-z]{1,9}){0,3}\\.?",
    ]
}

fn any_url() -> impl Strategy<Value = String> {
    let port = prop_oneof![Just(String::new()), any::<u16>().prop_map(|port| format!(":{port}"))];
    prop_oneof![
        ("tcp|tls|ssl|udp|TCP", any_host(), port)
            .prop_map(|(scheme, host, port)| format!("{scheme}://{host}{port}")),
        ("unix|unix\\+tls|unix\\+ssl", "(@|\0|\\\\x00|/|\\./)?[^\\pC/]{0,20}x")
            .prop_map(|(scheme, path)| format!("{scheme}://{path}")),
        "mem:(//[a-zA-Z0-9._-]{0,64})?",
    ]
}

proptest! {
    #[test]
    fn what_is_printed_parses_back_to_the_same(text in any_url()) {
        let url = parse(&text);
        let printed = url.to_string();
        prop_assert_eq!(&parse(&printed), &url);
        prop_assert_eq!(parse(&printed).to_string(), printed);
    }

    #[test]
    fn any_text_is_a_url_that_round_trips_or_an_error_on_one_line(
        text in prop_oneof![
            any::<String>(),
            "(tcp|tls|udp|unix|mem):(//)?[\\[\\]@:/%*.0-9a-f\\\\x\0?#-]{0,40}",
        ]
    ) {
        match text.parse::<BusUrl>() {
            Ok(url) => {
                prop_assert_eq!(url.to_string().parse(), Ok(url.clone()));
                prop_assert!(!url.to_string().contains(char::is_control));
            }
            Err(error) => prop_assert!(!error.to_string().contains(char::is_control)),
        }
    }
}
