//! The thread that writes: it commits what has gathered, once, for all who wait.
//!
//! When the disk is full, what frees room still has to be written, and that takes room: for the log, and for
//! what is in the log and not yet in the database. So a *reserve* is held, which is given up on that day. From
//! then on the database does not grow: its log can be written back to it and used again, and messages are
//! taken for which there is room in it. Once there is room for the reserve again, all is as before.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::gather::Gatherer;
use super::owed::Owed;
use super::sqlite::Database;
use super::{Op, StoreError};

/// How soon what is owed, and the reserve, are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Changes that are made at once when there is no room for all that are owed.
const PAID_MAX: usize = 64;

/// Room on the disk that is held for the day when it is full, in bytes. The log is written back once it has
/// 4 MiB; a commit of [`LARGE_BYTES`] may come on top.
const RESERVE_BYTES: u64 = 6 << 20;

/// Its name in the directory.
pub(super) const RESERVE_FILE: &str = "ballast";

/// A commit of more bytes than that is not begun unless there is room for it twice, in the log and in the
/// database.
const LARGE_BYTES: u64 = 1 << 20;

/// How a batch ended.
pub(super) type Outcome = Result<(), StoreError>;

pub(super) struct Writer {
    database: Database,
    directory: PathBuf,
    reserve: PathBuf,
    owed: Owed,
    /// The reserve was given up; since when it was last tried.
    strained: Option<Instant>,
    /// Held as long as the thread runs.
    _lock: File,
}

impl Writer {
    pub(super) fn new(database: Database, directory: &Path, lock: File) -> Self {
        Self {
            database,
            directory: directory.to_owned(),
            reserve: directory.join(RESERVE_FILE),
            owed: Owed::default(),
            strained: None,
            _lock: lock,
        }
    }

    /// Writes until nobody is left who hands in batches. What became of a group is told at once.
    pub(super) fn run(mut self, batches: Receiver<Vec<Op>>, done: &mpsc::Sender<Vec<Outcome>>) {
        if !self.hold_reserve() {
            self.strain();
        }
        let mut gatherer = Gatherer::new(batches);
        loop {
            let calm = self.owed.is_empty() && self.strained.is_none();
            let group = match gatherer.next(if calm { Duration::MAX } else { RETRY }) {
                Ok(group) => group,
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.relax();
            if group.is_empty() {
                let _ = self.pay();
                continue;
            }
            let outcomes = self.commit(group);
            gatherer.written(self.database.last_sync());
            // there is room for as many as may be under way
            if done.try_send(outcomes).is_err() {
                debug!("nobody waits for what was written");
            }
        }
        if self.pay().is_err() {
            warn!("what was acknowledged last may be found again");
        }
    }

    fn commit(&mut self, group: Vec<Vec<Op>>) -> Vec<Outcome> {
        if self.owed.is_empty() && self.write(group.iter().flatten()).is_ok() {
            return vec![Ok(()); group.len()];
        }
        // one of them may be to blame; of what does not fit the part that frees room is owed
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(group.len());
        let mut paid = 0;
        let mut stuck = None;
        for batch in group {
            if stuck.is_none() {
                stuck = self.pay().err();
                paid = if stuck.is_none() { outcomes.len() } else { paid };
            }
            let outcome = match stuck {
                Some(error) => Err(error),
                None => self.write(batch.iter()),
            };
            // what only frees will be done
            let frees = batch.iter().all(Op::frees);
            if outcome.is_err() {
                self.owed.extend(batch);
            }
            outcomes.push(if frees { Ok(()) } else { outcome });
        }
        if let Err(error) = self.pay() {
            let full = error == StoreError::Full;
            outcomes[paid..].fill(Err(StoreError::Owed { full }));
        }
        outcomes
    }

    fn write<'o>(&mut self, ops: impl Iterator<Item = &'o Op> + Clone) -> Outcome {
        let bytes: u64 = ops.clone().map(Op::bytes).sum();
        let free = || statvfs(&self.directory).map_or(u64::MAX, |it| it.f_bavail * it.f_frsize);
        if bytes > LARGE_BYTES && free() < 2 * bytes {
            return Err(StoreError::Full);
        }
        self.database.commit(ops)
    }

    /// Makes the changes that are owed, if that can be done.
    fn pay(&mut self) -> Outcome {
        let mut count = usize::MAX;
        while !self.owed.is_empty() {
            let some = self.owed.first(count);
            match self.database.commit(some.iter()) {
                Ok(()) => self.owed.pay(some.len()),
                Err(_) if self.strain() || count > PAID_MAX => count = PAID_MAX,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives up the reserve: whether there was one.
    fn strain(&mut self) -> bool {
        if self.strained.replace(Instant::now()).is_some() {
            return false;
        }
        warn!("no room for the state: from now on it does not grow");
        if let Err(error) = self.database.let_grow(false) {
            debug!(%error, "cannot bound the state");
        }
        drop(fs::remove_file(&self.reserve));
        true
    }

    /// Takes the reserve back, if there is room, once in a while.
    fn relax(&mut self) {
        if self.strained.is_some_and(|tried| tried.elapsed() >= RETRY) {
            self.strained = Some(Instant::now());
            if self.hold_reserve() && self.database.let_grow(true).is_ok() {
                info!("there is room for the state again");
                self.strained = None;
            }
        }
    }

    /// Whether the reserve is there.
    fn hold_reserve(&self) -> bool {
        let hold = || -> io::Result<()> {
            if fs::metadata(&self.reserve).is_ok_and(|found| found.len() == RESERVE_BYTES) {
                return Ok(());
            }
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&self.reserve)?;
            match fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
                Err(rustix::io::Errno::OPNOTSUPP) => {
                    io::copy(&mut io::Read::take(io::repeat(0), RESERVE_BYTES), &mut file)?;
                }
                allocated => allocated?,
            }
            file.flush()?;
            file.sync_all()
        };
        let held = hold();
        if let Err(error) = &held {
            debug!(%error, "no room for a reserve");
            drop(fs::remove_file(&self.reserve));
        }
        held.is_ok()
    }
}
