//! A container's environment: what the image, the manifest and the node say, in that order.
//!
//! Pure; the ConfigMaps and Secrets that it refers to are read by `sources`.

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod};
use registry::image::ImageConfig;

use crate::sources::Sources;
use crate::translate::{Refusal, port, reason};

/// What the node adds.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    pub host_ip: std::net::IpAddr,
}

/// Where programs are, in every sandbox.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The complete environment. A later value of the same name replaces an earlier one.
pub fn resolve(
    image: &ImageConfig,
    container: &Container,
    sources: &Sources,
    facts: &Facts<'_>,
) -> Result<Vec<(String, String)>, Refusal> {
    let mut env = Environment::default();
    env.put("PATH", PATH.into());
    env.put("HOME", "/tmp".into());
    env.put("LANG", "C.UTF-8".into());
    for (name, value) in &image.env {
        env.put(name, value.clone());
    }
    env.put("HOSTNAME", facts.pod.metadata.name.clone().unwrap_or_default());
    env.put("PORT", port(container).to_string());
    if let Some(handler) = image.labels.get(api::image::label::HANDLER) {
        env.put("DHOW_HANDLER", handler.clone());
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let named = [
            ("configmap", from.config_map_ref.as_ref().map(|r| (&r.name, r.optional)), &sources.config_maps),
            ("secret", from.secret_ref.as_ref().map(|r| (&r.name, r.optional)), &sources.secrets),
        ];
        for (kind, reference, known) in named {
            let Some((name, optional)) = reference else { continue };
            match known.get(name) {
                Some(data) => data
                    .iter()
                    .filter_map(|(k, v)| Some((k, text(v)?)))
                    .for_each(|(k, v)| env.put(&format!("{prefix}{k}"), v)),
                None if optional == Some(true) => {}
                None => return Err(refusal(format!("{kind} {name:?} not found"))),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(variable, &env, sources, facts)? {
            env.put(&variable.name, value);
        }
    }
    Ok(env.variables)
}

fn refusal(message: String) -> Refusal {
    Refusal { reason: reason::CONFIG, message }
}

/// The value of one variable; `None` when it is optional and not there.
fn value(
    variable: &EnvVar,
    env: &Environment,
    sources: &Sources,
    facts: &Facts<'_>,
) -> Result<Option<String>, Refusal> {
    let Some(from) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), &env.variables)));
    };
    let EnvVarSource { config_map_key_ref, secret_key_ref, field_ref, .. } = from;
    let (kind, name, key, optional, known) = if let Some(r) = config_map_key_ref {
        ("configmap", &r.name, &r.key, r.optional, &sources.config_maps)
    } else if let Some(r) = secret_key_ref {
        ("secret", &r.name, &r.key, r.optional, &sources.secrets)
    } else if let Some(r) = field_ref {
        return field(&r.field_path, facts).map(Some);
    } else {
        return Err(refusal(format!("env {}: a resourceFieldRef or fileKeyRef is not known here", variable.name)));
    };
    let found = known.get(name).and_then(|data| data.get(key));
    match found.and_then(text) {
        Some(value) => Ok(Some(value)),
        None if found.is_some() => Err(refusal(format!("key {key:?} of {kind} {name:?} is not text"))),
        None if optional == Some(true) => Ok(None),
        None if known.contains_key(name) => Err(refusal(format!("couldn't find key {key} in {kind} {name}"))),
        None => Err(refusal(format!("{kind} {name:?} not found"))),
    }
}

fn text(bytes: &Bytes) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok().filter(|t| !t.contains('\0'))
}

/// What the pod says of itself.
pub fn field(path: &str, facts: &Facts<'_>) -> Result<String, Refusal> {
    let meta = &facts.pod.metadata;
    let spec = facts.pod.spec.as_ref();
    let keyed = |map: &Option<BTreeMap<String, String>>, rest: &str| {
        let key = rest.strip_suffix("']")?;
        Some(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    let known = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()),
        "spec.serviceAccountName" => Some(spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default()),
        "status.hostIP" | "status.hostIPs" => Some(facts.host_ip.to_string()),
        _ => None,
    };
    let known = known
        .or_else(|| keyed(&meta.labels, path.strip_prefix("metadata.labels['")?))
        .or_else(|| keyed(&meta.annotations, path.strip_prefix("metadata.annotations['")?));
    known.ok_or_else(|| refusal(format!("the field {path} is not known before the container starts")))
}

