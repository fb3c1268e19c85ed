//! Kinds that people bring: served at once, collected with their owners, gone with their namespace and their definition.

use serde_json::json;

use crate::harness::{Platform, eventually, kubectl, machine, said};

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: oxen.farm.example}
spec:
  group: farm.example
  scope: Namespaced
  names: {plural: oxen, kind: Ox, shortNames: [ox], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.legs, statusReplicasPath: .status.legs}}
    additionalPrinterColumns: [{name: Legs, type: integer, jsonPath: .spec.legs}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              legs: {type: integer, default: 4, description: how many it stands on}
            x-kubernetes-validations: [{rule: self.legs % 2 == 0, message: an ox has pairs of legs}]
          status: {type: object, properties: {legs: {type: integer}}}
";

#[tokio::test]
async fn a_kind_of_ones_own() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let file = platform.write_function("files", &[("crd.yaml", DEFINITION)]).join("crd.yaml");
    let file = file.to_str().unwrap();
    platform.kubectl_ok(&["apply", "--server-side", "-f", file]);
    platform.kubectl_ok(&["wait", "--for=condition=Established", "crd/oxen.farm.example", "--timeout=1s"]);
    let ox = |name: &str, legs: i64| {
        json!({"apiVersion": "farm.example/v1", "kind": "Ox", "metadata": {"name": name}, "spec": {"legs": legs}})
            .to_string()
    };
    let apply = |text: String| {
        let path = platform.write_function("files", &[("o.json", &text)]).join("o.json");
        platform.kubectl(&["apply", "-f", path.to_str().unwrap()])
    };
    let refused = apply(ox("bad", 3));
    assert!(said(&refused).contains("an ox has pairs of legs"), "{}", said(&refused));
    assert!(apply(ox("one", 6)).status.success());
    assert!(platform.kubectl_ok(&["get", "ox"]).contains("LEGS"));
    assert!(platform.kubectl_ok(&["get", "all"]).contains("ox.farm.example/one"));
    assert!(platform.kubectl_ok(&["explain", "ox.spec.legs"]).contains("how many it stands on"));
    platform.kubectl_ok(&["scale", "ox/one", "--replicas=8"]);
    let one = platform.object("ox", "one");
    assert_eq!(one["spec"]["legs"], 8);

    // Owned by an ox: an object of Kubernetes' own.
    let owner = json!([{"apiVersion": "farm.example/v1", "kind": "Ox", "name": "one", "uid": one["metadata"]["uid"]}]);
    let owned =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "yoke", "ownerReferences": owner}});
    assert!(apply(owned.to_string()).status.success());
    let gone = |what: &'static [&'static str]| {
        let platform = &platform;
        move || async move {
            let output = platform.kubectl(&[&["get"], what].concat());
            if output.status.success() { Err(said(&output)) } else { Ok(()) }
        }
    };
    platform.kubectl_ok(&["get", "configmap", "yoke"]);
    platform.kubectl_ok(&["delete", "ox", "one"]);
    eventually("the owned goes with its owner", gone(&["configmap", "yoke"])).await;

    platform.kubectl_ok(&["create", "namespace", "meadow"]);
    let there = platform.write_function("files", &[("o.json", &ox("two", 2))]).join("o.json");
    platform.kubectl_ok(&["-n", "meadow", "apply", "-f", there.to_str().unwrap()]);
    platform.kubectl_ok(&["delete", "namespace", "meadow", "--timeout=30s"]);
    assert!(!platform.kubectl_ok(&["get", "ox", "-A", "-o", "name"]).contains("two"));

    assert!(apply(ox("three", 2)).status.success());
    platform.kubectl_ok(&["delete", "crd", "oxen.farm.example", "--timeout=30s"]);
    eventually("the kind is gone", gone(&["ox"])).await;
}
