//! Operators' settings: Knative's ConfigMaps in Dhow's own namespace, read live.
//!
//! Owns: which of them there are, whom a change wakes, and telling operators of values that cannot be. Must not know: what
//! the values mean, which `api::config` says. The surprise: where Dhow serves the API itself a senseless value is refused,
//! so the Events are for clusters.

use api::config::{Data, Domains, Gc, NAMES, Network, complaints};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use reconcile::{Applier, Caches, Change, Controller, Key, Plan, View, runner};

/// Where the settings are read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Dhow's own namespace.
    pub namespace: String,
}

impl Settings {
    pub fn network(&self, view: &impl View) -> Network {
        Network::of(&self.data(view, Network::NAME))
    }

    pub fn domains(&self, view: &impl View) -> Domains {
        Domains::of(&self.data(view, Domains::NAME))
    }

    pub fn gc(&self, view: &impl View) -> Gc {
        Gc::of(&self.data(view, Gc::NAME))
    }

    fn data(&self, view: &impl View, name: &str) -> Data {
        let map = view.get::<ConfigMap>(&self.namespace, name);
        map.and_then(|map| map.data.clone()).unwrap_or_default()
    }

    /// Wakes the keys that `all` names when one of these ConfigMaps changes.
    pub fn watched(
        &self,
        controller: Controller,
        caches: &Caches,
        names: &'static [&'static str],
        all: impl Fn(&Caches) -> Vec<Key> + Send + Sync + 'static,
    ) -> Controller {
        let (namespace, reading) = (self.namespace.clone(), caches.clone());
        controller.watch(&caches.of::<ConfigMap>(), move |change: &Change<ConfigMap>| {
            let is_ours = change.key.namespace == namespace && names.contains(&change.key.name.as_str());
            let data = |map: &Option<std::sync::Arc<ConfigMap>>| map.as_ref().and_then(|map| map.data.clone());
            if is_ours && data(&change.old) != data(&change.new) { all(&reading) } else { vec![] }
        })
    }
}

/// Tells operators what is wrong with their settings.
pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock, settings: Settings) -> Controller {
    let view = caches.clone();
    let only = settings.namespace.clone();
    Controller::planned("settings", clock, applier, move |key, now| plan(&view, key, now))
        .watch(&caches.of::<ConfigMap>(), move |change| {
            let is_read = change.key.namespace == only && NAMES.contains(&change.key.name.as_str());
            if is_read { runner::itself(change) } else { vec![] }
        })
        .workers(1)
}

fn plan(view: &impl View, key: &Key, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if let Some(map) = view.get::<ConfigMap>(&key.namespace, &key.name) {
        for (name, why) in complaints(&key.name, map.data.as_ref().unwrap_or(&Data::new())) {
            plan.event(map.as_ref(), "InvalidValue", &format!("{name}: {why}; the default is used"), true, now);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::*;

    #[test]
    fn operators_are_told_of_values_that_cannot_be() {
        let world = world().with_json(serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"namespace": "dhow-system", "name": "config-network"},
            "data": {"http-protocol": "sometimes", "autocreate-cluster-domain-claims": "true"}}));
        let settings = Settings { namespace: "dhow-system".into() };
        assert_eq!(settings.network(&world).claims, Some(true), "the others count");
        let told = plan(&world, &Key::new("dhow-system", "config-network"), start());
        let [event] = told.events.as_slice() else { panic!("{told:?}") };
        let want = "event ConfigMap InvalidValue: http-protocol: \"sometimes\" is neither Enabled nor Redirected; \
                    the default is used";
        assert_eq!(event.to_string(), want);
    }
}
