//! Random histories against a plain map of every revision, on both engines: what a read of the present and of the past
//! says, what a watch delivers, what a restart keeps.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use store::{Durability, Expect, Options, Range, Revision, Store, StoreError, Write};

#[derive(Clone, Debug)]
enum Step {
    Put {
        key: u8,
        value: u8,
        durable: bool,
        expect: Guess,
    },
    Delete {
        key: u8,
        expect: Guess,
    },
    Follow,
    /// A page as of so many revisions ago, after that key.
    Past {
        back: u64,
        after: Option<u8>,
        limit: usize,
        wanted: u8,
    },
    Restart {
        clean: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Guess {
    Any,
    Absent,
    Present,
    Right,
    Wrong,
}

fn step() -> impl Strategy<Value = Step> {
    let guess = || {
        prop_oneof![
            3 => Just(Guess::Any),
            1 => Just(Guess::Absent),
            1 => Just(Guess::Present),
            2 => Just(Guess::Right),
            1 => Just(Guess::Wrong),
        ]
    };
    prop_oneof![
        8 => (0..6u8, any::<u8>(), any::<bool>(), guess())
            .prop_map(|(key, value, durable, expect)| Step::Put { key, value, durable, expect }),
        4 => (0..6u8, guess()).prop_map(|(key, expect)| Step::Delete { key, expect }),
        1 => Just(Step::Follow),
        4 => (0..40u64, prop::option::of(0..6u8), 0..5usize, any::<u8>())
            .prop_map(|(back, after, limit, wanted)| Step::Past { back, after, limit, wanted }),
        1 => any::<bool>().prop_map(|clean| Step::Restart { clean }),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Known {
    value: Bytes,
    created: Revision,
    modified: Revision,
    durable: bool,
}

type Model = BTreeMap<String, Known>;
type Shown = Vec<(String, Bytes, Revision, Revision)>;

/// Few enough that histories outgrow it.
fn options() -> Options {
    Options { history: 30, ..Options::default() }
}

fn index(_key: &str, value: &[u8]) -> usize {
    value.len()
}

fn open(path: &Path) -> Store<usize> {
    Store::open(path, index, options()).unwrap()
}

fn snapshot(store: &Store<usize>) -> Shown {
    shown(store.list("").entries)
}

fn shown(entries: Vec<store::Entry<usize>>) -> Shown {
    entries.into_iter().map(|e| (e.key.to_string(), e.value, e.created, e.modified)).collect()
}

fn expected(model: &Model) -> Shown {
    model.iter().map(|(key, k)| (key.clone(), k.value.clone(), k.created, k.modified)).collect()
}

/// Applies one write to both and compares what each says about it.
fn write(store: &Store<usize>, model: &mut Model, key: u8, value: Option<u8>, durable: bool, guess: Guess) {
    let key = format!("key/{key}");
    let known = model.get(&key).cloned();
    let at = known.as_ref().map(|k| k.modified);
    let (expect, met) = match guess {
        Guess::Any => (Expect::Any, true),
        Guess::Absent => (Expect::Absent, at.is_none()),
        Guess::Present => (Expect::Present, at.is_some()),
        Guess::Right => (at.map_or(Expect::Absent, Expect::At), true),
        Guess::Wrong => (Expect::At(at.unwrap_or(0) + 1), false),
    };
    let met = met && (value.is_some() || known.is_some());
    let before = store.revision();
    let durability = if durable { Durability::Durable } else { Durability::Ephemeral };
    let bytes = |value: u8| Bytes::from(vec![value; usize::from(value) + 1]);
    let result = store.write(&key, expect, durability, |_, current| {
        assert_eq!(current.map(|entry| entry.modified), at);
        Ok::<_, StoreError>(match value {
            Some(value) => Write::Put { index: usize::from(value) + 1, value: bytes(value) },
            None => Write::Delete { last: Bytes::from_static(b"last") },
        })
    });
    match result {
        Ok(change) => {
            assert!(met, "{key} {expect:?} was met");
            assert_eq!(change.revision, before + 1);
            assert_eq!(change.previous.map(|entry| entry.modified), at);
            match value {
                Some(value) => {
                    let created = known.map_or(change.revision, |k| k.created);
                    model.insert(key, Known { value: bytes(value), created, modified: change.revision, durable });
                }
                None => drop(model.remove(&key)),
            }
        }
        Err(StoreError::Conflict { actual, .. }) => {
            assert!(!met, "{key} {expect:?} was refused");
            assert_eq!((actual, store.revision()), (at, before));
        }
        Err(error) => panic!("{error}"),
    }
}

async fn run(steps: Vec<Step>, path: Option<&Path>) {
    let mut store = path.map_or_else(|| Store::memory(index, options()), open);
    let mut model = Model::new();
    // Where a follower began, and what it knew then.
    let mut followed = (store.revision(), model.clone());
    // What was there at each revision since the last start.
    let mut past = BTreeMap::from([followed.clone()]);
    for step in steps {
        match step {
            Step::Put { key, value, durable, expect } => write(&store, &mut model, key, Some(value), durable, expect),
            Step::Delete { key, expect } => write(&store, &mut model, key, None, true, expect),
            Step::Follow => {
                replay(&store, followed, &model).await;
                followed = (store.revision(), model.clone());
            }
            Step::Past { back, after, limit, wanted } => {
                let after = after.map(|key| format!("key/{key}"));
                list_past(&store, &past, store.revision().saturating_sub(back), after.as_deref(), limit, wanted);
            }
            Step::Restart { clean } => {
                let Some(path) = path else { continue };
                let last = store.revision();
                if clean {
                    store.close().await.unwrap();
                }
                drop(store);
                store = open(path);
                assert!(store.revision() > last);
                model.retain(|_, known| known.durable);
                followed = (store.revision(), model.clone());
                past.clear();
            }
        }
        past.insert(store.revision(), model.clone());
        assert_eq!(snapshot(&store), expected(&model));
    }
    replay(&store, followed, &model).await;
}

/// A page of the past is that of the map of then, cut in the same way.
fn list_past(
    store: &Store<usize>,
    past: &BTreeMap<Revision, Model>,
    revision: Revision,
    after: Option<&str>,
    limit: usize,
    wanted: u8,
) {
    // A third of all values are not wanted.
    let wanted = |length: usize| length % 3 != usize::from(wanted % 3);
    let listing = store.select_at(revision, Range { prefix: "key/", after, limit }, |entry| wanted(*entry.index));
    let Some(then) = past.get(&revision).filter(|_| revision >= store.oldest_revision()) else {
        let refused = listing.err();
        assert!(matches!(refused, Some(StoreError::Compacted { .. })), "{refused:?}");
        return;
    };
    let listing = listing.unwrap();
    let rest: Vec<_> =
        expected(then).into_iter().filter(|(key, ..)| after.is_none_or(|after| &**key > after)).collect();
    let mut page: Shown = rest.iter().filter(|(_, value, ..)| wanted(value.len())).cloned().collect();
    let mut remaining = 0;
    if limit > 0 && page.len() >= limit {
        page.truncate(limit);
        remaining = rest.iter().filter(|(key, ..)| page.last().is_some_and(|last| *key > last.0)).count();
    }
    assert_eq!((shown(listing.entries), listing.remaining, listing.more), (page, remaining, remaining > 0));
}

/// A watch from a revision turns what was known then into what is known now.
async fn replay(store: &Store<usize>, (from, mut then): (Revision, Model), now: &Model) {
    let watch = store.watch("key/", Some(from));
    if from < store.oldest_revision() {
        assert!(matches!(watch.err(), Some(StoreError::Compacted { .. })));
        return;
    }
    let mut watch = watch.unwrap();
    for revision in from + 1..=store.revision() {
        let change = watch.next().await.unwrap().unwrap();
        assert_eq!(change.revision, revision);
        match &change.current {
            Some(entry) => {
                let known = Known {
                    value: entry.value.clone(),
                    created: entry.created,
                    modified: entry.modified,
                    durable: now.get(&*change.key).is_some_and(|known| known.durable),
                };
                then.insert(change.key.to_string(), known);
            }
            None => {
                assert_eq!(change.last.as_deref(), Some(&b"last"[..]));
                then.remove(&*change.key);
            }
        }
    }
    assert_eq!(expected(&then), expected(now));
    assert_eq!(watch.caught_up(), Some(store.revision()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if long() { 2_000 } else { 60 }, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_map(steps in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(steps.clone(), None));
        let folder = tempfile::tempdir().unwrap();
        runtime.block_on(run(steps, Some(&folder.path().join("objects.sqlite"))));
    }
}

fn long() -> bool {
    std::env::var_os("DHOW_LONG").is_some()
}
