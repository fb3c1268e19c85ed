//! Crash injection: a child process that is killed while it writes, brings a file up to date or restores a backup, one
//! whose disk refuses to grow, and copies of its files that are torn or have flipped bits.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use store::{Durability, Expect, Options, Revision, Store, StoreError, Write};

const PATH: &str = "DHOW_STORE_CHILD_PATH";
const SEED: &str = "DHOW_STORE_CHILD_SEED";
/// Whether the child leaves all that it writes in the log.
const KEEPS_LOG: &str = "DHOW_STORE_CHILD_KEEPS_LOG";
/// The backup that the child restores, and what the name of the file that was there gets.
const BACKUP: &str = "DHOW_STORE_CHILD_BACKUP";
const SUFFIX: &str = "DHOW_STORE_CHILD_SUFFIX";

/// A small generator of its own, so that a seed means the same rounds for ever (xorshift, Marsaglia 2003).
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// With a log that begins anew often, so that the main file holds what the log does not.
fn open(path: &Path) -> Result<Store<()>, StoreError> {
    let options = Options { checkpoint_bytes: 512 << 10, log_bytes: 512 << 10, ..Options::default() };
    once_free(|| Store::open(path, |_, _| (), options.clone()))
}

/// A child that another test is about to start has our locks for the moment between its fork and its exec.
fn once_free<T>(mut attempt: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut attempts = 0..1_000_000;
    loop {
        match attempt() {
            Err(StoreError::Locked { .. }) if attempts.next().is_some() => std::thread::yield_now(),
            result => return result,
        }
    }
}

fn restore(backup: &Path, path: &Path, suffix: &str) -> Result<store::Restored, StoreError> {
    once_free(|| store::restore(backup, path, suffix, 0, |_, _| Ok(())))
}

/// What the child does: two writers, each printing what was acknowledged. Every value names its own revision.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(path) = std::env::var_os(PATH).map(PathBuf::from) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let store = match std::env::var_os(KEEPS_LOG) {
        None => open(&path).unwrap(),
        Some(_) => once_free(|| Store::open(&path, |_, _| (), Options::default())).unwrap(),
    };
    println!("ready {}", store.revision());
    let writers: Vec<_> = (0..2).map(|writer| tokio::spawn(write_for_ever(store.clone(), writer, seed))).collect();
    let watched = store.clone();
    let failure = tokio::spawn(async move { watched.failed().await });
    for writer in writers {
        writer.await.unwrap();
    }
    // Only a failed disk ends the writers, and then the whole program is told.
    let reason = failure.await.unwrap();
    assert!(matches!(store.durable(store.revision()).await, Err(StoreError::Failed { .. })));
    assert!(matches!(store.close().await, Err(StoreError::Failed { .. })));
    println!("failed {reason}");
}

