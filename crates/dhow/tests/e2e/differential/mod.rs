//! The embedded API server beside a real one: the same requests to both, and every difference in what they answer.
//!
//! Owns: the scripts (`scripts/*.http`, and random ones), and the list of differences that are meant (`allowed.txt`).
//! The surprise: what a server makes up (uids, revisions, times) is replaced by the order in which it was first seen, so
//! that answers can be compared and still show when an object did not change.

mod compare;
mod generate;
mod mask;
mod script;
mod server;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::{Platform, on_cluster};
use compare::{Allowed, Difference};
use script::Script;
use server::Server;

const SCRIPTS: [(&str, &str); 8] = [
    ("objects", include_str!("scripts/objects.http")),
    ("patches", include_str!("scripts/patches.http")),
    ("apply", include_str!("scripts/apply.http")),
    ("reads", include_str!("scripts/reads.http")),
    ("kinds", include_str!("scripts/kinds.http")),
    ("definitions", include_str!("scripts/definitions.http")),
    ("protobuf", include_str!("scripts/protobuf.http")),
    ("malformed", include_str!("scripts/malformed.http")),
];
const ALLOWED: &str = include_str!("allowed.txt");
/// Scripts at a time; the real server is the slower of the two.
const AT_A_TIME: usize = 4;
/// Of random scripts; `DHOW_LONG` runs many more, `DHOW_SEED` others.
const ROUNDS: u64 = 40;
const LONG_ROUNDS: u64 = 2000;
const SEED: u64 = 2026;

/// Both servers.
struct Pair {
    real: Server,
    ours: Server,
    spaces: AtomicU32,
    // Lives as long as the tests ask it.
    _platform: Platform,
}

impl Pair {
    /// `None` where there is no cluster, or no platform of one machine.
    async fn start() -> Option<Arc<Self>> {
        if !on_cluster() {
            return None;
        }
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a platform of this machine needs root");
            return None;
        }
        let platform = Platform::start_with(&[]).await;
        let real = Server::new(&crate::harness::cluster_kubeconfig().expect("asked before")).await;
        let ours = Server::new(&platform.kubeconfig()).await;
        Some(Arc::new(Self { real, ours, spaces: AtomicU32::new(0), _platform: platform }))
    }

    /// How the answers to a script differ, each in a new namespace of the same name.
    async fn run(&self, script: &Script) -> Vec<Difference> {
        let number = self.spaces.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("differential-{}-{number}", std::process::id());
        let (real, ours) = tokio::join!(self.real.run(script, &namespace), self.ours.run(script, &namespace));
        compare::answers(script, &real, &ours)
    }
}

fn scripts() -> Vec<Script> {
    let filter = std::env::var("DHOW_SCRIPTS").unwrap_or_default();
    let all = SCRIPTS.iter().flat_map(|(file, text)| script::parse(file, text));
    all.filter(|script| script.title.contains(&filter)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real API server: tests/cluster/run.sh"]
async fn scripts_are_answered_as_by_a_real_server() {
    let Some(pair) = Pair::start().await else { return };
    let allowed = Allowed::parse(ALLOWED);
    let (scripts, gate) = (scripts(), Arc::new(Semaphore::new(AT_A_TIME)));
    let all = scripts.len();
    let mut running = JoinSet::new();
    for (i, script) in scripts.into_iter().enumerate() {
        let (pair, gate) = (pair.clone(), gate.clone());
        running.spawn(async move {
            let _turn = gate.acquire().await.expect("never closed");
            (i, pair.run(&script).await)
        });
    }
    let mut found = running.join_all().await;
    found.sort_by_key(|(i, _)| *i);
    let mut report = String::new();
    let differences = found.into_iter().flat_map(|(_, differences)| differences);
    let unmeant: Vec<Difference> = differences.filter(|difference| !allowed.covers(difference)).collect();
    for difference in &unmeant {
        writeln!(report, "{difference}").expect("a String takes everything");
    }
    let spare = if all > 0 && std::env::var_os("DHOW_SCRIPTS").is_none() { allowed.unused() } else { vec![] };
    assert!(unmeant.is_empty(), "{} differences in {all} scripts:\n{report}", unmeant.len());
    assert!(spare.is_empty(), "allowed.txt lists what no script shows any more: {spare:#?}");
    println!("{all} scripts, no difference that is not listed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "tests/cluster/run.sh runs it; explores with other seeds in DHOW_SEED"]
async fn random_scripts_are_answered_as_by_a_real_server() {
    let Some(pair) = Pair::start().await else { return };
    let allowed = Allowed::parse(ALLOWED);
    let seed = std::env::var("DHOW_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(SEED);
    let rounds = if std::env::var_os("DHOW_LONG").is_some() { LONG_ROUNDS } else { ROUNDS };
    for round in 0..rounds {
        let script = generate::script(seed + round);
        if differs(&pair, &allowed, &script).await.is_empty() {
            continue;
        }
        let (smallest, differences) = smallest(&pair, &allowed, script).await;
        let mut report = String::new();
        for difference in &differences {
            writeln!(report, "{difference}").expect("a String takes everything");
        }
        panic!("seed {}:\n{}\n{report}", seed + round, smallest.text());
    }
    println!("{rounds} random scripts from seed {seed}, no difference that is not listed");
}

async fn differs(pair: &Pair, allowed: &Allowed, script: &Script) -> Vec<Difference> {
    pair.run(script).await.into_iter().filter(|difference| !allowed.covers(difference)).collect()
}

/// Leaves out one step after another for as long as there is a difference.
async fn smallest(pair: &Pair, allowed: &Allowed, mut script: Script) -> (Script, Vec<Difference>) {
    let mut differences = differs(pair, allowed, &script).await;
    // What defines a kind stays, and that it is waited for; and the object that the watches begin with.
    let first = script.steps.iter().rposition(|step| step.method == "WAIT").map_or(0, |at| at + 1);
    for step in (first + 1..script.steps.len()).rev() {
        let mut smaller = script.clone();
        smaller.steps.remove(step);
        let still = differs(pair, allowed, &smaller).await;
        if !still.is_empty() {
            (script, differences) = (smaller, still);
        }
    }
    (script, differences)
}
