//! Containers as a service.

use serde_json::{Value, json};

use super::Platform;

/// Built with the test cluster; it answers on `/`.
pub const IMAGE: &str = "dhow.test/hello:1";

/// A Knative Service.
pub fn container(name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"template": {"spec": {"containers": [{"image": image}]}}},
    })
}

/// One that never has fewer instances.
pub fn always(name: &str, instances: u32) -> Value {
    let mut service = container(name, IMAGE);
    let scale = json!({"autoscaling.knative.dev/min-scale": instances.to_string()});
    service["spec"]["template"]["metadata"] = json!({"annotations": scale});
    service
}

impl Platform {
    pub fn apply(&self, object: &Value) {
        let path = self.dir.path().join("object.json");
        std::fs::write(&path, object.to_string()).expect("written");
        self.kubectl_ok(&["apply", "-f", path.to_str().expect("UTF-8")]);
    }

    /// Waits until the Knative Service is ready.
    pub fn serves(&self, name: &str) {
        self.kubectl_ok(&["wait", "--for=condition=Ready", &format!("ksvc/{name}"), "--timeout=90s"]);
    }
}
