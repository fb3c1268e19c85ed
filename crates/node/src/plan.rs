//! What one pod needs next: a pure function of its manifest, its sandbox, its history and the time.
//!
//! The surprise: a deletion counts before everything else, and a pod that is gone from the API is a deletion that
//! nobody waits for.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use runtime::{Container, Exit, ExitReason, Phase, Sandbox};

/// The wait before the second restart in a row; it doubles with each one.
const BACKOFF: SignedDuration = SignedDuration::from_secs(10);
const MAX_BACKOFF: SignedDuration = SignedDuration::from_secs(300);
/// Whoever ran this long has not failed to start.
const STABLE: SignedDuration = SignedDuration::from_mins(10);
/// The wait after a start that failed for a passing reason; it doubles as well.
const RETRY: SignedDuration = SignedDuration::from_millis(100);
const MAX_RETRY: SignedDuration = SignedDuration::from_secs(30);
/// What a pod gets that was never ready: it has no request in hand, and as the first process of its pid namespace it
/// ignores the signal to end until it has got to install a handler.
const UNREADY_GRACE: Duration = Duration::from_secs(1);
/// What is left of a run gets that is over: nothing is sent to it any more, and somebody waits for the next run.
const OVER_GRACE: Duration = Duration::from_secs(10);
/// What a pod gets whose requests took all its grace.
const LAST_GRACE: Duration = Duration::from_secs(2);
/// What a pod gets that was deleted without grace, or behind our back.
const GONE_GRACE: Duration = Duration::from_secs(1);
/// What Kubernetes gives a pod that does not say.
const DEFAULT_GRACE: u64 = 30;
/// The exit of a container of which nothing is known any more: as if killed.
const LOST: i32 = 137;

/// How a run ended: by the end of this container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub container: String,
    /// How the others had ended by then. Those that had not are stopped: containers of a pod are started again together.
    pub beside: Vec<Ended>,
    pub code: i32,
    pub signal: Option<i32>,
    pub reason: &'static str,
    /// Its last words.
    pub message: String,
    pub started: Timestamp,
    pub finished: Timestamp,
}

/// Why the last attempt to start failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: &'static str,
    pub message: String,
    /// `None`: not before the manifest changes.
    pub retry_at: Option<Timestamp>,
    pub attempts: u32,
}

/// A pod on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    pub since: Timestamp,
    pub was_ready: bool,
    /// Whether it has no requests, and gets none.
    pub drained: bool,
}

/// What a pod has been through on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub restarts: i32,
    /// How the present, or latest, run ended.
    pub end: Option<Ended>,
    /// How the run before ended.
    pub last: Option<Ended>,
    pub trouble: Option<Trouble>,
    pub leaving: Option<Leaving>,
    /// Ends in a row without a stable run between them.
    pub failures: u32,
    /// The container that is to be stopped, since its probes failed, and which of them did.
    pub unwell: Option<(String, &'static str)>,
    /// Whether the Provider may have something of it.
    pub held: bool,
    /// When the Provider may be asked again to stop it.
    pub stop_again_at: Option<Timestamp>,
}

/// What is being done for the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    Starting,
    Collecting,
    Stopping { grace: Duration },
    Deleting,
}

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    /// It is not in the API any more.
    pub gone: bool,
    pub sandbox: Option<&'a Sandbox>,
    pub history: &'a History,
    pub busy: Option<Busy>,
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Fetch the image, resolve the environment, create the sandbox.
    Start,
    /// Keep the last words of a run that ended.
    Collect,
    Stop {
        grace: Duration,
    },
    /// Remove the pod from the API.
    Delete,
    /// Until something changes, or this time comes.
    Wait(Option<Timestamp>),
    /// The node has nothing to do with this pod any more.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn of(pod: &Pod) -> Self {
        match pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    pub fn restarts(self, end: &Ended) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => end.code != 0,
            Self::Never => false,
        }
    }
}

