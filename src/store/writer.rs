//! The thread that writes: it commits what has gathered, once, for all who wait.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::gather::Gatherer;
use super::sqlite::Database;
use super::{Op, StoreError};

/// How soon what is owed is tried again if nothing else is to be written.
const OWED_RETRY: Duration = Duration::from_secs(1);

/// Room on the disk that is held for the day when it is full, in bytes: freeing takes room too.
const BALLAST_BYTES: usize = 1 << 20;

/// How a batch ended.
pub(super) type Outcome = Result<(), StoreError>;

pub(super) struct Writer {
    database: Database,
    ballast: PathBuf,
    /// Changes that free room and could not be made yet. At most as many as there are messages, as each
    /// is deleted once.
    owed: Vec<Op>,
    /// Held as long as the thread runs.
    _lock: File,
}

impl Writer {
    pub(super) fn new(database: Database, directory: &Path, lock: File) -> Self {
        let ballast = directory.join("ballast");
        Self { database, ballast, owed: Vec::new(), _lock: lock }
    }

    /// Writes until nobody is left who hands in batches. What became of a group is told at once.
    pub(super) fn run(mut self, batches: Receiver<Vec<Op>>, done: &mpsc::Sender<Vec<Outcome>>) {
        self.load_ballast();
        let mut gatherer = Gatherer::new(batches);
        loop {
            let wait = if self.owed.is_empty() { Duration::MAX } else { OWED_RETRY };
            let group = match gatherer.next(wait) {
                Ok(group) => group,
                Err(RecvTimeoutError::Timeout) => {
                    self.pay();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let outcomes = self.commit(group);
            gatherer.written(self.database.last_sync());
            // there is room for as many as may be under way
            if done.try_send(outcomes).is_err() {
                debug!("nobody waits for what was written");
            }
        }
        self.pay();
    }

    fn commit(&mut self, group: Vec<Vec<Op>>) -> Vec<Outcome> {
        let all = self.owed.iter().chain(group.iter().flatten());
        if self.database.commit(all).is_ok() {
            self.paid();
            return vec![Ok(()); group.len()];
        }
        // one of them may be to blame; of what does not fit the part that frees room is owed
        let mut outcomes = Vec::with_capacity(group.len());
        for batch in group {
            let outcome = self.database.commit(self.owed.iter().chain(&batch));
            // what only frees will be done
            let freed = outcome.is_err() && batch.iter().all(Op::frees);
            match outcome {
                Ok(()) => self.paid(),
                Err(_) => self.owed.extend(batch.into_iter().filter(Op::frees)),
            }
            outcomes.push(if freed { Ok(()) } else { outcome });
        }
        self.pay();
        outcomes
    }

    /// Tries to make the changes that are owed.
    fn pay(&mut self) {
        if self.owed.is_empty() {
            return;
        }
        if self.database.commit(self.owed.iter()).is_ok() {
            return self.paid();
        }
        if fs::remove_file(&self.ballast).is_ok() {
            warn!("no room for the state: the reserve is used up");
            if self.database.commit(self.owed.iter()).is_ok() {
                self.owed.clear();
            }
        }
    }

    fn paid(&mut self) {
        if !self.owed.is_empty() {
            self.owed.clear();
            self.load_ballast();
        }
    }

    fn load_ballast(&self) {
        let load = || -> io::Result<()> {
            if fs::metadata(&self.ballast).is_ok_and(|found| found.len() == BALLAST_BYTES as u64) {
                return Ok(());
            }
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&self.ballast)?;
            file.write_all(&vec![0; BALLAST_BYTES])?;
            file.sync_all()
        };
        if let Err(error) = load() {
            debug!(%error, "no room for a reserve");
            let _ = fs::remove_file(&self.ballast);
        }
    }
}
