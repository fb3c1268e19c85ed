//! A pod's status, from what is known of it. Pure.

use std::net::IpAddr;

use api::condition::whole_seconds;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::{Address, Phase, Sandbox};
use serde_json::{Map, Value};

use crate::plan::{Ended, History, RestartPolicy, backoff, is_deleting, restart_at};
use crate::translate::reason;

/// The conditions that are the node's.
const CONDITIONS: [&str; 4] = ["PodScheduled", "Initialized", "ContainersReady", "Ready"];
/// The members of a status that are the node's.
const MEMBERS: [&str; 10] = [
    "observedGeneration",
    "phase",
    "conditions",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
];
const CONTAINERS: [&str; 2] = ["containerStatuses", "initContainerStatuses"];

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub sandbox: Option<&'a Sandbox>,
    pub history: &'a History,
    /// The runtime class of its Provider, once it has one.
    pub class: &'a str,
    pub host_ip: IpAddr,
    pub now: Timestamp,
}

/// The whole status, keeping what others wrote into it.
pub fn render(inputs: &Inputs<'_>) -> PodStatus {
    let before = inputs.pod.status.clone().unwrap_or_default();
    let spec = inputs.pod.spec.as_ref();
    let containers = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let statuses: Vec<ContainerStatus> = containers.iter().map(|c| container(c, inputs)).collect();
    let inits = spec.and_then(|s| s.init_containers.as_ref()).filter(|inits| !inits.is_empty());
    let inits = inits.map(|inits| inits.iter().map(|c| ContainerStatus { started: None, ..container(c, inputs) }));
    let ready = !is_deleting(inputs.pod) && !statuses.is_empty() && statuses.iter().all(|s| s.ready);
    let phase = phase(inputs);
    let address = inputs.sandbox.and_then(|s| s.address.as_ref());
    let ip = match address {
        Some(Address::Ip(address)) => Some(address.ip().to_string()),
        _ => None,
    };
    let host = inputs.host_ip.to_string();
    let mut status = PodStatus {
        conditions: Some(conditions(inputs, phase, ready, &before)),
        container_statuses: Some(statuses),
        init_container_statuses: inits.map(Iterator::collect),
        host_ip: Some(host.clone()),
        host_ips: Some(vec![HostIP { ip: host }]),
        pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: ip,
        start_time: before.start_time.clone().or_else(|| Some(Time(whole_seconds(inputs.now)))),
        phase: Some(phase.to_owned()),
        observed_generation: inputs.pod.metadata.generation,
        ..before
    };
    let trouble = inputs.history.trouble.as_ref().filter(|t| t.retry_at.is_none() && phase == "Pending");
    status.reason = trouble.map(|t| t.reason.to_owned());
    status.message = trouble.map(|t| t.message.clone());
    status
}

/// The socket that serves a pod without a network of its own.
pub fn socket(sandbox: Option<&Sandbox>) -> Option<&str> {
    match sandbox?.address.as_ref()? {
        Address::Unix(path) => path.to_str(),
        Address::Ip(_) => None,
    }
}

