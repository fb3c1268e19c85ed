//! The row of Services.

use serde_json::{Value, json};

use super::{Selectable, Shape, Status, Strategy, object_at, set_default};
use crate::forms::{label_faults, label_value_faults, port_name_faults, qualified_faults};
use crate::rules::advice;
use crate::status::FieldError;
use crate::table::{Columns, builtin};

pub static SERVICE: Strategy = Strategy {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    status: Some(Status::Separate),
    shape: Shape::Builtin("io.k8s.api.core.v1.Service"),
    default: default_service,
    allocate,
    create: |service| service["status"] = json!({"loadBalancer": {}}),
    validate,
    advise: |service, _| advice::of_service(service),
    fields: &[Selectable::new("spec.clusterIP", "/spec/clusterIP"), Selectable::new("spec.type", "/spec/type")],
    columns: Columns::Printed(builtin::SERVICE),
    ..Strategy::BASE
};

fn default_service(service: &mut Value) {
    let Some(spec) = object_at(service, "spec") else { return };
    set_default(spec, "type", "ClusterIP");
    set_default(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        set_default(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10_800}}));
    } else {
        spec.shift_remove("sessionAffinityConfig");
    }
    if spec["type"] != "ExternalName" {
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        set_default(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            set_default(port, "targetPort", number);
        }
    }
}

/// Nothing assigns cluster addresses without a cluster's network: every Service is headless.
fn allocate(service: &mut Value) {
    let Some(spec) = object_at(service, "spec").filter(|spec| spec["type"] != "ExternalName") else { return };
    set_default(spec, "clusterIP", "None");
    let address = spec["clusterIP"].clone();
    set_default(spec, "clusterIPs", json!([address]));
    // One that selects nothing leads to whatever its endpoints are.
    let (families, policy) = match spec.get("selector") {
        Some(_) => (json!(["IPv4"]), "SingleStack"),
        None => (json!(["IPv4", "IPv6"]), "RequireDualStack"),
    };
    set_default(spec, "ipFamilies", families);
    set_default(spec, "ipFamilyPolicy", policy);
}

