//! Opening a directory with state: one broker at a time.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;
use tokio::sync::mpsc;

use super::sqlite::Database;
use super::writer::{RESERVE_FILE, Writer};
use super::{BATCHES_MAX, Loaded, Place, Store};

/// Said of a message whose checksum is wrong.
pub const DAMAGED_TEXT: &str = "damaged on disk";

/// How a directory is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The size that the database may have on disk, in bytes; past it messages are refused as when the
    /// disk is full. Its log can come on top, some 4 MiB. Default: as much as the disk has.
    pub bytes_max: Option<u64>,
}

impl StoreOptions {
    /// The same with another [`bytes_max`](Self::bytes_max).
    #[must_use]
    pub fn bytes_max(mut self, max: impl Into<Option<u64>>) -> Self {
        self.bytes_max = max.into();
        self
    }
}

/// Why a directory cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such directory.
    #[error("{} does not exist", path.display())]
    Missing {
        /// What was asked for.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// What was asked for.
        path: PathBuf,
    },
    /// Another broker uses it.
    #[error("{} is in use by another broker", path.display())]
    InUse {
        /// What was asked for.
        path: PathBuf,
    },
    /// It cannot be read, or not be written.
    #[error("{} cannot be used", path.display())]
    Io {
        /// The directory, or a file in it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be opened for want of room, not even with what was set aside for that.
    #[error("no room left to open {}", path.display())]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// What is in it is no state of this program, of a later version, or damaged beyond single messages.
    #[error("the state in {} cannot be read: {reason}", path.display())]
    Unreadable {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Store {
    /// Opens the state in the directory `path`, which has to be there, and reads all of it. Files in it
    /// are for their owner alone. Blocks while it reads.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, options: StoreOptions) -> Result<(Self, Loaded), OpenError> {
        let lock = lock(path)?;
        let (database, loaded) = match Database::open(path, options) {
            // that is what it is there for
            Err(OpenError::Full { .. }) if fs::remove_file(path.join(RESERVE_FILE)).is_ok() => {
                Database::open(path, options)?
            }
            opened => opened?,
        };
        let (batches, incoming) = std::sync::mpsc::sync_channel(BATCHES_MAX);
        let (outgoing, done) = mpsc::channel(BATCHES_MAX);
        let writer = Writer::new(database, path, lock);
        let started = std::thread::Builder::new()
            .name("nlbus-store".to_owned())
            .spawn(move || writer.run(incoming, &outgoing));
        started.map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        let told = Vec::new().into_iter();
        Ok((Self { place: Place::Sqlite { batches, done, told }, under_way: 0 }, loaded))
    }
}

/// Holds the directory as long as it lives.
fn lock(path: &Path) -> Result<File, OpenError> {
    let wrong = |path: &Path, source| OpenError::Io { path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(OpenError::NotADirectory { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing { path: path.to_owned() });
        }
        Err(error) => return Err(wrong(path, error)),
    }
    let file = path.join("lock");
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&file)
        .map_err(|error| wrong(&file, error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(error) => Err(wrong(&file, error.into())),
    }
}
