//! Unix stream sockets: files, relative and absolute, and abstract names.
//!
//! # Who may bind a path
//! `bind` itself is atomic: it fails when anything is at the path. The rare case is a file that
//! a dead process left. It is replaced while holding a lock (flock(2)) on `PATH.lock`, so that of
//! two starters one listens and the other is told so. Rejected: binding a temporary name and
//! renaming it over the stale file, because two starters that both saw the stale file would
//! rename over each other. The lock file is taken for every bind, is removed again, and its lock
//! dies with its process; a left-over lock file does no harm.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};

use super::error::ListenError;
use super::options::{ListenOptions, SocketOptions};
use crate::url::{BusUrl, UnixAddress};

/// How long another starter's lock is waited for. It is held for a few system calls.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// How often a lock, and a listener with a full backlog, is tried again. The kernel tells of
/// neither: a non-blocking `connect` to a full backlog fails with EAGAIN (connect(2)).
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Connects; waits while the backlog of the listener is full, for the caller to bound.
/// Cancel-safe: a dropped future leaves nothing open.
pub(super) async fn connect(
    address: &UnixAddress,
    options: &SocketOptions,
) -> io::Result<UnixStream> {
    let address = sock_addr(address)?;
    loop {
        let socket = open(options)?;
        match socket.connect(&address) {
            Ok(()) => return UnixStream::from_std(socket.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(RETRY_INTERVAL).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A listening unix socket that removes its file when it is dropped.
#[derive(Debug)]
pub(super) struct UnixAcceptor {
    // Before `listener`, which is dropped after it: the file goes while the socket still listens,
    // so no other process can have taken the path as stale in between.
    _file: Option<SocketFile>,
    listener: UnixListener,
}

impl UnixAcceptor {
    /// Cancel-safe: a dropped future leaves no file.
    pub(super) async fn bind(
        url: &BusUrl,
        address: &UnixAddress,
        options: &ListenOptions,
    ) -> Result<UnixAcceptor, ListenError> {
        let failed = |error| ListenError::from_io(url, error);
        let Some(path) = address.path() else {
            let socket = bind_new(address, options).map_err(failed)?;
            let listener = listen(socket, options).map_err(failed)?;
            return Ok(UnixAcceptor { _file: None, listener });
        };
        // The working directory may be another one when the file is removed.
        let absolute = std::path::absolute(path).map_err(failed)?;
        let lock = BindLock::acquire(url, &absolute).await?;
        let socket = match bind_new(address, options) {
            Err(in_use) if in_use.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(url, address, &absolute, in_use)?;
                bind_new(address, options)
            }
            outcome => outcome,
        };
        let socket = socket.map_err(failed)?;
        let file = SocketFile::of(absolute).map_err(failed)?;
        if options.unix_user.is_some() || options.unix_group.is_some() {
            chown(&file.path, options.unix_user, options.unix_group).map_err(failed)?;
        }
        if let Some(mode) = options.unix_mode {
            fs::set_permissions(&file.path, Permissions::from_mode(mode)).map_err(failed)?;
        }
        let listener = listen(socket, options).map_err(failed)?;
        drop(lock);
        Ok(UnixAcceptor { _file: Some(file), listener })
    }

    /// Cancel-safe: no connection is lost when the future is dropped.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

/// Removes the file when it is a socket without a process behind it.
///
/// A live listener sees the probe as a connection that is closed at once.
fn remove_stale(
    url: &BusUrl,
    address: &UnixAddress,
    path: &Path,
    in_use: io::Error,
) -> Result<(), ListenError> {
    let failed = |error| ListenError::from_io(url, error);
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !kind.is_socket() {
        return Err(ListenError::NotASocket { url: url.clone(), path: path.to_owned() });
    }
    let probe = open(&SocketOptions::default())
        .and_then(|socket| socket.connect(&sock_addr(address)?))
        .map_err(|error| error.kind());
    match probe {
        Err(io::ErrorKind::ConnectionRefused) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        },
        Err(io::ErrorKind::NotFound) => Ok(()),
        Err(io::ErrorKind::PermissionDenied) => Err(failed(io::ErrorKind::PermissionDenied.into())),
        // Connected, a full backlog (EAGAIN), or a socket of another type (EPROTOTYPE).
        _ => Err(ListenError::InUse { url: url.clone(), source: in_use }),
    }
}

fn bind_new(address: &UnixAddress, options: &ListenOptions) -> io::Result<Socket> {
    let socket = open(&options.socket)?;
    socket.bind(&sock_addr(address)?)?;
    Ok(socket)
}

fn listen(socket: Socket, options: &ListenOptions) -> io::Result<UnixListener> {
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    UnixListener::from_std(socket.into())
}

fn open(options: &SocketOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    options.size_buffers(&socket)?;
    Ok(socket)
}

fn sock_addr(address: &UnixAddress) -> io::Result<SockAddr> {
    match address {
        UnixAddress::Path(path) => SockAddr::unix(path),
        UnixAddress::Abstract(name) => {
            let mut bytes = vec![0];
            bytes.extend_from_slice(name.as_bytes());
            SockAddr::unix(OsString::from_vec(bytes))
        }
    }
}

/// The file of a bound socket. Dropping it removes the file if it is still the same one.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: PathBuf) -> io::Result<SocketFile> {
        let identity = identity(&path)?;
        Ok(SocketFile { path, identity })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // While the socket is bound its inode is held, so the number cannot be another file's.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The right to bind one path, held by an exclusive lock on `PATH.lock`.
struct BindLock {
    path: PathBuf,
    _file: File,
}

impl BindLock {
    async fn acquire(url: &BusUrl, socket: &Path) -> Result<BindLock, ListenError> {
        let failed = |error| ListenError::from_io(url, error);
        let mut name = OsString::from(socket);
        name.push(".lock");
        let path = PathBuf::from(name);
        let deadline = Instant::now() + LOCK_WAIT;
        while Instant::now() < deadline {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => return Ok(BindLock { path, _file: file }),
                // The last holder removed the file between our open and our lock.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => sleep(RETRY_INTERVAL).await,
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        Err(ListenError::Locked { url: url.clone(), lock: path })
    }
}

impl Drop for BindLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let held = file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((held, identity(path)), (Ok(held), Ok(there)) if held == there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_one_of_many_starters_replaces_a_stale_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let url: BusUrl = format!("unix://{}", path.display()).parse().unwrap();
        let mut starters = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let url = url.clone();
            starters.spawn(async move {
                let address = url.unix_address().unwrap();
                UnixAcceptor::bind(&url, address, &ListenOptions::default()).await
            });
        }
        let outcomes = starters.join_all().await;
        let winners = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(winners, 1, "{outcomes:?}");
        for outcome in &outcomes {
            assert!(matches!(outcome, Ok(_) | Err(ListenError::InUse { .. })), "{outcome:?}");
        }
        let names: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["x.sock"]);
    }
}
