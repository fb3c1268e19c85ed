//! The columns of Kubernetes' own kinds.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, Printer};

const fn column(name: &'static str) -> Column {
    Column { name, form: "string", wide: false }
}

const fn number(name: &'static str) -> Column {
    Column { name, form: "integer", wide: false }
}

const fn wide(name: &'static str) -> Column {
    Column { name, form: "string", wide: true }
}

pub static NAMESPACE: &Printer = &Printer {
    columns: &[column("Name"), column("Status"), column("Age")],
    cells: |o, now| vec![name(o), o["status"]["phase"].clone(), age(o, now)],
};

pub static CONFIG_MAP: &Printer = &Printer {
    columns: &[column("Name"), column("Data"), column("Age")],
    cells: |o, now| vec![name(o), (size(&o["data"]) + size(&o["binaryData"])).into(), age(o, now)],
};

pub static SECRET: &Printer = &Printer {
    columns: &[column("Name"), column("Type"), column("Data"), column("Age")],
    cells: |o, now| vec![name(o), o["type"].clone(), size(&o["data"]).into(), age(o, now)],
};

pub static SERVICE_ACCOUNT: &Printer =
    &Printer { columns: &[column("Name"), column("Age")], cells: |o, now| vec![name(o), age(o, now)] };

pub static LEASE: &Printer = &Printer {
    columns: &[column("Name"), column("Holder"), column("Age")],
    cells: |o, now| vec![name(o), text(&o["spec"]["holderIdentity"]).into(), age(o, now)],
};

pub static DEFINITION: &Printer = &Printer {
    columns: &[column("Name"), Column { name: "Created At", form: "date", wide: false }],
    cells: |o, _| vec![name(o), o["metadata"]["creationTimestamp"].clone()],
};

pub static SERVICE: &Printer = &Printer {
    columns: &[
        column("Name"),
        column("Type"),
        column("Cluster-IP"),
        column("External-IP"),
        column("Port(s)"),
        column("Age"),
        wide("Selector"),
    ],
    cells: |o, now| {
        let spec = &o["spec"];
        let external = match spec["type"].as_str() {
            Some("ExternalName") => text(&spec["externalName"]),
            _ => or_none(joined(&spec["externalIPs"], text)),
        };
        let ports = joined(&spec["ports"], |port| match port["nodePort"].as_i64() {
            Some(node) => format!("{}:{node}/{}", port["port"], text(&port["protocol"])),
            None => format!("{}/{}", port["port"], text(&port["protocol"])),
        });
        vec![
            name(o),
            spec["type"].clone(),
            or_none(text(&spec["clusterIP"])).into(),
            external.into(),
            or_none(ports).into(),
            age(o, now),
            or_none(pairs(&spec["selector"])).into(),
        ]
    },
};

