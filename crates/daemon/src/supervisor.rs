//! Named tasks with owners and an end: who runs, what its exit means, and in which order all of them stop.
//!
//! Phases are stopped in the order they were declared: each phase's token is cancelled, its tasks get the grace to
//! end, what is left is aborted with a warning, and only then does the next phase begin.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::DaemonError;

/// What it means that a task ended before it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// The program cannot go on without it.
    ShutDown,
    /// It was done.
    Fine,
}

struct Task {
    name: &'static str,
    handle: JoinHandle<()>,
}

struct Phase {
    name: &'static str,
    grace: Duration,
    token: CancellationToken,
    tasks: Vec<Task>,
}

pub struct Supervisor {
    phases: Vec<Phase>,
    ended: mpsc::Receiver<DaemonError>,
    report: mpsc::Sender<DaemonError>,
}

impl Supervisor {
    /// Phases in the order in which they will stop, each with the time its tasks get.
    pub fn new(phases: &[(&'static str, Duration)]) -> Self {
        let phases = phases
            .iter()
            .map(|(name, grace)| Phase { name, grace: *grace, token: CancellationToken::new(), tasks: vec![] })
            .collect();
        // One slot is enough: the first task that must not end decides.
        let (report, ended) = mpsc::channel(1);
        Self { phases, ended, report }
    }

    /// The token that is cancelled when the phase begins to stop.
    pub fn token(&self, phase: &'static str) -> CancellationToken {
        self.phase(phase).token.clone()
    }

    /// Spawns a task into a phase. It must end soon after the token it is given is cancelled.
    pub fn spawn<F, E>(
        &mut self,
        phase: &'static str,
        name: &'static str,
        on_exit: OnExit,
        run: impl FnOnce(CancellationToken) -> F,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let token = self.token(phase);
        let future = run(token.clone());
        let report = self.report.clone();
        let handle = tokio::spawn(async move {
            let result = future.await;
            let reason = match (&result, on_exit) {
                (Err(e), _) => format!("{e:#}"),
                (Ok(()), OnExit::Fine) => return,
                (Ok(()), OnExit::ShutDown) => "it returned".to_owned(),
            };
            if token.is_cancelled() {
                tracing::debug!(task = name, %reason, "task ended while stopping");
            } else {
                // A full channel means that another task already brought the program down.
                let _ = report.try_send(DaemonError::TaskEnded { name: name.to_owned(), reason });
            }
        });
        let index = self.index(phase);
        self.phases[index].tasks.push(Task { name, handle });
    }

    /// Waits until a task that must not end has ended (a panic included).
    pub async fn failed(&mut self) -> DaemonError {
        let mut poll = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                Some(error) = self.ended.recv() => return error,
                _ = poll.tick() => {
                    if let Some(name) = self.panicked() {
                        return DaemonError::TaskEnded { name: name.to_owned(), reason: "it panicked".to_owned() };
                    }
                }
            }
        }
    }

    /// Stops phase after phase; returns the names of the tasks that had to be aborted.
    pub async fn drain(self) -> Vec<&'static str> {
        let mut aborted = vec![];
        for phase in self.phases {
            tracing::debug!(phase = phase.name, "stopping");
            phase.token.cancel();
            let deadline = tokio::time::Instant::now() + phase.grace;
            for mut task in phase.tasks {
                if tokio::time::timeout_at(deadline, &mut task.handle).await.is_err() {
                    tracing::warn!(phase = phase.name, task = task.name, "did not stop in time, aborted");
                    task.handle.abort();
                    aborted.push(task.name);
                }
            }
        }
        aborted
    }

    // A panicking task never reports its end, so finished handles are looked at, and let go.
    fn panicked(&mut self) -> Option<&'static str> {
        for phase in &mut self.phases {
            let mut kept = Vec::with_capacity(phase.tasks.len());
            let mut found = None;
            for task in phase.tasks.drain(..) {
                if !task.handle.is_finished() {
                    kept.push(task);
                } else if let Some(Err(e)) = finished(task.handle)
                    && e.is_panic()
                {
                    found = Some(task.name);
                }
            }
            phase.tasks = kept;
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn phase(&self, name: &'static str) -> &Phase {
        &self.phases[self.index(name)]
    }

    fn index(&self, name: &'static str) -> usize {
        self.phases.iter().position(|p| p.name == name).expect("phases are declared by the composition root")
    }
}

/// The result of a handle that is known to be finished.
fn finished(handle: JoinHandle<()>) -> Option<Result<(), tokio::task::JoinError>> {
    let mut handle = std::pin::pin!(handle);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match handle.as_mut().poll(&mut context) {
        std::task::Poll::Ready(result) => Some(result),
        std::task::Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn supervisor() -> Supervisor {
        Supervisor::new(&[("first", Duration::from_secs(1)), ("last", Duration::from_secs(1))])
    }

    #[tokio::test(start_paused = true)]
    async fn phases_stop_in_order() {
        let mut tasks = supervisor();
        let order = Arc::new(Mutex::new(vec![]));
        for phase in ["last", "first"] {
            let order = order.clone();
            tasks.spawn(phase, "worker", OnExit::ShutDown, |token| async move {
                token.cancelled().await;
                order.lock().expect("not poisoned").push(phase);
                Ok::<(), DaemonError>(())
            });
        }
        assert!(tasks.drain().await.is_empty());
        assert_eq!(*order.lock().expect("not poisoned"), ["first", "last"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stubborn_task_is_aborted_and_named() {
        let mut tasks = supervisor();
        tasks.spawn("first", "stubborn", OnExit::ShutDown, |_| std::future::pending::<Result<(), DaemonError>>());
        assert_eq!(tasks.drain().await, ["stubborn"]);
    }

    #[tokio::test(start_paused = true)]
    async fn unexpected_ends_are_reported() {
        let mut tasks = supervisor();
        tasks.spawn("first", "brief", OnExit::Fine, |_| async { Ok::<(), DaemonError>(()) });
        tasks.spawn("first", "vital", OnExit::ShutDown, |_| async { Ok::<(), DaemonError>(()) });
        assert!(tasks.failed().await.to_string().contains("vital"));
        let mut tasks = supervisor();
        tasks.spawn("first", "clumsy", OnExit::ShutDown, |_| async {
            let empty: [u8; 0] = [];
            assert!(!empty.is_empty(), "a panic on purpose");
            Ok::<(), DaemonError>(())
        });
        assert!(tasks.failed().await.to_string().contains("panicked"));
    }
}
