//! One pod's life: asks `plan` what comes next, does it, and writes the status.
//!
//! The surprise: a status that nobody waits for is held back for [`PATIENCE`], so that an instance that is ready at
//! once costs one write instead of three.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::Request;
use runtime::{ErrorClass, ProviderError, Sandbox};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::drain::{self, Draining};
use crate::health::{self, Health};
use crate::logs::{self, Entry, Logs};
use crate::plan::{self, Busy, Ended, History, Leaving, Step};
use crate::pods::News;
use crate::start::{Failure, Shared, start};
use crate::startup::Startup;
use crate::translate::{self, Refusal, reason};
use crate::{MANAGER, status};

/// How long a status waits that nobody waits for.
const PATIENCE: Duration = Duration::from_millis(100);
/// The pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Attempts to create a sandbox that fail quietly: most of what is exhausted comes back at once.
const QUIET_ATTEMPTS: u32 = 3;

pub struct Worker {
    shared: Arc<Shared>,
    news: watch::Receiver<News>,
    pod: Arc<Pod>,
    gone: bool,
    /// As its probes let it be seen; and as the Provider said last.
    sandbox: Option<Sandbox>,
    told: Option<Sandbox>,
    health: Option<Health>,
    history: History,
    /// Of a start that has not led to readiness yet.
    startup: Option<Startup>,
    provider: usize,
    draining: Option<Draining>,
    /// The status as it is in the API, and the socket's annotation.
    written: Value,
    socket: Option<String>,
    /// When the status is written at the latest, or again.
    write_at: Option<Instant>,
    busy: Option<(Busy, BoxFuture<'static, Outcome>)>,
}

/// What came of what was done.
enum Outcome {
    Started(Result<Sandbox, Failure>),
    Collected(Logs),
    Stopped(Result<(), ProviderError>),
    Deleted(kube::Result<()>),
    Rested,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, mut news: watch::Receiver<News>) -> Self {
        let pod = news.borrow_and_update().pod.clone();
        let history = History::of(&pod, (shared.config.clock)());
        let written = status_of(&pod);
        let socket = pod.metadata.annotations.as_ref();
        let socket = socket.and_then(|a| a.get(api::names::annotation::SOCKET)).cloned();
        let worker = Self {
            shared,
            news,
            pod,
            gone: false,
            sandbox: None,
            told: None,
            health: None,
            history,
            startup: None,
            provider: 0,
            draining: None,
            written,
            socket,
            write_at: None,
            busy: None,
        };
        let entry =
            Entry { uid: worker.uid().to_owned(), containers: worker.containers().collect(), ..Entry::default() };
        worker.shared.directory.add(worker.namespace(), worker.name(), entry);
        worker
    }

    pub async fn run(mut self) {
        loop {
            let wait = match self.next_step() {
                Step::Wait(until) => until,
                Step::Done => break,
                step => {
                    // What the step changes is seen by the status, and by the next look at the plan.
                    self.write().await;
                    self.begin(step);
                    continue;
                }
            };
            self.write().await;
            let now = (self.shared.config.clock)();
            let step_at = wait.map(|at| {
                // A moment later than asked for: rounding must not lead to a look too early.
                let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                Instant::now() + left + Duration::from_millis(1)
            });
            let wake = step_at.into_iter().chain(self.write_at).min();
            tokio::select! {
                changed = self.news.changed() => match changed {
                    Ok(()) => self.hear(),
                    Err(_) => break,
                },
                outcome = outcome(&mut self.busy) => self.settle(outcome),
                () = drain::over(&mut self.draining) => self.history.drained(),
                news = news(&mut self.health), if !matches!(self.busy, Some((Busy::Starting, _))) => self.learn(news),
                () = sleep_until(wake) => {}
            }
        }
        self.shared.directory.remove(self.namespace(), self.name(), self.uid());
    }

    fn next_step(&self) -> Step {
        plan::step(&plan::Inputs {
            pod: &self.pod,
            gone: self.gone,
            sandbox: self.sandbox.as_ref(),
            history: &self.history,
            busy: self.busy.as_ref().map(|(busy, _)| *busy),
            now: (self.shared.config.clock)(),
        })
    }

