//! The database: its tables, what is read from them, and how an [`Op`] changes them.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{CachedStatement, Connection, ErrorCode, Transaction, params};
use tracing::{debug, error, info};

use super::open::{DAMAGED_TEXT, OpenError, StoreOptions};
use super::{Loaded, LoadedQueue, Op, SENDERS_MAX, Seen, SendId, StoreError, Stored, Time};

/// "nlbq", so that no other program's database is taken for ours.
const APPLICATION_ID: i32 = 0x6e6c_6271;

const VERSION: i32 = 1;

const SCHEMA: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE queues (queue INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, options BLOB NOT NULL,
        next_id INTEGER NOT NULL);
    CREATE TABLE messages (key INTEGER PRIMARY KEY, queue INTEGER NOT NULL, id INTEGER NOT NULL,
        arrived INTEGER NOT NULL, expires INTEGER, attempts INTEGER NOT NULL, sender BLOB, sequence INTEGER,
        crc INTEGER NOT NULL, record BLOB NOT NULL);
    CREATE TABLE senders (sender BLOB PRIMARY KEY, used INTEGER NOT NULL, seen BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE quarantine (name TEXT NOT NULL, id INTEGER NOT NULL, reason TEXT NOT NULL, crc INTEGER,
        record BLOB);
    INSERT INTO meta VALUES ('epoch', 0), ('id_floor', 1), ('last_key', 0);
";

/// An open database, and what of it is kept in memory to be written.
pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
    /// Device and inode: what is written elsewhere is not found again.
    file: (u64, u64),
    /// Pages that it may have.
    pages_max: i64,
    /// The last commit failed.
    failing: bool,
    senders: HashMap<u128, Sender>,
    /// Senders in the order in which they last sent.
    order: BTreeMap<u64, u128>,
    last_use: u64,
    /// Senders that are to be removed.
    forgotten: Vec<u128>,
    /// The last key of messages that none has followed out of the database. As long as it is there it says by
    /// itself which keys are used up, and a commit that only puts has a page less to write.
    untold_key: u64,
    last_sync: Duration,
}

#[derive(Clone, Debug, Default)]
struct Sender {
    seen: Seen,
    used: u64,
}

impl Database {
    pub(super) fn open(
        directory: &Path,
        options: StoreOptions,
    ) -> Result<(Self, Loaded), OpenError> {
        let path = directory.join("queues.db");
        // SQLite gives its other files the mode of this one
        let made = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        made.map_err(|source| OpenError::Io { path: path.clone(), source })?;
        let unreadable = |reason: String| OpenError::Unreadable { path: path.clone(), reason };
        let refused = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => OpenError::Full { path: path.clone() },
            _ => unreadable(error.to_string()),
        };
        let mut connection = Connection::open(&path).map_err(refused)?;
        let loaded = prepare(&mut connection).and_then(|refused| match refused {
            Some(reason) => Ok(Err(reason)),
            None => load(&mut connection).map(Ok),
        });
        let (loaded, last_use) = loaded.map_err(refused)?.map_err(unreadable)?;
        // what was made is found again after a power cut
        let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| OpenError::Io { path: directory.to_owned(), source })?;
        let page = connection.pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0));
        let page = page.map_err(refused)?.max(1) as u64;
        let pages = options.bytes_max.map_or(u64::MAX, |bytes| bytes / page);
        let mut database = Self {
            connection,
            file: inode(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?,
            path: path.clone(),
            pages_max: pages.clamp(1, u64::from(u32::MAX) - 1) as i64,
            failing: false,
            senders: HashMap::new(),
            order: BTreeMap::new(),
            last_use,
            forgotten: Vec::new(),
            untold_key: 0,
            last_sync: Duration::ZERO,
        };
        database.let_grow(true).map_err(refused)?;
        for (sender, seen) in &loaded.senders {
            database.use_sender(*sender, seen.clone());
        }
        Ok((database, loaded))
    }

    /// Whether it may take further room from the disk, or only what is free in it.
    pub(super) fn let_grow(&mut self, yes: bool) -> rusqlite::Result<()> {
        // fewer than it has means as many as it has
        let pages = if yes { self.pages_max } else { 1 };
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
    }

    /// Carries out all of it in one transaction, on disk when this returns, or none of it.
    pub(super) fn commit<'o>(
        &mut self,
        ops: impl Iterator<Item = &'o Op>,
    ) -> Result<(), StoreError> {
        if inode(&self.path).ok() != Some(self.file) {
            self.report("the state was moved or removed");
            return Err(StoreError::Io);
        }
        let mut pending = Pending::default();
        let transaction = self.connection.transaction();
        let done = transaction.and_then(|transaction| {
            let mut insert = Insert::new(&transaction)?;
            for op in ops {
                pending.apply(&transaction, &mut insert, op, &self.senders)?;
            }
            drop(insert);
            pending.finish(&transaction, self.last_use + 1, &self.forgotten, self.untold_key)?;
            let start = Instant::now();
            transaction.commit()?;
            self.last_sync = start.elapsed();
            Ok(())
        });
        if let Err(error) = done {
            self.report(&error.to_string());
            return Err(match error.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => StoreError::Full,
                _ => StoreError::Io,
            });
        }
        if std::mem::take(&mut self.failing) {
            info!("the state is written again");
        }
        self.forgotten.clear();
        let untold_key = self.untold_key.max(pending.last_key);
        self.untold_key = if pending.removes { 0 } else { untold_key };
        for (sender, seen) in pending.senders {
            self.use_sender(sender, seen);
        }
        while self.senders.len() > SENDERS_MAX
            && let Some((_, sender)) = self.order.pop_first()
        {
            self.senders.remove(&sender);
            self.forgotten.push(sender);
        }
        Ok(())
    }

    /// How long the last commit took to be on disk, once its changes were made.
    pub(super) fn last_sync(&self) -> Duration {
        self.last_sync
    }

    /// Once for as long as it lasts.
    fn report(&mut self, error: &str) {
        if std::mem::replace(&mut self.failing, true) {
            debug!(error, "cannot write the state");
        } else {
            error!(error, "cannot write the state");
        }
    }

    fn use_sender(&mut self, sender: u128, seen: Seen) {
        self.last_use += 1;
        let entry = self.senders.entry(sender).or_default();
        self.order.remove(&entry.used);
        *entry = Sender { seen, used: self.last_use };
        self.order.insert(self.last_use, sender);
    }
}

