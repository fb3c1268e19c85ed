//! At the start: does the cluster have the configured kind, and what did an earlier configuration leave of the others?

use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{DeleteParams, DynamicObject, GroupVersionKind, ListParams, Preconditions};
use kube::core::ApiResource;
use kube::{Api, Client, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::Exposure;
use super::kinds::{HTTPRoute, VirtualService};

const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Deletions at the same time.
const AT_ONCE: usize = 4;
/// Objects of one list.
const PAGE: u32 = 500;

/// The configured kind, if the cluster does not have it: nothing would ever be known of it.
pub async fn missing(client: &Client, exposure: &Exposure) -> Option<String> {
    let kind = match exposure {
        Exposure::None => return None,
        Exposure::Ingress { .. } => resource::<Ingress>(),
        Exposure::HttpRoute { .. } => resource::<HTTPRoute>(),
        Exposure::Istio { .. } => resource::<VirtualService>(),
    };
    let everywhere: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    match everywhere.list_metadata(&ListParams::default().limit(1)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Some(format!("{} of {}", kind.kind, kind.api_version)),
        // Anything else may get better by itself.
        _ => None,
    }
}

/// Tries until it is done. A kind that the cluster does not have has nothing to remove; one that Dhow may not touch was
/// never configured, or is its operator's to remove.
pub async fn sweep(client: Client, exposure: Exposure, shutdown: CancellationToken) {
    let kinds = [
        (matches!(exposure, Exposure::Ingress { .. }), resource::<Ingress>()),
        (matches!(exposure, Exposure::HttpRoute { .. }), resource::<HTTPRoute>()),
        (matches!(exposure, Exposure::Istio { .. }), resource::<VirtualService>()),
    ];
    for (_, kind) in kinds.into_iter().filter(|(configured, _)| !configured) {
        let mut pause = Duration::from_secs(1);
        while let Err(error) = remove(&client, &kind).await {
            if matches!(&error, kube::Error::Api(status) if status.code == 403) {
                tracing::info!(kind = kind.kind, "not permitted to look for what an earlier configuration made");
                break;
            }
            tracing::warn!(kind = kind.kind, %error, "what an earlier configuration made cannot be removed yet");
            let waited = shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
            if waited.is_none() {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    let gvk = GroupVersionKind::gvk(&K::group(&()), &K::version(&()), &K::kind(&()));
    ApiResource::from_gvk_with_plural(&gvk, &K::plural(&()))
}

async fn remove(client: &Client, kind: &ApiResource) -> kube::Result<()> {
    let everywhere: Api<DynamicObject> = Api::all_with(client.clone(), kind);
    let mut ours = ListParams::default().labels(api::names::label::EXPOSES).limit(PAGE);
    loop {
        let listed = match everywhere.list_metadata(&ours).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            listed => listed?,
        };
        let more = listed.metadata.continue_.clone().filter(|token| !token.is_empty());
        let gone = stream::iter(listed.items).map(|object| {
            let namespaced: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), &object.namespace().unwrap_or_default(), kind);
            async move {
                let preconditions = Some(Preconditions { uid: object.uid(), resource_version: None });
                let only_this = DeleteParams { preconditions, ..DeleteParams::default() };
                match namespaced.delete(&object.name_any(), &only_this).await {
                    // Gone already, or another of that name.
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                    deleted => deleted.map(|_| ()),
                }
            }
        });
        let results: Vec<kube::Result<()>> = gone.buffer_unordered(AT_ONCE).collect().await;
        results.into_iter().collect::<kube::Result<()>>()?;
        let Some(token) = more else { return Ok(()) };
        ours = ours.continue_token(&token);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that answers each request with the next of its path's answers, and remembers what it was asked.
    fn scripted(answers: Value) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(vec![]));
        let (log, answers) = (asked.clone(), Mutex::new(answers));
        let service = tower::service_fn(move |request: Request<Body>| {
            let line = format!("{} {}", request.method(), request.uri().path());
            log.lock().unwrap().push(line.clone());
            let mut answers = answers.lock().unwrap();
            let (code, body) = match answers[&line].as_array_mut().filter(|rest| !rest.is_empty()) {
                Some(rest) => match rest.remove(0) {
                    Value::Number(code) => (code.as_u64().unwrap() as u16, status(&code)),
                    list => (200, list),
                },
                None => (404, status(&404.into())),
            };
            let response = Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap();
            async move { Ok::<_, Infallible>(response) }
        });
        (Client::new(service, "default"), asked)
    }

    fn status(code: &serde_json::Number) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "m", "reason": "r",
            "code": code})
    }

    fn list(names: &[&str], more: &str) -> Value {
        let item = |name: &&str| json!({"metadata": {"namespace": "a", "name": name, "uid": name}});
        json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {"continue": more},
            "items": names.iter().map(item).collect::<Vec<_>>()})
    }

    const INGRESSES: &str = "/apis/networking.k8s.io/v1";
    const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1";
    const SERVICES: &str = "/apis/networking.istio.io/v1";

    #[tokio::test]
    async fn a_kind_that_the_cluster_does_not_have_is_named() {
        let routes = format!("GET {ROUTES}/httproutes");
        let gateway = super::super::GatewayRef { namespace: "n".into(), name: "g".into(), section: None };
        for (answers, want) in [
            (json!({}), Some("HTTPRoute of gateway.networking.k8s.io/v1")),
            (json!({&routes: [list(&[], "")]}), None),
            (json!({&routes: [500]}), None),
            (json!({&routes: [403]}), None),
        ] {
            let (client, _) = scripted(answers);
            let exposure = Exposure::HttpRoute { gateway: gateway.clone() };
            assert_eq!(missing(&client, &exposure).await.as_deref(), want);
        }
        assert_eq!(missing(&scripted(json!({})).0, &Exposure::None).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_configured_goes() {
        let read = |base: &str, plural: &str| format!("GET {base}/{plural}");
        let delete = |base: &str, plural: &str, name: &str| format!("DELETE {base}/namespaces/a/{plural}/{name}");
        let (ingresses, routes) = (read(INGRESSES, "ingresses"), read(ROUTES, "httproutes"));
        let services = read(SERVICES, "virtualservices");
        let (one, two) = (delete(INGRESSES, "ingresses", "one"), delete(INGRESSES, "ingresses", "two"));
        for (case, exposure, answers, want) in [
            ("no such kinds", Exposure::None, json!({}), vec![&ingresses, &routes, &services]),
            (
                "what is configured stays",
                Exposure::Ingress { class: None },
                json!({&ingresses: [list(&["one"], "")]}),
                vec![&routes, &services],
            ),
            (
                "a server that is down, an object that is gone, a second page",
                Exposure::Istio { gateways: vec![] },
                json!({&ingresses: [500, list(&["one"], "more"), list(&["two"], "")], &one: [404], &two: [list(&[], "")]}),
                vec![&ingresses, &ingresses, &one, &ingresses, &two, &routes],
            ),
            (
                "a deletion that fails is tried again",
                Exposure::Istio { gateways: vec![] },
                json!({&ingresses: [list(&["one"], ""), list(&["one"], "")], &one: [500, list(&[], "")]}),
                vec![&ingresses, &one, &ingresses, &one, &routes],
            ),
            ("not permitted", Exposure::None, json!({&ingresses: [403]}), vec![&ingresses, &routes, &services]),
        ] {
            let (client, asked) = scripted(answers);
            sweep(client, exposure, CancellationToken::new()).await;
            let asked = asked.lock().unwrap();
            assert_eq!(asked.iter().collect::<Vec<_>>(), want, "{case}");
        }
    }
}
