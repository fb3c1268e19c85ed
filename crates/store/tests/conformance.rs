//! What both engines promise, once for each.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use store::{Change, Durability, Expect, Options, Range, Revision, Store, StoreError, Watch, Write};

/// The index of these tests: the length of the value.
fn index(_key: &str, value: &[u8]) -> usize {
    value.len()
}

struct Engine {
    store: Store<usize>,
    _folder: Option<tempfile::TempDir>,
}

fn memory(options: Options) -> Engine {
    Engine { store: Store::memory(index, options), _folder: None }
}

fn sqlite(options: Options) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("objects.sqlite"), index, options).unwrap();
    Engine { store, _folder: Some(folder) }
}

fn put(store: &Store<usize>, key: &str, expect: Expect, value: &str) -> Result<Change<usize>, StoreError> {
    store.write(key, expect, Durability::Durable, |_, _| {
        let value = Bytes::copy_from_slice(value.as_bytes());
        Ok::<_, StoreError>(Write::Put { index: value.len(), value })
    })
}

fn delete(store: &Store<usize>, key: &str, expect: Expect) -> Result<Change<usize>, StoreError> {
    store.write(key, expect, Durability::Durable, |revision, _| {
        Ok::<_, StoreError>(Write::Delete { last: format!("deleted at {revision}").into() })
    })
}

async fn take(watch: &mut Watch<usize>, count: usize) -> Vec<Arc<Change<usize>>> {
    let mut changes = vec![];
    for _ in 0..count {
        changes.push(watch.next().await.unwrap().unwrap());
    }
    changes
}

/// Names one case for both engines.
macro_rules! cases {
    ($($name:ident)*) => {
        mod memory_engine { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::memory).await; })* }
        mod sqlite_engine { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::sqlite).await; })* }
    };
}

cases! {
    compare_and_set
    a_write_sees_its_revision_and_the_current_entry
    an_error_of_make_changes_nothing
    deletion_carries_the_stamped_value
    listing_pages
    listing_what_is_wanted
    listing_the_past
    watch_from_a_revision_under_concurrent_writers
    watch_from_now
    slow_watch_overflows
    slow_watches_keep_nothing_alive
    history_compacts
    caught_up_tells_how_far_a_quiet_watch_is
    close_ends_watches_and_writes
}

type Engines = fn(Options) -> Engine;

async fn compare_and_set(engine: Engines) {
    let Engine { store, _folder } = engine(Options::default());
    let there = put(&store, "there", Expect::Absent, "1").unwrap().revision;
    let rows: [(&str, Expect, Option<Option<Revision>>); 8] = [
        // key, expectation, None = succeeds, Some(what the conflict says is there)
        ("there", Expect::Absent, Some(Some(there))),
        ("there", Expect::At(there + 1), Some(Some(there))),
        ("there", Expect::At(0), Some(Some(there))),
        ("gone", Expect::Present, Some(None)),
        ("gone", Expect::At(there), Some(None)),
        ("there", Expect::At(there), None),
        ("there", Expect::Present, None),
        ("gone", Expect::Any, None),
    ];
    for (key, expect, want) in rows {
        let before = store.revision();
        match (put(&store, key, expect, "2"), want) {
            (Ok(change), None) => assert_eq!(change.revision, before + 1, "{key} {expect:?}"),
            (Err(StoreError::Conflict { actual, expected, .. }), Some(want)) => {
                assert_eq!((actual, expected), (want, expect), "{key}");
                assert_eq!(store.revision(), before, "a refused write uses no revision");
            }
            (got, want) => panic!("{key} {expect:?}: wanted {want:?}, got {got:?}"),
        }
    }
    let absent = delete(&store, "never", Expect::Any);
    assert!(matches!(absent, Err(StoreError::Conflict { expected: Expect::Present, actual: None, .. })), "{absent:?}");
}

async fn a_write_sees_its_revision_and_the_current_entry(engine: Engines) {
    let Engine { store, _folder } = engine(Options::default());
    let created = put(&store, "a", Expect::Any, "first").unwrap();
    let change = store
        .write("a", Expect::Any, Durability::Durable, |revision, current| {
            let value = format!("{} then {revision}", std::str::from_utf8(&current.unwrap().value).unwrap());
            Ok::<_, StoreError>(Write::Put { index: value.len(), value: value.into() })
        })
        .unwrap();
    let entry = store.get("a").unwrap();
    assert_eq!(entry.value, format!("first then {}", change.revision));
    assert_eq!((entry.created, entry.modified), (created.revision, change.revision));
    assert_eq!(*entry.index, entry.value.len());
    assert_eq!(change.previous.unwrap().value, "first");
    store.durable(change.revision).await.unwrap();
}