pub fn step(inputs: &Inputs<'_>) -> Step {
    if inputs.gone || is_deleting(inputs.pod) {
        return leave(inputs);
    }
    if inputs.history.end.is_none() && is_finished(inputs.pod) {
        return Step::Wait(None);
    }
    if inputs.busy.is_some() {
        return Step::Wait(None);
    }
    let history = inputs.history;
    match (&history.end, inputs.sandbox) {
        (Some(end), _) => after(end, inputs),
        (None, Some(_)) if history.unwell.is_some() => Step::Collect,
        (None, Some(sandbox)) if is_over(sandbox, RestartPolicy::of(inputs.pod)) => Step::Collect,
        (None, Some(_)) => Step::Wait(None),
        (None, None) => match &history.trouble {
            None => Step::Start,
            Some(Trouble { retry_at: Some(at), .. }) if *at <= inputs.now => Step::Start,
            Some(trouble) => Step::Wait(trouble.retry_at),
        },
    }
}

/// After the end of a run: again, or never.
fn after(end: &Ended, inputs: &Inputs<'_>) -> Step {
    let history = inputs.history;
    let restarts = RestartPolicy::of(inputs.pod).restarts(end);
    let due = restart_at(end, history.failures);
    // What outlived the end goes first: of several containers, or one whose probes failed.
    if history.held && inputs.sandbox.is_some_and(|sandbox| !sandbox.is_exited()) {
        return stop(grace(inputs.pod).min(OVER_GRACE), inputs);
    }
    if restarts && due > inputs.now {
        return Step::Wait(Some(due));
    }
    if history.held {
        return stop(Duration::ZERO, inputs);
    }
    if !restarts {
        return Step::Wait(None);
    }
    match &history.trouble {
        Some(Trouble { retry_at: None, .. }) => Step::Wait(None),
        Some(Trouble { retry_at: Some(at), .. }) if *at > inputs.now => Step::Wait(Some(*at)),
        _ => Step::Start,
    }
}

fn leave(inputs: &Inputs<'_>) -> Step {
    let history = inputs.history;
    if !history.held {
        return match (inputs.gone, inputs.busy) {
            (true, _) => Step::Done,
            (false, Some(Busy::Deleting)) => Step::Wait(None),
            (false, _) => Step::Delete,
        };
    }
    let unready = history.leaving.is_some_and(|l| !l.was_ready);
    let grace = match grace(inputs.pod) {
        _ if inputs.gone => GONE_GRACE,
        own if unready => own.min(UNREADY_GRACE),
        own => own,
    };
    if let Some(Busy::Stopping { grace: given }) = inputs.busy
        && given <= grace
    {
        return Step::Wait(None);
    }
    // As in Kubernetes what is done before the signal takes from the same grace. Without requests it all is left.
    if let Some(leaving) = history.leaving.filter(|l| !l.drained && !inputs.gone) {
        let patience = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
        let until = leaving.since.saturating_add(patience).unwrap_or(Timestamp::MAX);
        if until > inputs.now {
            return Step::Wait(Some(until));
        }
        return stop(grace.min(LAST_GRACE), inputs);
    }
    stop(grace, inputs)
}

fn stop(grace: Duration, inputs: &Inputs<'_>) -> Step {
    match inputs.history.stop_again_at.filter(|at| *at > inputs.now) {
        Some(at) => Step::Wait(Some(at)),
        None => Step::Stop { grace },
    }
}

pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn grace(pod: &Pod) -> Duration {
    let own = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    let seconds = pod.metadata.deletion_grace_period_seconds.or(own);
    Duration::from_secs(seconds.map_or(DEFAULT_GRACE, |s| u64::try_from(s).unwrap_or(0)))
}

/// The first restart comes at once, the others later and later.
pub fn backoff(failures: u32) -> SignedDuration {
    match failures {
        0 | 1 => SignedDuration::ZERO,
        n => BACKOFF.saturating_mul(1 << (n - 2).min(10)).min(MAX_BACKOFF),
    }
}

pub fn restart_at(end: &Ended, failures: u32) -> Timestamp {
    end.finished.saturating_add(backoff(failures)).unwrap_or(Timestamp::MAX)
}

/// Whether a run has ended: all its containers have, or one that is to be started again.
pub fn is_over(sandbox: &Sandbox, policy: RestartPolicy) -> bool {
    let again = |(container, exit): (&Container, &Exit)| match policy {
        RestartPolicy::Always => !container.init || exit.code != 0,
        RestartPolicy::OnFailure => exit.code != 0,
        RestartPolicy::Never => false,
    };
    sandbox.is_exited() || exits(sandbox).any(again)
}

fn exits(sandbox: &Sandbox) -> impl Iterator<Item = (&Container, &Exit)> {
    sandbox.containers.iter().filter_map(|container| match &container.phase {
        Phase::Exited(exit) => Some((container, exit)),
        _ => None,
    })
}

