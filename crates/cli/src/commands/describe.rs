//! `dhow describe`: everything about one function on one page.

use api::build::{self, Build};
use api::condition::{self, Condition};
use api::function::{Function, Runtime};
use api::serving::Revision;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use serde_json::json;

use super::{connect, function};
use crate::args::{Format, NameArgs};
use crate::connect::Platform;
use crate::instances::{self, Instance};
use crate::output::{age, printable, table};
use crate::progress::headline;
use crate::{Context, Failure, Result};

/// Events shown, the latest.
const EVENTS: usize = 10;
const LOG_LINES: usize = 10;

/// Everything that is shown.
struct Page {
    function: Function,
    build: Option<Build>,
    revision: Option<Revision>,
    instances: Vec<Instance>,
    events: Vec<Event>,
}

pub async fn run(context: &Context, args: &NameArgs) -> Result<()> {
    let platform = connect(context).await?;
    let page = gather(&platform, &args.name).await?;
    match args.format.format {
        Format::Json => context.output.json(&json!({
            "function": page.function,
            "build": page.build,
            "revision": page.revision,
            "instances": page.instances,
            "events": page.events,
        })),
        Format::Text => context.output.data(&printable(&render(&page, (context.clock)()))),
    }
    Ok(())
}

async fn gather(platform: &Platform, name: &str) -> Result<Page> {
    let function = function(platform, name).await?;
    let status = function.status.clone().unwrap_or_default();
    let doing = format!("reading what belongs to {name}");
    let failed = |e: kube::Error| Failure::api(&doing, &e);
    let build = match &status.build {
        Some(build) => platform.api::<Build>().get_opt(build).await.map_err(failed)?,
        None => None,
    };
    let revision = match &status.revision {
        Some(revision) => platform.api::<Revision>().get_opt(revision).await.map_err(failed)?,
        None => None,
    };
    let pods = instances::pods(platform, &platform.api(), Some(name)).await?;
    let events = platform.api::<Event>().list(&ListParams::default()).await.map_err(failed)?.items;
    let mut events: Vec<Event> = events.into_iter().filter(|e| concerns(e, name)).collect();
    events.sort_by_key(happened);
    events.drain(..events.len().saturating_sub(EVENTS));
    Ok(Page { function, build, revision, instances: pods.iter().map(instances::instance).collect(), events })
}

