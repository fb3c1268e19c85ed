//! The SQLite file: how it is made, opened, read once at the start, written in batches, and kept small.
//!
//! A new file is built aside and renamed into place, so an empty file where data should be is never mistaken for a
//! fresh start.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};

use crate::error::StoreError;
use crate::rows::{Contents, ReadError, checksum, read, set_meta, signed};
use crate::schema::{self, identify, migrate, number};
use crate::store::Revision;
use crate::writer::Operation;

/// Free pages are kept for the next entries until they are this share of the file, and this many.
const FREE_SHARE: i64 = 4;
const FREE_PAGES: i64 = 512;

pub(crate) struct Disk {
    connection: Connection,
    /// Held as long as the connection; the kernel frees it when the process dies.
    _lock: File,
}

impl Disk {
    /// Pages given back to the file system in one step: a write that comes meanwhile waits for no more than that.
    pub const RECLAIM_PAGES: u64 = 128;

    /// Opens the file, or makes it, and reads and checks all of it.
    pub fn open(path: &Path) -> Result<(Self, Contents), StoreError> {
        let lock = lock(path)?;
        let exists = path.try_exists().map_err(|source| StoreError::Io { path: path.into(), source })?;
        if !exists {
            create(path)?;
        }
        let connection = connect(path).map_err(|error| classify(path, error))?;
        let version = identify(path, &connection)?;
        set_up(path, &connection)?;
        migrate(path, &connection, version)?;
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

    /// Takes one small step towards a file without many free pages. Whether there is more to do.
    pub fn reclaim(&mut self) -> rusqlite::Result<bool> {
        let free = number(&self.connection, "freelist_count")?;
        if free < FREE_PAGES || free < number(&self.connection, "page_count")? / FREE_SHARE {
            return Ok(false);
        }
        let mut step = self.connection.prepare(&format!("PRAGMA incremental_vacuum({})", Self::RECLAIM_PAGES))?;
        let mut pages = step.query([])?;
        while pages.next()?.is_some() {}
        Ok(true)
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

pub(crate) fn lock(path: &Path) -> Result<File, StoreError> {
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
        schema::build(&connection)?;
        connection.close().map_err(|(_, error)| error)
    };
    build().map_err(|error| classify(&fresh, error))?;
    File::open(&fresh).and_then(|file| file.sync_all()).map_err(io)?;
    std::fs::rename(&fresh, path).map_err(io)?;
    sync_folder(path).map_err(io)
}

/// Makes a rename last.
pub(crate) fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all())
}

pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
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

fn set_up(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let set_up = || {
        let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // Checkpoints have a thread of their own.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        // After a burst the log shrinks back to this.
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        Ok(mode)
    };
    match set_up().map_err(|error| classify(path, error))?.as_str() {
        "wal" => Ok(()),
        other => Err(corrupt(path, format!("it stays in journal mode {other}; is its file system a network one?"))),
    }
}

/// What the machine did is an IO error; all else that goes wrong while opening is in the file.
pub(crate) fn classify(path: &Path, error: rusqlite::Error) -> StoreError {
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

pub(crate) fn corrupt(path: &Path, reason: String) -> StoreError {
    StoreError::Corrupt { path: path.into(), reason }
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