/// New rows of messages: what a commit does most often, so its statement is looked up once.
struct Insert<'t>(CachedStatement<'t>);

impl<'t> Insert<'t> {
    fn new(transaction: &'t Transaction<'_>) -> rusqlite::Result<Self> {
        let sql = "INSERT INTO messages VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        transaction.prepare_cached(sql).map(Self)
    }

    fn put(&mut self, message: &Stored) -> rusqlite::Result<()> {
        let Stored { key, queue, id, arrived, expires, attempts, send_id, record } = message;
        let insert = &mut self.0;
        // each value anew: they stay bound from row to row
        insert.raw_bind_parameter(1, *key as i64)?;
        insert.raw_bind_parameter(2, queue)?;
        insert.raw_bind_parameter(3, *id as i64)?;
        insert.raw_bind_parameter(4, arrived.0 as i64)?;
        insert.raw_bind_parameter(5, expires.map(|expires| expires.0 as i64))?;
        insert.raw_bind_parameter(6, attempts)?;
        insert.raw_bind_parameter(7, send_id.map(|send_id| send_id.sender.to_le_bytes()))?;
        insert.raw_bind_parameter(8, send_id.map(|send_id| send_id.sequence as i64))?;
        insert.raw_bind_parameter(9, checksum(message))?;
        insert.raw_bind_parameter(10, &record[..])?;
        insert.raw_execute().map(drop)
    }
}

/// What a transaction writes once at its end.
#[derive(Default)]
struct Pending {
    senders: HashMap<u128, Seen>,
    next_ids: HashMap<u32, u64>,
    last_key: u64,
    id_floor: u64,
    /// A message goes.
    removes: bool,
}

impl Pending {
    fn apply(
        &mut self,
        transaction: &Transaction<'_>,
        insert: &mut Insert<'_>,
        op: &Op,
        senders: &HashMap<u128, Sender>,
    ) -> rusqlite::Result<()> {
        match op {
            Op::Create { queue, name, options, first_id } => {
                let mut insert = transaction
                    .prepare_cached("INSERT OR REPLACE INTO queues VALUES (?1, ?2, ?3, ?4)")?;
                insert.execute(params![queue, name, &options[..], *first_id as i64])?;
            }
            Op::Destroy { queue, id_floor, keys } => {
                self.removes = true;
                self.next_ids.remove(queue);
                self.id_floor = self.id_floor.max(*id_floor);
                let sql = "DELETE FROM queues WHERE queue = ?1";
                transaction.prepare_cached(sql)?.execute([queue])?;
                for key in keys {
                    delete(transaction, *key)?;
                }
            }
            Op::Put(message) => {
                insert.put(message)?;
                self.put(message, senders);
            }
            Op::Delete { key } => {
                self.removes = true;
                delete(transaction, *key)?;
            }
            Op::Attempts { key, attempts } => {
                let sql = "UPDATE messages SET attempts = ?2 WHERE key = ?1";
                transaction.prepare_cached(sql)?.execute(params![*key as i64, attempts])?;
            }
        }
        Ok(())
    }