pub static DEPLOYMENT: &Printer = &Printer {
    columns: &[
        column("Name"),
        column("Ready"),
        column("Up-to-date"),
        column("Available"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |o, now| {
        let count = |field: &str| o["status"][field].as_i64().unwrap_or(0);
        let ready = format!("{}/{}", count("readyReplicas"), o["spec"]["replicas"].as_i64().unwrap_or(0));
        let (updated, available) = (count("updatedReplicas"), count("availableReplicas"));
        let mut cells = vec![name(o), ready.into(), updated.into(), available.into(), age(o, now)];
        cells.extend(template(o));
        cells
    },
};

pub static REPLICA_SET: &Printer = &Printer {
    columns: &[
        column("Name"),
        number("Desired"),
        number("Current"),
        number("Ready"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |o, now| {
        let count = |value: &Value| Value::from(value.as_i64().unwrap_or(0));
        let status = &o["status"];
        let (desired, current) = (count(&o["spec"]["replicas"]), count(&status["replicas"]));
        let mut cells = vec![name(o), desired, current, count(&status["readyReplicas"]), age(o, now)];
        cells.extend(template(o));
        cells
    },
};

pub static NODE: &Printer = &Printer {
    columns: &[
        column("Name"),
        column("Status"),
        column("Roles"),
        column("Age"),
        column("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    cells: |o, now| {
        let info = &o["status"]["nodeInfo"];
        let address = |kind: &str| {
            let mut all = list(&o["status"]["addresses"]);
            all.find(|a| a["type"] == kind).map_or_else(|| "<none>".to_owned(), |a| text(&a["address"]))
        };
        vec![
            name(o),
            node_status(o).into(),
            or_none(node_roles(o)).into(),
            age(o, now),
            text(&info["kubeletVersion"]).into(),
            address("InternalIP").into(),
            address("ExternalIP").into(),
            or_unknown(text(&info["osImage"])).into(),
            or_unknown(text(&info["kernelVersion"])).into(),
            or_unknown(text(&info["containerRuntimeVersion"])).into(),
        ]
    },
};

pub static ENDPOINT_SLICE: &Printer = &Printer {
    columns: &[column("Name"), column("AddressType"), column("Ports"), column("Endpoints"), column("Age")],
    cells: |o, now| {
        const MOST: usize = 3;
        let ports = joined(&o["ports"], |port| port["port"].to_string());
        let addresses: Vec<String> =
            list(&o["endpoints"]).flat_map(|endpoint| list(&endpoint["addresses"])).map(text).collect();
        let mut endpoints = addresses[..addresses.len().min(MOST)].join(",");
        if addresses.len() > MOST {
            endpoints += &format!(" + {} more...", addresses.len() - MOST);
        }
        let unset = |text: String| if text.is_empty() { "<unset>".to_owned() } else { text };
        vec![name(o), o["addressType"].clone(), unset(ports).into(), unset(endpoints).into(), age(o, now)]
    },
};

pub static EVENT: &Printer = &Printer {
    columns: &[
        column("Last Seen"),
        column("Type"),
        column("Reason"),
        column("Object"),
        wide("Subobject"),
        wide("Source"),
        column("Message"),
        wide("First Seen"),
        wide("Count"),
        wide("Name"),
    ],
    cells: |o, now| {
        let seen = |fields: &[&Value]| {
            let time = fields.iter().find_map(|value| value.as_str());
            time.map_or_else(|| "<unknown>".into(), |time| since(time, now))
        };
        let (first, last) = (&o["firstTimestamp"], &o["lastTimestamp"]);
        let about = &o["involvedObject"];
        let object = format!("{}/{}", text(&about["kind"]).to_lowercase(), text(&about["name"]));
        let source = [&o["source"]["component"], &o["source"]["host"], &o["reportingComponent"]];
        let source: Vec<String> = source.into_iter().map(text).filter(|text| !text.is_empty()).collect();
        let count = o["series"]["count"].as_i64().or(o["count"].as_i64()).unwrap_or(1);
        vec![
            seen(&[&o["series"]["lastObservedTime"], last, first, &o["eventTime"]]),
            o["type"].clone(),
            o["reason"].clone(),
            object.into(),
            text(&about["fieldPath"]).into(),
            source.join(", ").into(),
            text(&o["message"]).trim().into(),
            seen(&[first, &o["eventTime"]]),
            count.to_string().into(),
            name(o),
        ]
    },
};

pub static POD: &Printer = &Printer {
    columns: &[
        column("Name"),
        column("Ready"),
        column("Status"),
        column("Restarts"),
        column("Age"),
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    cells: |o, now| {
        let containers = list(&o["spec"]["containers"]).count();
        let statuses = || list(&o["status"]["containerStatuses"]);
        let ready = statuses().filter(|status| status["ready"] == true).count();
        let restarts: i64 = statuses().filter_map(|status| status["restartCount"].as_i64()).sum();
        let last = statuses().filter_map(|s| s["lastState"]["terminated"]["finishedAt"].as_str()).max();
        let restarts = match last {
            Some(last) if restarts > 0 => format!("{restarts} ({} ago)", text(&since(last, now))),
            _ => restarts.to_string(),
        };
        vec![
            name(o),
            format!("{ready}/{containers}").into(),
            pod_status(o).into(),
            restarts.into(),
            age(o, now),
            or_none(text(&o["status"]["podIP"])).into(),
            or_none(text(&o["spec"]["nodeName"])).into(),
            or_none(text(&o["status"]["nominatedNodeName"])).into(),
            "<none>".into(),
        ]
    },
};

/// What a person calls the state of a pod: the reason of whatever keeps it from running, else its phase.
fn pod_status(pod: &Value) -> String {
    let status = &pod["status"];
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return if status["reason"] == "NodeLost" { "Unknown".into() } else { "Terminating".into() };
    }
    for (i, container) in list(&status["initContainerStatuses"]).enumerate() {
        let state = &container["state"];
        if state["terminated"]["exitCode"] == 0 || (container["started"] == true && container["ready"] == true) {
            continue;
        }
        let total = list(&pod["spec"]["initContainers"]).count();
        return match reason(state) {
            Some(reason) if reason != "PodInitializing" => format!("Init:{reason}"),
            _ => format!("Init:{i}/{total}"),
        };
    }
    let containers: Vec<&Value> = list(&status["containerStatuses"]).collect();
    let running = containers.iter().any(|c| c["ready"] == true && !c["state"]["running"].is_null());
    match containers.iter().rev().find_map(|container| reason(&container["state"])) {
        Some(reason) if reason == "Completed" && running => "Running".into(),
        Some(reason) => reason,
        None => match text(&status["reason"]) {
            reason if reason.is_empty() => or_unknown(text(&status["phase"])),
            reason => reason,
        },
    }
}

/// Why a container waits or ended.
fn reason(state: &Value) -> Option<String> {
    let (waiting, ended) = (&state["waiting"], &state["terminated"]);
    if let Some(reason) = waiting["reason"].as_str().filter(|reason| !reason.is_empty()) {
        return Some(reason.to_owned());
    }
    if ended.is_null() {
        return None;
    }
    match (text(&ended["reason"]), ended["signal"].as_i64()) {
        (reason, _) if !reason.is_empty() => Some(reason),
        (_, Some(signal)) if signal != 0 => Some(format!("Signal:{signal}")),
        _ => Some(format!("ExitCode:{}", ended["exitCode"])),
    }
}

fn node_status(node: &Value) -> String {
    let ready = list(&node["status"]["conditions"]).find(|condition| condition["type"] == "Ready");
    let mut status = match ready.map(|condition| condition["status"] == "True") {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status += ",SchedulingDisabled";
    }
    status
}

fn node_roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    let mut roles: Vec<String> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role.to_owned()),
            _ => (key == "kubernetes.io/role").then(|| text(value)).filter(|role| !role.is_empty()),
        })
        .collect();
    roles.sort();
    roles.dedup();
    roles.join(",")
}

/// Containers, images and selector of something with a pod template.
fn template(object: &Value) -> [Value; 3] {
    let containers = &object["spec"]["template"]["spec"]["containers"];
    [
        joined(containers, |container| text(&container["name"])).into(),
        joined(containers, |container| text(&container["image"])).into(),
        or_none(pairs(&object["spec"]["selector"]["matchLabels"])).into(),
    ]
}

fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn size(value: &Value) -> usize {
    value.as_object().map(serde_json::Map::len).or(value.as_array().map(Vec::len)).unwrap_or(0)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn joined(value: &Value, part: impl Fn(&Value) -> String) -> String {
    list(value).map(part).collect::<Vec<_>>().join(",")
}

fn pairs(value: &Value) -> String {
    let pairs = value.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value)));
    pairs.collect::<Vec<_>>().join(",")
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}