/// `$(NAME)` becomes the value of a variable, `$$` a dollar; anything else stays.
pub fn expand(template: &str, env: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix('(').and_then(|r| r.split_once(')'));
        let value = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value);
        match name.and_then(|(name, after)| Some((value(name)?, after))) {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[derive(Default)]
struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    fn put(&mut self, name: &str, value: String) {
        match self.variables.iter_mut().find(|(n, _)| n == name) {
            Some((_, slot)) => *slot = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(container: Value) -> Result<BTreeMap<String, String>, String> {
        let mut container = container;
        container["name"] = "c".into();
        let container: Container = serde_json::from_value(container).unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a/b": "l"}, "annotations": {"n": "x"}},
            "spec": {"nodeName": "node", "containers": []}
        }))
        .unwrap();
        let data = |pairs: &[(&str, &[u8])]| -> BTreeMap<String, Bytes> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), Bytes::copy_from_slice(v))).collect()
        };
        let sources = Sources {
            config_maps: [("m".to_owned(), data(&[("k", b"v"), ("bin", b"\xff")]))].into(),
            secrets: [("s".to_owned(), data(&[("k", b"hidden")]))].into(),
        };
        let image = ImageConfig {
            env: vec![("FROM_IMAGE".into(), "1".into()), ("PORT".into(), "1".into())],
            labels: [(api::image::label::HANDLER.to_owned(), "main.go".to_owned())].into(),
            ..ImageConfig::default()
        };
        let facts = Facts { pod: &pod, host_ip: std::net::Ipv4Addr::LOCALHOST.into() };
        let resolved = resolve(&image, &container, &sources, &facts).map_err(|r| r.message)?;
        Ok(resolved.into_iter().collect())
    }

    #[test]
    fn values() {
        let env = |variables: Value| json!({"env": variables});
        let from = |source: Value| json!({"env": [{"name": "A", "valueFrom": source}]});
        for (given, name, want) in [
            (json!({}), "FROM_IMAGE", Some("1")),
            (json!({}), "PORT", Some("8080")),
            (json!({"ports": [{"containerPort": 9000}]}), "PORT", Some("9000")),
            (json!({}), "HOSTNAME", Some("p")),
            (json!({}), "DHOW_HANDLER", Some("main.go")),
            (env(json!([{"name": "PORT", "value": "7"}])), "PORT", Some("7")),
            (
                env(json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$$(A)-$(NO)-$"}])),
                "B",
                Some("1-$(A)-$(NO)-$"),
            ),
            (env(json!([{"name": "A"}])), "A", Some("")),
            (from(json!({"configMapKeyRef": {"name": "m", "key": "k"}})), "A", Some("v")),
            (from(json!({"secretKeyRef": {"name": "s", "key": "k"}})), "A", Some("hidden")),
            (from(json!({"secretKeyRef": {"name": "no", "key": "k", "optional": true}})), "A", None),
            (from(json!({"fieldRef": {"fieldPath": "metadata.labels['a/b']"}})), "A", Some("l")),
            (from(json!({"fieldRef": {"fieldPath": "metadata.annotations['n']"}})), "A", Some("x")),
            (from(json!({"fieldRef": {"fieldPath": "metadata.labels['no']"}})), "A", Some("")),
            (from(json!({"fieldRef": {"fieldPath": "spec.nodeName"}})), "A", Some("node")),
            (from(json!({"fieldRef": {"fieldPath": "status.hostIP"}})), "A", Some("127.0.0.1")),
            (json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}]}), "P_k", Some("v")),
            (json!({"envFrom": [{"configMapRef": {"name": "no", "optional": true}}]}), "k", None),
        ] {
            assert_eq!(run(given.clone()).unwrap().get(name).map(String::as_str), want, "{given}");
        }
    }

    #[test]
    fn refusals() {
        let from = |source: Value| json!({"env": [{"name": "A", "valueFrom": source}]});
        for (given, want) in [
            (from(json!({"configMapKeyRef": {"name": "no", "key": "k"}})), "configmap \"no\" not found"),
            (from(json!({"secretKeyRef": {"name": "s", "key": "no"}})), "couldn't find key no in secret s"),
            (from(json!({"configMapKeyRef": {"name": "m", "key": "bin"}})), "is not text"),
            (from(json!({"fieldRef": {"fieldPath": "status.podIP"}})), "status.podIP is not known"),
            (from(json!({"resourceFieldRef": {"resource": "limits.cpu"}})), "resourceFieldRef"),
            (json!({"envFrom": [{"secretRef": {"name": "no"}}]}), "secret \"no\" not found"),
        ] {
            let got = run(given.clone()).unwrap_err();
            assert!(got.contains(want), "{given}: {got}");
        }
    }
}