    fn put(&mut self, message: &Stored, senders: &HashMap<u128, Sender>) {
        self.last_key = self.last_key.max(message.key);
        let next_id = self.next_ids.entry(message.queue).or_default();
        *next_id = (*next_id).max(message.id + 1);
        if let Some(SendId { sender, sequence }) = message.send_id {
            let known = || senders.get(&sender).map(|sender| sender.seen.clone());
            let seen = self.senders.entry(sender);
            seen.or_insert_with(|| known().unwrap_or_default()).insert(sequence);
        }
    }

    /// `used`: the place of its senders in the order in which they last sent.
    fn finish(
        &self,
        transaction: &Transaction<'_>,
        used: u64,
        forgotten: &[u128],
        untold_key: u64,
    ) -> rusqlite::Result<()> {
        for (queue, next_id) in &self.next_ids {
            let sql = "UPDATE queues SET next_id = max(next_id, ?2) WHERE queue = ?1";
            transaction.prepare_cached(sql)?.execute(params![queue, *next_id as i64])?;
        }
        for sender in forgotten {
            let sql = "DELETE FROM senders WHERE sender = ?1";
            transaction.prepare_cached(sql)?.execute([sender.to_le_bytes()])?;
        }
        let sql = "INSERT OR REPLACE INTO senders VALUES (?1, ?2, ?3)";
        for (sender, seen) in &self.senders {
            let row = params![sender.to_le_bytes(), used as i64, seen.to_bytes()];
            transaction.prepare_cached(sql)?.execute(row)?;
        }
        let last_key = if self.removes { self.last_key.max(untold_key) } else { 0 };
        for (name, value) in [("last_key", last_key), ("id_floor", self.id_floor)] {
            if value > 0 {
                let sql = "UPDATE meta SET value = max(value, ?2) WHERE name = ?1";
                transaction.prepare_cached(sql)?.execute(params![name, value as i64])?;
            }
        }
        Ok(())
    }
}

fn delete(transaction: &Transaction<'_>, key: u64) -> rusqlite::Result<()> {
    let mut delete = transaction.prepare_cached("DELETE FROM messages WHERE key = ?1")?;
    delete.execute([key as i64]).map(drop)
}

fn inode(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Makes the tables, or sees that they are ours: else why not.
fn prepare(connection: &mut Connection) -> rusqlite::Result<Option<String>> {
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
    if tables == 0 && application == 0 {
        let transaction = connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()?;
    } else if application != APPLICATION_ID {
        return Ok(Some("it is not a state of nlbus".to_owned()));
    } else if version != VERSION {
        return Ok(Some(format!("it is of version {version}, not {VERSION}")));
    }
    Ok(None)
}

/// What is there, and the place of the last sender in the order in which they last sent.
fn load(connection: &mut Connection) -> rusqlite::Result<(Loaded, u64)> {
    let transaction = connection.transaction()?;
    transaction.execute("UPDATE meta SET value = value + 1 WHERE name = 'epoch'", [])?;
    // before a damaged one is put aside
    let sql = "UPDATE meta SET value = max(value, (SELECT coalesce(max(key), 0) FROM messages))
        WHERE name = 'last_key'";
    transaction.execute(sql, [])?;
    // senders beyond what is remembered
    let sql = "DELETE FROM senders WHERE sender NOT IN
        (SELECT sender FROM senders ORDER BY used DESC LIMIT ?1)";
    transaction.execute(sql, [SENDERS_MAX as i64])?;
    let meta = |name: &str| {
        let sql = "SELECT value FROM meta WHERE name = ?1";
        transaction.query_row(sql, [name], |row| row.get::<_, i64>(0))
    };
    let mut loaded = Loaded {
        epoch: meta("epoch")? as u32,
        id_floor: meta("id_floor")? as u64,
        last_key: meta("last_key")? as u64,
        ..Loaded::default()
    };
    {
        let sql = "SELECT queue, name, options, next_id FROM queues ORDER BY queue";
        let mut select = transaction.prepare(sql)?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            loaded.queues.push(LoadedQueue {
                queue: row.get(0)?,
                name: row.get(1)?,
                options: row.get::<_, Vec<u8>>(2)?.into(),
                next_id: row.get::<_, i64>(3)? as u64,
            });
        }
        let mut select = transaction.prepare("SELECT sender, seen FROM senders ORDER BY used")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let sender = row.get::<_, Vec<u8>>(0)?.try_into().ok().map(u128::from_le_bytes);
            let seen = Seen::from_bytes(&row.get::<_, Vec<u8>>(1)?);
            match sender.zip(seen) {
                Some(sender) => loaded.senders.push(sender),
                None => {
                    error!("what a sender had sent is damaged: repeated messages may come twice")
                }
            }
        }
    }
    load_messages(&transaction, &mut loaded)?;
    let sql = "SELECT coalesce(max(used), 0) FROM senders";
    let last_use = transaction.query_row(sql, [], |row| row.get::<_, i64>(0))?;
    transaction.commit()?;
    Ok((loaded, last_use as u64))
}

