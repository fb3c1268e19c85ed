//! Never lose a request: deploys, rollbacks, scaling, deleted pods and killed instances under a steady load.
//!
//! The container's program goes at SIGTERM with whatever it is doing, so that what is not lost is the platform's doing. The
//! surprise: POSTs come only while nothing is killed. One that a killed instance had in hand must not be sent twice, and its
//! client is told so.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Flood, Platform, Seeded, Target, container, kubectl, machine};

/// The container, and the function beside it, whose answers must never be mixed up.
const SERVICE: &str = "echo";
const FUNCTION: &str = "beside";
const TARGETS: &[Target] = &[Target { name: SERVICE, weight: 31 }, Target { name: FUNCTION, weight: 1 }];
const CONNECTIONS: usize = 64;

/// How much of everything.
struct Size {
    rate: u64,
    requests: u64,
    /// Of each phase.
    deploys: usize,
    rollbacks: usize,
    others: usize,
}

impl Size {
    /// A tenth of the long run's deploys and rollbacks. Two thousand requests a second are too many for a debug build, its
    /// client and its instances on two processors that have other things to do; this many leave room.
    fn new() -> Self {
        if std::env::var("DHOW_LONG").is_ok() {
            Self { rate: 2_000, requests: 2_000_000, deploys: 50, rollbacks: 50, others: 40 }
        } else {
            Self { rate: 600, requests: 30_000, deploys: 5, rollbacks: 5, others: 4 }
        }
    }
}

/// What is done to the platform.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Deploy,
    Rollback,
    /// Of the function: its own command, from none to a few.
    Scale,
    /// Of the container, which then starts again for the next request.
    ScaleToZero,
    DeletePod,
    /// SIGKILL to an instance's process.
    Kill,
    /// Without grace.
    ForceDelete,
}

/// Everything in an order that the seed says; what kills comes in the second phase only.
fn script(size: &Size, random: &mut Seeded, kills: bool) -> Vec<Action> {
    use Action::{DeletePod, Deploy, ForceDelete, Kill, Rollback, Scale, ScaleToZero};
    let mut kinds = vec![(Deploy, size.deploys), (Rollback, size.rollbacks)];
    kinds.extend([Scale, ScaleToZero, DeletePod].map(|kind| (kind, size.others)));
    if kills {
        kinds.extend([(Kill, 2 * size.others), (ForceDelete, size.others)]);
    }
    let mut script: Vec<Action> = kinds.into_iter().flat_map(|(kind, count)| vec![kind; count]).collect();
    for at in (1..script.len()).rev() {
        script.swap(at, random.below(at as u64 + 1) as usize);
    }
    script
}

/// The platform, and what was last asked of it.
struct World {
    platform: Platform,
    image: String,
    random: Seeded,
    version: u32,
    service: Value,
    /// Revisions and their versions, the newest last.
    revisions: Vec<(String, String)>,
}

impl World {
    async fn new(seed: u64) -> Self {
        let platform = Platform::start().await;
        let root = platform.dir.path().join("image");
        let image = platform.image("echo", &root, "echo", json!({})).await;
        let source = "import os\n\ndef handle(request):\n    query = ''.join(f'?{k}={v}' for k, v in request.query.items())\n    \
                      return f\"{os.environ['K_SERVICE']} v1 {request.method} {request.path}{query} {request.text}\"\n";
        platform.deploy(FUNCTION, &[("main.py", source)]);
        let service = container(SERVICE, &image);
        let mut world = Self { platform, image, random: Seeded(seed), version: 0, service, revisions: vec![] };
        world.change_template();
        world.apply();
        world
    }

    /// Another version, with other bounds.
    fn change_template(&mut self) -> String {
        self.version += 1;
        let version = format!("v{}", self.version);
        let limit = [0, 0, 10, 40][self.random.below(4) as usize];
        self.service["spec"]["template"] = json!({
            "metadata": {"annotations": {
                "autoscaling.knative.dev/min-scale": self.random.below(4).to_string(), "autoscaling.knative.dev/max-scale": "8",
                "autoscaling.knative.dev/window": "6s",
            }},
            "spec": {
                "containerConcurrency": limit,
                "containers": [{"image": self.image, "env": [{"name": "VERSION", "value": version}]}],
            },
        });
        self.service["spec"]["traffic"] = json!([{"latestRevision": true, "percent": 100}]);
        version
    }

    /// Applies the service and waits until it is what it should be.
    fn apply(&mut self) {
        self.platform.apply(&self.service);
        self.platform.serves(SERVICE);
        let newest = ["get", "ksvc", SERVICE, "-o", "jsonpath={.status.latestReadyRevisionName}"];
        let newest = self.platform.kubectl_ok(&newest);
        if self.revisions.last().is_none_or(|(name, _)| *name != newest) {
            self.revisions.push((newest, format!("v{}", self.version)));
        }
    }

