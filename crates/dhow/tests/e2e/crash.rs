//! `kill -9` at random moments of a deploy-invoke-delete loop: what was acknowledged survives, and nothing leaks.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Platform, eventually, machine};

/// A small generator with a printed seed, so that a failing run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

const SOURCE: &str = "def handle(request):\n    return 'ok'\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments() {
    if !machine() {
        return;
    }
    let rounds = if std::env::var("DHOW_LONG").is_ok() { 200 } else { 10 };
    let seed = std::env::var("DHOW_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(2026);
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut platform = Platform::new(&[]);
    // What must be there, by the answers that came back; what was under way when the kill came may be either.
    let mut acknowledged: BTreeSet<String> = BTreeSet::new();
    let mut undecided: BTreeSet<String> = BTreeSet::new();
    for round in 0..rounds {
        platform.launch().await;
        check_survivors(&platform, &mut acknowledged, &mut undecided, round);
        let moment = Duration::from_millis(random.below(2500));
        let pid = platform.pid();
        let killer = tokio::spawn(async move {
            tokio::time::sleep(moment).await;
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
        });
        let mut step = 0;
        while !killer.is_finished() {
            let name = format!("f{round}x{step}");
            one_life(&platform, &name, &mut acknowledged, &mut undecided).await;
            step += 1;
        }
        killer.await.expect("the killer ends");
        platform.kill();
        if round % (rounds / 5) == 0 {
            platform.launch().await;
            platform.stop_and_count().await;
        }
    }
    platform.launch().await;
    check_survivors(&platform, &mut acknowledged, &mut undecided, rounds);
    for name in acknowledged.iter().take(3) {
        eventually("a survivor answers", || async {
            let reply = platform.get(name, "/").await;
            if reply.text() == "ok" { Ok(()) } else { Err(reply.text()) }
        })
        .await;
    }
    platform.stop_and_count().await;
}

/// Deploy, call, delete; each step may be cut short by the kill.
async fn one_life(
    platform: &Platform,
    name: &str,
    acknowledged: &mut BTreeSet<String>,
    undecided: &mut BTreeSet<String>,
) {
    let dir = platform.write_function(name, &[("main.py", SOURCE)]);
    undecided.insert(name.to_owned());
    if !platform.dhow(&["deploy", "--no-wait", dir.to_str().expect("UTF-8")]).status.success() {
        return;
    }
    undecided.remove(name);
    acknowledged.insert(name.to_owned());
    let _ = platform.dhow(&["invoke", name]);
    // Every third stays, so that there is something to survive.
    if name.ends_with(['0', '3', '6', '9']) {
        return;
    }
    acknowledged.remove(name);
    undecided.insert(name.to_owned());
    if platform.dhow(&["delete", name]).status.success() {
        undecided.remove(name);
    }
}

fn check_survivors(
    platform: &Platform,
    acknowledged: &mut BTreeSet<String>,
    undecided: &mut BTreeSet<String>,
    round: usize,
) {
    let list: Value = serde_json::from_str(&platform.dhow_ok(&["list", "-o", "json"])).expect("JSON");
    let items = list["items"].as_array().or_else(|| list.as_array()).cloned().unwrap_or_default();
    let there: BTreeSet<String> = items
        .iter()
        .filter(|f| f["metadata"]["deletionTimestamp"].is_null())
        .filter_map(|f| f["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "round {round}: acknowledged and lost: {lost:?}\n{}", platform.log());
    let risen: Vec<_> = there.iter().filter(|n| !acknowledged.contains(*n) && !undecided.contains(*n)).collect();
    assert!(risen.is_empty(), "round {round}: deleted and back: {risen:?}");
    for name in std::mem::take(undecided) {
        if there.contains(&name) {
            acknowledged.insert(name);
        }
    }
}