/// Reads the messages; those that are damaged, or have no queue, are put aside.
fn load_messages(transaction: &Transaction<'_>, loaded: &mut Loaded) -> rusqlite::Result<()> {
    let names: HashMap<u32, &str> =
        loaded.queues.iter().map(|queue| (queue.queue, queue.name.as_str())).collect();
    let mut select = transaction.prepare("SELECT * FROM messages ORDER BY key")?;
    let mut rows = select.query([])?;
    let mut aside = Vec::new();
    while let Some(row) = rows.next()? {
        let key = row.get::<_, i64>(0)?;
        let queue = row.get::<_, u32>(1).unwrap_or_default();
        let reason = match message(row) {
            Some((message, crc)) if checksum(&message) == crc => {
                if names.contains_key(&message.queue) {
                    loaded.messages.push(message);
                    continue;
                }
                "no such queue"
            }
            _ => DAMAGED_TEXT,
        };
        let name = names.get(&queue).copied().unwrap_or_default();
        let id = row.get::<_, i64>(2).unwrap_or_default();
        error!(queue = name, id, reason, "a message is put aside");
        aside.push((key, name.to_owned(), id, reason));
    }
    for (key, name, id, reason) in aside {
        let sql =
            "INSERT INTO quarantine SELECT ?2, ?3, ?4, crc, record FROM messages WHERE key = ?1";
        transaction.execute(sql, params![key, name, id, reason])?;
        transaction.execute("DELETE FROM messages WHERE key = ?1", [key])?;
    }
    let mut select = transaction.prepare("SELECT name, id FROM quarantine")?;
    let quarantined =
        select.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?;
    loaded.quarantined = quarantined.collect::<Result<_, _>>()?;
    Ok(())
}

/// A row and its checksum; `None` if a value is of a wrong type.
fn message(row: &rusqlite::Row<'_>) -> Option<(Stored, u32)> {
    let number = |at: usize| row.get::<_, i64>(at).ok().map(|number| number as u64);
    let sender = row.get::<_, Option<Vec<u8>>>(6).ok()?;
    let send_id = match sender {
        None => None,
        Some(sender) => Some(SendId {
            sender: u128::from_le_bytes(sender.try_into().ok()?),
            sequence: number(7)?,
        }),
    };
    let message = Stored {
        key: number(0)?,
        queue: row.get(1).ok()?,
        id: number(2)?,
        arrived: Time(number(3)?),
        expires: row.get::<_, Option<i64>>(4).ok()?.map(|time| Time(time as u64)),
        attempts: row.get(5).ok()?,
        send_id,
        record: row.get::<_, Vec<u8>>(9).ok()?.into(),
    };
    Some((message, row.get(8).ok()?))
}

/// CRC-32C of all that does not change later: numbers as 8 bytes, little-endian, then the record.
fn checksum(message: &Stored) -> u32 {
    let Stored { key, queue, id, arrived, expires, send_id, record, .. } = message;
    let expires = expires.map_or(u64::MAX, |time| time.0);
    let numbers = [*key, u64::from(*queue), *id, arrived.0, expires];
    let mut crc = crc32c::crc32c(numbers.map(u64::to_le_bytes).as_flattened());
    if let Some(SendId { sender, sequence }) = send_id {
        crc = crc32c::crc32c_append(crc, &sender.to_le_bytes());
        crc = crc32c::crc32c_append(crc, &sequence.to_le_bytes());
    }
    crc32c::crc32c_append(crc, record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_synced_before_it_returns() {
        let directory = tempfile::tempdir().unwrap();
        let (database, _) = Database::open(directory.path(), StoreOptions::default()).unwrap();
        let text = |name: &str| {
            let value = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
            database.connection.pragma_query_value(None, name, value).unwrap()
        };
        // what sqlite.org says of a log that outlives a power cut: https://sqlite.org/pragma.html#pragma_synchronous
        assert_eq!(text("journal_mode"), "wal".to_owned().into());
        assert_eq!(text("synchronous"), 2.into(), "FULL");
        assert_eq!(text("locking_mode"), "exclusive".to_owned().into());
    }
}
