//! The ConfigMaps and Secrets that a pod refers to.
//!
//! Owns reading them, and nothing but those that are named. What they mean is `environment`'s and `volumes`'.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, Secret, Volume};
use kube::{Api, Client};

use crate::translate::containers;

/// What is in one ConfigMap or Secret.
pub type Data = BTreeMap<String, Bytes>;

/// Those that exist.
#[derive(Debug, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, Data>,
    pub secrets: BTreeMap<String, Data>,
}

/// The names of what a pod refers to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names {
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

pub async fn read(client: &Client, namespace: &str, spec: &PodSpec) -> kube::Result<Sources> {
    let names = Names::of(spec);
    let mut sources = Sources::default();
    for name in names.config_maps {
        if let Some(found) = Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(&name).await? {
            let text = found.data.unwrap_or_default().into_iter().map(|(k, v)| (k, Bytes::from(v)));
            let binary = found.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, Bytes::from(v.0)));
            sources.config_maps.insert(name, text.chain(binary).collect());
        }
    }
    for name in names.secrets {
        if let Some(found) = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(&name).await? {
            let data = found.data.unwrap_or_default().into_iter().map(|(k, v)| (k, Bytes::from(v.0)));
            sources.secrets.insert(name, data.collect());
        }
    }
    Ok(sources)
}

impl Names {
    fn of(spec: &PodSpec) -> Self {
        let mut names = Self::default();
        containers(spec).for_each(|container| names.of_container(container));
        spec.volumes.iter().flatten().for_each(|volume| names.of_volume(volume));
        names
    }

    fn of_container(&mut self, container: &Container) {
        for from in container.env_from.iter().flatten() {
            self.config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
            self.secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for from in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            self.config_maps.extend(from.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            self.secrets.extend(from.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
    }

    fn of_volume(&mut self, volume: &Volume) {
        self.config_maps.extend(volume.config_map.as_ref().map(|source| source.name.clone()));
        self.secrets.extend(volume.secret.as_ref().and_then(|source| source.secret_name.clone()));
        let projected = volume.projected.as_ref().and_then(|source| source.sources.as_ref());
        for source in projected.into_iter().flatten() {
            self.config_maps.extend(source.config_map.as_ref().map(|source| source.name.clone()));
            self.secrets.extend(source.secret.as_ref().map(|source| source.name.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_referred_to_is_named() {
        let spec = serde_json::from_value(json!({
            "containers": [
                {"name": "a", "envFrom": [{"configMapRef": {"name": "m1"}}, {"secretRef": {"name": "s1"}}]},
                {"name": "b", "env": [
                    {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "m2", "key": "k"}}},
                    {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}}]},
            ],
            "volumes": [
                {"name": "v1", "configMap": {"name": "m3"}}, {"name": "v2", "secret": {"secretName": "s3"}},
                {"name": "v3", "projected": {"sources": [{"configMap": {"name": "m4"}}, {"secret": {"name": "s4"}}]}},
                {"name": "v4", "emptyDir": {}},
            ],
        }));
        let names = Names::of(&spec.unwrap());
        assert_eq!(names.config_maps.into_iter().collect::<Vec<_>>(), ["m1", "m2", "m3", "m4"]);
        assert_eq!(names.secrets.into_iter().collect::<Vec<_>>(), ["s1", "s2", "s3", "s4"]);
    }
}
