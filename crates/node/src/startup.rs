//! How long an instance took to start, part by part.
//!
//! Owns: the times of one start and their one report. Must not know: who reads the report. The surprise: news that an
//! instance is ready may overtake the answer that its sandbox was made; then the second part took no time.

use api::names::label;
use api::wire::{InstanceStarted, RevisionKey};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Startup {
    begun: Instant,
    made: Option<Instant>,
}

impl Startup {
    pub fn begin() -> Self {
        Self { begun: Instant::now(), made: None }
    }

    /// The sandbox's processes run.
    pub fn made(&mut self) {
        self.made.get_or_insert_with(Instant::now);
    }

    /// The instance is ready; `None` for the pod of no revision.
    pub fn ready(self, pod: &Pod) -> Option<InstanceStarted> {
        let revision = pod.labels().get(label::REVISION)?.clone();
        let ready = Instant::now();
        let made = self.made.unwrap_or(ready);
        Some(InstanceStarted {
            key: RevisionKey { namespace: pod.namespace().unwrap_or_default(), revision },
            sandbox_seconds: (made - self.begun).as_secs_f64(),
            runtime_seconds: (ready - made).as_secs_f64(),
        })
    }
}
