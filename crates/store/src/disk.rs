//! The SQLite file: how it is made, checked, read once at the start, and written in batches.
//!
//! One table in key order, each row with a checksum over all of itself, because SQLite's own checks do not see a
//! flipped bit inside a value. A new file is built aside and renamed into place, so an empty file where data
//! should be is never mistaken for a fresh start.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};

use crate::error::StoreError;
use crate::store::Revision;
use crate::writer::Operation;

/// "Dhow" in ASCII, so that `file` and we can tell whose database it is.
const APPLICATION_ID: i64 = 0x4468_6f77;
const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE entries (
        key TEXT NOT NULL PRIMARY KEY,
        value BLOB NOT NULL,
        created INTEGER NOT NULL,
        modified INTEGER NOT NULL,
        checksum INTEGER NOT NULL
    ) WITHOUT ROWID, STRICT;
    CREATE TABLE meta (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID, STRICT;
    INSERT INTO meta (name, value) VALUES ('reserved', 0), ('clean', 1);
";

pub(crate) struct Disk {
    connection: Connection,
    /// Held as long as the connection; the kernel frees it when the process dies.
    _lock: File,
}

pub(crate) struct Row {
    pub key: String,
    pub value: Vec<u8>,
    pub created: Revision,
    pub modified: Revision,
}

/// What a file holds when it is opened.
pub(crate) struct Contents {
    /// Every revision ever given out is at most this.
    pub reserved: Revision,
    /// In ascending order of keys.
    pub rows: Vec<Row>,
}

impl Disk {
    /// Opens the file, or makes it, and reads and checks all of it.
    pub fn open(path: &Path) -> Result<(Self, Contents), StoreError> {
        let lock = lock(path)?;
        let exists = path.try_exists().map_err(|source| StoreError::Io { path: path.into(), source })?;
        if !exists {
            create(path)?;
        }
        let connection = connect(path).map_err(|error| classify(path, error))?;
        identify(path, &connection)?;
        let contents = read(&connection).map_err(|error| match error {
            ReadError::Sqlite(error) => classify(path, error),
            ReadError::Invalid(reason) => corrupt(path, reason),
        })?;
        Ok((Self { connection, _lock: lock }, contents))
    }

    /// One transaction, one fsync.
    pub fn commit(&mut self, operations: &[Operation], reserve: Option<Revision>) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut put = transaction.prepare_cached(
                "INSERT OR REPLACE INTO entries (key, value, created, modified, checksum) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            let mut delete = transaction.prepare_cached("DELETE FROM entries WHERE key = ?1")?;
            for operation in operations {
                match operation {
                    Operation::Put { key, value, created, modified } => {
                        let checksum = checksum(key, value, *created, *modified);
                        put.execute(params![&**key, &**value, signed(*created), signed(*modified), checksum])?;
                    }
                    Operation::Delete { key } => {
                        delete.execute([&**key])?;
                    }
                }
            }
            if let Some(reserved) = reserve {
                set_meta(&transaction, "reserved", signed(reserved))?;
            }
        }
        transaction.commit()
    }

    /// From here on the file counts as not cleanly closed, until [`Disk::close`].
    pub fn begin(&mut self, path: &Path, reserved: Revision) -> Result<(), StoreError> {
        let mut begin = || {
            let transaction = self.connection.transaction()?;
            set_meta(&transaction, "clean", 0)?;
            set_meta(&transaction, "reserved", signed(reserved))?;
            transaction.commit()
        };
        begin().map_err(|error| classify(path, error))
    }

    pub fn close(self) -> rusqlite::Result<()> {
        set_meta(&self.connection, "clean", 1)?;
        self.connection.close().map_err(|(_, error)| error)
    }

    /// Lets go of a file whose last write failed, without touching it again. Gives the reason for people.
    pub fn abandon(self, error: &rusqlite::Error) -> String {
        match self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
            Ok(_) => error.to_string(),
            Err(second) => format!("{error}; then {second}"),
        }
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let lock_path = with_suffix(path, ".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|source| StoreError::Io { path: lock_path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(StoreError::Io { path: lock_path, source }),
    }
}

