//! The requests of an instance that is on its way out, or dead.
//!
//! Owns: that whoever sends the requests is told, and told again once the instance has ended, or serves again. Must not know: when the
//! instance is stopped, which `plan` decides.

use std::pin::Pin;
use std::sync::Arc;

use api::names::label;
use api::wire::{RevisionKey, Traffic};
use k8s_openapi::api::core::v1::Pod;
use runtime::Sandbox;

use crate::plan;

/// Until it is dropped the instance gets no new requests.
pub struct Draining {
    traffic: Arc<dyn Traffic>,
    key: RevisionKey,
    pod: String,
    /// Absent once the last request is over.
    last: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Draining {
    /// `None` for a pod that gets no requests, since it is of no revision.
    fn begin(traffic: &Arc<dyn Traffic>, pod: &Pod) -> Option<Self> {
        let revision = pod.metadata.labels.as_ref()?.get(label::REVISION)?.clone();
        let key = RevisionKey { namespace: pod.metadata.namespace.clone()?, revision };
        let pod = pod.metadata.name.clone()?;
        let last = Some(traffic.leaves(&key, &pod));
        Some(Self { traffic: traffic.clone(), key, pod, last })
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        self.traffic.left(&self.key, &self.pod);
    }
}

/// It is on its way out. One that is dead may be known as such; its last request is waited for from now on.
pub fn begin(draining: &mut Option<Draining>, traffic: &Arc<dyn Traffic>, pod: &Pod) {
    *draining = None;
    *draining = Draining::begin(traffic, pod);
}

/// A dead instance gets nothing new until it serves again. That its status says so comes later, perhaps after the next run
/// has begun: until then its address would refuse whoever is sent there.
pub fn follow(draining: &mut Option<Draining>, traffic: &Arc<dyn Traffic>, pod: &Pod, sandbox: &Sandbox) {
    if plan::is_over(sandbox, plan::RestartPolicy::of(pod)) {
        if draining.is_none() {
            begin(draining, traffic, pod);
        }
    } else if sandbox.is_ready() {
        *draining = None;
    }
}

/// When the last request is over; never, where none is waited for.
pub async fn over(draining: &mut Option<Draining>) {
    match draining.as_mut().and_then(|draining| draining.last.as_mut()) {
        Some(last) => last.await,
        None => std::future::pending().await,
    }
    draining.iter_mut().for_each(|draining| draining.last = None);
}