/// When the present run of a sandbox began: tells a late word of an earlier run from one of this.
pub fn began(sandbox: &Sandbox) -> Option<Timestamp> {
    sandbox.containers.first().map(|c| match &c.phase {
        Phase::Starting { since } | Phase::Running { since, .. } => *since,
        Phase::Exited(exit) => exit.started,
    })
}

impl Ended {
    /// How a run that is over ended: by the first of its containers that failed, or else by the first that was not there only
    /// to be waited for.
    pub fn of(sandbox: &Sandbox) -> Option<Self> {
        let mut all: Vec<_> = exits(sandbox).collect();
        all.sort_by_key(|(container, exit)| (exit.code == 0, exit.code == 0 && container.init));
        let mut all = all.into_iter().map(|(container, exit)| Self::new(&container.name, exit));
        let first = all.next()?;
        Some(Self { beside: all.collect(), ..first })
    }

    /// How a run ends whose container `name` is to be stopped.
    pub fn unwell(sandbox: &Sandbox, name: &str, probe: &str, now: Timestamp) -> Self {
        let own = Self {
            container: name.to_owned(),
            beside: vec![],
            code: LOST,
            signal: None,
            reason: "Error",
            message: format!("Container {name} failed {probe} probe, will be restarted"),
            started: began(sandbox).unwrap_or(now),
            finished: now,
        };
        let others = exits(sandbox).filter(|(other, _)| other.name != name);
        let others = others.map(|(container, exit)| Self::new(&container.name, exit));
        Self { beside: others.collect(), ..own }
    }

    pub fn container(&self, name: &str) -> Option<&Self> {
        [self].into_iter().chain(&self.beside).find(|ended| ended.container == name)
    }

    pub fn new(container: &str, exit: &Exit) -> Self {
        let reason = match exit.reason {
            ExitReason::OutOfMemory => "OOMKilled",
            _ if exit.code == 0 => "Completed",
            _ => "Error",
        };
        let Exit { code, signal, started, finished, .. } = *exit;
        let (container, message) = (container.to_owned(), String::new());
        Self { container, beside: vec![], code, signal, reason, message, started, finished }
    }
}

impl History {
    /// What the pod's status tells of a run before this node started: instances do not outlive it.
    pub fn of(pod: &Pod, now: Timestamp) -> Self {
        let mut history = Self::default();
        let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
        let Some(status) = statuses.first().filter(|_| !is_finished(pod)) else { return history };
        history.restarts = status.restart_count;
        let state = status.state.as_ref();
        let running = state.and_then(|s| s.running.as_ref());
        if running.is_some() || state.is_some_and(|s| s.terminated.is_some()) || status.restart_count > 0 {
            let started = running.and_then(|r| r.started_at.as_ref()).map_or(now, |t| t.0);
            let lost = |status: &ContainerStatus| Ended {
                container: status.name.clone(),
                beside: vec![],
                code: LOST,
                signal: None,
                reason: "ContainerStatusUnknown",
                message: "the platform was started anew, and instances do not outlive it".into(),
                started,
                finished: now,
            };
            history.end = Some(Ended { beside: statuses[1..].iter().map(lost).collect(), ..lost(status) });
        }
        history
    }

    pub fn ended(&mut self, end: Ended) {
        let ran = end.finished.duration_since(end.started);
        self.failures = if ran >= STABLE { 1 } else { self.failures.saturating_add(1) };
        self.end = Some(end);
    }

    /// A run begins.
    pub fn starting(&mut self) {
        self.held = true;
        self.unwell = None;
        self.stop_again_at = None;
    }

    pub fn started(&mut self) {
        self.trouble = None;
        if let Some(end) = self.end.take() {
            self.last = Some(end);
            self.restarts = self.restarts.saturating_add(1);
        }
    }

    /// The start failed for a reason that may pass.
    pub fn failed(&mut self, reason: &'static str, message: String, now: Timestamp) {
        let attempts = self.trouble.as_ref().map_or(0, |t| t.attempts).saturating_add(1);
        let wait = RETRY.saturating_mul(1 << (attempts - 1).min(12)).min(MAX_RETRY);
        let retry_at = Some(now.saturating_add(wait).unwrap_or(Timestamp::MAX));
        self.trouble = Some(Trouble { reason, message, retry_at, attempts });
    }

