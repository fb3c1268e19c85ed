//! Probing instances that are listed but not ready: on a cluster a kubelet says so seconds late.
//!
//! Owns: making the probes that [`plan`] asks for, many revisions at a time. Must not know: who waits, or what a slot
//! is. The surprise: it sleeps for good when no revision has such an address, and nothing of it is on the warm path.

mod check;
mod plan;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use probe::{Check, Connect};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::backend::Backend;
use crate::endpoints::{Address, Ready};
use crate::hub::Hub;

pub(crate) use check::check_of;
pub(crate) use plan::{Candidates, Change, Step};

/// Probes of all revisions at the same time; each is a socket.
const AT_ONCE: usize = 512;

/// A first packet that was lost, since the pod's network was not there yet, is sent again by a new connection much
/// sooner than by the kernel.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// Reached over the network, where it serves.
struct Instance(SocketAddr);

impl Instance {
    fn at(&self, port: Option<u16>) -> SocketAddr {
        SocketAddr::new(self.0.ip(), port.unwrap_or(self.0.port()))
    }
}

impl Connect for Instance {
    type Stream = TcpStream;

    async fn connect(&self, port: Option<u16>) -> io::Result<TcpStream> {
        timeout(CONNECT_TIMEOUT, TcpStream::connect(self.at(port))).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    fn host(&self, port: Option<u16>) -> String {
        self.at(port).to_string()
    }
}

/// Runs until it is dropped.
pub(crate) async fn run(hub: &Hub) {
    let room = Semaphore::new(AT_ONCE);
    let mut revisions = FuturesUnordered::new();
    loop {
        for backend in hub.to_probe() {
            revisions.push(until_rest(backend, &room));
        }
        tokio::select! {
            () = hub.probe_wake.notified() => {}
            Some(()) = revisions.next() => {}
        }
    }
}

/// Probes one revision's addresses until there is nothing to probe.
async fn until_rest(backend: Arc<Backend>, room: &Semaphore) {
    let mut probes = FuturesUnordered::new();
    loop {
        let (step, check) = backend.next_probe();
        let until = match (step, check) {
            (Step::Probe(ready), Some(check)) => {
                backend.hub().metrics.probes.inc();
                probes.push(probe(ready, check, room));
                continue;
            }
            (Step::At(at), _) => Some(Duration::from_micros(at.saturating_sub(backend.hub().micros()))),
            (Step::Wait, _) => None,
            (Step::Rest | Step::Probe(_), _) => return,
        };
        tokio::select! {
            Some((ready, check, passed)) = probes.next() => backend.probed(&ready, passed, check.successes),
            () = sleep(until.unwrap_or_default()), if until.is_some() => {}
            () = backend.probe_wake.notified() => {}
        }
    }
}

async fn probe(ready: Ready, check: Arc<Check>, room: &Semaphore) -> (Ready, Arc<Check>, bool) {
    // The semaphore is never closed; without a permit there would only be one socket more.
    let _permit = room.acquire().await;
    let address: Option<SocketAddr> = match &ready.address {
        Address::Tcp(address) => Some(*address),
        // Only a node of Dhow's own serves so, and it says itself when.
        Address::Unix(_) => None,
    };
    let passed = match address {
        Some(address) => probe::ask(&check, &Instance(address)).await,
        None => false,
    };
    (ready, check, passed)
}
