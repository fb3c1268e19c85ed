//! Backups: a consistent copy of a file, in use or not, and how a copy takes a file's place.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::disk::{classify, connect, corrupt, lock, sync_folder, with_suffix};
use crate::error::StoreError;
use crate::rows::{Report, check, meta, set_meta, signed};
use crate::schema::identify;
use crate::store::Revision;

/// What a restore did.
#[derive(Debug)]
pub struct Restored {
    pub entries: usize,
    /// Every revision that the file will give out is above this.
    pub reserved: Revision,
    /// Where the file that was there before is now.
    pub aside: Option<PathBuf>,
}

/// Copies a data file as it is at one moment, even while a store has it open, into a new file that only its owner may
/// read. It takes as long as reading all of it. What is free in the file, and may once have been a secret, is not copied.
pub fn backup(path: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |error| classify(path, error);
    if !path.try_exists().map_err(|source| StoreError::Io { path: path.into(), source })? {
        return Err(StoreError::Io { path: path.into(), source: std::io::ErrorKind::NotFound.into() });
    }
    let connection = connect(path).map_err(failed)?;
    identify(path, &connection)?;
    copy(&connection, to)
}

fn copy(connection: &Connection, to: &Path) -> Result<(), StoreError> {
    let io = |source| StoreError::Io { path: to.into(), source };
    // SQLite writes into an empty file, and leaves its mode alone.
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(to).map_err(io)?;
    let target = to.to_str().ok_or_else(|| io(std::io::Error::other("its name is not UTF-8")))?;
    connection.execute("VACUUM INTO ?1", [target]).map_err(|error| classify(to, error))?;
    file.sync_all().map_err(io)
}

/// Puts a backup in the place of a data file that no store has open. The backup is checked first, and the file that
/// was there is kept beside it, under its name and `suffix`.
///
/// Revisions go on above all that either file gave out, and above `floor`, which covers what neither knows of: whoever
/// holds a revision from before is told that it is too old.
pub fn restore(
    backup: &Path,
    path: &Path,
    suffix: &str,
    floor: Revision,
    examine: impl Fn(&str, &[u8]) -> Result<(), String>,
) -> Result<Restored, StoreError> {
    let _lock = lock(path)?;
    let report = check(backup, examine)?;
    if let Some(problem) = report.problems.first() {
        return Err(corrupt(backup, problem.clone()));
    }
    let exists = path.try_exists().map_err(|source| StoreError::Io { path: path.into(), source })?;
    let given_out = if exists { settle(path) } else { 0 };
    let reserved = report.reserved.max(given_out).max(floor);
    let fresh = with_suffix(path, ".restored");
    prepare(backup, &fresh, reserved)?;
    let aside = exists.then(|| with_suffix(path, suffix));
    exchange(path, &fresh, aside.as_deref())?;
    let Report { entries, .. } = report;
    Ok(Restored { entries, reserved, aside })
}

/// Moves what is in the log into the file, which then stands alone. The highest revision it gave out; a file that is
/// beyond reading is kept as it is, and nobody knows.
fn settle(path: &Path) -> Revision {
    let settled = connect(path).and_then(|connection| {
        let reserved = meta(&connection, "reserved")?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        connection.close().map_err(|(_, error)| error)?;
        Ok(Revision::try_from(reserved).unwrap_or(0))
    });
    settled.unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "the file that is replaced cannot be read; it is kept as it is");
        0
    })
}

fn prepare(backup: &Path, fresh: &Path, reserved: Revision) -> Result<(), StoreError> {
    let io = |source| StoreError::Io { path: fresh.into(), source };
    for leftover in [fresh.to_owned(), with_suffix(fresh, "-journal")] {
        match std::fs::remove_file(&leftover) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    copy(&connect(backup).map_err(|error| classify(backup, error))?, fresh)?;
    let mark = || {
        let connection = connect(fresh)?;
        set_meta(&connection, "reserved", signed(reserved))?;
        connection.close().map_err(|(_, error)| error)
    };
    mark().map_err(|error| classify(fresh, error))?;
    File::open(fresh).and_then(|file| file.sync_all()).map_err(io)
}

/// At no moment is there no file, which a start would take for a new platform's.
fn exchange(path: &Path, fresh: &Path, aside: Option<&Path>) -> Result<(), StoreError> {
    let io = |source| StoreError::Io { path: path.into(), source };
    if let Some(aside) = aside {
        // A log that could not be settled must not be taken for the new file's.
        for suffix in ["-wal", "-shm"] {
            match std::fs::rename(with_suffix(path, suffix), with_suffix(aside, suffix)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
                _ => {}
            }
        }
        std::fs::hard_link(path, aside).map_err(io)?;
    }
    std::fs::rename(fresh, path).map_err(io)?;
    sync_folder(path).map_err(io)
}
