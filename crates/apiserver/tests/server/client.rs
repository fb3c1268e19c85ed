//! The server through kube-rs, as the program's own controllers use it.

use crate::harness::{self, server};
use api::function::{Function, FunctionSpec, Inline, Source};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;

fn map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"v": value}}, "data": {"k": value}})).unwrap()
}

fn function(name: &str) -> Function {
    let files = [("main.py".to_owned(), "def handle(request): return 'hi'".to_owned())].into();
    Function::new(
        name,
        FunctionSpec { source: Source { inline: Some(Inline { files }), blob: None }, ..Default::default() },
    )
}

fn status_of<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> Status {
    match result.unwrap_err() {
        kube::Error::Api(status) => *status,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn create_read_update_delete() {
    let client = server().client("default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let made = maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    assert!(made.uid().is_some() && made.resource_version().is_some());
    assert_eq!(maps.get("a").await.unwrap(), made);
    let again = status_of(maps.create(&PostParams::default(), &map("a", "1")).await);
    assert_eq!((again.code, again.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(again.message, r#"configmaps "a" already exists"#);

    let mut changed = made.clone();
    changed.data = Some([("k".to_owned(), "2".to_owned())].into());
    let changed = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(changed.resource_version(), made.resource_version());
    let stale = status_of(maps.replace("a", &PostParams::default(), &made).await);
    assert_eq!(
        stale.message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to \
         the latest version and try again"
    );
    let same = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(same.resource_version(), changed.resource_version(), "a write that changes nothing is none");

    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let gone = status_of(maps.get("a").await);
    assert_eq!((gone.code, gone.message.as_str()), (404, r#"configmaps "a" not found"#));
}

#[tokio::test]
async fn lists_in_pages_by_labels_and_fields() {
    let client = server().client("default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    for i in 0..7 {
        maps.create(&PostParams::default(), &map(&format!("m{i}"), &(i % 2).to_string())).await.unwrap();
    }
    let page = maps.list(&ListParams::default().limit(3)).await.unwrap();
    assert_eq!((page.items.len(), page.metadata.remaining_item_count), (3, Some(4)));
    let token = page.metadata.continue_.unwrap();
    let rest = maps.list(&ListParams::default().limit(10).continue_token(&token)).await.unwrap();
    let names: Vec<_> = rest.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["m3", "m4", "m5", "m6"]);
    assert_eq!(rest.metadata.resource_version, page.metadata.resource_version);
    for (params, want) in [
        (ListParams::default().labels("v=1"), 3),
        (ListParams::default().labels("v in (0,1),!x"), 7),
        (ListParams::default().labels("v=1").limit(1), 1),
        (ListParams::default().fields("metadata.name=m2"), 1),
        (ListParams::default().fields("metadata.name!=m2"), 6),
    ] {
        assert_eq!(maps.list(&params).await.unwrap().items.len(), want, "{params:?}");
    }
    let unknown = status_of(maps.list(&ListParams::default().fields("data.k=1")).await);
    assert_eq!(
        (unknown.code, unknown.message.as_str()),
        (400, "\"data.k\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    );
}

#[tokio::test]
async fn watches_see_transitions() {
    let client = server().client("default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let start = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = maps.watch(&WatchParams::default().labels("v=1"), &start).await.unwrap().boxed();
    maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    maps.create(&PostParams::default(), &map("b", "2")).await.unwrap();
    let relabel = |value: &str| Patch::Merge(json!({"metadata": {"labels": {"v": value}}}));
    maps.patch("b", &PatchParams::default(), &relabel("1")).await.unwrap();
    maps.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"x": "y"}}))).await.unwrap();
    maps.patch("a", &PatchParams::default(), &relabel("3")).await.unwrap();
    maps.delete("b", &DeleteParams::default()).await.unwrap();
    let mut seen = vec![];
    let mut last = 0u64;
    while seen.len() < 5 {
        let (what, object) = match events.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(object) => ("ADDED", object),
            WatchEvent::Modified(object) => ("MODIFIED", object),
            WatchEvent::Deleted(object) => ("DELETED", object),
            other => panic!("{other:?}"),
        };
        let version = object.resource_version().unwrap().parse().unwrap();
        assert!(version > last, "revisions rise");
        last = version;
        seen.push(format!("{what} {}", object.name_any()));
    }
    assert_eq!(seen, ["ADDED a", "ADDED b", "MODIFIED a", "DELETED a", "DELETED b"]);
}

#[tokio::test]
async fn reflectors_follow() {
    for streaming in [false, true] {
        let client = server().client("default");
        let functions: Api<Function> = Api::default_namespaced(client);
        functions.create(&PostParams::default(), &function("one")).await.unwrap();
        let (reader, writer) = reflector::store();
        let config = watcher::Config::default();
        let config = if streaming { config.streaming_lists() } else { config.page_size(1) };
        let stream = watcher(functions.clone(), config).reflect(writer).applied_objects();
        let mut stream = std::pin::pin!(stream);
        assert_eq!(stream.try_next().await.unwrap().unwrap().name_any(), "one");
        functions.create(&PostParams::default(), &function("two")).await.unwrap();
        assert_eq!(stream.try_next().await.unwrap().unwrap().name_any(), "two");
        assert_eq!(reader.state().len(), 2, "streaming: {streaming}");
    }
}

#[tokio::test]
async fn validation_is_worded_as_kubernetes_does() {
    let client = server().client("default");
    let functions: Api<kube::core::DynamicObject> =
        Api::default_namespaced_with(client, &kube::core::ApiResource::erase::<Function>(&()));
    let make = |spec: serde_json::Value| -> kube::core::DynamicObject {
        serde_json::from_value(
            json!({"apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "metadata": {"name": "f"}, "spec": spec}),
        )
        .unwrap()
    };
    for (spec, want) in [
        (json!({}), "Function.dhow.dev \"f\" is invalid: spec.source: Required value"),
        (
            json!({"source": {}}),
            "Function.dhow.dev \"f\" is invalid: spec.source: Invalid value: {}: expected exactly one of blob, inline",
        ),
    ] {
        let status = status_of(functions.create(&PostParams::default(), &make(spec)).await);
        assert_eq!((status.code, status.message.as_str()), (422, want));
    }
}

#[tokio::test]
async fn status_and_spec_are_apart() {
    let client = server().client("default");
    let functions: Api<Function> = Api::default_namespaced(client);
    let made = functions.create(&PostParams::default(), &function("f")).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    let status = json!({"apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "spec": {"handler": "x"},
                        "status": {"url": "http://f"}});
    let apply = PatchParams::apply("dhow-function").force();
    let after = functions.patch_status("f", &apply, &Patch::Apply(&status)).await.unwrap();
    assert_eq!(after.status.clone().unwrap().url.as_deref(), Some("http://f"));
    assert_eq!((after.metadata.generation, after.spec.handler), (Some(1), None));
    let again = functions.patch_status("f", &apply, &Patch::Apply(&status)).await.unwrap();
    assert_eq!(again.metadata.resource_version, after.metadata.resource_version);
    let merge = Patch::Merge(json!({"spec": {"timeoutSeconds": 5}, "status": {"url": "no"}}));
    let after = functions.patch("f", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!(after.metadata.generation, Some(2));
    assert_eq!(after.status.unwrap().url.as_deref(), Some("http://f"));
}

#[tokio::test]
async fn apply_owns_what_it_applies() {
    let client = server().client("default");
    let deployments: Api<Deployment> = Api::default_namespaced(client);
    let config = |replicas: Option<i32>, env: &[&str]| {
        let env: Vec<_> = env.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        let mut config = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"a": "b"}},
            "spec": {
                "selector": {"matchLabels": {"app": "d"}},
                "template": {"metadata": {"labels": {"app": "d"}},
                             "spec": {"containers": [{"name": "c", "image": "i:1", "env": env}]}},
            },
        });
        if let Some(replicas) = replicas {
            config["spec"]["replicas"] = replicas.into();
        }
        Patch::Apply(config)
    };
    let one = PatchParams::apply("one");
    let made = deployments.patch("d", &one, &config(Some(2), &["A", "B"])).await.unwrap();
    let spec = |d: &Deployment| serde_json::to_value(d.spec.clone().unwrap()).unwrap();
    assert_eq!(spec(&made)["template"]["spec"]["restartPolicy"], "Always");
    let same = deployments.patch("d", &one, &config(Some(2), &["A", "B"])).await.unwrap();
    assert_eq!(same.resource_version(), made.resource_version());

    // Somebody else scales, adds an env variable, and owns both from then on.
    let two = PatchParams { field_manager: Some("two".into()), ..PatchParams::default() };
    let patch = json!({"spec": {"replicas": 5, "template": {"spec": {"containers": [
        {"name": "c", "env": [{"name": "C", "value": "1"}]}]}}}});
    deployments.patch("d", &two, &Patch::Strategic(patch)).await.unwrap();
    let conflict = status_of(deployments.patch("d", &one, &config(Some(2), &["A"])).await);
    assert_eq!(
        (conflict.code, conflict.message.as_str()),
        (409, r#"Apply failed with 1 conflict: conflict with "two" using apps/v1: .spec.replicas"#)
    );

    // What an applier stops saying goes away, unless others own it.
    let after = deployments.patch("d", &one, &config(None, &["A"])).await.unwrap();
    let names: Vec<_> = spec(&after)["template"]["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|env| env["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((names, after.spec.as_ref().unwrap().replicas), (vec!["C".to_owned(), "A".into()], Some(5)));
    let forced = deployments.patch("d", &one.clone().force(), &config(Some(1), &["A"])).await.unwrap();
    assert_eq!(forced.spec.unwrap().replicas, Some(1));
    let owners: Vec<_> = forced
        .metadata
        .managed_fields
        .unwrap()
        .into_iter()
        .map(|entry| (entry.manager.unwrap(), entry.operation.unwrap(), entry.fields_v1.unwrap().0))
        .collect();
    assert_eq!(owners[0].0, "one");
    assert_eq!(owners[0].2["f:spec"]["f:replicas"], json!({}));
    assert_eq!(
        owners[1].2,
        json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
            "f:env": {"k:{\"name\":\"C\"}": {".": {}, "f:name": {}, "f:value": {}}}}}}}}})
    );
}

