//! What the file looks like: its tables, its versions, and the way from each version to the next.
//!
//! A new file is of the newest version. An older one is taken through every step that it lacks before anything else
//! is done with it; a newer one is refused. Versions that were released stay openable: a file of each is kept with
//! the tests.

use std::path::Path;

use rusqlite::Connection;

use crate::disk::{classify, corrupt};
use crate::error::StoreError;

/// "Dhow" in ASCII, so that `file` and we can tell whose database it is.
const APPLICATION_ID: i64 = 0x4468_6f77;
const TABLES: &str = "
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

/// One step: atomic, and harmless when it is taken twice, since the version is only written after it.
type Migration = fn(&Connection) -> rusqlite::Result<()>;

/// The first leads from version 1 to version 2, and so on. Never changed once released, only added to.
const MIGRATIONS: [Migration; 1] = [give_back_what_is_free];

pub(crate) const VERSION: i64 = 1 + MIGRATIONS.len() as i64;

/// Makes the tables in an empty file that nobody sees yet: one fsync at the end is enough, and not ours.
pub(crate) fn build(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", VERSION)?;
    connection.execute_batch(&format!("BEGIN; {TABLES} COMMIT;"))
}

/// Whose file it is, and of which version, before anything is written to it.
pub(crate) fn identify(path: &Path, connection: &Connection) -> Result<i64, StoreError> {
    let pragma = |name| number(connection, name).map_err(|error| classify(path, error));
    if pragma("application_id")? != APPLICATION_ID {
        return Err(corrupt(path, "it is not a Dhow data file".into()));
    }
    match pragma("user_version")? {
        version if version > VERSION => Err(StoreError::TooNew { path: path.into(), found: version, known: VERSION }),
        version if version < 1 => Err(corrupt(path, format!("schema version {version} was never released"))),
        version => Ok(version),
    }
}

/// Brings a file of an older version up to date.
pub(crate) fn migrate(path: &Path, connection: &Connection, from: i64) -> Result<(), StoreError> {
    if from == VERSION {
        return Ok(());
    }
    // What is damaged is not rewritten: whoever repairs it needs all of it.
    let verdict = quick_check(connection).map_err(|error| classify(path, error))?;
    if verdict != "ok" {
        return Err(corrupt(path, verdict));
    }
    let steps = (from..).zip(MIGRATIONS.iter().skip(usize::try_from(from - 1).unwrap_or(0)));
    for (version, step) in steps {
        let take = || {
            step(connection)?;
            connection.pragma_update(None, "user_version", version + 1)
        };
        take().map_err(|error| classify(path, error))?;
        tracing::info!(path = %path.display(), version = version + 1, "the data file was brought up to date");
    }
    Ok(())
}

/// Version 1 kept what was free for ever. The mode of a file with tables changes only when all of it is written anew.
fn give_back_what_is_free(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.execute_batch("VACUUM")
}

pub(crate) fn quick_check(connection: &Connection) -> rusqlite::Result<String> {
    connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
}

pub(crate) fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, pragma, |row| row.get(0))
}
