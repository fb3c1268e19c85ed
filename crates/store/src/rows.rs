//! The rows of a file, each with a checksum over all of itself, because SQLite's own checks do not see a flipped bit
//! inside a value; and the check of a whole file, in use or not.

use std::path::Path;

use rusqlite::{Connection, params};

use crate::disk::{classify, connect};
use crate::error::StoreError;
use crate::schema::{identify, quick_check};
use crate::store::Revision;

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

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The version of the file's schema.
    pub version: i64,
    pub entries: usize,
    /// Every revision ever given out is at most this.
    pub reserved: Revision,
    /// The first of what is wrong, in words; empty: nothing is.
    pub problems: Vec<String>,
}

/// As many problems as anybody reads.
const MOST_PROBLEMS: usize = 20;

/// Checks a whole file, without a change to it, even while a store has it open: the pages, the rows, and what
/// `examine` says of each key and value.
pub fn check(path: &Path, examine: impl Fn(&str, &[u8]) -> Result<(), String>) -> Result<Report, StoreError> {
    let failed = |error| classify(path, error);
    let connection = connect(path).map_err(failed)?;
    connection.pragma_update(None, "query_only", true).map_err(failed)?;
    let version = identify(path, &connection)?;
    // One moment of a file that is being written to.
    let snapshot = connection.unchecked_transaction().map_err(failed)?;
    let mut report = Report { version, entries: 0, reserved: 0, problems: vec![] };
    let verdict = quick_check(&snapshot).map_err(failed)?;
    if verdict != "ok" {
        report.problems.push(verdict);
        return Ok(report);
    }
    let found = match meta(&snapshot, "reserved").map_err(ReadError::from).and_then(unsigned) {
        Ok(reserved) => {
            report.reserved = reserved;
            each_row(&snapshot, reserved, |row| {
                report.entries += 1;
                if let Err(problem) = row.and_then(|row| {
                    examine(&row.key, &row.value).map_err(|problem| format!("the entry {:?}: {problem}", row.key))
                }) && report.problems.len() < MOST_PROBLEMS
                {
                    report.problems.push(problem);
                }
                Ok(())
            })
        }
        Err(error) => Err(error),
    };
    match found {
        Ok(()) => Ok(report),
        Err(ReadError::Invalid(problem)) => {
            report.problems.push(problem);
            Ok(report)
        }
        Err(ReadError::Sqlite(error)) => Err(failed(error)),
    }
}

pub(crate) enum ReadError {
    Sqlite(rusqlite::Error),
    Invalid(String),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        ReadError::Sqlite(error)
    }
}

/// All of a file, or the first that is wrong with it.
pub(crate) fn read(connection: &Connection) -> Result<Contents, ReadError> {
    if meta(connection, "clean")? == 0 {
        let verdict = quick_check(connection)?;
        if verdict != "ok" {
            return Err(ReadError::Invalid(verdict));
        }
    }
    let reserved = unsigned(meta(connection, "reserved")?)?;
    let mut rows = vec![];
    each_row(connection, reserved, |row| {
        rows.push(row.map_err(ReadError::Invalid)?);
        Ok(())
    })?;
    Ok(Contents { reserved, rows })
}

/// Shows every row in the order of keys, or what is wrong with it.
fn each_row(
    connection: &Connection,
    reserved: Revision,
    mut visit: impl FnMut(Result<Row, String>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let mut statement =
        connection.prepare("SELECT key, value, created, modified, checksum FROM entries ORDER BY key")?;
    let mut cursor = statement.query([])?;
    let mut last: Option<String> = None;
    while let Some(row) = cursor.next()? {
        let (created, modified) = (unsigned(row.get(2)?)?, unsigned(row.get(3)?)?);
        let found = Row { key: row.get(0)?, value: row.get(1)?, created, modified };
        let stored: i64 = row.get(4)?;
        let key = found.key.clone();
        if stored != checksum(&found.key, &found.value, created, modified) {
            visit(Err(format!("the entry {key:?} has a wrong checksum")))?;
        } else if last.as_ref().is_some_and(|last| *last >= key) || modified > reserved || created > modified {
            visit(Err(format!("the entry {key:?} is out of order")))?;
        } else {
            visit(Ok(found))?;
        }
        last = Some(key);
    }
    Ok(())
}

pub(crate) fn meta(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))
}

pub(crate) fn set_meta(connection: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    connection.execute("UPDATE meta SET value = ?2 WHERE name = ?1", params![name, value]).map(|_| ())
}

pub(crate) fn checksum(key: &str, value: &[u8], created: Revision, modified: Revision) -> i64 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&created.to_le_bytes());
    crc.update(&modified.to_le_bytes());
    crc.update(&(key.len() as u64).to_le_bytes());
    crc.update(key.as_bytes());
    crc.update(value);
    i64::from(crc.finalize())
}

/// SQLite has no unsigned integers. At a million revisions a second the sign is 290 000 years away.
pub(crate) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(stored: i64) -> Result<Revision, ReadError> {
    Revision::try_from(stored).map_err(|_| ReadError::Invalid(format!("negative revision {stored}")))
}