#[tokio::test]
async fn scale() {
    let client = server().client("default");
    let deployments: Api<Deployment> = Api::default_namespaced(client);
    let deployment = serde_json::from_value(json!({
        "metadata": {"name": "d"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "d"}},
                 "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    }))
    .unwrap();
    deployments.create(&PostParams::default(), &deployment).await.unwrap();
    let scale = deployments.get_scale("d").await.unwrap();
    assert_eq!((scale.spec.unwrap().replicas, scale.status.unwrap().selector.as_deref()), (None, Some("app=d")));
    let merge = Patch::Merge(json!({"spec": {"replicas": 3}}));
    deployments.patch_scale("d", &PatchParams::default(), &merge).await.unwrap();
    let apply = Patch::Apply(json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 4}}));
    deployments.patch_scale("d", &PatchParams::apply("dhow-autoscaler").force(), &apply).await.unwrap();
    let after = deployments.get("d").await.unwrap();
    assert_eq!((after.spec.unwrap().replicas, after.metadata.generation), (Some(4), Some(3)));
    let negative = Patch::Merge(json!({"spec": {"replicas": -1}}));
    let refused = status_of(deployments.patch_scale("d", &PatchParams::default(), &negative).await);
    assert_eq!(refused.code, 422);
}

#[tokio::test]
async fn finalizers_hold_and_pods_get_time() {
    let client = server().client("default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut held = map("held", "1");
    held.metadata.finalizers = Some(vec!["dhow.dev/x".into()]);
    maps.create(&PostParams::default(), &held).await.unwrap();
    maps.delete("held", &DeleteParams::default()).await.unwrap();
    let marked = maps.get("held").await.unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    maps.delete("held", &DeleteParams::default()).await.unwrap();
    assert_eq!(maps.get("held").await.unwrap().resource_version(), marked.resource_version());
    maps.patch("held", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
        .await
        .unwrap();
    assert!(maps.get_opt("held").await.unwrap().is_none());

    let pods: Api<Pod> = Api::default_namespaced(client);
    let pod = |node: &str| -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}}))
        .unwrap()
    };
    pods.create(&PostParams::default(), &pod("")).await.unwrap();
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    assert!(pods.get_opt("p").await.unwrap().is_none(), "a pod that no node runs is gone at once");
    pods.create(&PostParams::default(), &pod("n")).await.unwrap();
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    assert_eq!(pods.get("p").await.unwrap().metadata.deletion_grace_period_seconds, Some(30));
    let uid = pods.get("p").await.unwrap().uid();
    let other = DeleteParams::default()
        .grace_period(0)
        .preconditions(kube::api::Preconditions { uid: Some("other".into()), resource_version: None });
    assert_eq!(status_of(pods.delete("p", &other).await).code, 409);
    let now =
        DeleteParams::default().grace_period(0).preconditions(kube::api::Preconditions { uid, resource_version: None });
    pods.delete("p", &now).await.unwrap();
    assert!(pods.get_opt("p").await.unwrap().is_none());
}

