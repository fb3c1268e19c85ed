//! `dhow status`: whether the platform works, and what is missing on this machine.

use api::condition;
use api::function::Function;
use api::names::annotation;
use http::{Request, header};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use serde::Serialize;
use serde_json::json;

use super::connect;
use crate::args::{Format, FormatArgs};
use crate::connect::Platform;
use crate::door::Door;
use crate::http as wire;
use crate::output::printable;
use crate::{Context, Failure, Result};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    version: String,
    api: Listener,
    gateway: Listener,
    platform: Listener,
    domain: Option<String>,
    nodes: Vec<NodeReport>,
    functions: Count,
}

#[derive(Debug, Serialize)]
struct Listener {
    url: Option<String>,
    /// `None`: it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeReport {
    name: String,
    ready: bool,
    message: String,
    missing_isolation: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Count {
    total: usize,
    ready: usize,
}

pub async fn run(context: &Context, args: FormatArgs) -> Result<()> {
    let platform = connect(context).await?;
    let report = gather(&platform).await?;
    match args.format {
        Format::Json => context.output.json(&json!(report)),
        Format::Text => context.output.data(&printable(&render(&report))),
    }
    match problems(&report).is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(problems(&report).join("; ")).next("look at the output of dhow up")),
    }
}

async fn gather(platform: &Platform) -> Result<Report> {
    let failed = |e: kube::Error| Failure::api("asking the platform how it is", &e);
    let version = platform.client.apiserver_version().await.map_err(failed)?.git_version;
    let endpoints = platform.endpoints().await?;
    let nodes = Api::<Node>::all(platform.client.clone()).list(&ListParams::default()).await.map_err(failed)?;
    let functions = Api::<Function>::all(platform.client.clone()).list(&ListParams::default()).await.map_err(failed)?;
    let is_ready = |f: &&Function| f.status.as_ref().is_some_and(|s| condition::is_true(&s.conditions, "Ready"));
    let doors = (platform.gateway(&endpoints), platform.uploads(&endpoints));
    Ok(Report {
        version,
        api: Listener { url: Some(platform.server.clone()), problem: None },
        gateway: listener("the gateway", endpoints.gateway, doors.0).await,
        platform: listener("the platform API", endpoints.platform, doors.1).await,
        domain: endpoints.domain,
        nodes: nodes.items.iter().map(node).collect(),
        functions: Count { total: functions.items.len(), ready: functions.items.iter().filter(is_ready).count() },
    })
}

/// Whatever it answers, it answers.
async fn listener(what: &str, url: Option<String>, door: Result<Door>) -> Listener {
    let Ok(door) = door else { return Listener { url, problem: Some("it is not published".into()) } };
    let request = Request::get("/healthz").header(header::HOST, door.host()).body(wire::whole(""));
    let problem = match request {
        Ok(request) => wire::send(what, &door, request).await.err().map(|failure| failure.what),
        Err(error) => Some(error.to_string()),
    };
    Listener { url: url.or_else(|| Some(door.to_string())), problem }
}

fn node(node: &Node) -> NodeReport {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|c| c.type_ == "Ready");
    let missing = node.metadata.annotations.as_ref().and_then(|a| a.get(annotation::MISSING_ISOLATION));
    NodeReport {
        name: node.metadata.name.clone().unwrap_or_default(),
        ready: ready.is_some_and(|c| c.status == "True"),
        message: ready.and_then(|c| c.message.clone()).unwrap_or_default(),
        missing_isolation: missing.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
    }
}

fn problems(report: &Report) -> Vec<String> {
    let mut problems: Vec<String> =
        [&report.gateway, &report.platform].into_iter().filter_map(|l| l.problem.clone()).collect();
    if !report.nodes.iter().any(|n| n.ready) {
        problems.push("no node is ready, so nothing can run".into());
    }
    problems
}

fn render(report: &Report) -> String {
    let listener = |l: &Listener| match (&l.url, &l.problem) {
        (Some(url), None) => format!("{url}  ok"),
        (Some(url), Some(problem)) => format!("{url}  {problem}"),
        (None, _) => "-".to_owned(),
    };
    let mut lines = vec![
        format!("Version:       {}", report.version),
        format!("API:           {}", listener(&report.api)),
        format!("Gateway:       {}", listener(&report.gateway)),
        format!("Platform API:  {}", listener(&report.platform)),
        format!("Functions:     {} of {} ready", report.functions.ready, report.functions.total),
    ];
    for node in &report.nodes {
        let state = if node.ready { "ready".to_owned() } else { format!("not ready: {}", node.message) };
        lines.push(format!("Node:          {}  {state}", node.name));
        if node.missing_isolation.is_empty() {
            lines.push("Isolation:     complete".to_owned());
        } else {
            lines.push("Isolation:     missing here:".to_owned());
            lines.extend(node.missing_isolation.iter().map(|sentence| format!("  - {sentence}")));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        let listener = |problem: Option<&str>| Listener {
            url: Some("http://127.0.0.1:1".into()),
            problem: problem.map(str::to_owned),
        };
        let node = |ready, missing: &[&str]| NodeReport {
            name: "n".into(),
            ready,
            message: "stopped".into(),
            missing_isolation: missing.iter().map(|s| (*s).to_owned()).collect(),
        };
        let report = |gateway, node| Report {
            version: "v1".into(),
            api: listener(None),
            gateway,
            platform: listener(None),
            domain: None,
            nodes: vec![node],
            functions: Count { total: 3, ready: 2 },
        };
        let good = report(listener(None), node(true, &[]));
        assert!(problems(&good).is_empty());
        let shown = render(&good);
        assert!(shown.contains("2 of 3 ready") && shown.contains("n  ready\nIsolation:     complete"), "{shown}");
        let bad = report(listener(Some("no answer")), node(false, &["No network."]));
        assert_eq!(problems(&bad), ["no answer", "no node is ready, so nothing can run"]);
        let shown = render(&bad);
        assert!(shown.contains("not ready: stopped") && shown.contains("\n  - No network."), "{shown}");
    }
}