    fn hear(&mut self) {
        let News { pod, gone, sandbox } = self.news.borrow_and_update().clone();
        if !Arc::ptr_eq(&pod, &self.pod) {
            if pod.spec != self.pod.spec && self.history.trouble.as_ref().is_some_and(|t| t.retry_at.is_none()) {
                self.history.trouble = None;
            }
            self.pod = pod;
        }
        self.gone = gone;
        if let Some(sandbox) = sandbox.filter(|s| self.is_of_this_run(s)) {
            self.told = Some(sandbox);
            self.judge();
        }
        if (self.gone || plan::is_deleting(&self.pod)) && self.history.leaving.is_none() {
            let was_ready = self.sandbox.as_ref().is_some_and(Sandbox::is_ready);
            drain::begin(&mut self.draining, &self.shared.config.traffic, &self.pod);
            let drained = self.draining.is_none();
            self.history.leaving = Some(Leaving { since: (self.shared.config.clock)(), was_ready, drained });
            if self.history.held {
                self.containers().for_each(|name| self.event("Killing", format!("Stopping container {name}")));
            }
        }
    }

    /// Sees the sandbox as its probes let it be seen.
    fn judge(&mut self) {
        self.sandbox = self.told.clone();
        if let (Some(health), Some(sandbox)) = (&self.health, &mut self.sandbox) {
            health.judge(sandbox);
        }
        if let Some(sandbox) = self.sandbox.as_ref().filter(|_| self.history.leaving.is_none()) {
            drain::follow(&mut self.draining, &self.shared.config.traffic, &self.pod, sandbox);
        }
        self.report_start();
    }

    /// Its probes say something.
    fn learn(&mut self, news: health::News) {
        match news {
            health::News::Ready { container, ready } => {
                if !ready {
                    self.warning("Unhealthy", format!("Readiness probe of container {container} failed"));
                }
            }
            health::News::Unwell { container, probe } => {
                self.warning("Unhealthy", format!("The {probe} probe of container {container} failed"));
                self.event("Killing", format!("Container {container} failed {probe} probe, will be restarted"));
                self.history.unwell = Some((container, probe));
                self.health = None;
            }
        }
        self.judge();
    }

    /// An earlier run of the same pod may still be heard of.
    fn is_of_this_run(&self, sandbox: &Sandbox) -> bool {
        let before = self.history.end.as_ref().or(self.history.last.as_ref());
        self.history.held && plan::began(sandbox) != before.map(|end| end.started)
    }

    fn begin(&mut self, step: Step) {
        let (shared, uid) = (self.shared.clone(), self.uid().to_owned());
        let provider = self.shared.config.providers.get(self.provider).cloned();
        let busy: (Busy, BoxFuture<'static, Outcome>) = match (step, provider) {
            (Step::Start, _) => {
                self.history.starting();
                self.startup = Some(Startup::begin());
                // Whoever must stop what is half started has to know whom to ask.
                if let Ok(accepted) = shared.accept(&self.pod) {
                    self.provider = accepted.provider;
                }
                // News of this run may come before the answer, and must not be more than its probes allow.
                let provider = self.shared.config.providers.get(self.provider);
                self.health = provider.and_then(|provider| Health::watch(&self.pod, provider));
                (Busy::Starting, start(shared, self.pod.clone()).map(Outcome::Started).boxed())
            }
            (Step::Collect, Some(provider)) => {
                let containers = self.containers().collect();
                let logs = async move { logs::collect_all(provider.as_ref(), &uid, containers).await };
                (Busy::Collecting, logs.map(Outcome::Collected).boxed())
            }
            (Step::Stop { grace }, Some(provider)) => {
                let stopped = async move { provider.stop(&uid, grace).await };
                (Busy::Stopping { grace }, stopped.map(Outcome::Stopped).boxed())
            }
            (Step::Delete, _) => {
                (Busy::Deleting, delete(shared.client.clone(), self.pod.clone()).map(Outcome::Deleted).boxed())
            }
            (Step::Collect | Step::Stop { .. } | Step::Wait(_) | Step::Done, _) => return,
        };
        // What was being done is dropped: only a stop comes in between, and it ends whatever it was.
        self.busy = Some(busy);
    }

    fn settle(&mut self, outcome: Outcome) {
        self.busy = None;
        match outcome {
            Outcome::Started(Ok(sandbox)) => self.started(sandbox),
            Outcome::Started(Err(failure)) => self.failed(failure),
            Outcome::Collected(logs) => self.ended(logs),
            Outcome::Stopped(Ok(())) => {
                self.history.stopped();
                (self.sandbox, self.told, self.health) = (None, None, None);
            }
            Outcome::Stopped(Err(error)) => self.not_stopped(error),
            Outcome::Rested => {}
            Outcome::Deleted(Ok(())) => self.gone = true,
            Outcome::Deleted(Err(error)) if is_past(&error) => self.gone = true,
            Outcome::Deleted(Err(error)) => {
                tracing::warn!(pod = self.name(), %error, "a stopped pod was not deleted");
                self.busy = Some((Busy::Deleting, rest().boxed()));
            }
        }
    }