async fn an_error_of_make_changes_nothing(engine: Engines) {
    #[derive(Debug)]
    enum Mine {
        Refused,
        Store,
    }
    impl From<StoreError> for Mine {
        fn from(_: StoreError) -> Self {
            Mine::Store
        }
    }
    let Engine { store, _folder } = engine(Options::default());
    let before = put(&store, "a", Expect::Any, "1").unwrap().revision;
    let refused = store.write("a", Expect::Any, Durability::Durable, |_, _| Err(Mine::Refused));
    assert!(matches!(refused, Err(Mine::Refused)));
    let conflict = store.write("a", Expect::Absent, Durability::Durable, |_, _| Err(Mine::Refused));
    assert!(matches!(conflict, Err(Mine::Store)));
    // Neither does one that panics, and the store stays usable.
    let panicking = std::panic::AssertUnwindSafe(|| {
        let _ = store.write("a", Expect::Any, Durability::Durable, |_, _| -> Result<_, Mine> { panic!("on purpose") });
    });
    assert!(std::panic::catch_unwind(panicking).is_err());
    assert_eq!((store.revision(), store.get("a").unwrap().modified), (before, before));
    put(&store, "a", Expect::At(before), "2").unwrap();
}

async fn deletion_carries_the_stamped_value(engine: Engines) {
    let Engine { store, _folder } = engine(Options::default());
    let mut watch = store.watch("", None).unwrap();
    let first = put(&store, "a", Expect::Any, "123").unwrap();
    let deleted = delete(&store, "a", Expect::At(first.revision)).unwrap();
    assert!(store.get("a").is_none());
    let seen = take(&mut watch, 2).await.pop().unwrap();
    assert!(seen.current.is_none() && deleted.current.is_none());
    assert_eq!(*seen.last.as_ref().unwrap(), format!("deleted at {}", deleted.revision));
    let previous = seen.previous.clone().unwrap();
    assert_eq!((&previous.value[..], *previous.index, previous.modified), (&b"123"[..], 3, first.revision));
    let again = put(&store, "a", Expect::Absent, "4").unwrap();
    assert_eq!(store.get("a").unwrap().created, again.revision, "a new life");
}