#[tokio::test]
async fn namespaces_hold_their_contents() {
    let server = server();
    let client = server.client("default");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let names: Vec<_> =
        namespaces.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["default", "dhow-system", "kube-node-lease", "kube-system"]);
    let maps: Api<ConfigMap> = Api::namespaced(client, "n");
    let missing = status_of(maps.create(&PostParams::default(), &map("a", "1")).await);
    assert_eq!((missing.code, missing.message.as_str()), (404, r#"namespaces "n" not found"#));
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    namespaces.delete("n", &DeleteParams::default()).await.unwrap();
    let ending = namespaces.get("n").await.unwrap();
    assert_eq!(ending.status.clone().unwrap().phase.as_deref(), Some("Terminating"));
    let refused = status_of(maps.create(&PostParams::default(), &map("b", "1")).await);
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (
            403,
            "configmaps \"b\" is forbidden: unable to create new content in namespace n because it is being terminated"
        )
    );
    let mut finalized = serde_json::to_value(ending).unwrap();
    finalized["spec"]["finalizers"] = json!([]);
    let path = "/api/v1/namespaces/n/finalize";
    let (status, _) = harness::call(&server, http::Method::PUT, path, &[], finalized.to_string()).await;
    assert_eq!(status, 200);
    assert!(namespaces.get_opt("n").await.unwrap().is_none());
}