/// Everything made for a function begins with its name.
fn concerns(event: &Event, name: &str) -> bool {
    let object = event.involved_object.name.as_deref().unwrap_or_default();
    object.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn happened(event: &Event) -> Option<Timestamp> {
    event.last_timestamp.as_ref().or(event.first_timestamp.as_ref()).map(|t| t.0)
}

fn render(page: &Page, now: Timestamp) -> String {
    let function = &page.function;
    let status = function.status.clone().unwrap_or_default();
    let text = |field: &Option<String>| field.clone().unwrap_or_else(|| "-".into());
    let name = text(&function.metadata.name);
    let built = page.build.as_ref().and_then(|b| b.status.clone()).unwrap_or_default();
    let runtime = function.spec.runtime.or(built.runtime).map_or("-", Runtime::name);
    let made = function.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let mut lines = vec![
        format!("Name:       {name}"),
        format!("Namespace:  {}", text(&function.metadata.namespace)),
        format!("URL:        {}", text(&status.url)),
        format!("Runtime:    {runtime}"),
        format!("Age:        {}", age(made, now)),
        format!("Build:      {}", text(&status.build)),
        format!("Image:      {}", text(&built.image)),
        format!("Revision:   {}", text(&status.revision)),
        String::new(),
        "Conditions:".to_owned(),
    ];
    lines.extend(indented(&conditions(&status.conditions, now)));
    if condition::is_false(&built.conditions, build::SUCCEEDED) && !built.log_tail.is_empty() {
        lines.extend([String::new(), "Last lines of the build:".to_owned()]);
        let tail = &built.log_tail[built.log_tail.len().saturating_sub(LOG_LINES)..];
        lines.extend(tail.iter().map(|line| format!("  | {line}")));
    }
    lines.extend([String::new(), format!("Instances:  {}", page.instances.len())]);
    if !page.instances.is_empty() {
        lines.extend(indented(&instance_table(&page.instances, now)));
    }
    for instance in page.instances.iter().filter(|i| !i.message.is_empty()) {
        lines.push(format!("  {}:", instance.name));
        lines.extend(instance.message.lines().map(|line| format!("    | {line}")));
    }
    if !page.events.is_empty() {
        lines.extend([String::new(), "Events:".to_owned()]);
        lines.extend(indented(&event_table(&page.events, now)));
    }
    lines.extend([String::new(), format!("Next:       {}", next(&name, page))]);
    lines.join("\n")
}

fn indented(text: &str) -> Vec<String> {
    text.lines().map(|line| format!("  {line}")).collect()
}

fn conditions(conditions: &[Condition], now: Timestamp) -> String {
    let order = ["SourceReady", "Built", "Serving", "Ready"];
    let rows: Vec<Vec<String>> = order
        .iter()
        .filter_map(|type_| condition::find(conditions, type_))
        .map(|c| {
            let first = headline(&c.message).to_owned();
            let since = c.last_transition_time.as_ref().map(|t| t.0);
            vec![c.type_.clone(), c.status.clone(), age(since, now), c.reason.clone(), first]
        })
        .collect();
    table(&["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"], &rows)
}

fn instance_table(instances: &[Instance], now: Timestamp) -> String {
    let row = |i: &Instance| {
        let ready = if i.ready { "yes" } else { "no" };
        vec![i.name.clone(), ready.to_owned(), i.state.clone(), i.restarts.to_string(), age(i.started, now)]
    };
    table(&["NAME", "READY", "STATE", "RESTARTS", "AGE"], &instances.iter().map(row).collect::<Vec<_>>())
}

fn event_table(events: &[Event], now: Timestamp) -> String {
    let row = |e: &Event| {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let object = format!("{}/{}", text(&e.involved_object.kind).to_lowercase(), text(&e.involved_object.name));
        let message = headline(&text(&e.message)).to_owned();
        let count = e.count.filter(|n| *n > 1).map(|n| format!(" (x{n})")).unwrap_or_default();
        vec![age(happened(e), now), text(&e.type_), text(&e.reason), object, format!("{message}{count}")]
    };
    table(&["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"], &events.iter().map(row).collect::<Vec<_>>())
}

fn next(name: &str, page: &Page) -> String {
    let conditions = page.function.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let failed = |type_: &str| condition::is_false(conditions, type_);
    if condition::is_true(conditions, "Ready") {
        format!("dhow invoke {name}")
    } else if failed("SourceReady") || failed("Built") {
        "mend the source and deploy it again".to_owned()
    } else if failed("Serving") {
        format!("dhow logs {name}, then mend it and deploy it again")
    } else {
        "it is on its way".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn page(conditions: Value, instances: Vec<Instance>) -> Page {
        let function = json!({
            "metadata": {"name": "hello", "namespace": "default", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"source": {}},
            "status": {"url": "http://hello", "build": "hello-1", "revision": "hello-00001", "conditions": conditions}
        });
        let build = json!({"metadata": {"name": "hello-1"}, "spec": {"source": {}, "repository": "default/hello"},
            "status": {"runtime": "python", "logTail": ["no such package"], "conditions": [
                {"type": "Succeeded", "status": "False"}]}});
        let event = json!({"metadata": {}, "involvedObject": {"kind": "Pod", "name": "hello-x"}, "type": "Warning",
            "reason": "BackOff", "message": "again", "count": 3, "lastTimestamp": "1970-01-01T00:00:50Z"});
        Page {
            function: serde_json::from_value(function).unwrap(),
            build: serde_json::from_value(build).unwrap(),
            revision: None,
            instances,
            events: vec![serde_json::from_value(event).unwrap()],
        }
    }

    #[test]
    fn pages() {
        let instance = Instance {
            name: "hello-x".into(),
            revision: "hello-00001".into(),
            ready: false,
            state: "CrashLoopBackOff".into(),
            message: "exit code 1\nboom".into(),
            restarts: 2,
            address: None,
            started: None,
        };
        let built =
            json!([{"type": "Built", "status": "False", "reason": "DependenciesFailed", "message": "one\ntwo"}]);
        let shown = render(&page(built, vec![instance]), Timestamp::from_second(60).unwrap());
        for part in [
            "Name:       hello",
            "Runtime:    python",
            "Age:        60s",
            "Built   False    -       DependenciesFailed   one",
            "  | no such package",
            "Instances:  1",
            "hello-x   no      CrashLoopBackOff   2",
            "    | boom",
            "10s   Warning   BackOff   pod/hello-x   again (x3)",
            "Next:       mend the source",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let shown = render(&page(ready, vec![]), Timestamp::from_second(60).unwrap());
        assert!(shown.contains("Instances:  0\n") && shown.ends_with("Next:       dhow invoke hello"), "{shown}");
    }

    #[test]
    fn events_of_others_are_not_shown() {
        for (object, want) in [("hello", true), ("hello-00001", true), ("hello2", false), ("other-hello", false)] {
            let event = json!({"metadata": {}, "involvedObject": {"name": object}});
            assert_eq!(concerns(&serde_json::from_value(event).unwrap(), "hello"), want, "{object}");
        }
    }
}