fn or_unknown(text: String) -> String {
    if text.is_empty() { "<unknown>".into() } else { text }
}

/// How long ago an object was made.
pub fn age(object: &Value, now: Timestamp) -> Value {
    match object["metadata"]["creationTimestamp"].as_str() {
        Some(time) => since(time, now),
        None => "<unknown>".into(),
    }
}

/// How long ago that was, in kubectl's short form.
pub fn since(time: &str, now: Timestamp) -> Value {
    match time.parse::<Timestamp>() {
        Ok(then) => short(now.as_second() - then.as_second()).into(),
        Err(_) => json!("<invalid>"),
    }
}

/// Two units at most, and only while the smaller one matters.
fn short(seconds: i64) -> String {
    const DAY: i64 = 24 * 60 * 60;
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{small_unit}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / DAY);
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if days < 2 * 365 => format!("{days}d"),
        _ if days < 8 * 365 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times() {
        for (seconds, want) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (185, "3m5s"),
            (3600, "60m"),
            (3 * 3600 + 60, "3h1m"),
            (10 * 3600, "10h"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (800 * 86400, "2y70d"),
        ] {
            assert_eq!(short(seconds), want, "{seconds}");
        }
    }

    #[test]
    fn pod_states() {
        let waiting = |reason: &str| json!({"state": {"waiting": {"reason": reason}}});
        for (pod, want) in [
            (json!({"status": {"phase": "Pending"}}), "Pending"),
            (
                json!({"status": {"phase": "Pending", "containerStatuses": [waiting("ImagePullBackOff")]}}),
                "ImagePullBackOff",
            ),
            (
                json!({"status": {"phase": "Failed",
                       "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}}),
                "ExitCode:3",
            ),
            (json!({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Running"}}), "Terminating"),
            (
                json!({"spec": {"initContainers": [{}, {}]}, "status": {"phase": "Pending", "initContainerStatuses":
                       [{"state": {"terminated": {"exitCode": 0}}}, {"state": {"running": {}}}]}}),
                "Init:1/2",
            ),
            (
                json!({"status": {"phase": "Running", "containerStatuses": [{"ready": true, "state": {"running": {}}}]}}),
                "Running",
            ),
        ] {
            assert_eq!(pod_status(&pod), want, "{pod}");
        }
    }
}