async fn listing_pages(engine: Engines) {
    let Engine { store, _folder } = engine(Options::default());
    for key in ["a/1", "a/2", "a/3", "a0", "b/1", "a/é"] {
        put(&store, key, Expect::Absent, key).unwrap();
    }
    // prefix, after, limit, keys of the page, remaining
    type Row<'a> = (&'a str, Option<&'a str>, usize, &'a [&'a str], usize);
    let rows: [Row<'_>; 11] = [
        ("a/", None, 0, &["a/1", "a/2", "a/3", "a/é"], 0),
        ("a/", None, 2, &["a/1", "a/2"], 2),
        ("a/", Some("a/2"), 2, &["a/3", "a/é"], 0),
        ("a/", Some("a/2"), 1, &["a/3"], 1),
        ("a/", Some("a/é"), 1, &[], 0),
        ("a/", Some("a/15"), 0, &["a/2", "a/3", "a/é"], 0),
        ("a/", Some("a"), 1, &["a/1"], 3),
        ("", None, 0, &["a/1", "a/2", "a/3", "a/é", "a0", "b/1"], 0),
        ("c", None, 1, &[], 0),
        ("a/", Some("b"), 1, &[], 0),
        ("a/", Some("a0"), 0, &[], 0),
    ];
    for (prefix, after, limit, want, remaining) in rows {
        let page = store.select(Range { prefix, after, limit }, |_| true);
        let keys: Vec<&str> = page.entries.iter().map(|entry| &*entry.key).collect();
        assert_eq!(
            (keys.as_slice(), page.remaining, page.more),
            (want, remaining, remaining > 0),
            "{prefix} {after:?}"
        );
        assert_eq!(page.revision, store.revision());
    }
}

async fn listing_what_is_wanted(engine: Engines) {
    let Engine { store, _folder } = engine(Options::default());
    for (key, value) in [("a", "1"), ("b", "22"), ("c", "1"), ("d", "22"), ("e", "1")] {
        put(&store, key, Expect::Absent, value).unwrap();
    }
    // after, limit, keys, whether more may come: a page ends with the last entry that it has room for.
    for (after, limit, want, more) in
        [(None, 1, "b", true), (None, 2, "bd", true), (Some("b"), 2, "d", false), (Some("d"), 1, "", false)]
    {
        let page = store.select(Range { prefix: "", after, limit }, |entry| *entry.index == 2);
        let keys: String = page.entries.iter().map(|entry| &*entry.key).collect();
        assert_eq!((keys.as_str(), page.more), (want, more), "{after:?} {limit}");
    }
}

async fn listing_the_past(engine: Engines) {
    let Engine { store, _folder } = engine(Options { history: 6, ..Options::default() });
    let start = store.revision();
    put(&store, "k/a", Expect::Any, "1").unwrap();
    put(&store, "k/b", Expect::Any, "1").unwrap();
    put(&store, "k/a", Expect::Any, "2").unwrap();
    delete(&store, "k/b", Expect::Any).unwrap();
    put(&store, "k/c", Expect::Any, "1").unwrap();
    put(&store, "k/b", Expect::Any, "3").unwrap();
    let shown = |revision, range| {
        let listing = store.select_at(revision, range, |_| true)?;
        assert_eq!(listing.revision, revision);
        let entries = listing.entries.iter().map(|e| format!("{}={}", e.key, String::from_utf8_lossy(&e.value)));
        Ok::<_, StoreError>((entries.collect::<Vec<_>>().join(" "), listing.remaining))
    };
    let all = Range { prefix: "k/", ..Range::default() };
    for (revision, range, want, remaining) in [
        (start, all, "", 0),
        (start + 1, all, "k/a=1", 0),
        (start + 2, all, "k/a=1 k/b=1", 0),
        (start + 2, Range { limit: 1, ..all }, "k/a=1", 1),
        (start + 3, all, "k/a=2 k/b=1", 0),
        (start + 4, all, "k/a=2", 0),
        (start + 5, all, "k/a=2 k/c=1", 0),
        (start + 5, Range { after: Some("k/a"), ..all }, "k/c=1", 0),
        (start + 5, Range { prefix: "k/b", ..all }, "", 0),
        (start + 6, all, "k/a=2 k/b=3 k/c=1", 0),
    ] {
        assert_eq!(shown(revision, range).unwrap(), (want.to_owned(), remaining), "{} {range:?}", revision - start);
    }
    let ahead = shown(start + 7, all).unwrap_err();
    assert!(
        matches!(ahead, StoreError::Ahead { requested, current } if (requested, current) == (start + 7, start + 6))
    );
    put(&store, "elsewhere", Expect::Any, "1").unwrap();
    let compacted = shown(start, all).unwrap_err();
    assert!(matches!(compacted, StoreError::Compacted { requested, .. } if requested == start), "{compacted}");
}

/// Every watch that starts at a listing and follows sees exactly what the store becomes.
async fn watch_from_a_revision_under_concurrent_writers(engine: Engines) {
    const WRITERS: u64 = 4;
    const WRITES: u64 = 300;
    let Engine { store, _folder } = engine(Options::default());
    let first = store.revision();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::task::spawn_blocking(move || {
                for i in 0..WRITES {
                    let key = format!("k/{}", (i * 7 + writer) % 13);
                    if i % 5 == 4 {
                        let _ = delete(&store, &key, Expect::Any);
                    } else {
                        put(&store, &key, Expect::Any, &format!("{writer}-{i}")).unwrap();
                    }
                    put(&store, "elsewhere", Expect::Any, "x").unwrap();
                }
            })
        })
        .collect();
    let followers: Vec<_> = (0..6)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                let listing = store.list("k/");
                let mut watch = store.watch("k/", Some(listing.revision)).unwrap();
                let mut seen: BTreeMap<String, Bytes> =
                    listing.entries.iter().map(|e| (e.key.to_string(), e.value.clone())).collect();
                let mut last = listing.revision;
                // It may begin only when all is over.
                while seen.remove("k/~").is_none() {
                    let change = watch.next().await.unwrap().unwrap();
                    assert!(change.revision > last, "in order, none twice");
                    last = change.revision;
                    let was = change.previous.as_ref().map(|_| ());
                    assert_eq!(was, seen.get(&*change.key).map(|_| ()), "no gap");
                    match &change.current {
                        Some(entry) => drop(seen.insert(change.key.to_string(), entry.value.clone())),
                        None => drop(seen.remove(&*change.key)),
                    }
                }
                seen
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let want: BTreeMap<String, Bytes> =
        store.list("k/").entries.iter().map(|e| (e.key.to_string(), e.value.clone())).collect();
    let end = put(&store, "k/~", Expect::Absent, "end").unwrap().revision;
    for follower in followers {
        assert_eq!(follower.await.unwrap(), want);
    }
    let mut replay = store.watch("", Some(first)).unwrap();
    let revisions: Vec<_> = take(&mut replay, (end - first) as usize).await.iter().map(|c| c.revision).collect();
    assert_eq!(revisions, (first + 1..=end).collect::<Vec<_>>(), "every revision is one change");
    store.durable(end).await.unwrap();
}

