//! Leadership: of several candidates one works, by a Lease that it keeps renewing.
//!
//! Owns: taking, keeping and giving up one Lease. Must not know: what the leader does. The surprise: a leader that
//! cannot renew stops its work before the Lease runs out, so two never work at once even where the API server is gone.

mod plan;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

pub use plan::Timing;
use plan::{Seen, Step};

/// One candidate for one Lease.
pub struct Candidate {
    pub client: Client,
    pub namespace: String,
    pub lease: String,
    /// Unique among the candidates; others may read from it where the leader is.
    pub identity: String,
    pub timing: Timing,
    pub clock: api::Clock,
}

#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("the lease {0} could not be renewed in time")]
    Lost(String),
}

impl Candidate {
    /// Waits to lead, then does `work` until it ends, `shutdown`, or the Lease is lost; `work` is told by its token and
    /// waited for. `None` when the shutdown came first.
    pub async fn lead<T, F>(
        self,
        shutdown: CancellationToken,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Result<Option<T>, LeaseError>
    where
        F: Future<Output = T>,
    {
        let Some(lease) = shutdown.run_until_cancelled(self.acquire()).await else { return Ok(None) };
        tracing::info!(lease = self.lease, "leading");
        let stop = shutdown.child_token();
        let (mut working, mut keeping) = (Box::pin(work(stop.clone())), Box::pin(self.keep(lease)));
        tokio::select! {
            done = &mut working => {
                drop(keeping);
                self.release().await;
                Ok(Some(done))
            }
            () = &mut keeping => {
                tracing::error!(lease = self.lease, "lost the lease; stopping");
                stop.cancel();
                working.await;
                Err(LeaseError::Lost(self.lease.clone()))
            }
        }
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn empty(&self) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.name = Some(self.lease.clone());
        lease.metadata.namespace = Some(self.namespace.clone());
        lease
    }

    async fn acquire(&self) -> Lease {
        let mut seen = Seen::default();
        loop {
            let until = match self.attempt(&mut seen).await {
                Ok(Ok(lease)) => return lease,
                Ok(Err(until)) => until,
                Err(error) => {
                    tracing::debug!(lease = self.lease, %error, "no leader yet");
                    (self.clock)() + self.timing.renew_every
                }
            };
            self.sleep_until(until).await;
        }
    }

    /// One look and, when the Lease is free or ours, one write. A conflict means that another was faster.
    async fn attempt(&self, seen: &mut Seen) -> kube::Result<Result<Lease, jiff::Timestamp>> {
        let lease = self.leases().get_opt(&self.lease).await?;
        let now = (self.clock)();
        seen.look(lease.as_ref(), now);
        match plan::step(lease.as_ref(), seen, &self.empty(), &self.identity, self.timing, now) {
            Step::Wait { until } => Ok(Err(until)),
            Step::Write(wanted) if lease.is_none() => {
                self.leases().create(&PostParams::default(), &wanted).await.map(Ok)
            }
            Step::Write(wanted) => self.leases().replace(&self.lease, &PostParams::default(), &wanted).await.map(Ok),
        }
    }

    /// Renews until it could not for too long, or somebody else holds the Lease.
    async fn keep(&self, mut lease: Lease) {
        let mut renewed = (self.clock)();
        loop {
            self.sleep_until((self.clock)() + self.timing.renew_every).await;
            let started = (self.clock)();
            let left = (renewed + self.timing.give_up).duration_since(started);
            let Ok(left) = std::time::Duration::try_from(left) else { return };
            match tokio::time::timeout(left, self.renew(&mut lease, started)).await {
                Ok(Ok(())) => renewed = started,
                Ok(Err(Some(error))) => tracing::warn!(lease = self.lease, %error, "the lease was not renewed"),
                Ok(Err(None)) | Err(_) => return,
            }
        }
    }

    /// Written over what was written last, without another look: a conflict tells of any change, and then there is one.
    /// Fails without an error when somebody else holds the Lease.
    async fn renew(&self, lease: &mut Lease, now: jiff::Timestamp) -> Result<(), Option<kube::Error>> {
        let mut seen = Seen::default();
        seen.look(Some(lease), now);
        let Step::Write(wanted) = plan::step(Some(lease), &seen, lease, &self.identity, self.timing, now) else {
            return Err(None);
        };
        match self.leases().replace(&self.lease, &PostParams::default(), &wanted).await {
            Ok(new) => *lease = new,
            Err(error) => {
                *lease = self.leases().get(&self.lease).await.map_err(Some)?;
                return Err(Some(error));
            }
        }
        Ok(())
    }

    /// Best effort: an unreleased Lease runs out by itself.
    async fn release(&self) {
        let release = async {
            let Ok(Some(lease)) = self.leases().get_opt(&self.lease).await else { return };
            if lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) != Some(&self.identity) {
                return;
            }
            let free = plan::released(&lease, (self.clock)());
            if let Err(error) = self.leases().replace(&self.lease, &PostParams::default(), &free).await {
                tracing::debug!(lease = self.lease, %error, "the lease was not released");
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), release).await;
    }

    async fn sleep_until(&self, until: jiff::Timestamp) {
        let left = until.duration_since((self.clock)());
        tokio::time::sleep(std::time::Duration::try_from(left).unwrap_or_default()).await;
    }
}