    /// The manifest cannot be run.
    pub fn refused(&mut self, reason: &'static str, message: String) {
        self.trouble = Some(Trouble { reason, message, retry_at: None, attempts: 1 });
    }

    /// The last request is over.
    pub fn drained(&mut self) {
        self.leaving.iter_mut().for_each(|leaving| leaving.drained = true);
    }

    pub fn stopped(&mut self) {
        self.held = false;
        self.stop_again_at = None;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(spec: Value, meta: Value, status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
    }

    fn sandbox(phase: Phase) -> Sandbox {
        let containers = vec![Container { name: "c".into(), init: false, phase }];
        Sandbox { uid: "u".into(), namespace: "n".into(), name: "p".into(), address: None, containers }
    }

    fn exit_of(code: i32, started: i64, finished: i64) -> Exit {
        let reason = if code == 0 { ExitReason::Completed } else { ExitReason::Error };
        Exit { code, signal: None, reason, started: at(started), finished: at(finished) }
    }

    fn ended(code: i32, finished: i64) -> Ended {
        Ended::new("c", &exit_of(code, 0, finished))
    }

    struct Row {
        policy: &'static str,
        deleting: Option<i64>,
        gone: bool,
        sandbox: Option<Sandbox>,
        history: History,
        busy: Option<Busy>,
        phase: &'static str,
    }

    fn row() -> Row {
        let history = History::default();
        Row { policy: "Always", deleting: None, gone: false, sandbox: None, history, busy: None, phase: "Pending" }
    }

    fn at_100(row: Row) -> Step {
        let mut meta = json!({"name": "p", "uid": "u"});
        if let Some(grace) = row.deleting {
            meta["deletionTimestamp"] = "1970-01-01T00:01:00Z".into();
            meta["deletionGracePeriodSeconds"] = grace.into();
        }
        let pod = pod(json!({"restartPolicy": row.policy, "containers": []}), meta, json!({"phase": row.phase}));
        step(&Inputs {
            pod: &pod,
            gone: row.gone,
            sandbox: row.sandbox.as_ref(),
            history: &row.history,
            busy: row.busy,
            now: at(100),
        })
    }

    #[test]
    fn living() {
        let running = || Some(sandbox(Phase::Running { since: at(1), ready: true }));
        let exited = |code| Some(sandbox(Phase::Exited(exit_of(code, 1, 99))));
        let held = || History { held: true, ..History::default() };
        let after = |code, failures| History { end: Some(ended(code, 99)), failures, ..held() };
        let free = |history: History| History { held: false, ..history };
        let trouble = |retry_at| {
            let trouble = Trouble { reason: "x", message: String::new(), retry_at, attempts: 1 };
            History { trouble: Some(trouble), ..History::default() }
        };
        let now = Step::Stop { grace: Duration::ZERO };
        for (case, given, want) in [
            ("new", row(), Step::Start),
            ("being started", Row { busy: Some(Busy::Starting), history: held(), ..row() }, Step::Wait(None)),
            ("running", Row { sandbox: running(), history: held(), ..row() }, Step::Wait(None)),
            ("ended", Row { sandbox: exited(1), history: held(), ..row() }, Step::Collect),
            ("first end", Row { sandbox: exited(1), history: after(1, 1), ..row() }, now.clone()),
            ("removed", Row { history: free(after(1, 1)), ..row() }, Step::Start),
            ("second end", Row { sandbox: exited(1), history: after(1, 2), ..row() }, Step::Wait(Some(at(109)))),
            ("fourth end", Row { sandbox: exited(0), history: after(0, 4), ..row() }, Step::Wait(Some(at(139)))),
            ("a hundredth", Row { sandbox: exited(0), history: after(0, 100), ..row() }, Step::Wait(Some(at(399)))),
            ("never", Row { policy: "Never", history: after(1, 1), ..row() }, now.clone()),
            ("never, removed", Row { policy: "Never", history: free(after(1, 1)), ..row() }, Step::Wait(None)),
            ("well", Row { policy: "OnFailure", history: free(after(0, 1)), ..row() }, Step::Wait(None)),
            ("badly", Row { policy: "OnFailure", history: free(after(2, 1)), ..row() }, Step::Start),
            ("finished long ago", Row { phase: "Succeeded", ..row() }, Step::Wait(None)),
            ("refused", Row { history: trouble(None), ..row() }, Step::Wait(None)),
            ("trouble", Row { history: trouble(Some(at(101))), ..row() }, Step::Wait(Some(at(101)))),
            ("try again", Row { history: trouble(Some(at(100))), ..row() }, Step::Start),
        ] {
            assert_eq!(at_100(given), want, "{case}");
        }
    }

    #[test]
    fn leaving() {
        let held = History { held: true, ..History::default() };
        let leaving = |since, was_ready, drained| History {
            leaving: Some(Leaving { since: at(since), was_ready, drained }),
            ..held.clone()
        };
        let serving = |since| leaving(since, true, false);
        let unready = |since| leaving(since, false, true);
        let stop = |seconds| Step::Stop { grace: Duration::from_secs(seconds) };
        let stopping = |seconds| Some(Busy::Stopping { grace: Duration::from_secs(seconds) });
        let deleted = |grace| Row { deleting: Some(grace), history: held.clone(), ..row() };
        for (case, given, want) in [
            ("was not ready", deleted(30), stop(30)),
            ("being started", Row { busy: Some(Busy::Starting), ..deleted(30) }, stop(30)),
            ("never ready", Row { history: unready(99), ..deleted(30) }, stop(1)),
            ("never ready, no grace", Row { history: unready(99), ..deleted(0) }, stop(0)),
            ("drains", Row { history: serving(99), ..deleted(30) }, Step::Wait(Some(at(129)))),
            ("drained", Row { history: leaving(99, true, true), ..deleted(30) }, stop(30)),
            ("drains for too long", Row { history: serving(70), ..deleted(30) }, stop(2)),
            ("drains for too long, with little grace", Row { history: serving(99), ..deleted(1) }, stop(1)),
            ("not ready any more, drains", Row { history: leaving(99, false, false), ..deleted(30) }, stop(1)),
            ("no grace", Row { history: serving(99), ..deleted(0) }, stop(0)),
            ("stopping", Row { busy: stopping(30), ..deleted(30) }, Step::Wait(None)),
            ("sooner", Row { busy: stopping(30), ..deleted(5) }, stop(5)),
            ("gone meanwhile", Row { busy: stopping(30), gone: true, ..deleted(30) }, stop(1)),
            ("never started", Row { history: History::default(), ..deleted(30) }, Step::Delete),
            (
                "delete is on its way",
                Row { history: History::default(), busy: Some(Busy::Deleting), ..deleted(30) },
                Step::Wait(None),
            ),
            ("gone", Row { gone: true, ..row() }, Step::Done),
            ("gone, running", Row { gone: true, history: serving(99), ..row() }, stop(1)),
            (
                "cannot be stopped",
                Row { history: History { stop_again_at: Some(at(101)), ..held.clone() }, ..deleted(30) },
                Step::Wait(Some(at(101))),
            ),
        ] {
            assert_eq!(at_100(given), want, "{case}");
        }
    }

    #[test]
    fn histories() {
        let mut history = History::default();
        for (ran, failures) in [(1, 1), (1, 2), (599, 3), (600, 1), (5, 2)] {
            history.ended(Ended::new("c", &exit_of(1, 0, ran)));
            assert_eq!(history.failures, failures);
            history.started();
        }
        assert_eq!((history.restarts, history.end.is_none(), history.last.is_some()), (5, true, true));
        history.failed("x", String::new(), at(1));
        history.failed("x", String::new(), at(1));
        let wait = |h: &History| h.trouble.clone().unwrap().retry_at.unwrap().duration_since(at(1)).as_millis();
        assert_eq!(wait(&history), 200);
        (0..50).for_each(|_| history.failed("x", String::new(), at(1)));
        assert_eq!(wait(&history), 30_000);
        let running = json!({"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 2,
            "state": {"running": {"startedAt": "1970-01-01T00:00:05Z"}}});
        let of = |phase: &str| {
            History::of(
                &pod(json!({"containers": []}), json!({}), json!({"phase": phase, "containerStatuses": [running]})),
                at(9),
            )
        };
        let lost = of("Running");
        let end = lost.end.clone().unwrap();
        assert_eq!((lost.restarts, lost.held, end.code, end.started, end.finished), (2, false, 137, at(5), at(9)));
        assert_eq!(of("Failed"), History::default());
    }
}