async fn watch_from_now(engine: Engines) {
    let Engine { store, _folder } = engine(Options::default());
    put(&store, "a", Expect::Any, "before").unwrap();
    let mut watch = store.watch("a", None).unwrap();
    assert_eq!(watch.start_revision(), store.revision());
    put(&store, "b", Expect::Any, "other").unwrap();
    let after = put(&store, "a", Expect::Any, "after").unwrap();
    assert_eq!(take(&mut watch, 1).await[0].revision, after.revision);
    let ahead = store.watch("a", Some(store.revision() + 1)).err();
    assert!(matches!(ahead, Some(StoreError::Ahead { .. })), "{ahead:?}");
}

async fn slow_watch_overflows(engine: Engines) {
    let Engine { store, _folder } = engine(Options { watch_queue: 3, ..Options::default() });
    let mut slow = store.watch("a", None).unwrap();
    let mut other = store.watch("b", None).unwrap();
    for i in 0..5 {
        put(&store, "a", Expect::Any, &i.to_string()).unwrap();
    }
    put(&store, "b", Expect::Any, "fine").unwrap();
    let values: Vec<_> = take(&mut slow, 3).await.iter().map(|c| c.current.clone().unwrap().value).collect();
    assert_eq!(values, ["0", "1", "2"], "what fitted is delivered in order");
    assert!(matches!(slow.next().await, Some(Err(StoreError::Overflowed { queue: 3 }))));
    assert!(slow.next().await.is_none());
    assert_eq!(take(&mut other, 1).await.len(), 1, "nobody else is disturbed");
    assert_eq!(store.counters().overflowed, 1);
}

async fn slow_watches_keep_nothing_alive(engine: Engines) {
    let Engine { store, _folder } = engine(Options { history: 3, ..Options::default() });
    let start = store.revision();
    let mut from_now = store.watch("a", None).unwrap();
    for i in 0..2 {
        put(&store, "a", Expect::Any, &i.to_string()).unwrap();
    }
    let mut from_before = store.watch("a", Some(start)).unwrap();
    for i in 0..2 {
        put(&store, "b", Expect::Any, &i.to_string()).unwrap();
    }
    let mut later = store.watch("a", None).unwrap();
    put(&store, "a", Expect::Any, "last").unwrap();
    for slow in [&mut from_now, &mut from_before] {
        assert!(matches!(slow.next().await, Some(Err(StoreError::Overflowed { .. }))), "the first is forgotten");
        assert!(slow.next().await.is_none() && slow.caught_up().is_none());
    }
    assert_eq!(take(&mut later, 1).await.len(), 1, "nobody else is disturbed");
    assert_eq!(store.counters().overflowed, 2);
}

async fn history_compacts(engine: Engines) {
    // Four changes, or 93 bytes of keys and values with their previous ones.
    let options = Options { history: 4, history_bytes: 93, ..Options::default() };
    let Engine { store, _folder } = engine(options);
    let start = store.revision();
    assert_eq!(store.oldest_revision(), start);
    for i in 0..6 {
        put(&store, "a", Expect::Any, &i.to_string()).unwrap();
    }
    assert_eq!(store.oldest_revision(), start + 2);
    let compacted = store.watch("a", Some(start + 1)).err();
    assert!(
        matches!(compacted, Some(StoreError::Compacted { requested, oldest }) if (requested, oldest) == (start + 1, start + 2)),
        "{compacted:?}"
    );
    let mut watch = store.watch("a", Some(start + 2)).unwrap();
    assert_eq!(take(&mut watch, 4).await[0].revision, start + 3);
    put(&store, "a", Expect::Any, &"x".repeat(90)).unwrap();
    assert_eq!(store.oldest_revision(), start + 6, "bytes are bounded too");
    assert!(store.watch("a", Some(store.revision())).is_ok(), "now is never compacted");
}

async fn caught_up_tells_how_far_a_quiet_watch_is(engine: Engines) {
    let Engine { store, _folder } = engine(Options::default());
    let mut watch = store.watch("a", None).unwrap();
    let elsewhere = put(&store, "b", Expect::Any, "1").unwrap().revision;
    assert_eq!(watch.caught_up(), Some(elsewhere));
    put(&store, "a", Expect::Any, "1").unwrap();
    assert_eq!(watch.caught_up(), None, "something waits");
    take(&mut watch, 1).await;
    assert_eq!(watch.caught_up(), Some(store.revision()));
}

async fn close_ends_watches_and_writes(engine: Engines) {
    let Engine { store, _folder } = engine(Options::default());
    let mut watch = store.watch("", None).unwrap();
    let last = put(&store, "a", Expect::Any, "1").unwrap().revision;
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert_eq!(take(&mut watch, 1).await[0].revision, last, "what was queued is still delivered");
    assert!(watch.next().await.is_none());
    assert!(matches!(put(&store, "a", Expect::Any, "2"), Err(StoreError::Closed)));
    assert!(matches!(store.watch("", None), Err(StoreError::Closed)));
    store.durable(last).await.unwrap();
    assert_eq!(store.get("a").unwrap().value, "1", "reading goes on");
}