    fn started(&mut self, sandbox: Sandbox) {
        let began = plan::began(&sandbox);
        self.history.started();
        // News of this run may have come first, and are newer.
        if self.told.as_ref().and_then(plan::began) != began {
            self.told = Some(sandbox);
        }
        self.startup.iter_mut().for_each(Startup::made);
        self.judge();
        for name in self.containers() {
            self.event("Created", format!("Created container {name}"));
            self.event("Started", format!("Started container {name}"));
        }
        let provider = self.shared.config.providers.get(self.provider).cloned();
        self.directory(|entry| {
            entry.provider = provider;
            if let Some(ended) = entry.ended.take() {
                entry.previous = Some(ended);
            }
        });
    }

    fn report_start(&mut self) {
        if !self.sandbox.as_ref().is_some_and(Sandbox::is_ready) {
            return;
        }
        if let Some(started) = self.startup.take().and_then(|startup| startup.ready(&self.pod)) {
            (self.shared.config.started)(started);
        }
    }

    fn failed(&mut self, failure: Failure) {
        let now = (self.shared.config.clock)();
        let attempts = self.history.trouble.as_ref().map_or(0, |t| t.attempts);
        match failure {
            Failure::Provider(error) => match error.class() {
                ErrorClass::Fatal => {
                    self.history.failed(reason::CREATE, error.to_string(), now);
                    // One word of it is enough.
                    let _ = self.shared.fatal.try_send(error);
                }
                ErrorClass::Invalid => {
                    let unsupported = matches!(error, ProviderError::Unsupported { .. });
                    let reason = if unsupported { reason::NO_PROVIDER } else { reason::CREATE };
                    self.history.refused(reason, error.to_string());
                }
                ErrorClass::Retry | ErrorClass::NotFound => {
                    let reason = if attempts < QUIET_ATTEMPTS { reason::CREATING } else { reason::CREATE };
                    self.history.failed(reason, error.to_string(), now);
                }
            },
            Failure::Refused(refusal) if refusal.reason != reason::CONFIG => {
                self.history.refused(refusal.reason, refusal.message);
            }
            // What it refers to may yet appear.
            Failure::Refused(Refusal { reason, message }) | Failure::Passing { reason, message } => {
                self.history.failed(reason, message, now);
            }
        }
        let trouble = self.history.trouble.clone();
        if let Some(trouble) = trouble.filter(|t| t.reason != reason::CREATING) {
            self.warning("Failed", format!("{}: {}", trouble.reason, trouble.message));
            self.directory(|entry| entry.waiting = format!("{}: {}", trouble.reason, trouble.message));
        }
    }

    fn ended(&mut self, logs: Logs) {
        let now = (self.shared.config.clock)();
        let ended = |sandbox: &Sandbox| match &self.history.unwell {
            Some((container, probe)) => Some(Ended::unwell(sandbox, container, probe, now)),
            None => Ended::of(sandbox),
        };
        let Some(mut end) = self.sandbox.as_ref().and_then(ended) else { return };
        self.health = None;
        let mut beside = std::mem::take(&mut end.beside);
        [&mut end].into_iter().chain(&mut beside).for_each(|end| logs::give_words(&self.pod, end, &logs));
        end.beside = beside;
        tracing::debug!(pod = self.name(), code = end.code, reason = end.reason, "a container ended");
        let restarts = plan::RestartPolicy::of(&self.pod).restarts(&end);
        self.history.ended(end);
        if restarts && self.history.failures > 1 {
            let container = self.history.end.as_ref().map(|end| end.container.as_str()).unwrap_or_default();
            let message = format!("Back-off restarting failed container {container} in pod {}", self.name());
            self.warning("BackOff", message);
        }
        self.directory(|entry| entry.ended = Some(logs));
    }

    fn not_stopped(&mut self, error: ProviderError) {
        tracing::warn!(pod = self.name(), %error, "a sandbox was not stopped");
        if error.class() == ErrorClass::Fatal {
            let _ = self.shared.fatal.try_send(error);
        }
        let now = (self.shared.config.clock)();
        self.history.stop_again_at = now.checked_add(jiff::SignedDuration::from_secs(1)).ok();
    }