fn phase(inputs: &Inputs<'_>) -> &'static str {
    let history = inputs.history;
    if let Some(end) = &history.end {
        return match (RestartPolicy::of(inputs.pod).restarts(end), end.code) {
            (true, _) => "Running",
            (false, 0) => "Succeeded",
            (false, _) => "Failed",
        };
    }
    let running = |s: &Sandbox| s.containers.iter().any(|c| !matches!(c.phase, Phase::Starting { .. }));
    if history.restarts > 0 || history.last.is_some() || inputs.sandbox.is_some_and(running) {
        return "Running";
    }
    "Pending"
}

fn container(container: &Container, inputs: &Inputs<'_>) -> ContainerStatus {
    let history = inputs.history;
    let phase = inputs.sandbox.and_then(|s| s.containers.iter().find(|c| c.name == container.name)).map(|c| &c.phase);
    let mut ready = false;
    let own = |end: &'_ Ended| end.container(&container.name).cloned();
    let mut last = history.last.as_ref().and_then(own);
    let state = match (&history.end, phase) {
        (Some(end), _) => match (crash_loop(container, end, inputs), own(end)) {
            (Some(waiting), own) => {
                last = own.or(last);
                waiting
            }
            (None, Some(own)) => terminated(&own, inputs),
            // It was stopped because of another one's end.
            (None, None) => waiting(reason::CREATING, None),
        },
        (None, Some(Phase::Running { since, ready: says_so })) => {
            ready = *says_so;
            running(*since)
        }
        (None, Some(Phase::Exited(exit))) => terminated(&Ended::new(&container.name, exit), inputs),
        (None, phase) => match &history.trouble {
            Some(trouble) => waiting(trouble.reason, Some(trouble.message.clone())),
            // Its sandbox is there: it waits for a container before it.
            None if phase.is_some() && !is_initialized(inputs) => waiting(reason::INITIALIZING, None),
            None => waiting(reason::CREATING, None),
        },
    };
    let image = container.image.clone().unwrap_or_default();
    let began = phase.is_some() || history.end.is_some();
    ContainerStatus {
        name: container.name.clone(),
        image_id: if began { image.clone() } else { String::new() },
        image,
        ready: ready && !is_deleting(inputs.pod),
        started: Some(ready),
        restart_count: history.restarts,
        container_id: (began && !inputs.class.is_empty()).then(|| container_id(inputs)),
        state: Some(state),
        last_state: last.map(|end| terminated(&end, inputs)),
        ..ContainerStatus::default()
    }
}

/// The state of a container that waits before it is started again.
fn crash_loop(container: &Container, end: &Ended, inputs: &Inputs<'_>) -> Option<ContainerState> {
    let history = inputs.history;
    if !RestartPolicy::of(inputs.pod).restarts(end) {
        return None;
    }
    if let Some(trouble) = &history.trouble {
        return Some(waiting(trouble.reason, Some(trouble.message.clone())));
    }
    if restart_at(end, history.failures) <= inputs.now {
        return None;
    }
    let message = format!(
        "back-off {}s restarting failed container={} pod={}",
        backoff(history.failures).as_secs(),
        container.name,
        inputs.pod.metadata.name.as_deref().unwrap_or_default()
    );
    Some(waiting(reason::CRASH_LOOP, Some(message)))
}

fn container_id(inputs: &Inputs<'_>) -> String {
    let uid = inputs.pod.metadata.uid.as_deref().unwrap_or_default();
    format!("{}://{uid}-{}", inputs.class, inputs.history.restarts)
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn running(since: Timestamp) -> ContainerState {
    let running = ContainerStateRunning { started_at: Some(Time(whole_seconds(since))) };
    ContainerState { running: Some(running), ..ContainerState::default() }
}

fn terminated(end: &Ended, inputs: &Inputs<'_>) -> ContainerState {
    let terminated = ContainerStateTerminated {
        exit_code: end.code,
        signal: end.signal,
        reason: Some(end.reason.to_owned()),
        message: Some(end.message.clone()).filter(|m| !m.is_empty()),
        started_at: Some(Time(whole_seconds(end.started))),
        finished_at: Some(Time(whole_seconds(end.finished))),
        container_id: (!inputs.class.is_empty()).then(|| container_id(inputs)),
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

fn conditions(inputs: &Inputs<'_>, phase: &str, ready: bool, before: &PodStatus) -> Vec<PodCondition> {
    let old = before.conditions.as_deref().unwrap_or_default();
    let (why, message) = match phase {
        _ if ready => (None, None),
        "Succeeded" => (Some("PodCompleted"), None),
        "Failed" => (Some("PodFailed"), None),
        _ if is_deleting(inputs.pod) => (Some("PodDeleting"), Some("the pod is on its way out".to_owned())),
        _ => (Some("ContainersNotReady"), Some(unready(inputs))),
    };
    let condition = |type_: &str, status: bool| {
        let text = if status { "True" } else { "False" };
        let same = old.iter().find(|c| c.type_ == type_ && c.status == text);
        PodCondition {
            type_: type_.to_owned(),
            status: text.to_owned(),
            reason: if status { None } else { why.map(str::to_owned) },
            message: if status { None } else { message.clone() },
            last_transition_time: same
                .and_then(|c| c.last_transition_time.clone())
                .or_else(|| Some(Time(whole_seconds(inputs.now)))),
            ..PodCondition::default()
        }
    };
    let ours = [true, is_initialized(inputs), ready, ready];
    let mut all: Vec<PodCondition> = CONDITIONS.iter().zip(ours).map(|(t, status)| condition(t, status)).collect();
    all.extend(old.iter().filter(|c| !CONDITIONS.contains(&c.type_.as_str())).cloned());
    all
}

/// Whether the containers that the others wait for have ended well.
fn is_initialized(inputs: &Inputs<'_>) -> bool {
    let none = inputs.pod.spec.as_ref().is_none_or(|spec| spec.init_containers.as_ref().is_none_or(Vec::is_empty));
    let ended = |c: &runtime::Container| !c.init || matches!(&c.phase, Phase::Exited(exit) if exit.code == 0);
    none || inputs.sandbox.is_some_and(|sandbox| sandbox.containers.iter().all(ended))
}

fn unready(inputs: &Inputs<'_>) -> String {
    let running = |c: &runtime::Container| match c.phase {
        Phase::Running { since, ready: false } => Some((c.name.clone(), whole_seconds(since))),
        _ => None,
    };
    match inputs.sandbox.and_then(|s| s.containers.iter().find_map(running)) {
        Some((name, since)) if inputs.history.end.is_none() => {
            format!("container {name} runs since {since} and has not said yet that it is ready")
        }
        _ => {
            let containers = inputs.pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
            let names: Vec<&str> = containers.iter().map(|c| c.name.as_str()).collect();
            format!("containers with unready status: [{}]", names.join(" "))
        }
    }
}

/// The merge patch from what is there to what is wanted, below `status`; `None` when they are equal.
pub fn changes(there: &Value, wanted: &Value) -> Option<Value> {
    let mut patch = Map::new();
    for member in MEMBERS.iter().chain(&CONTAINERS) {
        match (there.get(member), wanted.get(member)) {
            (is, Some(want)) if is != Some(want) => patch.insert((*member).to_owned(), want.clone()),
            (Some(Value::Null), None) => None,
            (Some(_), None) => patch.insert((*member).to_owned(), Value::Null),
            _ => None,
        };
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Whether somebody waits for this change: a request for readiness, a person for an end or a refusal.
pub fn is_urgent(there: &Value, wanted: &Value) -> bool {
    let ready = |status: &Value| {
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let over = |status: &Value| matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    let why =
        |c: &Value| c["state"]["waiting"]["reason"].as_str().filter(|r| *r != reason::CREATING).map(str::to_owned);
    const NOTHING: ([Value; 2], Option<String>) = ([Value::Null, Value::Null], None);
    let told = |container: &Value| {
        let ended = [&container["state"]["terminated"], &container["lastState"]].map(Value::clone);
        (ended, why(container))
    };
    let all = |status: &Value| {
        let statuses = CONTAINERS.iter().filter_map(|member| status[*member].as_array()).flatten();
        statuses.map(told).filter(|told| *told != NOTHING).collect::<Vec<_>>()
    };
    ready(there) != ready(wanted) || over(there) != over(wanted) || all(there) != all(wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::Trouble;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(meta: Value, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1, "deletionTimestamp": meta["deletionTimestamp"]},
            "spec": {"restartPolicy": meta["restartPolicy"], "containers": [{"name": "c", "image": "r/ns/x@sha256:aa"}]},
            "status": status
        }))
        .unwrap()
    }

    fn sandbox(phase: Phase) -> Sandbox {
        let containers = vec![runtime::Container { name: "c".into(), init: false, phase }];
        let address = Some(Address::Ip("10.1.2.3:8080".parse().unwrap()));
        Sandbox { uid: "u".into(), namespace: "ns".into(), name: "p".into(), address, containers }
    }

    fn run(meta: Value, status: Value, sandbox: Option<&Sandbox>, history: &History, now: i64) -> Value {
        let pod = pod(meta, status);
        let host_ip = std::net::Ipv4Addr::LOCALHOST.into();
        let inputs = Inputs { pod: &pod, sandbox, history, class: "dhow-process", host_ip, now: at(now) };
        serde_json::to_value(render(&inputs)).unwrap()
    }

    fn end(code: i32, finished: i64) -> Ended {
        let reason = if code == 0 { "Completed" } else { "Error" };
        let (container, message) = ("c".into(), "boom".into());
        Ended { container, beside: vec![], code, signal: None, reason, message, started: at(1), finished: at(finished) }
    }

    #[test]
    fn ready_pod_in_full() {
        let sandbox = sandbox(Phase::Running { since: at(5), ready: true });
        let before = json!({"phase": "Pending", "qosClass": "BestEffort", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:02Z"},
            {"type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:00:02Z"},
            {"type": "other.dev/gate", "status": "True"}]});
        let got = run(json!({}), before, Some(&sandbox), &History::default(), 9);
        let now = "1970-01-01T00:00:09Z";
        let condition = |type_: &str, at: &str| json!({"type": type_, "status": "True", "lastTransitionTime": at});
        let want = json!({
            "phase": "Running", "qosClass": "BestEffort", "startTime": now, "observedGeneration": 1,
            "hostIP": "127.0.0.1", "hostIPs": [{"ip": "127.0.0.1"}], "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}],
            "conditions": [
                condition("PodScheduled", "1970-01-01T00:00:02Z"),
                condition("Initialized", now),
                condition("ContainersReady", now),
                condition("Ready", now),
                {"type": "other.dev/gate", "status": "True"},
            ],
            "containerStatuses": [{
                "name": "c", "image": "r/ns/x@sha256:aa", "imageID": "r/ns/x@sha256:aa", "ready": true, "started": true,
                "restartCount": 0, "containerID": "dhow-process://u-0",
                "state": {"running": {"startedAt": "1970-01-01T00:00:05Z"}},
            }],
        });
        assert_eq!(got, want);
    }

    #[test]
    fn states() {
        let none = History::default;
        let after = |code, failures| History { end: Some(end(code, 100)), failures, ..none() };
        let trouble = Trouble { reason: "NoProvider", message: "why".into(), retry_at: None, attempts: 1 };
        let (starting, not_ready, running) = (
            sandbox(Phase::Starting { since: at(1) }),
            sandbox(Phase::Running { since: at(1), ready: false }),
            sandbox(Phase::Running { since: at(1), ready: true }),
        );
        let always = json!({});
        let never = json!({"restartPolicy": "Never"});
        let deleting = json!({"deletionTimestamp": "1970-01-01T00:01:00Z"});
        let restarted = History { last: Some(end(1, 90)), restarts: 1, ..none() };
        for (case, meta, sandbox, history, phase, ready, state, last) in [
            ("new", &always, None, none(), "Pending", "False", "waiting ContainerCreating", ""),
            (
                "refused",
                &always,
                None,
                History { trouble: Some(trouble), ..none() },
                "Pending",
                "False",
                "waiting NoProvider",
                "",
            ),
            ("starting", &always, Some(&starting), none(), "Pending", "False", "waiting ContainerCreating", ""),
            ("not ready", &always, Some(&not_ready), none(), "Running", "False", "running", ""),
            ("ready", &always, Some(&running), none(), "Running", "True", "running", ""),
            ("leaving", &deleting, Some(&running), none(), "Running", "False", "running", ""),
            ("first end", &always, None, after(1, 1), "Running", "False", "terminated Error", ""),
            ("crash loop", &always, None, after(1, 2), "Running", "False", "waiting CrashLoopBackOff", "Error"),
            ("restarted", &always, Some(&running), restarted, "Running", "True", "running", "Error"),
            ("failed", &never, None, after(3, 1), "Failed", "False", "terminated Error", ""),
            ("succeeded", &never, None, after(0, 1), "Succeeded", "False", "terminated Completed", ""),
        ] {
            let got = run(meta.clone(), json!({}), sandbox, &history, 100);
            let container = &got["containerStatuses"][0];
            let (name, inside) = container["state"].as_object().unwrap().iter().next().unwrap();
            let shown = format!("{name} {}", inside["reason"].as_str().unwrap_or_default());
            let condition = got["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
            let was = container["lastState"]["terminated"]["reason"].as_str().unwrap_or_default();
            assert_eq!(
                (got["phase"].as_str(), condition["status"].as_str(), shown.trim(), was),
                (Some(phase), Some(ready), state, last),
                "{case}: {got:#}"
            );
            assert_eq!(container["ready"] == true, ready == "True", "{case}");
        }
    }

    #[test]
    fn addresses() {
        let mut served = sandbox(Phase::Running { since: at(5), ready: true });
        assert_eq!((socket(Some(&served)), socket(None)), (None, None));
        served.address = Some(Address::Unix("/run/u.sock".into()));
        assert_eq!(socket(Some(&served)), Some("/run/u.sock"));
        let got = run(json!({}), json!({}), Some(&served), &History::default(), 9);
        assert!(got["podIP"].is_null() && got["hostIP"] == "127.0.0.1", "{got}");
    }

    #[test]
    fn patches() {
        for (there, wanted, patch, urgent) in [
            (json!({"phase": "Running"}), json!({"phase": "Running", "qosClass": "x"}), None, false),
            (
                json!({"phase": "Pending", "podIP": "1"}),
                json!({"phase": "Running"}),
                Some(json!({"phase": "Running", "podIP": null})),
                false,
            ),
            (json!({"phase": "Running"}), json!({"phase": "Failed"}), Some(json!({"phase": "Failed"})), true),
            (
                json!({}),
                json!({"conditions": [{"type": "Ready", "status": "True"}]}),
                Some(json!({"conditions": [{"type": "Ready", "status": "True"}]})),
                true,
            ),
            (
                json!({}),
                json!({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}),
                Some(json!({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]})),
                false,
            ),
            (
                json!({}),
                json!({"containerStatuses": [{"state": {"waiting": {"reason": "NoProvider"}}}]}),
                Some(json!({"containerStatuses": [{"state": {"waiting": {"reason": "NoProvider"}}}]})),
                true,
            ),
        ] {
            assert_eq!((changes(&there, &wanted), is_urgent(&there, &wanted)), (patch, urgent), "{there} {wanted}");
        }
    }
}
