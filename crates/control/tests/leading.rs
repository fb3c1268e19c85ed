//! Leadership against the real API server in memory: one at a time, handed over at once, taken over after a death.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use apiserver::ApiServer;
use jiff::SignedDuration;
use reconcile::lease::{Candidate, LeaseError, Timing};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Short, so that a takeover is seen; a lease counts in whole seconds.
fn timing() -> Timing {
    let millis = SignedDuration::from_millis;
    Timing { duration: millis(1000), give_up: millis(600), renew_every: millis(50) }
}

struct World {
    client: kube::Client,
    working: Arc<AtomicUsize>,
    leaders: mpsc::UnboundedReceiver<String>,
    says: mpsc::UnboundedSender<String>,
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<Option<()>, LeaseError>>,
}

impl World {
    fn new() -> Self {
        let store = store::Store::memory(apiserver::index, store::Options::default());
        let server = ApiServer::new(store, apiserver::Config::new(daemon::system_clock())).unwrap();
        let (says, leaders) = mpsc::unbounded_channel();
        Self { client: server.client("default"), working: Arc::default(), leaders, says }
    }

    fn candidate(&self, name: &str) -> Running {
        let candidate = Candidate {
            client: self.client.clone(),
            namespace: "default".into(),
            lease: "work".into(),
            identity: name.into(),
            timing: timing(),
            clock: daemon::system_clock(),
        };
        let (stop, working, says, name) =
            (CancellationToken::new(), self.working.clone(), self.says.clone(), name.to_owned());
        let token = stop.clone();
        let task = tokio::spawn(async move {
            let work = |stop: CancellationToken| async move {
                assert_eq!(working.fetch_add(1, SeqCst), 0, "two lead at once");
                let _leaves = Leaves(working);
                says.send(name).unwrap();
                stop.cancelled().await;
            };
            candidate.lead(token, work).await
        });
        Running { stop, task }
    }

    async fn leader(&mut self) -> String {
        tokio::time::timeout(Duration::from_secs(20), self.leaders.recv()).await.expect("somebody leads").unwrap()
    }
}

struct Leaves(Arc<AtomicUsize>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_the_next_takes_over() {
    let mut world = World::new();
    let first = world.candidate("first");
    assert_eq!(world.leader().await, "first");
    let second = world.candidate("second");

    first.stop.cancel();
    assert_eq!(first.task.await.unwrap().unwrap(), Some(()), "it did its work and ended");
    assert_eq!(world.leader().await, "second", "a released lease is taken");

    let third = world.candidate("third");
    second.task.abort();
    assert!(second.task.await.unwrap_err().is_cancelled());
    assert_eq!(world.leader().await, "third", "a dead leader's lease runs out");

    let waiting = world.candidate("waiting");
    waiting.stop.cancel();
    assert_eq!(waiting.task.await.unwrap().unwrap(), None, "it never led");
    third.stop.cancel();
    third.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_lease_was_taken_stops() {
    let mut world = World::new();
    let leader = world.candidate("first");
    assert_eq!(world.leader().await, "first");
    let leases = kube::Api::<k8s_openapi::api::coordination::v1::Lease>::namespaced(world.client.clone(), "default");
    let stolen = serde_json::json!({"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 1}});
    leases.patch("work", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(stolen)).await.unwrap();
    assert!(matches!(leader.task.await.unwrap(), Err(LeaseError::Lost(lease)) if lease == "work"));
}
