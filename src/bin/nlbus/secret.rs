//! The secret that gives the right to control, in a file.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;

use crate::exit::UsageError;

/// A secret that is shorter is guessed.
const SECRET_BYTES_MIN: usize = 16;

/// The longest secret, in bytes.
const SECRET_BYTES_MAX: usize = 1_024;

/// Reads it, without the line end behind it.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let place = path.display();
    let unreadable = || format!("cannot read the secret in {place}");
    let file = File::open(path).with_context(unreadable)?;
    let others = file.metadata().with_context(unreadable)?.permissions().mode() & 0o077;
    if others != 0 {
        tracing::warn!("{place} can be read by other users; chmod 600 keeps it secret");
    }
    let mut secret = Vec::new();
    file.take(SECRET_BYTES_MAX as u64 + 2).read_to_end(&mut secret).with_context(unreadable)?;
    while let Some(b'\n' | b'\r') = secret.last() {
        secret.pop();
    }
    let wrong = match secret.len() {
        short if short < SECRET_BYTES_MIN => format!("at least {SECRET_BYTES_MIN} bytes"),
        long if long > SECRET_BYTES_MAX => format!("at most {SECRET_BYTES_MAX} bytes"),
        _ if secret.contains(&0) => "no byte 0".to_owned(),
        _ => return Ok(secret),
    };
    Err(UsageError(format!("{place}: a secret has {wrong}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_what_stands_in_the_file_without_its_line_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let read_back = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read_back(b"0123456789abcdef\r\n").unwrap(), b"0123456789abcdef");
        assert_eq!(read_back(&[b'x'; SECRET_BYTES_MAX]).unwrap().len(), SECRET_BYTES_MAX);
        for (bytes, part) in [
            (&b"0123456789abcde\n"[..], "at least 16"),
            (&[b'x'; SECRET_BYTES_MAX + 1], "at most 1024"),
            (b"0123456789abcdef\0x", "no byte 0"),
        ] {
            let error = read_back(bytes).unwrap_err();
            assert!(error.contains(part) && error.contains("secret"), "{error}");
        }
        assert!(read(&directory.path().join("none")).is_err());
    }
}
