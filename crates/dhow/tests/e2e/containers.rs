//! Containers as a service: any image, from the built-in registry, on one machine.

use serde_json::json;

use crate::harness::{Platform, container, eventually, machine};

/// An image with a program that says what it sees; gives its name.
async fn pushed(platform: &Platform) -> String {
    let root = platform.dir.path().join("image");
    std::fs::create_dir_all(root.join("etc")).expect("a folder");
    std::fs::create_dir_all(root.join("var")).expect("a folder");
    std::fs::write(root.join("etc/own"), "mine").expect("a file");
    let config = json!({"Cmd": ["by", "default"], "WorkingDir": "/etc", "Env": ["TARGET=image"]});
    platform.image("own", &root, "hello", config).await
}

fn by_tag(image: &str) -> String {
    image.replace(image.split_once('@').expect("a digest").1, "latest").replace('@', ":")
}

#[tokio::test]
async fn an_image_is_served_from_zero() {
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    let image = pushed(&platform).await;
    platform.apply(&container("own", &by_tag(&image)));
    platform.serves("own");
    let digest = ["get", "revision", "-o", "jsonpath={.items[0].status.containerStatuses[0].imageDigest}"];
    assert_eq!(platform.kubectl_ok(&digest), image);
    let answer = platform.get("own", "/path").await.text();
    let seen = "arguments=[\"by\", \"default\"] target=image place=/etc own=mine writes=true host=false\n";
    assert_eq!(answer, format!("GET /path HTTP/1.1\n{seen}"));
    // The manifest's own arguments, variables and folder come before the image's.
    let mut changed = container("own", &image);
    let spec = json!({"args": ["$(TARGET)"], "env": [{"name": "TARGET", "value": "changed"}], "workingDir": "/var"});
    let first = &mut changed["spec"]["template"]["spec"]["containers"][0];
    first.as_object_mut().expect("a container").extend(spec.as_object().expect("a map").clone());
    platform.apply(&changed);
    let seen = "arguments=[\"changed\"] target=changed place=/var own=mine writes=true host=false\n";
    eventually("the change is served", || async {
        let answer = platform.get("own", "/").await.text();
        if answer.ends_with(seen) { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
async fn an_image_that_ends_says_why() {
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    let mut service = container("fails", &pushed(&platform).await);
    service["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["fail"]);
    platform.apply(&service);
    eventually("the reason is shown", || async {
        let shown = platform.kubectl_ok(&["get", "revision", "-o", "jsonpath={.items[0].status.conditions}"]);
        if shown.contains("asked to fail") { Ok(()) } else { Err(shown) }
    })
    .await;
}

#[tokio::test]
async fn several_containers_share_what_they_are_given() {
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    let image = pushed(&platform).await;
    platform.kubectl_ok(&["create", "configmap", "settings", "--from-literal=greeting=from a volume "]);
    let mut service = container("both", &image);
    service["spec"]["template"]["spec"] = json!({
        "containers": [
            {
                "name": "serves", "image": image, "ports": [{"containerPort": 8080}],
                "env": [{"name": "READ", "value": "/settings/greeting"}],
                "readinessProbe": {"exec": {"command": ["/hello", "is", "/shared/made"]}, "periodSeconds": 1},
                "volumeMounts": [
                    {"name": "settings", "mountPath": "/settings", "readOnly": true}, {"name": "shared", "mountPath": "/shared"},
                ],
            },
            {
                "name": "beside", "image": image, "args": ["make", "/shared/made"],
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            },
        ],
        "initContainers": [{
            "name": "first", "image": by_tag(&image), "args": ["put", "/shared/first"],
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        }],
        "volumes": [{"name": "settings", "configMap": {"name": "settings"}}, {"name": "shared", "emptyDir": {}}],
    });
    platform.apply(&service);
    platform.serves("both");
    let answer = platform.get("both", "/").await.text();
    assert!(answer.starts_with("from a volume GET / HTTP/1.1\n"), "{answer}");
    let ready = ["get", "pods", "-o", "jsonpath={.items[0].status.containerStatuses[*].ready}"];
    assert_eq!(platform.kubectl_ok(&ready), "true true");
    let pod = platform.kubectl_ok(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"]);
    for made in ["/shared/made", "/shared/first"] {
        let told = platform.kubectl(&["exec", &pod, "-c", "beside", "--", "/hello", "is", made]);
        assert!(told.status.success(), "{made}: {told:?}");
    }
    let first = ["get", "pods", "-o", "jsonpath={.items[0].status.initContainerStatuses[0].state.terminated.reason}"];
    assert_eq!(platform.kubectl_ok(&first), "Completed");
}

#[tokio::test]
async fn who_is_not_well_is_started_again() {
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    let mut service = container("unwell", &pushed(&platform).await);
    service["spec"]["template"]["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["/hello", "is", "/missing"]}, "periodSeconds": 1, "failureThreshold": 2});
    platform.apply(&service);
    eventually("it is started again", || async {
        let shown = ["get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"];
        let restarts = platform.kubectl_ok(&shown);
        if restarts.parse::<u32>().is_ok_and(|n| n > 0) { Ok(()) } else { Err(restarts) }
    })
    .await;
    let events = platform.kubectl_ok(&["get", "events", "-o", "jsonpath={.items[*].message}"]);
    assert!(events.contains("Container user-container failed liveness probe, will be restarted"), "{events}");
}

#[tokio::test]
async fn what_knative_refuses_is_refused_in_its_words() {
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    let mut service = container("refused", "127.0.0.1:5000/default/x:1");
    let spec = &mut service["spec"]["template"]["spec"];
    spec["serviceAccountName"] = json!("foo@bar.baz");
    spec["containers"][0]["ports"] = json!([{"containerPort": 8012}]);
    let path = platform.dir.path().join("refused.json");
    std::fs::write(&path, service.to_string()).expect("written");
    let refused = platform.kubectl(&["apply", "-f", path.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    for words in [
        "spec.template.spec.containers[0].ports[0].containerPort: invalid value: 8012 is a reserved port",
        "spec.template.spec.serviceAccountName: invalid value: foo@bar.baz\na lowercase RFC 1123 subdomain must consist",
    ] {
        assert!(said.contains(words), "{said}");
    }
}
