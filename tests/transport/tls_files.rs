//! The PEM files of TLS: read again while connections live, and what is wrong with a bad one.

use std::fs;

use nlbus::transport::{
    DialError, HandshakeError, PEM_BYTES_MAX, TlsClient, TlsError, TlsFiles, TlsServer,
};
use rcgen::date_time_ymd;

use super::authority::{Authority, new_issuer};
use super::tls::{attempt, dialing, listen, pair};
use super::{assert_carries, url};

#[tokio::test]
async fn reloaded_certificates_are_for_new_connections_and_old_ones_live_on() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client());
    let listener = listen(&url("tls://localhost:0"), &server).await;
    let (mut old_dialed, mut old_accepted) = pair(&listener, &dialing(&client)).await;

    // Another authority takes over in the same files.
    let (issuer, pem) = new_issuer(|_| ());
    let authority = Authority { issuer, ..authority };
    authority.write("ca.crt", pem);
    authority.issue("server", &["localhost"]);
    authority.issue("client", &["new.test"]);
    pair(&listener, &dialing(&client)).await;

    server.reload().unwrap();
    let (dialed, accepted) = attempt(&listener, &dialing(&client)).await;
    assert!(dialed.is_err() && accepted.is_err(), "the old client does not know the new server");
    client.reload().unwrap();
    let (_, accepted) = pair(&listener, &dialing(&client)).await;
    assert_eq!(accepted.peer.name.as_deref(), Some("new.test"));

    assert_carries(&mut old_dialed, &mut old_accepted, b"still").await;
    assert_carries(&mut old_accepted, &mut old_dialed, b"here").await;
}

#[tokio::test]
async fn a_reload_that_fails_changes_nothing() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client());
    let listener = listen(&url("tls://localhost:0"), &server).await;
    authority.write("server.key", "");
    authority.write("client.key", "");
    assert!(matches!(server.reload(), Err(TlsError::NoKey { .. })));
    assert!(matches!(client.reload(), Err(TlsError::NoKey { .. })));
    pair(&listener, &dialing(&client)).await;
}

/// The error of loading the files, as a server and as a client.
fn load_error(files: &TlsFiles) -> TlsError {
    let error = TlsServer::load(files.clone()).unwrap_err();
    let same = TlsClient::load(files.clone()).unwrap_err();
    assert_eq!(error.to_string(), same.to_string());
    error
}

#[test]
fn a_missing_file_is_named() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let none = authority.path("none.pem");
    for files in [
        TlsFiles { certificate: none.clone(), ..files.clone() },
        TlsFiles { key: none.clone(), ..files.clone() },
        TlsFiles { ca: none.clone(), ..files },
    ] {
        let error = load_error(&files);
        assert!(matches!(&error, TlsError::Read { path, .. } if *path == none), "{error:?}");
        assert!(error.to_string().contains("none.pem"), "{error}");
    }
}

#[test]
fn a_file_without_the_section_that_is_looked_for_is_named() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let empty = authority.write("empty.pem", "nothing\n");
    for path in [&empty, &files.key] {
        let error = load_error(&TlsFiles { certificate: path.clone(), ..files.clone() });
        assert!(matches!(&error, TlsError::NoCertificate { path: p } if p == path), "{error:?}");
        let error = load_error(&TlsFiles { ca: path.clone(), ..files.clone() });
        assert!(matches!(&error, TlsError::NoCertificate { path: p } if p == path), "{error:?}");
    }
    for path in [&empty, &files.certificate] {
        let error = load_error(&TlsFiles { key: path.clone(), ..files.clone() });
        assert!(matches!(&error, TlsError::NoKey { path: p } if p == path), "{error:?}");
    }
}