    fn act(&mut self, action: Action, flood: &Flood) {
        match action {
            Action::Deploy => {
                // After a rollback the newest revision has the traffic again until the next is ready.
                flood.allow(SERVICE, &format!("v{}", self.version));
                let version = self.change_template();
                flood.allow(SERVICE, &version);
                self.apply();
            }
            Action::Rollback => self.roll_back(flood),
            Action::Scale => {
                let to = self.random.below(4).to_string();
                self.platform.dhow_ok(&["scale", FUNCTION, "--to", &to, "--no-wait"]);
            }
            Action::ScaleToZero => {
                // What `dhow scale` asks for a function.
                let now = String::from_utf8(
                    std::process::Command::new("date").args(["-u", "+%FT%TZ"]).output().expect("date runs").stdout,
                );
                let request = format!("dhow.dev/scale-request=0@{}", now.expect("text").trim());
                let serving = self.serving();
                self.platform.kubectl_ok(&["annotate", "--overwrite", "podautoscaler", &serving, &request]);
            }
            Action::DeletePod => self.delete_pod(&["--wait=false"]),
            Action::ForceDelete => self.delete_pod(&["--wait=false", "--force", "--grace-period=0"]),
            Action::Kill => {
                let instances = instances(self.platform.pid());
                if !instances.is_empty() {
                    let victim = instances[self.random.below(instances.len() as u64) as usize];
                    // One that has gone by itself meanwhile is as dead.
                    let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
                }
            }
        }
    }

    /// All traffic back to the revision before the newest, sometimes in two steps; or forward again.
    fn roll_back(&mut self, flood: &Flood) {
        let serving = self.serving();
        let last = self.revisions.len() - 1;
        let Some((revision, version)) =
            self.revisions[last.saturating_sub(1)..].iter().find(|(name, _)| *name != serving)
        else {
            return;
        };
        let (revision, version) = (revision.clone(), version.clone());
        flood.allow(SERVICE, &version);
        if self.random.below(3) == 0 {
            self.service["spec"]["traffic"] =
                json!([{"revisionName": revision, "percent": 30}, {"revisionName": serving, "percent": 70}]);
            self.apply();
        }
        self.service["spec"]["traffic"] = json!([{"revisionName": revision, "percent": 100}]);
        self.apply();
    }

    /// The revision that has the traffic.
    fn serving(&self) -> String {
        let traffic = &self.service["spec"]["traffic"][0];
        traffic["revisionName"]
            .as_str()
            .map_or_else(|| self.revisions[self.revisions.len() - 1].0.clone(), str::to_owned)
    }

    fn delete_pod(&mut self, how: &[&str]) {
        let pods = ["get", "pods", "-o", "jsonpath={.items[*].metadata.name}"];
        let pods = self.platform.kubectl_ok(&pods);
        let pods: Vec<&str> = pods.split_whitespace().collect();
        if !pods.is_empty() {
            let victim = pods[self.random.below(pods.len() as u64) as usize];
            // One that has gone by itself meanwhile is as gone.
            self.platform.kubectl(&[&["delete", "pod", "--ignore-not-found", victim], how].concat());
        }
    }
}

/// The processes of the container's instances that this very platform has started.
fn instances(platform: u32) -> Vec<i32> {
    let stat = |pid: i32| -> Option<(String, i32)> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = text.split_once('(')?.1.rsplit_once(')')?;
        Some((name.to_owned(), rest.split_whitespace().nth(1)?.parse().ok()?))
    };
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| Path::new(&entry.file_name()).to_str()?.parse::<i32>().ok());
    let ours = |pid: i32| std::iter::successors(Some(pid), |pid| Some(stat(*pid)?.1)).any(|pid| pid as u32 == platform);
    pids.filter(|pid| stat(*pid).is_some_and(|(name, _)| name == "echo") && ours(*pid)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let (size, seed) = (Size::new(), 20_26);
    let mut world = World::new(seed).await;
    let flood = Flood::start(&world.platform, TARGETS, size.rate, CONNECTIONS, seed);
    flood.allow(SERVICE, "v1");
    flood.allow(FUNCTION, "v1");
    let calm = script(&size, &mut world.random, false);
    let storm = script(&size, &mut world.random, true);
    let (first_kill, count) = (calm.len(), calm.len() + storm.len());
    for (number, action) in calm.into_iter().chain(storm).enumerate() {
        if number == first_kill {
            flood.during("the end of POSTs");
            flood.only_safe().await;
        }
        // Spread over all the requests, however fast they come.
        while flood.answered() < size.requests * number as u64 / count as u64 && !flood.has_failed() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        flood.during(&format!("{number}: {action:?}"));
        tokio::task::block_in_place(|| world.act(action, &flood));
        flood.during(&format!("after {number}: {action:?}"));
        if flood.has_failed() {
            break;
        }
    }
    println!("{count} things done, {} versions: {}", world.version, flood.end().await);
    let mut world = world;
    world.platform.stop_and_count().await;
}
