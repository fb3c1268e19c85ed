//! A request inside the gateway, from its arrival to its end.
//!
//! Owns: giving its slot back, and its place in the queue. Must not know: who gets a slot next.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Backend, Grant};
use crate::slots::{Instance, Refusal};

/// A request inside the gateway, counted from its arrival until this is dropped.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(super) backend: Arc<Backend>,
    pub(super) instance: Option<Arc<Instance>>,
    /// What is called the instance is the gateway that counts, and here nothing does.
    pub(super) away: bool,
    pub started: u64,
    /// Microseconds in the queue of a request that found no instance.
    pub(super) cold: Option<u64>,
    /// The answer's status; 499 as long as there is none, since then the client went away.
    pub code: u16,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Client {
        http2: bool,
    },
    /// From a gateway that did not count for its revision.
    Gateway,
}

/// A place in the queue, left by dropping it.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(super) backend: Arc<Backend>,
    pub(super) number: u64,
    pub(super) grant: oneshot::Receiver<Grant>,
}

pub(crate) enum Arrival {
    Serve,
    Wait(Ticket),
    Refused(Refusal),
}

impl Visit {
    /// Counted like a status, as nginx does: the client did not wait for an answer.
    pub const CLIENT_GONE: u16 = 499;

    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Whether another gateway seats this request.
    pub fn is_away(&self) -> bool {
        self.away
    }

    /// The instance whose slot this request holds.
    pub fn instance(&self) -> Option<&Arc<Instance>> {
        self.instance.as_ref()
    }

    /// Gives the slot back and asks for another. `rest` keeps the instance from getting requests for that long.
    pub fn again(&mut self, now: u64, deadline: u64, rest: Option<u64>, dice: impl FnMut(usize) -> usize) -> Arrival {
        let backend = self.backend.clone();
        let mut state = backend.lock();
        if std::mem::take(&mut self.away) {
            // The other gateway is gone, and who comes after it is not known yet.
            self.instance = None;
            backend.enter(&mut state, now);
        } else if let Some(instance) = self.instance.take() {
            if let Some(rest) = rest {
                state.slots.suspend(&instance, now + rest);
            }
            backend.release(&mut state, &instance);
            if rest.is_some() && state.candidates.doubt(&instance.ready, now) {
                let instances = state.slots.listed().into_iter().filter(|one| *one != instance.ready);
                backend.replace(state, &instances.collect::<Vec<_>>(), now);
                state = backend.lock();
            } else {
                backend.settle(&mut state);
            }
        }
        if rest.is_some() {
            backend.hub.wake();
        }
        backend.seat(state, self, now, deadline, dice)
    }

    /// Waits for the queue's verdict.
    pub async fn wait(&mut self, mut ticket: Ticket) -> Result<(), Refusal> {
        // The sender is dropped without a word only with the back end itself, which the ticket keeps alive.
        let grant = (&mut ticket.grant).await.unwrap_or(Err(Refusal::TimedOut));
        self.instance = Some(grant?);
        if self.cold.is_some() {
            self.cold = Some(self.backend.hub.micros().saturating_sub(self.started));
        }
        Ok(())
    }

    /// The answer has begun.
    pub fn first_byte(&mut self, code: u16) {
        self.code = code;
        if let Some(queued) = self.cold.take() {
            let total = self.backend.hub.micros().saturating_sub(self.started);
            self.backend.metrics.cold(queued as f64 / 1e6, total.saturating_sub(queued) as f64 / 1e6);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.away {
            return;
        }
        let now = self.backend.hub.micros();
        let mut state = self.backend.lock();
        state.slots.load.leave(now);
        if let Some(instance) = self.instance.take() {
            self.backend.release(&mut state, &instance);
            if state.slots.queued() > 0 {
                self.backend.settle(&mut state);
            }
        }
        drop(state);
        self.backend.metrics.answered(self.code, now.saturating_sub(self.started) as f64 / 1e6);
    }
}

/// Either the ticket is still queued, or its grant lies in the channel: both change only under the lock.
impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.backend.lock();
        if state.slots.cancel(self.number) {
            self.backend.metrics.queue_depth.set(state.slots.queued() as i64);
        } else if let Ok(Ok(instance)) = self.grant.try_recv() {
            self.backend.release(&mut state, &instance);
            self.backend.settle(&mut state);
        }
    }
}
