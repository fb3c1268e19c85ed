//! The pods of a function, as people read them.

use std::collections::BTreeMap;

use api::names::label;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde::Serialize;

use crate::connect::Platform;
use crate::{Failure, Result};

/// One instance.
#[derive(Clone, Debug, Serialize)]
pub struct Instance {
    pub name: String,
    pub revision: String,
    pub ready: bool,
    /// `Running`, or why it is not.
    pub state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub restarts: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
}

/// The pods of one function, or of all, that are not on their way out.
pub async fn pods(platform: &Platform, api: &kube::Api<Pod>, function: Option<&str>) -> Result<Vec<Pod>> {
    let all = pods_and_leaving(platform, api, function).await?;
    Ok(all.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none()).collect())
}

/// The same with those on their way out, which may still answer a request.
pub async fn pods_and_leaving(platform: &Platform, api: &kube::Api<Pod>, function: Option<&str>) -> Result<Vec<Pod>> {
    let selector = function.map_or(label::FUNCTION.to_owned(), |name| format!("{}={name}", label::FUNCTION));
    let list = api.list(&ListParams::default().labels(&selector)).await;
    let list = list.map_err(|e| Failure::api(&format!("listing instances in {}", platform.namespace), &e))?;
    Ok(list.items)
}

/// How many instances are ready, by namespace and function.
pub fn ready_by_function(pods: &[Pod]) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for pod in pods.iter().filter(|p| is_ready(p)) {
        let name = pod.metadata.labels.as_ref().and_then(|l| l.get(label::FUNCTION)).cloned().unwrap_or_default();
        *counts.entry((pod.metadata.namespace.clone().unwrap_or_default(), name)).or_insert(0) += 1;
    }
    counts
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// What the node says about an instance that runs and is not ready.
fn unready(pod: &Pod) -> String {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|c| c.type_ == "Ready");
    ready.and_then(|c| c.message.clone()).unwrap_or_default()
}

pub fn instance(pod: &Pod) -> Instance {
    let status = pod.status.clone().unwrap_or_default();
    let container = status.container_statuses.as_ref().and_then(|c| c.first()).cloned().unwrap_or_default();
    let states = [container.state.as_ref(), container.last_state.as_ref()];
    let ended = states.into_iter().flatten().find_map(|s| s.terminated.as_ref());
    let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref());
    let ready = is_ready(pod);
    let phase = status.phase.clone().unwrap_or_else(|| "Pending".into());
    let (state, message) = match (waiting, ended) {
        _ if ready => (phase, String::new()),
        (Some(w), None) => (w.reason.clone().unwrap_or(phase), w.message.clone().unwrap_or_default()),
        (waiting, Some(end)) => {
            let why = waiting.and_then(|w| w.reason.clone()).or_else(|| end.reason.clone()).unwrap_or(phase);
            let said = end.message.clone().unwrap_or_default();
            (why, format!("exit code {}\n{said}", end.exit_code).trim_end().to_owned())
        }
        (None, None) if phase == "Running" => ("Starting".into(), unready(pod)),
        (None, None) => (phase, String::new()),
    };
    Instance {
        name: pod.metadata.name.clone().unwrap_or_default(),
        revision: pod.metadata.labels.as_ref().and_then(|l| l.get(label::REVISION)).cloned().unwrap_or_default(),
        ready,
        state,
        message,
        restarts: container.restart_count,
        address: status.pod_ip,
        started: status.start_time.map(|t| t.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn states() {
        let shown = |status: Value| {
            let pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
            let instance = instance(&pod);
            (instance.state, instance.message, instance.ready)
        };
        let container = |state: Value, last: Value| {
            json!({"phase": "Running", "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                "restartCount": 1, "state": state, "lastState": last}]})
        };
        let end = json!({"terminated": {"exitCode": 3, "reason": "Error", "message": "boom"}});
        let row = |state: &str, message: &str, ready| (state.to_owned(), message.to_owned(), ready);
        for (status, want) in [
            (json!({}), row("Pending", "", false)),
            (
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
                row("Running", "", true),
            ),
            (container(json!({"running": {}}), json!({})), row("Starting", "", false)),
            (
                container(json!({"waiting": {"reason": "NoProvider", "message": "why"}}), json!({})),
                row("NoProvider", "why", false),
            ),
            (
                container(json!({"waiting": {"reason": "CrashLoopBackOff", "message": "wait"}}), end.clone()),
                row("CrashLoopBackOff", "exit code 3\nboom", false),
            ),
            (container(end, json!({})), row("Error", "exit code 3\nboom", false)),
        ] {
            assert_eq!(shown(status.clone()), want, "{status}");
        }
    }
}
