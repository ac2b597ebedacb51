//! What the disk and SQLite can do: the same bytes, as many to a commit as there are sends, one thread,
//! nobody who waits.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nlbus::service::queue::protocol::Record;
use rusqlite::Connection;

use super::super::engine::{Counts, Outcome, histogram};

/// A database of its own, which is removed again.
pub(super) struct Bare {
    path: PathBuf,
    connection: Option<Connection>,
    record: Vec<u8>,
    group: usize,
    rows: u64,
    measured: Duration,
    commits: Histogram<u64>,
}

impl Bare {
    /// Rows with a record of a payload of `size` bytes, `group` to a commit.
    pub(super) fn open(directory: &Path, size: usize, group: usize) -> anyhow::Result<Self> {
        let path = directory.join(format!("nlbus-bench-{}.db", std::process::id()));
        let connection = Connection::open(&path)?;
        let record = Record { payload: vec![7; size].into(), ..Record::default() }.to_bytes();
        let bare = Self {
            path,
            connection: Some(connection),
            record,
            group,
            rows: 0,
            measured: Duration::ZERO,
            commits: histogram()?,
        };
        if let Some(connection) = &bare.connection {
            // as the state of queues has them
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let table = "CREATE TABLE messages (key INTEGER PRIMARY KEY, record BLOB NOT NULL)";
            connection.execute(table, [])?;
        }
        Ok(bare)
    }

    /// Commits for so long; `counts`: whether that is a part of the result.
    pub(super) fn run(&mut self, time: Duration, counts: bool) -> anyhow::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let start = Instant::now();
        while start.elapsed() < time {
            let began = Instant::now();
            let transaction = connection.transaction()?;
            {
                let sql = "INSERT INTO messages (record) VALUES (?1)";
                let mut insert = transaction.prepare_cached(sql)?;
                for _ in 0..self.group {
                    insert.execute([&self.record])?;
                }
            }
            transaction.commit()?;
            if counts {
                self.rows += self.group as u64;
                self.commits.saturating_record(began.elapsed().as_nanos() as u64);
            }
        }
        if counts {
            self.measured += start.elapsed();
        }
        Ok(())
    }

    /// Rows, and how long a commit of them took.
    pub(super) fn outcome(&self) -> Outcome {
        let counts = Counts { sent: self.rows, received: self.rows, ..Counts::default() };
        Outcome {
            messages: self.rows,
            seconds: self.measured.as_secs_f64(),
            latency: self.commits.clone(),
            counts,
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(self.connection.take());
        for end in ["", "-wal", "-shm"] {
            let mut path = self.path.clone().into_os_string();
            path.push(end);
            // the latter two go with the last connection
            let _ = fs::remove_file(path);
        }
    }
}
