//! What survives a restart of the SQLite engine, and what a file must be like to be opened.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use store::{Durability, Expect, Options, Revision, Store, StoreError, Write};

fn index(_key: &str, value: &[u8]) -> usize {
    value.len()
}

fn open(path: &Path) -> Result<Store<usize>, StoreError> {
    Store::open(path, index, Options::default())
}

fn put(store: &Store<usize>, key: &str, durability: Durability, value: &str) -> Revision {
    let value = Bytes::copy_from_slice(value.as_bytes());
    let make = |_, _: Option<&_>| Ok::<_, StoreError>(Write::Put { index: value.len(), value: value.clone() });
    store.write(key, Expect::Any, durability, make).unwrap().revision
}

fn delete(store: &Store<usize>, key: &str) -> Revision {
    let make = |_, _: Option<&_>| Ok::<_, StoreError>(Write::Delete { last: Bytes::new() });
    store.write(key, Expect::Any, Durability::Ephemeral, make).unwrap().revision
}

fn contents(store: &Store<usize>) -> Vec<(String, Bytes)> {
    store.list("").entries.into_iter().map(|entry| (entry.key.to_string(), entry.value)).collect()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("objects.sqlite");
    (folder, path)
}

#[tokio::test]
async fn the_last_write_decides_what_survives() {
    use Durability::{Durable, Ephemeral};
    let (_folder, path) = folder();
    let store = open(&path).unwrap();
    put(&store, "durable", Durable, "1");
    put(&store, "ephemeral", Ephemeral, "2");
    put(&store, "became-durable", Ephemeral, "3");
    put(&store, "became-durable", Durable, "4");
    put(&store, "became-ephemeral", Durable, "5");
    put(&store, "became-ephemeral", Ephemeral, "6");
    put(&store, "deleted", Durable, "7");
    // That the deletion itself claims to be ephemeral does not bring the value back.
    delete(&store, "deleted");
    put(&store, "deleted-ephemeral", Ephemeral, "8");
    let last = delete(&store, "deleted-ephemeral");
    store.durable(last).await.unwrap();
    assert_eq!(store.list("").entries.len(), 4);
    let before = store.get("durable").unwrap();
    drop(store);

    let store = open(&path).unwrap();
    assert_eq!(contents(&store), [("became-durable".into(), "4".into()), ("durable".into(), "1".into())]);
    let after = store.get("durable").unwrap();
    assert_eq!((after.created, after.modified, *after.index), (before.created, before.modified, 1));
}

