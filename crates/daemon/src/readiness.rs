//! Readiness: the program is ready when everybody who said so beforehand has said so.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Cloneable; shared by the parts that become ready and the endpoint that tells.
#[derive(Clone)]
pub struct Readiness {
    waiting: Arc<Mutex<BTreeSet<&'static str>>>,
    changed: Arc<watch::Sender<()>>,
}

/// One part's duty to become ready.
pub struct Handle {
    name: &'static str,
    readiness: Readiness,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { waiting: Arc::default(), changed: Arc::new(watch::Sender::new(())) }
    }
}

impl Readiness {
    pub fn register(&self, name: &'static str) -> Handle {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        Handle { name, readiness: self.clone() }
    }

    /// Who is not ready yet.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// Returns once nobody is waited for.
    pub async fn ready(&self) {
        let mut changes = self.changed.subscribe();
        while !self.waiting_for().is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Handle {
    pub fn ready(self) {
        self.readiness.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(self.name);
        self.readiness.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_all_are() {
        let readiness = Readiness::default();
        let (a, b) = (readiness.register("a"), readiness.register("b"));
        a.ready();
        assert_eq!(readiness.waiting_for(), ["b"]);
        b.ready();
        readiness.ready().await;
    }
}