fn validate(service: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let spec = &service["spec"];
    let mut errors = vec![];
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let external = spec["type"] == "ExternalName";
    if ports.is_empty() && !external && !matches!(spec["clusterIP"].as_str(), Some("None")) {
        errors.push(FieldError::required("spec.ports", ""));
    }
    for (key, value) in spec["selector"].as_object().into_iter().flatten() {
        let keys = qualified_faults(key).into_iter().map(|why| FieldError::invalid("spec.selector", key.as_str(), why));
        let values = label_value_faults(value.as_str().unwrap_or_default()).into_iter();
        errors.extend(keys.chain(values.map(|why| FieldError::invalid("spec.selector", value.clone(), why))));
    }
    errors.extend(one_of(spec, "spec.sessionAffinity", &["ClientIP", "None"]));
    errors.extend(one_of(spec, "spec.type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]));
    if external && spec["externalName"].as_str().is_none_or(str::is_empty) {
        errors.push(FieldError::required("spec.externalName", ""));
    }
    for (i, port) in ports.iter().enumerate() {
        errors.extend(validate_port(&format!("spec.ports[{i}]"), port, ports.len() > 1));
        if ports[..i].iter().any(|before| before["name"] == port["name"] && !port["name"].is_null()) {
            errors.push(FieldError::duplicate(format!("spec.ports[{i}].name"), port["name"].clone()));
        }
        let at = |port: &Value| (port["port"].clone(), port["protocol"].clone());
        if ports[..i].iter().any(|before| at(before) == at(port)) {
            errors.push(FieldError::duplicate(format!("spec.ports[{i}]"), port.clone()));
        }
    }
    errors.extend(validate_status(service));
    let address = |service: &Value| service["spec"]["clusterIPs"].get(0).or(service["spec"].get("clusterIP")).cloned();
    if let Some(was) = old.filter(|old| old["spec"]["type"] != "ExternalName" && !external).and_then(address)
        && spec["clusterIP"] != was
    {
        let given = json!([spec["clusterIP"]]);
        errors.push(FieldError::invalid("spec.clusterIPs[0]", given, "may not change once set"));
    }
    errors
}

fn validate_port(path: &str, port: &Value, needs_name: bool) -> Vec<FieldError> {
    const RANGE: &str = "must be between 1 and 65535, inclusive";
    let mut errors = vec![];
    match port["name"].as_str() {
        None | Some("") if needs_name => errors.push(FieldError::required(format!("{path}.name"), "")),
        None | Some("") => {}
        Some(name) => {
            let faults = label_faults(name).into_iter();
            errors.extend(faults.map(|why| FieldError::invalid(format!("{path}.name"), name, why)));
        }
    }
    let fits = |number: &Value| number.as_i64().is_some_and(|number| (1..=65535).contains(&number));
    if !fits(&port["port"]) {
        errors.push(FieldError::invalid(format!("{path}.port"), port["port"].clone(), RANGE));
    }
    errors.extend(one_of(port, &format!("{path}.protocol"), &["SCTP", "TCP", "UDP"]));
    let target = &port["targetPort"];
    if target.is_number() && !fits(target) {
        errors.push(FieldError::invalid(format!("{path}.targetPort"), target.clone(), RANGE));
    }
    let faults = target.as_str().map(port_name_faults).unwrap_or_default().into_iter();
    errors.extend(faults.map(|why| FieldError::invalid(format!("{path}.targetPort"), target.clone(), why)));
    errors
}

/// Addresses are a load balancer's.
fn validate_status(service: &Value) -> Option<FieldError> {
    let addresses = service["status"]["loadBalancer"]["ingress"].as_array();
    let any = addresses.is_some_and(|addresses| !addresses.is_empty());
    let why = "may only be used when `spec.type` is 'LoadBalancer'";
    let balances = service["spec"]["type"] == "LoadBalancer";
    (any && !balances).then(|| FieldError::forbidden("status.loadBalancer.ingress", why))
}

/// A word of the last member of `path` that is none of those known.
fn one_of(object: &Value, path: &str, known: &[&str]) -> Option<FieldError> {
    let name = path.rsplit('.').next().unwrap_or(path);
    let given = object[name].as_str().filter(|given| !known.contains(given))?;
    Some(FieldError::not_supported(path, given, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_checked() {
        let port = |name: &str, port: i64| json!({"name": name, "port": port, "protocol": "TCP"});
        for (spec, want) in [
            (json!({"clusterIP": "None"}), vec![]),
            (json!({"type": "ClusterIP"}), vec!["spec.ports: Required value"]),
            (json!({"clusterIP": "None", "ports": [port("a", 80), port("b", 81)]}), vec![]),
            (
                json!({"clusterIP": "None", "ports": [port("a", 80), port("a", 81)]}),
                vec!["spec.ports[1].name: Duplicate value: \"a\""],
            ),
            (
                json!({"clusterIP": "None", "ports": [{"port": 0, "targetPort": 0, "protocol": "ODD"}]}),
                vec![
                    "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                    "spec.ports[0].protocol: Unsupported value: \"ODD\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                    "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                json!({"clusterIP": "None", "sessionAffinity": "Odd"}),
                vec!["spec.sessionAffinity: Unsupported value: \"Odd\": supported values: \"ClientIP\", \"None\""],
            ),
            (json!({"type": "ExternalName"}), vec!["spec.externalName: Required value"]),
        ] {
            let service = json!({"spec": spec});
            let said: Vec<String> = validate(&service, None).iter().map(ToString::to_string).collect();
            assert_eq!(said, want, "{service}");
        }
        let (none, some) = (json!({"spec": {"clusterIP": "None"}}), json!({"spec": {"clusterIP": "1.2.3.4"}}));
        assert_eq!(validate(&none, Some(&none)).len(), 0);
        assert_eq!(
            validate(&some, Some(&none)).last().unwrap().to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"1.2.3.4\"]: may not change once set"
        );
    }
}