fn create(path: &Path) -> Result<(), StoreError> {
    let wal = with_suffix(path, "-wal");
    if wal.exists() {
        return Err(corrupt(path, format!("the file is missing, but {} is there", wal.display())));
    }
    let fresh = with_suffix(path, ".new");
    let io = |source| StoreError::Io { path: fresh.clone(), source };
    for leftover in [fresh.clone(), with_suffix(&fresh, "-journal")] {
        match std::fs::remove_file(&leftover) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    // Values can be secrets. SQLite gives its other files the mode of this one.
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(&fresh).map_err(io)?;
    let build = || {
        let connection = Connection::open(&fresh)?;
        // Nobody sees the file before it is renamed: one fsync at the end is enough.
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        connection.execute_batch(&format!("BEGIN; {SCHEMA} COMMIT;"))?;
        connection.close().map_err(|(_, error)| error)
    };
    build().map_err(|error| classify(&fresh, error))?;
    File::open(&fresh).and_then(|file| file.sync_all()).map_err(io)?;
    std::fs::rename(&fresh, path).map_err(io)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // A stranger's file could hold triggers and views that run code of its choice.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // For whoever looks at the file with the sqlite3 tool while we write.
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

/// Whose file it is, and of which version, before anything is written to it.
fn identify(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let application = pragma("application_id").map_err(|error| classify(path, error))?;
    if application != APPLICATION_ID {
        return Err(corrupt(path, "it is not a Dhow data file".into()));
    }
    let version = pragma("user_version").map_err(|error| classify(path, error))?;
    if version > SCHEMA_VERSION {
        return Err(StoreError::TooNew { path: path.into(), found: version, known: SCHEMA_VERSION });
    }
    if version != SCHEMA_VERSION {
        return Err(corrupt(path, format!("schema version {version} was never released")));
    }
    let set_up = || {
        let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // After a burst the log shrinks back to this.
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        Ok(mode)
    };
    match set_up().map_err(|error| classify(path, error))?.as_str() {
        "wal" => Ok(()),
        other => Err(corrupt(path, format!("it stays in journal mode {other}; is its file system a network one?"))),
    }
}

enum ReadError {
    Sqlite(rusqlite::Error),
    Invalid(String),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        ReadError::Sqlite(error)
    }
}

fn read(connection: &Connection) -> Result<Contents, ReadError> {
    let meta =
        |name: &str| connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get::<_, i64>(0));
    if meta("clean")? == 0 {
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(ReadError::Invalid(verdict));
        }
    }
    let reserved = unsigned(meta("reserved")?)?;
    let mut statement =
        connection.prepare("SELECT key, value, created, modified, checksum FROM entries ORDER BY key")?;
    let mut cursor = statement.query([])?;
    let mut rows: Vec<Row> = vec![];
    while let Some(row) = cursor.next()? {
        let (created, modified) = (unsigned(row.get(2)?)?, unsigned(row.get(3)?)?);
        let row_read = Row { key: row.get(0)?, value: row.get(1)?, created, modified };
        let stored: i64 = row.get(4)?;
        if stored != checksum(&row_read.key, &row_read.value, created, modified) {
            return Err(ReadError::Invalid(format!("the entry {:?} has a wrong checksum", row_read.key)));
        }
        if rows.last().is_some_and(|last| last.key >= row_read.key) || modified > reserved || created > modified {
            return Err(ReadError::Invalid(format!("the entry {:?} is out of order", row_read.key)));
        }
        rows.push(row_read);
    }
    Ok(Contents { reserved, rows })
}

fn set_meta(connection: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    connection.execute("UPDATE meta SET value = ?2 WHERE name = ?1", params![name, value]).map(|_| ())
}

fn checksum(key: &str, value: &[u8], created: Revision, modified: Revision) -> i64 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&created.to_le_bytes());
    crc.update(&modified.to_le_bytes());
    crc.update(&(key.len() as u64).to_le_bytes());
    crc.update(key.as_bytes());
    crc.update(value);
    i64::from(crc.finalize())
}

/// SQLite has no unsigned integers. At a million revisions a second the sign is 290 000 years away.
fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(stored: i64) -> Result<Revision, ReadError> {
    Revision::try_from(stored).map_err(|_| ReadError::Invalid(format!("negative revision {stored}")))
}

/// What the machine did is an IO error; all else that goes wrong while opening is in the file.
fn classify(path: &Path, error: rusqlite::Error) -> StoreError {
    let machine = [
        ErrorCode::CannotOpen,
        ErrorCode::PermissionDenied,
        ErrorCode::ReadOnly,
        ErrorCode::SystemIoFailure,
        ErrorCode::DiskFull,
        ErrorCode::OutOfMemory,
        ErrorCode::DatabaseBusy,
        ErrorCode::DatabaseLocked,
    ];
    // A file that ends in the middle of a page also counts as an IO error there.
    let cut_off = error.sqlite_extended_error_code() == Some(rusqlite::ffi::SQLITE_IOERR_SHORT_READ);
    match error.sqlite_error_code() {
        Some(_) if cut_off => corrupt(path, "it ends in the middle".into()),
        Some(code) if machine.contains(&code) => {
            StoreError::Io { path: path.into(), source: std::io::Error::other(error) }
        }
        _ => corrupt(path, error.to_string()),
    }
}

fn corrupt(path: &Path, reason: String) -> StoreError {
    StoreError::Corrupt { path: path.into(), reason }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
