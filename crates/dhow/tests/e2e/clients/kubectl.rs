//! kubectl as people type it, verb by verb, and what it prints.

use serde_json::{Value, json};

use super::pod_spec;
use crate::harness::{Platform, kubectl, machine, write_files};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {team: a}}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "web:1", ports: [{containerPort: 80}]}
"#;
const MAPS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: one, labels: {team: a}}
data: {a: "1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: two, labels: {team: a}}
data: {a: "1"}
"#;

async fn platform() -> Option<Platform> {
    if !machine() || kubectl().is_none() {
        return None;
    }
    let platform = Platform::start().await;
    let one = MAPS.split("---").next().expect("two documents");
    let files = [("web.yaml", WEB), ("maps.yaml", MAPS), ("one.yaml", one)];
    write_files(platform.dir.path(), &files);
    let image = WEB.replace("web:1", "web:2");
    write_files(platform.dir.path(), &[("image.yaml", &image)]);
    Some(platform)
}

#[tokio::test]
async fn apply_from_the_client_and_by_the_server() {
    let Some(platform) = platform().await else { return };
    platform.shell(&[
        ("kubectl apply -f web.yaml -f maps.yaml", &["deployment.apps/web created", "configmap/two created"]),
        ("kubectl apply -f web.yaml -f maps.yaml", &["deployment.apps/web unchanged", "configmap/two unchanged"]),
        ("kubectl diff -f web.yaml", &[]),
        ("!kubectl diff -f image.yaml", &["- - image: web:1", "+ - image: web:2"]),
        ("kubectl apply -f image.yaml --dry-run=client", &["deployment.apps/web configured (dry run)"]),
        ("kubectl apply -f image.yaml --dry-run=server", &["deployment.apps/web configured (server dry run)"]),
        ("kubectl apply -f image.yaml --dry-run=server -o jsonpath='{..image}'", &["web:2"]),
        ("kubectl get deploy web -o jsonpath='{..image}'", &["web:1"]),
        ("kubectl apply view-last-applied deploy/web -o json", &["\"image\": \"web:1\""]),
        // What the same kubectl applied before is its own.
        ("kubectl apply --server-side -f image.yaml", &["deployment.apps/web serverside-applied"]),
        ("kubectl apply --server-side --force-conflicts -f image.yaml", &["deployment.apps/web serverside-applied"]),
        ("kubectl diff --server-side -f image.yaml", &[]),
        ("!kubectl diff --server-side --force-conflicts -f web.yaml", &["- - image: web:2", "+ - image: web:1"]),
        (
            "!kubectl apply --server-side --field-manager=other -f web.yaml",
            &[r#"Apply failed with 1 conflict: conflict with "kubectl""#],
        ),
        ("kubectl apply --server-side --field-manager=other --force-conflicts -f web.yaml", &["serverside-applied"]),
        ("kubectl get deploy web -o jsonpath='{..managedFields[*].manager}' --show-managed-fields", &["other"]),
        (
            "kubectl apply --prune -l team=a --prune-allowlist=core/v1/ConfigMap -f one.yaml",
            &["configmap/one unchanged", "configmap/two pruned"],
        ),
        (
            "KUBECTL_APPLYSET=true kubectl apply --prune --applyset=set -n default -f maps.yaml",
            &["configmap/two created"],
        ),
        (
            "KUBECTL_APPLYSET=true kubectl apply --prune --applyset=set -n default -f one.yaml",
            &["configmap/two pruned"],
        ),
        ("kubectl get secret set -o yaml", &["applyset.kubernetes.io/contains-group-kinds: ConfigMap"]),
        ("!sed 's/^data:/dota:/' one.yaml | kubectl apply -f -", &[r#"unknown field "dota""#]),
        ("sed 's/^data:/dota:/' one.yaml | kubectl apply --validate=warn -f -", &[r#"Warning: unknown field "dota""#]),
        ("sed 's/^data:/doto:/' one.yaml | kubectl apply --validate=ignore -f -", &["configmap/one configured"]),
    ]);
}

#[tokio::test]
async fn patch_edit_replace_label_annotate_set() {
    let Some(platform) = platform().await else { return };
    let editor = "#!/bin/sh\nsed -i \"$EDIT\" \"$1\"\n";
    write_files(platform.dir.path(), &[("editor.sh", editor)]);
    platform.shell(&[
        ("kubectl apply -f web.yaml -f one.yaml", &[]),
        (r#"kubectl patch deploy web --type=json -p '[{"op":"test","path":"/spec/replicas","value":0},{"op":"add","path":"/metadata/labels/j","value":"1"}]'"#, &["deployment.apps/web patched"]),
        (r#"!kubectl patch deploy web --type=json -p '[{"op":"test","path":"/spec/replicas","value":5}]'"#, &["The request is invalid"]),
        (r#"kubectl patch deploy web --type=merge -p '{"metadata":{"labels":{"m":"1","j":null}}}'"#, &["patched"]),
        (r#"kubectl patch deploy web -p '{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"s:1"}]}}}}'"#, &["patched"]),
        (r#"kubectl patch deploy web -p '{"spec":{"template":{"spec":{"containers":[{"name":"side","$patch":"delete"}]}}}}'"#, &["patched"]),
        ("kubectl get deploy web -o jsonpath='{..image} {.metadata.labels}'", &[r#"web:1 {"m":"1","team":"a"}"#]),
        (r#"kubectl patch deploy web --type=merge -p '{"metadata":{"labels":{"m":"1"}}}'"#, &["patched (no change)"]),
        (r#"kubectl patch deploy web --subresource=scale --type=merge -p '{"spec":{"replicas":0}}' -o name"#, &["web"]),
        (r#"kubectl patch deploy web --subresource=status --type=merge -p '{"status":{"collisionCount":3},"spec":{"paused":true}}'"#, &["patched"]),
        ("kubectl get deploy web -o jsonpath='[{.spec.paused}]'", &["[]"]),
        (r#"kubectl patch -f one.yaml --local --type=merge -p '{"data":{"a":"9"}}' -o jsonpath='{.data.a}'"#, &["9"]),
        (r#"!kubectl patch cm nobody --type=merge -p '{}'"#, &[r#"configmaps "nobody" not found"#]),
        ("chmod +x editor.sh; EDIT='s/a: \"1\"/a: \"7\"/' KUBE_EDITOR=./editor.sh kubectl edit cm one", &["configmap/one edited"]),
        ("EDIT='s/nothing//' KUBE_EDITOR=./editor.sh kubectl edit cm one", &["Edit cancelled, no changes made"]),
        ("!EDIT='s/name: one/name: two/' KUBE_EDITOR=./editor.sh kubectl edit cm one", &["At least one of apiVersion, kind and name was changed"]),
        ("!EDIT='s/a: \"1\"/a: \"8\"/' KUBE_EDITOR=./editor.sh kubectl create --edit -f one.yaml", &["already exists"]),
        ("kubectl get cm one -o jsonpath='{.data.a}'", &["7"]),
        ("kubectl replace -f one.yaml", &["configmap/one replaced"]),
        ("kubectl get cm one -o jsonpath='{.data.a}'", &["1"]),
        ("kubectl replace --force -f one.yaml", &[r#"configmap "one" deleted"#, "configmap/one replaced"]),
        ("!kubectl replace -f maps.yaml", &[r#"configmaps "two" not found"#]),
        ("kubectl label deploy web x=y", &["deployment.apps/web labeled"]),
        ("!kubectl label deploy web x=z", &["--overwrite is false"]),
        ("kubectl label --all deploy x=z --overwrite", &["labeled"]),
        ("kubectl label deploy web --list", &["x=z"]),
        ("kubectl label deploy web x-", &["unlabeled"]),
        ("kubectl annotate deploy web a=b --resource-version=$(kubectl get deploy web -o jsonpath='{.metadata.resourceVersion}')", &["annotated"]),
        ("!kubectl annotate deploy web a=c --overwrite --resource-version=1", &["the object has been modified"]),
        ("kubectl annotate deploy web a-", &["annotated"]),
        ("kubectl set image deploy/web web=web:9", &["deployment.apps/web image updated"]),
        ("kubectl set env deploy/web A=B", &["deployment.apps/web env updated"]),
        ("kubectl set env deploy/web --list", &["A=B"]),
        ("kubectl set resources deploy/web --limits=cpu=1", &["resource requirements updated"]),
        ("kubectl get deploy web -o jsonpath='{.spec.template.spec.containers}'", &[r#""limits":{"cpu":"1"}"#, "web:9", r#""name":"A","value":"B""#]),
    ]);
}

#[tokio::test]
async fn every_way_to_look() {
    let Some(platform) = platform().await else { return };
    platform.shell(&[
        ("kubectl apply -f web.yaml -f maps.yaml", &[]),
        (
            "kubectl get deploy,cm",
            &["NAME READY UP-TO-DATE AVAILABLE AGE", "deployment.apps/web 0/0 0 0", "configmap/one 1"],
        ),
        ("kubectl get deploy web -o wide", &["CONTAINERS IMAGES SELECTOR", "web web:1 app=web"]),
        ("kubectl get deploy web -o name", &["deployment.apps/web"]),
        ("kubectl get deploy web -o json", &[r#""kind": "Deployment""#]),
        ("kubectl get deploy web -o yaml", &["kind: Deployment"]),
        ("kubectl get deploy web -o jsonpath='{.metadata.name}'", &["web"]),
        ("kubectl get deploy web -o jsonpath-as-json='{.metadata.labels}'", &[r#""team": "a""#]),
        ("kubectl get deploy web -o go-template='{{.metadata.name}} {{.kind}}'", &["web Deployment"]),
        (
            "echo 'N .metadata.name' | tr ' ' '\\n' > columns; kubectl get deploy -o custom-columns-file=columns",
            &["N\nweb"],
        ),
        ("kubectl get deploy -o custom-columns=N:.metadata.name,T:.metadata.labels.team", &["N T\nweb a"]),
        ("kubectl get deploy --show-labels", &["LABELS", "team=a"]),
        ("kubectl get deploy -L team --no-headers", &["web 0/0 0 0"]),
        ("kubectl get cm -l team=a --sort-by=.metadata.name -o name", &["configmap/one\nconfigmap/two"]),
        ("kubectl get cm -l 'team in (a,b),!x' -o name", &["configmap/one\nconfigmap/two"]),
        ("kubectl get cm --field-selector=metadata.name=one -o name", &["configmap/one"]),
        ("!kubectl get cm --field-selector=data.a=1", &[r#""data.a" is not a known field selector"#]),
        ("kubectl get cm -A --chunk-size=1 --no-headers | wc -l | xargs test 2 -le", &[]),
        ("kubectl get deploy web --subresource=scale -o jsonpath='{.kind} {.status.selector}'", &["Scale app=web"]),
        ("kubectl get deploy web --subresource=status -o jsonpath='{.kind}'", &["Deployment"]),
        ("kubectl get -f maps.yaml", &["one 1", "two 1"]),
        ("kubectl get cm nobody --ignore-not-found", &[]),
        ("kubectl get deploy -w --output-watch-events --request-timeout=2s", &["EVENT NAME READY", "ADDED web 0/0"]),
        ("kubectl get --raw /healthz; kubectl get --raw /readyz; kubectl get --raw /livez", &["okokok"]),
        (
            "kubectl get --raw '/api/v1/namespaces/default/configmaps?labelSelector=team%3Da&limit=1'",
            &[r#""kind":"ConfigMapList""#, r#""continue":""#],
        ),
        ("!kubectl get --raw /apis/apps/v1/statefulsets", &["the server could not find the requested resource"]),
        ("!kubectl get statefulsets", &[r#"the server doesn't have a resource type "statefulsets""#]),
        ("kubectl api-versions", &["apps/v1", "dhow.dev/v1alpha1", "serving.knative.dev/v1"]),
        ("kubectl api-resources --namespaced=false", &["namespaces ns v1 false Namespace"]),
        ("kubectl api-resources --api-group=apps -o name", &["deployments.apps\nreplicasets.apps"]),
        (
            "kubectl api-resources --categories=knative --verbs=list,watch -o wide",
            &["services kservice,ksvc serving.knative.dev/v1 true Service"],
        ),
        ("kubectl auth can-i create pods", &["yes"]),
        ("kubectl auth can-i '*' '*' -A", &["yes"]),
        ("kubectl auth whoami -o jsonpath='{.status.userInfo.username}'", &["dhow-admin"]),
        (
            "kubectl explain deploy.spec.strategy",
            &["FIELD: strategy <DeploymentStrategy>", "rollingUpdate <RollingUpdateDeployment>"],
        ),
        ("kubectl explain deploy --recursive", &["maxSurge <IntOrString>", "containerPort <integer> -required-"]),
        ("kubectl explain fn.spec --recursive", &["GROUP: dhow.dev", "inline <Object>"]),
        (
            "kubectl explain ksvc.spec.template.spec --api-version=serving.knative.dev/v1",
            &["containerConcurrency <integer>"],
        ),
        (
            "kubectl explain deploy.spec.strategy --output=plaintext-openapiv2",
            &["RESOURCE: strategy <Object>", "rollingUpdate <Object>"],
        ),
        (
            "kubectl explain fn.spec --output=plaintext-openapiv2",
            &["RESOURCE: spec <Object>", "source <Object> -required-"],
        ),
        ("!kubectl explain deploy.spec.nothing", &[r#"field "nothing" does not exist"#]),
        ("!kubectl explain nothing", &[r#"the server doesn't have a resource type "nothing""#]),
        ("kubectl describe deploy web", &["Selector: app=web", "StrategyType: RollingUpdate", "Image: web:1"]),
        ("kubectl describe cm one", &["Data\n====\na:\n----\n1"]),
        ("kubectl describe ns default", &["Status: Active"]),
        ("kubectl describe node", &["Ready", "Capacity:"]),
        ("kubectl cluster-info", &["control plane", "is running at https://127.0.0.1"]),
        ("kubectl version -o json", &["serverVersion"]),
    ]);
}

#[tokio::test]
async fn create_and_delete_in_every_way() {
    let Some(platform) = platform().await else { return };
    platform.shell(&[
        (
            "kubectl create cm m --from-literal=a=b --dry-run=client -o yaml | kubectl create -f -",
            &["configmap/m created"],
        ),
        ("kubectl create cm dry --from-literal=a=b --dry-run=server", &["configmap/dry created (server dry run)"]),
        ("!kubectl get cm dry", &["not found"]),
        ("!kubectl create cm m", &[r#"configmaps "m" already exists"#]),
        ("kubectl create secret generic s --from-literal=a=b --from-file=web.yaml", &["secret/s created"]),
        ("kubectl get secret s -o jsonpath='{.type} {.data.a}'", &["Opaque Yg=="]),
        ("kubectl get secrets --field-selector=type=Opaque", &["s Opaque 2"]),
        (
            "kubectl create secret docker-registry r --docker-server=a --docker-username=u --docker-password=p",
            &["secret/r created"],
        ),
        ("kubectl create ns team", &["namespace/team created"]),
        ("kubectl create sa robot -n team", &["serviceaccount/robot created"]),
        ("kubectl create deployment d --image=i:1 --replicas=0 --port=80", &["deployment.apps/d created"]),
        ("kubectl expose deploy d --port=80 --name=exposed", &["service/exposed exposed"]),
        ("kubectl create service clusterip c --tcp=80:8080", &["service/c created"]),
        ("kubectl create service externalname e --external-name=example.org", &["service/e created"]),
        ("kubectl get svc", &["e ExternalName <none> example.org"]),
        ("!kubectl create job j --image=i", &["the server could not find the requested resource"]),
        ("!kubectl create -f maps.yaml -f nothing.yaml", &["\"nothing.yaml\" does not exist"]),
        ("kubectl create -f maps.yaml --save-config", &["configmap/one created"]),
        ("kubectl scale deploy d --replicas=1 --current-replicas=0", &["deployment.apps/d scaled"]),
        ("!kubectl scale deploy d --replicas=0 --current-replicas=0", &["Expected replicas to be 0, was 1"]),
        ("kubectl scale deploy d --replicas=0", &["deployment.apps/d scaled"]),
        ("kubectl wait --for=create cm/one --timeout=30s", &["configmap/one condition met"]),
        ("kubectl wait --for=jsonpath='{.data.a}'=1 cm/one cm/two --timeout=30s", &["configmap/two condition met"]),
        ("!kubectl wait --for=jsonpath='{.data.a}'=2 cm/one --timeout=1s", &["timed out waiting for the condition"]),
        ("kubectl delete cm --all --dry-run=client", &[r#"configmap "one" deleted"#]),
        ("kubectl delete cm --all --dry-run=server", &[r#"configmap "one" deleted"#]),
        ("kubectl delete cm one", &[r#"configmap "one" deleted"#]),
        ("!kubectl delete cm one", &[r#"configmaps "one" not found"#]),
        ("kubectl delete cm one --ignore-not-found", &[]),
        ("kubectl delete -f maps.yaml --ignore-not-found", &[r#"configmap "two" deleted"#]),
        ("kubectl delete svc,secret -l app=c", &[r#"service "c" deleted"#]),
        ("kubectl delete --raw /api/v1/namespaces/default/secrets/s", &[r#""status":"Success""#]),
        ("kubectl run bare --image=i --restart=Never", &["pod/bare created"]),
        ("kubectl delete pod bare --now", &[r#"pod "bare" "#]),
        ("kubectl run bare --image=i --overrides='{\"spec\":{\"nodeName\":\"elsewhere\"}}'", &["pod/bare created"]),
        ("kubectl delete pod bare --grace-period=0 --force", &["Immediate deletion does not wait", "force"]),
        ("kubectl wait --for=delete pod/bare --timeout=30s", &[]),
        ("kubectl delete ns team --timeout=60s", &[r#"namespace "team" deleted"#]),
        ("!kubectl get sa robot -n team", &["not found"]),
        ("!kubectl create cm late -n team", &[r#"namespaces "team" not found"#]),
    ]);
}

/// A Deployment that people made themselves.
fn runs(platform: &Platform, name: &str) -> Value {
    let template = json!({"metadata": {"labels": {"app": name}}, "spec": pod_spec(platform)});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": template},
    })
}

#[tokio::test]
async fn rollouts() {
    let Some(platform) = platform().await else { return };
    let deployment = runs(&platform, "run").to_string();
    write_files(platform.dir.path(), &[("run.json", &deployment)]);
    platform.shell(&[
        ("kubectl apply -f run.json", &["created"]),
        ("kubectl rollout status deploy/run --timeout=60s", &[r#"deployment "run" successfully rolled out"#]),
        ("kubectl wait --for=condition=Available deploy/run --timeout=60s", &["condition met"]),
        ("kubectl annotate deploy run kubernetes.io/change-cause=first", &["annotated"]),
        ("kubectl set env deploy/run A=2", &["env updated"]),
        ("kubectl annotate deploy run kubernetes.io/change-cause=second --overwrite", &["annotated"]),
        ("kubectl rollout status deploy/run --timeout=60s", &["successfully rolled out"]),
        ("kubectl rollout history deploy/run", &["REVISION CHANGE-CAUSE\n1 first\n2 second"]),
        ("kubectl rollout history deploy/run --revision=2", &["with revision #2", "A: 2"]),
        ("kubectl rollout undo deploy/run", &["deployment.apps/run rolled back"]),
        ("kubectl rollout status deploy/run --timeout=60s", &["successfully rolled out"]),
        ("kubectl rollout history deploy/run", &["2 second\n3"]),
        ("kubectl set env deploy/run --list | grep -c A=2 | xargs test 0 -eq", &[]),
        ("kubectl rollout undo deploy/run --to-revision=2", &["rolled back"]),
        ("kubectl wait --for=jsonpath='{.metadata.annotations.deployment\\.kubernetes\\.io/revision}'=4 deploy/run --timeout=60s", &["condition met"]),
        ("kubectl set env deploy/run --list", &["A=2"]),
        ("!kubectl rollout undo deploy/run --to-revision=17", &["unable to find specified revision 17 in history"]),
        ("kubectl rollout pause deploy/run", &["paused"]),
        ("!kubectl rollout restart deploy/run", &["can't restart paused deployment"]),
        ("kubectl set env deploy/run B=5", &["env updated"]),
        ("kubectl rollout resume deploy/run", &["resumed"]),
        ("kubectl rollout status deploy/run --timeout=60s", &["successfully rolled out"]),
        ("kubectl get pods -l app=run -o name | sort > before; kubectl rollout restart deploy/run", &["restarted"]),
        ("kubectl rollout status deploy/run --timeout=60s", &["successfully rolled out"]),
        ("kubectl wait --for=delete $(cat before) --timeout=60s", &[]),
        ("kubectl logs deploy/run --tail=5; kubectl logs -l app=run --prefix --timestamps --since=1h", &[]),
        ("!kubectl logs nobody", &[r#"pods "nobody" not found"#]),
        ("!kubectl logs deploy/run --previous", &["previous terminated container"]),
        ("kubectl events --types=Normal", &["Started container"]),
        ("kubectl get events --field-selector=type=Normal,reason=Started --sort-by=.lastTimestamp", &["Started pod/run-"]),
        ("kubectl describe pod -l app=run --show-events", &["Controlled By: ReplicaSet/run-", "Started container"]),
        ("kubectl describe rs -l app=run", &["Controlled By: Deployment/run"]),
        ("kubectl get --raw / && kubectl auth can-i --list", &["/apis/apps/v1", "/readyz", "*.*"]),
        ("kubectl describe deploy run", &["ScalingReplicaSet", "Scaled up replica set run-", "from 0 to 2"]),
    ]);
}

#[tokio::test]
async fn deletion_reaches_or_spares_what_was_made() {
    let Some(platform) = platform().await else { return };
    let deployment = runs(&platform, "run").to_string();
    write_files(platform.dir.path(), &[("run.json", &deployment)]);
    let made = "kubectl get rs,pods -l app=run -o name";
    let count = |n: usize| format!("{made} | wc -l | xargs test {n} -eq");
    let (none, three) = (count(0), count(3));
    platform.shell(&[
        ("kubectl apply -f run.json && kubectl rollout status deploy/run --timeout=60s", &[]),
        (&three, &[]),
        ("kubectl get rs,pods -l app=run -o name | sort > before", &[]),
        ("kubectl delete deploy run --cascade=orphan --timeout=60s", &[r#"deployment.apps "run" deleted"#]),
        ("kubectl get rs,pods -l app=run -o name | sort | diff before -", &[]),
        ("kubectl get rs -l app=run -o jsonpath='[{..ownerReferences}]'", &["[]"]),
        // A new one takes what was left, and makes nothing.
        ("kubectl apply -f run.json && kubectl rollout status deploy/run --timeout=60s", &["successfully rolled out"]),
        ("kubectl get rs,pods -l app=run -o name | sort | diff before -", &[]),
        ("kubectl get rs -l app=run -o jsonpath='{..ownerReferences[0].name}'", &["run"]),
        // Waiting for it would be by name: kubectl asks once for the old one's uid, then waits for whatever has its name,
        // which the Deployment's new one may have by then.
        ("kubectl get rs -l app=run -o jsonpath='{..uid}' > uid", &[]),
        ("kubectl delete rs -l app=run --cascade=orphan --wait=false", &["deleted"]),
        ("timeout 60 sh -c 'while kubectl get rs -l app=run -o jsonpath={..uid} | diff - uid; do sleep 0.1; done'", &[]),
        ("kubectl rollout status deploy/run --timeout=60s && kubectl get pods -l app=run -o name > now; grep pod before | diff - now", &[]),
        // A pod taken out of its set stays, and the set makes another.
        ("kubectl label $(head -n 1 now) app=aside --overwrite", &["labeled"]),
        ("kubectl wait --for=jsonpath='{.status.readyReplicas}'=2 rs -l app=run --timeout=60s", &[]),
        ("kubectl get pods -l app=aside -o jsonpath='{..status.phase}[{..ownerReferences}]'", &["Running[]"]),
        ("kubectl delete deploy run --cascade=foreground --timeout=60s", &["deleted"]),
        (&none, &[]),
        ("kubectl apply -f run.json && kubectl rollout status deploy/run --timeout=60s", &[]),
        ("kubectl delete deploy run --cascade=background --timeout=60s", &["deleted"]),
        ("kubectl wait --for=delete rs,pods -l app=run --timeout=60s", &[]),
        (&none, &[]),
        ("kubectl delete pods -l app=aside --grace-period=1 --timeout=60s", &["deleted"]),
    ]);
}