#[tokio::test]
async fn revisions_jump_past_the_block() {
    let (_folder, path) = folder();
    let mut highest = 0;
    // Small blocks, so that several are used up; cleanly closed and dropped in turn.
    for round in 0..4 {
        let store = Store::open(&path, index, Options { revision_block: 64, ..Options::default() }).unwrap();
        assert!(store.revision() > highest, "round {round}");
        assert_eq!(store.oldest_revision(), store.revision());
        if highest > 0 {
            let old = store.watch("", Some(highest)).err();
            assert!(matches!(old, Some(StoreError::Compacted { .. })), "{old:?}");
        }
        for i in 0..300 {
            let durability = if i % 3 == 0 { Durability::Durable } else { Durability::Ephemeral };
            // A tiny block may be used up faster than the disk reserves the next: the writer is told to wait.
            highest = loop {
                let make = |_, _: Option<&_>| Ok::<_, StoreError>(Write::Put { index: 0, value: Bytes::new() });
                match store.write("k", Expect::Any, durability, make) {
                    Ok(change) => break change.revision,
                    Err(StoreError::Overloaded) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            };
        }
        if round % 2 == 0 {
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_full_queue_refuses_before_anything_changes() {
    let (_folder, path) = folder();
    let options = Options { writer_queue: 8, writer_queue_bytes: 1 << 20, ..Options::default() };
    let store = Store::open(&path, index, options).unwrap();
    let value = Bytes::from(vec![b'x'; 256 << 10]);
    let mut refused = 0;
    let mut written = vec![];
    for i in 0..200 {
        let before = store.revision();
        let make = |_, _: Option<&_>| Ok::<_, StoreError>(Write::Put { index: 0, value: value.clone() });
        match store.write(&format!("{i:03}"), Expect::Any, Durability::Durable, make) {
            Ok(change) => written.push(change.key.to_string()),
            Err(StoreError::Overloaded) => {
                refused += 1;
                assert_eq!(store.revision(), before);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0, "a disk that takes 50 MiB in no time");
    assert_eq!(store.counters().overloaded, refused);
    store.durable(store.revision()).await.unwrap();
    drop(store);
    let keys: Vec<String> = contents(&open(&path).unwrap()).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, written);
}

#[tokio::test]
async fn many_writers_share_one_fsync() {
    let (_folder, path) = folder();
    let store = open(&path).unwrap();
    let tasks: Vec<_> = (0..400)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                let revision = put(&store, &i.to_string(), Durability::Durable, "v");
                store.durable(revision).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let counters = store.counters();
    assert_eq!(counters.writes, 400);
    assert!(counters.commits < 200, "{counters:?}");
}

#[tokio::test]
async fn a_second_opener_is_refused_until_the_first_is_done() {
    let (_folder, path) = folder();
    let first = open(&path).unwrap();
    assert!(matches!(open(&path), Err(StoreError::Locked { .. })));
    first.close().await.unwrap();
    drop(open(&path).unwrap());
    open(&path).unwrap();
}

/// The files that cannot be opened, and what is said about them.
#[tokio::test]
async fn unusable_files() {
    type Spoil = fn(&Path);
    let rows: [(&str, Spoil, &str); 10] = [
        (
            "text",
            |p| std::fs::write(p, "not a database, but long enough to hold a header".repeat(9)).unwrap(),
            "not a database",
        ),
        ("emptied", |p| std::fs::write(p, "").unwrap(), "not a Dhow data file"),
        ("missing, log left", |p| std::fs::rename(p, p.with_extension("sqlite-wal")).unwrap(), "the file is missing"),
        ("another program's", |p| set(p, "PRAGMA application_id = 1"), "not a Dhow data file"),
        ("newer", |p| set(p, "PRAGMA user_version = 99"), "newer version (schema 99"),
        ("never released", |p| set(p, "PRAGMA user_version = 0"), "never released"),
        ("changed value", |p| set(p, "UPDATE entries SET value = X'00'"), "wrong checksum"),
        ("from the future", |p| set(p, "UPDATE meta SET value = 0 WHERE name = 'reserved'"), "out of order"),
        ("no table", |p| set(p, "DROP TABLE entries"), "no such table"),
        ("halved", |p| truncate(p, 2), "malformed"),
    ];
    for (name, spoil, want) in rows {
        let (_folder, path) = folder();
        let store = open(&path).unwrap();
        for i in 0..50 {
            put(&store, &format!("key-{i}"), Durability::Durable, &"value".repeat(200));
        }
        store.close().await.unwrap();
        drop(store);
        spoil(&path);
        let error = open(&path).err().unwrap_or_else(|| panic!("{name} was opened"));
        let text = error.to_string();
        assert!(text.contains(want), "{name}: {text}");
        assert!(text.contains("backup"), "{name} says what to do next: {text}");
        assert!(matches!(error, StoreError::Corrupt { .. } | StoreError::TooNew { .. }), "{name}: {error:?}");
    }
    let error = open(Path::new("/nonexistent/objects.sqlite")).err();
    assert!(matches!(error, Some(StoreError::Io { .. })), "{error:?}");
}

fn set(path: &Path, sql: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn truncate(path: &Path, divisor: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / divisor / 4096 * 4096).unwrap();
}

/// A file of each version that was released opens, and is of the newest version then.
#[tokio::test]
async fn older_versions_are_brought_up_to_date() {
    for version in 1..=2 {
        let (_folder, path) = folder();
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/version-{version}.db")), &path)
            .unwrap();
        assert_eq!(store::check(&path, |_, _| Ok(())).unwrap().version, version);
        let store = open(&path).unwrap();
        let shown: Vec<_> = store
            .list("")
            .entries
            .into_iter()
            .map(|e| (e.key.to_string(), e.value.len(), e.created, e.modified))
            .collect();
        assert_eq!(
            shown,
            [
                ("configmaps/default/large".to_owned(), 5_000, 4, 4),
                ("configmaps/default/s\u{e9}".to_owned(), 2, 2, 5),
                ("namespaces/default".to_owned(), 2, 3, 3),
            ],
            "version {version}"
        );
        let revision = put(&store, "new", Durability::Durable, "1");
        assert!(revision > 1_000_000, "revisions go on above the reserved block");
        store.close().await.unwrap();
        drop(store);
        let report = store::check(&path, |_, _| Ok(())).unwrap();
        assert_eq!((report.version, report.entries, report.problems), (2, 4, vec![]));
        assert_eq!(number(&path, "auto_vacuum"), 2);
        assert_eq!(contents(&open(&path).unwrap()).len(), 4, "and opens again");
    }
}

#[test]
fn an_older_version_that_is_damaged_is_left_as_it_is() {
    let (_folder, path) = folder();
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/version-1.db"), &path).unwrap();
    truncate(&path, 2);
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(open(&path), Err(StoreError::Corrupt { .. })));
    let after = std::fs::read(&path).unwrap();
    // All but the head, which says that there is a log now.
    assert_eq!((before.len(), &before[100..]), (after.len(), &after[100..]));
}

#[tokio::test]
async fn the_log_is_moved_beside_the_writer_and_does_not_grow_for_ever() {
    let (_folder, path) = folder();
    let options = Options { checkpoint_bytes: 64 << 10, log_bytes: 512 << 10, ..Options::default() };
    let store = Store::open(&path, index, options).unwrap();
    let log = path.with_extension("sqlite-wal");
    let mut longest = 0;
    for i in 0..4_000 {
        put(&store, &format!("k/{}", i % 50), Durability::Durable, &"v".repeat(1_000));
        if i % 20 == 19 {
            store.durable(store.revision()).await.unwrap();
            longest = longest.max(std::fs::metadata(&log).unwrap().len());
        }
    }
    let counters = store.counters();
    assert!(counters.checkpoints > 0, "{counters:?}");
    // A burst of what one checkpoint lets in, and what came while the longest one was at work.
    assert!(longest < 4 << 20, "the log was {longest} bytes long");
    // A reader of an old moment keeps the log from beginning anew, and nobody from writing.
    let reader = rusqlite::Connection::open(&path).unwrap();
    let moment = reader.unchecked_transaction().unwrap();
    let count = |connection: &rusqlite::Connection| {
        connection.query_row("SELECT count(*) FROM entries", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(count(&moment), 50);
    for i in 0..2_000 {
        put(&store, &format!("l/{i}"), Durability::Durable, &"v".repeat(1_000));
    }
    store.durable(store.revision()).await.unwrap();
    assert_eq!(count(&moment), 50);
    drop(moment);
    drop(reader);
    store.close().await.unwrap();
    assert!(!log.exists(), "the last to close moves all of it");
    drop(store);
    assert_eq!(contents(&open(&path).unwrap()).len(), 2_050);
}

#[tokio::test]
async fn what_is_free_is_given_back_while_nothing_is_written() {
    let (_folder, path) = folder();
    let store = open(&path).unwrap();
    for i in 0..2_000 {
        put(&store, &format!("k/{i}"), Durability::Durable, &"v".repeat(6_000));
    }
    store.durable(store.revision()).await.unwrap();
    for i in 0..2_000 {
        delete(&store, &format!("k/{i}"));
    }
    store.durable(store.revision()).await.unwrap();
    // In steps, while nobody waits; so the test does.
    while number(&path, "freelist_count") >= 512 {
        tokio::task::yield_now().await;
    }
    assert!(number(&path, "page_count") < 1_000);
    put(&store, "after", Durability::Durable, "1");
    store.close().await.unwrap();
    drop(store);
    assert_eq!(contents(&open(&path).unwrap()), [("after".into(), "1".into())]);
}

fn number(path: &Path, pragma: &str) -> i64 {
    rusqlite::Connection::open(path).unwrap().pragma_query_value(None, pragma, |row| row.get(0)).unwrap()
}