#[test]
fn a_garbled_file_is_named() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let pem = fs::read_to_string(&files.certificate).unwrap();
    let cut = authority.write("cut.pem", &pem[..pem.len() / 2]);
    let error = load_error(&TlsFiles { certificate: cut.clone(), ..files.clone() });
    assert!(matches!(&error, TlsError::Pem { path, .. } if *path == cut), "{error:?}");

    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let garbled = authority.write("garbled.pem", text);
    for files in [
        TlsFiles { certificate: garbled.clone(), ..files.clone() },
        TlsFiles { ca: garbled.clone(), ..files.clone() },
    ] {
        let error = load_error(&files);
        assert!(
            matches!(&error, TlsError::Certificate { path, .. } if *path == garbled),
            "{error:?}"
        );
    }

    let text = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let garbled = authority.write("garbled.key", text);
    let error = load_error(&TlsFiles { key: garbled.clone(), ..files });
    assert!(matches!(&error, TlsError::Key { path, .. } if *path == garbled), "{error:?}");
}

#[test]
fn an_encrypted_key_is_told() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    for text in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n\
         -----END RSA PRIVATE KEY-----\n",
    ] {
        let key = authority.write("encrypted.key", text);
        let error = load_error(&TlsFiles { key, ..files.clone() });
        assert!(matches!(error, TlsError::EncryptedKey { .. }), "{error:?}");
        assert!(error.to_string().contains("without a passphrase"), "{error}");
    }
}

#[test]
fn a_key_of_another_certificate_is_told() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let other = authority.issue("other", &["localhost"]);
    let error = load_error(&TlsFiles { key: other.key, ..files });
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("other.key") && text.contains("server.crt"), "{text}");
}

#[test]
fn a_certificate_out_of_its_time_is_told() {
    let authority = Authority::new();
    let old = authority.issue_with("old", &["localhost"], |params| {
        params.not_after = date_time_ymd(2001, 2, 3);
    });
    let error = load_error(&old);
    assert!(matches!(&error, TlsError::Expired { path, .. } if *path == old.certificate));
    assert!(error.to_string().contains("2001"), "{error}");
    let young = authority.issue_with("young", &["localhost"], |params| {
        params.not_before = date_time_ymd(3001, 2, 3);
    });
    let error = load_error(&young);
    assert!(matches!(&error, TlsError::NotYetValid { path, .. } if *path == young.certificate));
    assert!(error.to_string().contains("3001"), "{error}");
}

#[tokio::test]
async fn an_authority_out_of_its_time_vouches_for_nobody() {
    let (old, old_pem) = new_issuer(|params| params.not_after = date_time_ymd(2001, 2, 3));
    let authority = Authority { issuer: old, ..Authority::new() };
    let good_pem = fs::read_to_string(authority.path("ca.crt")).unwrap();
    let of_old = authority.issue("client", &["client.test"]);
    authority.write("ca.crt", &old_pem);
    let error = load_error(&of_old);
    assert!(matches!(&error, TlsError::Expired { path, .. } if *path == of_old.ca), "{error:?}");

    // Beside a good one it is left out, and what it signed is refused.
    authority.write("ca.crt", old_pem + &good_pem);
    let listener =
        listen(&url("tls://localhost:0"), &TlsServer::load(of_old.clone()).unwrap()).await;
    let client = TlsClient::load(of_old).unwrap();
    let error = attempt(&listener, &dialing(&client)).await.0.unwrap_err();
    assert!(
        matches!(error, DialError::Tls { source: HandshakeError::Certificate { .. }, .. }),
        "{error:?}"
    );
}

#[test]
fn a_pem_file_is_read_up_to_its_limit() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let pem = fs::read_to_string(&files.certificate).unwrap();
    let padding = "\n".repeat(PEM_BYTES_MAX - pem.len());
    authority.write("server.crt", format!("{pem}{padding}"));
    TlsServer::load(files.clone()).unwrap();
    authority.write("server.crt", format!("{pem}{padding}\n"));
    let error = load_error(&files);
    assert!(matches!(error, TlsError::TooLarge { .. }), "{error:?}");
}

#[test]
fn keys_do_not_show_in_debug_output() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client());
    let text = format!("{server:?} {client:?}");
    assert!(text.contains("server.key") && text.len() < 1000, "{text}");
}