#[tokio::test]
async fn events_are_bounded_and_seen_under_both_groups() {
    let config = apiserver::Config { max_events: 5, ..harness::config() };
    let server = apiserver::ApiServer::new(harness::store(), config).unwrap();
    let client = server.client("default");
    let views: Api<k8s_openapi::api::events::v1::Event> = Api::default_namespaced(client.clone());
    for i in 0..8 {
        let event = serde_json::from_value(json!({"metadata": {"generateName": "e-"}, "note": format!("n{i}"),
            "type": "Normal", "reason": "R", "action": "A", "reportingController": "c", "reportingInstance": "i",
            "eventTime": "2026-01-01T00:00:00.000000Z", "regarding": {"kind": "Pod", "name": "p"}}))
        .unwrap();
        views.create(&PostParams::default(), &event).await.unwrap();
    }
    let events: Api<Event> = Api::default_namespaced(client);
    let about = ListParams::default().fields("involvedObject.name=p,involvedObject.kind=Pod");
    let mut notes: Vec<_> = events.list(&about).await.unwrap().into_iter().map(|e| e.message.unwrap()).collect();
    notes.sort();
    assert_eq!(notes, ["n3", "n4", "n5", "n6", "n7"]);
    let view = views.list(&ListParams::default()).await.unwrap().items.remove(0);
    assert_eq!(view.regarding.unwrap().name.as_deref(), Some("p"));
}

#[tokio::test]
async fn concurrent_writers_lose_nothing() {
    let client = server().client("default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    maps.create(&PostParams::default(), &map("m", "1")).await.unwrap();
    let writes = (0..20).map(|i| {
        let maps = maps.clone();
        async move {
            let patch = Patch::Merge(json!({"data": {format!("k{i}"): "v"}}));
            maps.patch("m", &PatchParams::default(), &patch).await.unwrap();
        }
    });
    futures::future::join_all(writes).await;
    assert_eq!(maps.get("m").await.unwrap().data.unwrap().len(), 21);
}