async fn write_for_ever(store: Store<()>, writer: u64, seed: u64) {
    let mut random = Seeded(seed * 2 + writer + 1);
    loop {
        let key = format!("{writer}/{}", random.below(40));
        let size = random.below(6_000) as usize;
        let delete = random.below(5) == 0 && store.get(&key).is_some();
        let result = store.write(&key, Expect::Any, Durability::Durable, |revision, _| {
            Ok::<_, StoreError>(if delete {
                Write::Delete { last: Bytes::new() }
            } else {
                Write::Put { value: format!("{revision}:{}", "v".repeat(size)).into(), index: () }
            })
        });
        let revision = match result {
            Ok(change) => change.revision,
            Err(StoreError::Failed { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        match store.durable(revision).await {
            Ok(()) => println!("acknowledged {revision} {} {key}", if delete { "delete" } else { "put" }),
            Err(StoreError::Failed { .. }) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What was acknowledged: the last revision of each key, and whether it is there.
#[derive(Clone, Default)]
struct Acknowledged {
    keys: BTreeMap<String, (Revision, bool)>,
    highest: Revision,
}

impl Acknowledged {
    fn read(&mut self, line: &str) -> bool {
        // The test harness prints its own words in front of the first line.
        let Some(rest) = line.split_once("acknowledged ").map(|(_, rest)| rest) else { return false };
        let words: Vec<&str> = rest.split(' ').collect();
        let [revision, what, key] = words[..] else { panic!("{line}") };
        let revision = revision.parse().unwrap();
        self.keys.insert(key.into(), (revision, what == "put"));
        self.highest = self.highest.max(revision);
        true
    }

    /// Everything acknowledged is there. Each writer may have got one step further than it could tell. What is there
    /// is whole. Then goes on from what is there.
    fn check(&mut self, store: &Store<()>, round: &str) {
        let mut steps_further = BTreeMap::new();
        for (key, &(revision, there)) in &self.keys {
            let found = store.get(key).map(|entry| entry.modified);
            let as_acknowledged = if there { found == Some(revision) } else { found.is_none() };
            if !as_acknowledged {
                assert!(found.is_none_or(|found| found > revision), "{round}: {key} went back to {found:?}");
                *steps_further.entry(&key[..1]).or_insert(0) += 1;
            }
        }
        assert!(steps_further.values().all(|steps| *steps <= 1), "{round}: {steps_further:?}");
        assert!(store.revision() > self.highest, "{round}");
        check_values(store, round);
        let entries = store.list("").entries;
        self.keys = entries.into_iter().map(|entry| (entry.key.to_string(), (entry.modified, true))).collect();
    }
}

fn check_values(store: &Store<()>, round: &str) {
    for entry in store.list("").entries {
        let text = String::from_utf8(entry.value.to_vec()).unwrap();
        assert_eq!(text.split(':').next(), Some(entry.modified.to_string().as_str()), "{round}: {}", entry.key);
    }
}

/// What another child does: it opens a file, or restores one.
#[test]
fn one_step() {
    let Some(path) = std::env::var_os(PATH).map(PathBuf::from) else { return };
    println!("begun");
    match std::env::var_os(BACKUP) {
        None => drop(open(&path).unwrap()),
        Some(backup) => {
            let suffix = std::env::var(SUFFIX).unwrap();
            restore(Path::new(&backup), &path, &suffix).unwrap();
        }
    }
}

fn step(path: &Path, backup: Option<(&Path, &str)>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "one_step", "--nocapture", "--test-threads=1"]).env(PATH, path);
    if let Some((backup, suffix)) = backup {
        command.env(BACKUP, backup).env(SUFFIX, suffix);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills a child after so many looks at it, if it has not ended by then; the looks that it took to its end.
fn cut_short(mut child: Child, looks: u64) -> Option<u64> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("begun")));
    for look in 0..looks {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "the child's own assertions hold");
            return Some(look);
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

fn command(path: &Path, seed: u64, limit_blocks: Option<u64>) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = match limit_blocks {
        None => Command::new(program),
        Some(blocks) => {
            // Ignored, the signal turns into an error of the write call.
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")]).arg(program);
            shell
        }
    };
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command.env(PATH, path).env(SEED, seed.to_string()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn long() -> bool {
    std::env::var_os("DHOW_LONG").is_some()
}

/// Runs the child until it has acknowledged that many writes, kills it, and reads what it still said.
fn kill_after(mut command: Command, count: u64, spins: u64, known: &mut Acknowledged) {
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut left = count;
    while left > 0 {
        let line = lines.next().expect("the child ended by itself").unwrap();
        left -= u64::from(known.read(&line));
    }
    // The moment of the kill moves through whatever the writers do next.
    for spin in 0..spins {
        std::hint::black_box(spin);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines.map_while(Result::ok) {
        known.read(&line);
    }
}

#[test]
fn killed_at_any_moment_nothing_acknowledged_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("objects.sqlite");
    let mut random = Seeded(0x5eed);
    let mut known = Acknowledged::default();
    for round in 0..if long() { 200 } else { 15 } {
        let (count, spins) = (1 + random.below(60), random.below(3_000_000));
        kill_after(command(&path, round, None), count, spins, &mut known);
        let store = open(&path).unwrap_or_else(|error| panic!("round {round}: {error}"));
        known.check(&store, &format!("round {round}"));
    }
}

type Shown = Vec<(String, Bytes, Revision)>;

fn shown(store: &Store<()>) -> Shown {
    store.list("").entries.into_iter().map(|entry| (entry.key.to_string(), entry.value, entry.modified)).collect()
}

/// A closed store with so many entries, all of that value.
fn filled(path: &Path, count: usize, value: &str) -> Shown {
    let store = open(path).unwrap();
    for i in 0..count {
        let value = Bytes::from(value.repeat(200));
        let make = |_, _: Option<&_>| Ok::<_, StoreError>(Write::Put { value, index: () });
        store.write(&format!("k/{i}"), Expect::Any, Durability::Durable, make).unwrap();
    }
    shown(&store)
}

fn sql(path: &Path, text: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(text).unwrap();
}

#[test]
fn killed_while_a_file_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old");
    let want = filled(&old, 6_000, "value");
    // All that the first version had different.
    sql(&old, "PRAGMA auto_vacuum = NONE; VACUUM; PRAGMA user_version = 1");
    let begin = |round: u64| {
        let path = folder.path().join(format!("round-{round}"));
        std::fs::copy(&old, &path).unwrap();
        path
    };
    let whole = cut_short(step(&begin(0), None), u64::MAX).unwrap();
    let (mut random, mut old_still) = (Seeded(0x01d), 0);
    for round in 1..=if long() { 200 } else { 15 } {
        let path = begin(round);
        // Whoever starts it again may be killed again.
        for _ in 0..=random.below(3) {
            cut_short(step(&path, None), random.below(whole));
            old_still += u64::from(version(&path) == 1);
        }
        let store = open(&path).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(shown(&store), want, "round {round}");
        drop(store);
        let report = store::check(&path, |_, _| Ok(())).unwrap();
        assert_eq!((report.version, report.problems), (2, vec![]), "round {round}");
        std::fs::remove_file(&path).unwrap();
    }
    assert!(old_still > 0, "none was killed before it was done");
}

fn version(path: &Path) -> i64 {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

#[test]
fn killed_while_a_backup_is_restored() {
    let folder = tempfile::tempdir().unwrap();
    let (before, source, backup) =
        (folder.path().join("before"), folder.path().join("source"), folder.path().join("backup"));
    let old = filled(&before, 2_000, "old");
    let new = filled(&source, 2_000, "new");
    store::backup(&source, &backup).unwrap();
    let begin = |round: u64| {
        let path = folder.path().join(format!("round-{round}"));
        std::fs::copy(&before, &path).unwrap();
        path
    };
    let whole = cut_short(step(&begin(0), Some((&backup, ".aside"))), u64::MAX).unwrap();
    let (mut random, mut undone) = (Seeded(0xbac), 0);
    for round in 1..=if long() { 200 } else { 15 } {
        let path = begin(round);
        cut_short(step(&path, Some((&backup, ".first"))), random.below(whole));
        let first = path.with_file_name(format!("round-{round}.first"));
        let store = open(&path).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let found = shown(&store);
        drop(store);
        if found == old {
            undone += 1;
        } else {
            assert_eq!(found, new, "round {round}: neither the one nor the other");
            assert_eq!(shown(&open(&first).unwrap()), old, "round {round}: what was there is kept");
        }
        // It can be done again, whatever was left half done.
        restore(&backup, &path, ".second").unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(shown(&open(&path).unwrap()), new, "round {round}");
        let second = path.with_file_name(format!("round-{round}.second"));
        assert_eq!(shown(&open(&second).unwrap()), found, "round {round}");
    }
    assert!(undone > 0, "none was killed before it was done");
}

#[test]
fn a_disk_that_refuses_a_write_fails_the_store() {
    for (seed, blocks) in [(1, 200), (2, 600), (3, 1_500)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("objects.sqlite");
        let mut child = command(&path, seed, Some(blocks)).spawn().unwrap();
        let mut known = Acknowledged::default();
        let mut failed = None;
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            known.read(&line);
            failed = line.split_once("failed ").map(|(_, reason)| reason.to_string()).or(failed);
        }
        assert!(child.wait().unwrap().success(), "the child's own assertions hold");
        let reason = failed.expect("the failure is announced");
        assert!(reason.contains("takes no more writes"), "{reason}");
        assert!(!known.keys.is_empty());
        let store = open(&path).unwrap();
        known.check(&store, &format!("{blocks} blocks"));
    }
}

/// Copies of a killed store's files, damaged in a seeded way: never a panic, never a value that was not written.
#[test]
fn damaged_files_recover_a_prefix_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("objects.sqlite");
    let mut known = Acknowledged::default();
    // Long enough for checkpoints: the main file then holds commits of its own.
    for round in 0..3 {
        kill_after(command(&path, 100 + round, None), 400, 0, &mut known);
    }
    // One that is killed in the middle of a checkpoint leaves a main file that is nothing without its log. So what is there
    // is moved in good order, and the last one moves nothing.
    drop(open(&path).unwrap());
    let mut last = command(&path, 200, None);
    last.env(KEEPS_LOG, "");
    kill_after(last, 100, 0, &mut known);
    let wal = folder.path().join("objects.sqlite-wal");
    assert!(std::fs::metadata(&wal).unwrap().len() > 0, "a killed store leaves its log");
    let checkpointed = without_log(&path, &wal);
    let mut random = Seeded(0xbad);
    let mut refused = 0;
    let rounds = if long() { 2_000 } else { 150 };
    for round in 0..rounds {
        let copy = tempfile::tempdir().unwrap();
        let (main, log) = (copy.path().join("objects.sqlite"), copy.path().join("objects.sqlite-wal"));
        std::fs::copy(&path, &main).unwrap();
        std::fs::copy(&wal, &log).unwrap();
        let in_log = round % 2 == 0;
        damage(if in_log { &log } else { &main }, &mut random);
        match open(&main) {
            Ok(store) => {
                check_values(&store, &format!("round {round}"));
                if in_log {
                    for (key, modified) in &checkpointed {
                        let newer = store.get(key).is_none_or(|entry| entry.modified >= *modified);
                        assert!(newer, "round {round}: {key} went back before the checkpoint");
                    }
                }
            }
            Err(StoreError::Corrupt { .. } | StoreError::TooNew { .. }) => refused += 1,
            Err(StoreError::Io { source, .. }) => panic!("round {round}: {source}"),
            Err(error) => panic!("round {round}: {error}"),
        }
    }
    assert!(refused > 0 && refused < rounds, "{refused} of {rounds} were refused");
}

/// What the main file alone holds.
fn without_log(path: &Path, wal: &Path) -> Vec<(String, Revision)> {
    let copy = tempfile::tempdir().unwrap();
    let main = copy.path().join("objects.sqlite");
    std::fs::copy(path, &main).unwrap();
    assert!(wal.exists());
    let entries = open(&main).unwrap().list("").entries;
    assert!(!entries.is_empty(), "something was checkpointed");
    entries.into_iter().map(|entry| (entry.key.to_string(), entry.modified)).collect()
}

fn damage(path: &Path, random: &mut Seeded) {
    let mut bytes = std::fs::read(path).unwrap();
    let length = bytes.len() as u64;
    match random.below(3) {
        0 => bytes.truncate(random.below(length) as usize),
        1 => {
            for _ in 0..=random.below(4) {
                bytes[random.below(length) as usize] ^= 1 << random.below(8);
            }
        }
        _ => {
            // A sector that never arrived.
            let start = (random.below(length) / 512 * 512) as usize;
            let end = (start + 512).min(bytes.len());
            bytes[start..end].fill(0);
        }
    }
    std::fs::write(path, bytes).unwrap();
}