    /// Sends the status if it differs, at once or when its time has come.
    async fn write(&mut self) {
        let finished = self.history.end.is_none() && plan::is_finished(&self.pod);
        let collecting = matches!(self.next_step(), Step::Collect) || matches!(self.busy, Some((Busy::Collecting, _)));
        if self.gone || finished || collecting {
            self.write_at = None;
            return;
        }
        let (wanted, socket) = self.wanted();
        let changes = status::changes(&self.written, &wanted);
        let socket = (socket != self.socket).then_some(socket);
        if changes.is_none() && socket.is_none() {
            self.write_at = None;
            return;
        }
        let now = Instant::now();
        // A pause after a failure is longer than any patience.
        let failing = self.write_at.is_some_and(|at| at > now + PATIENCE);
        let due = *self.write_at.get_or_insert(now + PATIENCE);
        if failing || (due > now && !status::is_urgent(&self.written, &wanted)) {
            return;
        }
        let mut patch = json!({"metadata": {"uid": self.pod.metadata.uid}, "status": changes.unwrap_or(json!({}))});
        if let Some(socket) = &socket {
            patch["metadata"]["annotations"] = json!({api::names::annotation::SOCKET: socket});
        }
        match send(&self.shared.client, self.namespace(), self.name(), patch).await {
            Ok(()) => {
                self.written = wanted;
                self.socket = socket.unwrap_or(self.socket.take());
                self.write_at = None;
            }
            // The watch will say so as well.
            Err(error) if is_past(&error) => self.write_at = None,
            Err(error) => {
                tracing::warn!(pod = self.name(), %error, "a pod's status was not written");
                self.write_at = Some(Instant::now() + PAUSE);
            }
        }
    }

    fn wanted(&self) -> (Value, Option<String>) {
        let rendered = status::render(&status::Inputs {
            pod: &self.pod,
            sandbox: self.sandbox.as_ref(),
            history: &self.history,
            class: self.shared.classes.get(self.provider).copied().unwrap_or_default(),
            host_ip: self.shared.config.host_ip,
            now: (self.shared.config.clock)(),
        });
        let status = serde_json::to_value(rendered).expect("a status is JSON");
        (status, status::socket(self.sandbox.as_ref()).map(str::to_owned))
    }

    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn containers(&self) -> impl Iterator<Item = String> + use<> {
        let spec = self.pod.spec.iter().flat_map(translate::containers);
        spec.map(|container| container.name.clone()).collect::<Vec<_>>().into_iter()
    }

    fn event(&self, reason: &'static str, message: String) {
        self.shared.recorder.normal(&self.pod, reason, message, (self.shared.config.clock)());
    }

    fn warning(&self, reason: &'static str, message: String) {
        self.shared.recorder.warning(&self.pod, reason, message, (self.shared.config.clock)());
    }

    fn directory(&self, edit: impl FnOnce(&mut Entry)) {
        self.shared.directory.update(self.namespace(), self.name(), self.uid(), edit);
    }
}

fn status_of(pod: &Pod) -> Value {
    serde_json::to_value(pod.status.clone().unwrap_or_default()).expect("a status is JSON")
}

/// What the probes say; nothing, where there are none.
async fn news(health: &mut Option<Health>) -> health::News {
    match health {
        Some(health) => health.news().await,
        None => std::future::pending().await,
    }
}

/// Whatever is being done, when it is done; never, when nothing is.
async fn outcome(busy: &mut Option<(Busy, BoxFuture<'static, Outcome>)>) -> Outcome {
    match busy {
        Some((_, doing)) => doing.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Removes a pod from the API, if it is still this one.
async fn delete(client: Client, pod: Arc<Pod>) -> kube::Result<()> {
    let (name, namespace) = (pod.metadata.name.as_deref(), pod.metadata.namespace.as_deref());
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    let request = Request::new(<Pod as kube::Resource>::url_path(&(), namespace))
        .delete(name.unwrap_or_default(), &params)
        .map_err(kube::Error::BuildRequest)?;
    client.request_text(request).await.map(drop)
}

/// A pause, after which the deletion is planned anew.
async fn rest() -> Outcome {
    tokio::time::sleep(PAUSE).await;
    Outcome::Rested
}

async fn send(client: &Client, namespace: &str, name: &str, patch: Value) -> kube::Result<()> {
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let request = Request::new(<Pod as kube::Resource>::url_path(&(), Some(namespace)))
        .patch_subresource("status", name, &params, &Patch::Merge(patch))
        .map_err(kube::Error::BuildRequest)?;
    client.request_text(request).await.map(drop)
}

/// Whether the pod is not there any more, or its name is another's.
fn is_past(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
}
