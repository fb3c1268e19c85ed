//! Backups of files in use, what takes a file's place, and what a check of a file says.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use store::{Durability, Expect, Options, Range, Revision, Store, StoreError, Write};

fn open(path: &Path) -> Store<()> {
    Store::open(path, |_, _| (), Options::default()).unwrap()
}

fn put(store: &Store<()>, key: &str, value: &str) -> Revision {
    let value = Bytes::copy_from_slice(value.as_bytes());
    let make = |_, _: Option<&_>| Ok::<_, StoreError>(Write::Put { index: (), value });
    store.write(key, Expect::Any, Durability::Durable, make).unwrap().revision
}

fn fine(_: &str, _: &[u8]) -> Result<(), String> {
    Ok(())
}

fn folder() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("objects.sqlite"), folder.path().join("copy"));
    (folder, path, copy)
}

/// Two writers keep two keys equal, one after the other; a copy may show the second one behind by one, never more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_of_one_moment() {
    let (_folder, path, copy) = folder();
    let store = open(&path);
    for i in 0..500 {
        put(&store, &format!("ballast/{i}"), &"b".repeat(3_000));
    }
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut i = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                i += 1;
                put(&store, "first", &i.to_string());
                let revision = put(&store, "second", &i.to_string());
                store.durable(revision).await.unwrap();
            }
        }
    });
    store.durable(put(&store, "acknowledged", "before the backup")).await.unwrap();
    for round in 0..5 {
        let copy = copy.with_extension(round.to_string());
        let from = path.clone();
        let to = copy.clone();
        tokio::task::spawn_blocking(move || store::backup(&from, &to)).await.unwrap().unwrap();
        assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(store::check(&copy, fine).unwrap().problems, Vec::<String>::new());
        let copied = open(&copy);
        assert_eq!(copied.list("ballast/").entries.len(), 500);
        assert_eq!(copied.get("acknowledged").unwrap().value, "before the backup");
        let number = |key| copied.get(key).map_or(0, |e| String::from_utf8_lossy(&e.value).parse::<u64>().unwrap());
        let (first, second) = (number("first"), number("second"));
        assert!(first == second || first == second + 1, "{first} {second}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.await.unwrap();
    let there = store::backup(&path, &copy.with_extension("0")).unwrap_err();
    assert!(matches!(there, StoreError::Io { .. }), "nothing is overwritten: {there}");
    let missing = store::backup(&path.with_extension("none"), &copy).unwrap_err();
    assert!(matches!(missing, StoreError::Io { .. }), "{missing}");
}

#[tokio::test]
async fn a_restore_goes_back_and_revisions_go_on() {
    let (folder, path, copy) = folder();
    let store = open(&path);
    put(&store, "a", "old");
    store.durable(store.revision()).await.unwrap();
    store::backup(&path, &copy).unwrap();
    put(&store, "a", "new");
    let held = put(&store, "b", "new");
    store.durable(held).await.unwrap();
    let running = store::restore(&copy, &path, ".aside", 0, fine).unwrap_err();
    assert!(matches!(running, StoreError::Locked { .. }), "{running}");
    // Killed, not closed: its log holds what is newer than the backup.
    let crashed = folder.path().join("crashed");
    std::fs::create_dir(&crashed).unwrap();
    for file in ["objects.sqlite", "objects.sqlite-wal"] {
        std::fs::copy(folder.path().join(file), crashed.join(file)).unwrap();
    }
    let path = crashed.join("objects.sqlite");

    let restored = store::restore(&copy, &path, ".aside", 0, fine).unwrap();
    assert_eq!((restored.entries, restored.aside.clone()), (1, Some(crashed.join("objects.sqlite.aside"))));
    let store = open(&path);
    assert_eq!(store.get("a").unwrap().value, "old");
    assert!(store.get("b").is_none() && store.revision() > held);
    let watch = store.watch("", Some(held)).err();
    assert!(matches!(watch, Some(StoreError::Compacted { .. })), "{watch:?}");
    let listing = store.select_at(held, Range::default(), |_| true).err();
    assert!(matches!(listing, Some(StoreError::Compacted { .. })), "{listing:?}");
    assert_eq!(open(&restored.aside.unwrap()).get("b").unwrap().value, "new", "what was there is kept");
    drop(store);

    // Onto nothing, and with a floor that stands for revisions that nobody remembers.
    let empty = folder.path().join("empty.sqlite");
    let restored = store::restore(&copy, &empty, ".aside", 1 << 50, fine).unwrap();
    assert!(restored.aside.is_none() && restored.reserved >= 1 << 50);
    assert!(open(&empty).revision() > 1 << 50);
    // Onto what nobody can read.
    let broken = folder.path().join("broken.sqlite");
    std::fs::write(&broken, "rubbish").unwrap();
    let restored = store::restore(&copy, &broken, ".aside", 0, fine).unwrap();
    assert_eq!(std::fs::read(restored.aside.unwrap()).unwrap(), b"rubbish");
    assert_eq!(open(&broken).get("a").unwrap().value, "old");
}

#[test]
fn what_is_not_restored() {
    type Spoil = fn(&Path);
    let rows: [(&str, Spoil, &str); 5] = [
        ("text", |copy| std::fs::write(copy, "not a database, but long enough".repeat(9)).unwrap(), "not a database"),
        ("another program's", |copy| set(copy, "PRAGMA application_id = 1"), "not a Dhow data file"),
        ("newer", |copy| set(copy, "PRAGMA user_version = 99"), "newer version"),
        ("changed", |copy| set(copy, "UPDATE entries SET value = X'00'"), "wrong checksum"),
        ("missing", |copy| std::fs::remove_file(copy).unwrap(), "cannot open"),
    ];
    for (name, spoil, want) in rows {
        let (_folder, path, copy) = folder();
        let store = open(&path);
        put(&store, "a", "1");
        drop(store);
        store::backup(&path, &copy).unwrap();
        spoil(&copy);
        let error = store::restore(&copy, &path, ".aside", 0, fine).unwrap_err().to_string();
        assert!(error.contains(want), "{name}: {error}");
        assert_eq!(open(&path).get("a").unwrap().value, "1", "{name}: what is there stays");
    }
    let (_folder, path, copy) = folder();
    drop(open(&path));
    put(&open(&path), "a", "1");
    store::backup(&path, &copy).unwrap();
    let error = store::restore(&copy, &path, ".aside", 0, |_, _| Err("is no object".into())).unwrap_err();
    assert!(error.to_string().contains("the entry \"a\": is no object"), "{error}");
}

#[test]
fn a_check_finds_all_that_is_wrong() {
    let (_folder, path, _) = folder();
    let store = open(&path);
    for key in ["a", "b", "c", "d"] {
        put(&store, key, key);
    }
    let examine = |_: &str, value: &[u8]| if value == b"c" { Err("is odd".to_owned()) } else { Ok(()) };
    let in_use = store::check(&path, fine).unwrap();
    assert_eq!((in_use.problems, in_use.version), (vec![], 2), "while it is in use");
    drop(store);
    set(&path, "UPDATE entries SET value = X'00' WHERE key = 'a'; UPDATE entries SET created = -1 WHERE key = 'd'");
    let report = store::check(&path, examine).unwrap();
    assert_eq!(
        report.problems,
        ["the entry \"a\" has a wrong checksum", "the entry \"c\": is odd", "negative revision -1"]
    );
}

fn set(path: &Path, sql: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}
