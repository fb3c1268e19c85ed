//! The table-test harness: a world of objects in memory, and a loop that crashes between any two writes.
//!
//! [`converge`] runs a planner until it has nothing left to write, then does it all again once per write, failing
//! that write and starting over, and demands the same world each time. So every row of every controller's table
//! also shows that planning again is empty. It is for tests only and knows nothing of real API semantics beyond
//! names, uids, generations, finalizers, and removal by server-side apply.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::gate;
use crate::plan::{Plan, Target, Write};
use crate::view::{Key, Kind, View, controller_of, label};

/// A planner that needs more rounds than this does not converge.
const MAX_ROUNDS: usize = 50;

#[derive(Clone, Debug, Default)]
pub struct World {
    objects: BTreeMap<Target, Value>,
    applied: BTreeMap<Target, Value>,
    born: BTreeMap<Target, u64>,
    events: Vec<String>,
    version: u64,
    now: Timestamp,
}

/// How a case ended.
#[derive(Debug)]
pub struct Outcome {
    pub world: World,
    /// Every write of the undisturbed run, as [`Write`] displays it.
    pub writes: Vec<String>,
    pub events: Vec<String>,
    pub requeue_after: Option<jiff::SignedDuration>,
}

impl World {
    pub fn new(now: Timestamp) -> Self {
        Self { now, ..Self::default() }
    }

    /// Adds an object; what the server would fill in is filled in when absent.
    pub fn with<K: Kind>(mut self, object: K) -> Self {
        self.put(serde_json::to_value(object).expect("an API object is JSON"));
        self
    }

    /// Adds an object written as JSON.
    pub fn with_json(mut self, object: Value) -> Self {
        self.put(object);
        self
    }

    /// Changes an object the way a user or another controller would; a changed spec is a new generation.
    pub fn edit<K: Kind>(&mut self, namespace: &str, name: &str, change: impl FnOnce(&mut K)) {
        let target = Target::named::<K>(namespace, name);
        let value = self.objects.get(&target).unwrap_or_else(|| panic!("no {target}"));
        let mut object: K = serde_json::from_value(value.clone()).expect("the world holds valid objects");
        change(&mut object);
        let mut after = serde_json::to_value(object).expect("an API object is JSON");
        self.bump(&target, &mut after);
        self.objects.insert(target, after);
    }

    pub fn remove<K: Kind>(&mut self, namespace: &str, name: &str) {
        self.objects.remove(&Target::named::<K>(namespace, name));
    }

    /// The object, or a panic that names what is missing.
    pub fn expect<K: Kind>(&self, namespace: &str, name: &str) -> K {
        let target = Target::named::<K>(namespace, name);
        self.get::<K>(namespace, name).unwrap_or_else(|| panic!("no {target}")).as_ref().clone()
    }

    /// Every object, as `Kind namespace/name`.
    pub fn names(&self) -> Vec<String> {
        self.objects.keys().map(Target::to_string).collect()
    }

    pub fn now(&self) -> Timestamp {
        self.now
    }

    pub fn set_now(&mut self, now: Timestamp) {
        self.now = now;
    }

    fn put(&mut self, mut object: Value) {
        let target = Target::of_value(&object);
        let births = self.born.entry(target.clone()).or_insert(0);
        *births += 1;
        let uid = format!("uid-{}-{}-{}-{births}", target.kind.to_lowercase(), target.namespace, target.name);
        let meta = &mut object["metadata"];
        fill(meta, "uid", json!(uid));
        fill(meta, "generation", json!(1));
        fill(meta, "creationTimestamp", json!(api::condition::whole_seconds(self.now)));
        self.version += 1;
        meta["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(target, object);
    }

    fn bump(&mut self, target: &Target, after: &mut Value) {
        let before = &self.objects[target];
        let generation = before["metadata"]["generation"].as_i64().unwrap_or(1);
        let changed = before["spec"] != after["spec"];
        self.version += 1;
        after["metadata"]["generation"] = json!(generation + i64::from(changed));
        after["metadata"]["resourceVersion"] = json!(self.version.to_string());
    }

    /// Does what the API server would; an error is what it would refuse.
    pub fn write(&mut self, write: &Write) -> Result<(), String> {
        let target = write.target();
        match write {
            Write::Event { .. } => self.events.push(write.to_string()),
            Write::Create { .. } if self.objects.contains_key(&target) => return Err(format!("{target} exists")),
            Write::Create { object } => self.put(object.clone()),
            Write::Apply { object } => self.server_side_apply(&target, object),
            Write::ApplyStatus { object } => {
                let mut after = self.existing(&target)?;
                after["status"] = object["status"].clone();
                self.store(&target, after);
            }
            Write::Patch { patch, .. } => {
                let mut after = self.existing(&target)?;
                let expected = &patch["metadata"]["resourceVersion"];
                if !expected.is_null() && *expected != after["metadata"]["resourceVersion"] {
                    return Err(format!("{target} changed"));
                }
                gate::merge_patch(&mut after, patch);
                self.store(&target, after);
            }
            Write::Replace { object, .. } => {
                self.existing(&target)?;
                self.store(&target, object.clone());
            }
            Write::Delete { uid, .. } => {
                let mut object = self.existing(&target)?;
                if object["metadata"]["uid"] != uid.as_str() {
                    return Err(format!("{target} is another one"));
                }
                if has_finalizers(&object) {
                    object["metadata"]["deletionTimestamp"] = json!(api::condition::whole_seconds(self.now));
                    self.store(&target, object);
                } else {
                    self.objects.remove(&target);
                }
            }
        }
        Ok(())
    }

    fn existing(&self, target: &Target) -> Result<Value, String> {
        self.objects.get(target).cloned().ok_or_else(|| format!("{target} not found"))
    }

    fn store(&mut self, target: &Target, mut after: Value) {
        self.bump(target, &mut after);
        let leaving = after["metadata"]["deletionTimestamp"].is_string();
        if leaving && !has_finalizers(&after) && target.kind != "Namespace" {
            self.objects.remove(target);
        } else {
            self.objects.insert(target.clone(), after);
        }
    }

    fn server_side_apply(&mut self, target: &Target, object: &Value) {
        let before = self.applied.insert(target.clone(), object.clone());
        match self.objects.get(target).cloned() {
            None => self.put(object.clone()),
            Some(mut after) => {
                if let Some(before) = before {
                    drop_unwanted(&mut after, &before, object);
                }
                gate::merge_patch(&mut after, object);
                self.store(target, after);
            }
        }
    }

    /// What must be the same however often the run was interrupted.
    fn essence(&self) -> BTreeMap<Target, Value> {
        let mut objects = self.objects.clone();
        for object in objects.values_mut() {
            if let Some(meta) = object["metadata"].as_object_mut() {
                meta.shift_remove("resourceVersion");
            }
        }
        objects
    }
}

fn fill(object: &mut Value, field: &str, value: Value) {
    if object[field].is_null() {
        object[field] = value;
    }
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
}

/// Removes fields that were applied before and are not any more.
fn drop_unwanted(target: &mut Value, before: &Value, wanted: &Value) {
    let (Value::Object(target), Value::Object(before)) = (target, before) else { return };
    for (key, old) in before {
        match (wanted.get(key), target.get_mut(key)) {
            (None, Some(_)) => {
                target.shift_remove(key);
            }
            (Some(want), Some(have)) => drop_unwanted(have, old, want),
            _ => {}
        }
    }
}

impl View for World {
    fn get<K: Kind>(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.objects.get(&Target::named::<K>(namespace, name)).map(parse)
    }

    fn list<K: Kind>(&self, namespace: &str) -> Vec<Arc<K>> {
        let (api_version, kind) = (K::api_version(&()), K::kind(&()));
        self.objects
            .iter()
            .filter(|(t, _)| t.api_version == api_version && t.kind == kind)
            .filter(|(t, _)| namespace.is_empty() || t.namespace == namespace)
            .map(|(_, value)| parse(value))
            .collect()
    }

    fn controlled_by<K: Kind>(&self, uid: &str) -> Vec<Arc<K>> {
        self.list::<K>("").into_iter().filter(|o| controller_of(o.as_ref()).is_some_and(|c| c.uid == uid)).collect()
    }

    fn labelled<K: Kind>(&self, namespace: &str, name: &str, value: &str) -> Vec<Arc<K>> {
        self.list::<K>(namespace).into_iter().filter(|o| label(o.as_ref(), name) == Some(value)).collect()
    }
}

fn parse<K: Kind>(value: &Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{}: {e}", Target::of_value(value))))
}

/// Runs `planner` from `given` until it is content, then once more for each write with that write failing.
/// Panics, naming the case, when it does not converge, is refused a write, or ends in another world.
pub fn converge(case: &str, given: &World, key: &Key, planner: impl Fn(&World, &Key, Timestamp) -> Plan) -> Outcome {
    let outcome = run(case, given.clone(), key, &planner, None);
    let want = outcome.world.essence();
    for failing in 0..outcome.writes.len() {
        let disturbed = run(case, given.clone(), key, &planner, Some(failing));
        let got = disturbed.world.essence();
        for (target, object) in &want {
            assert_eq!(got.get(target), Some(object), "{case}: {target} after write {failing} failed");
        }
        let extra: Vec<_> = got.keys().filter(|t| !want.contains_key(t)).map(Target::to_string).collect();
        assert!(extra.is_empty(), "{case}: left over after write {failing} failed: {extra:?}");
    }
    outcome
}

fn run(
    case: &str,
    mut world: World,
    key: &Key,
    planner: &impl Fn(&World, &Key, Timestamp) -> Plan,
    failing: Option<usize>,
) -> Outcome {
    let mut writes = vec![];
    let mut sent = 0;
    for _ in 0..MAX_ROUNDS {
        let plan = planner(&world, key, world.now);
        if plan.is_empty() {
            let events = world.events.clone();
            return Outcome { world, writes, events, requeue_after: plan.requeue_after };
        }
        for write in plan.in_order() {
            let crash = failing == Some(sent);
            sent += 1;
            if crash {
                break;
            }
            if let Err(refused) = world.write(write) {
                panic!("{case}: the server refused `{write}`: {refused}");
            }
            if !matches!(write, Write::Event { .. }) {
                writes.push(write.to_string());
            }
        }
    }
    panic!("{case}: still writing after {MAX_ROUNDS} rounds: {writes:#?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn config_map(name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("n".into());
        object.metadata.name = Some(name.into());
        object
    }

    #[test]
    fn converges_over_every_crash() {
        let planner = |world: &World, key: &Key, _: Timestamp| {
            let mut plan = Plan::default();
            for name in ["a", "b"] {
                plan.apply(world.get::<ConfigMap>(&key.namespace, name).as_deref(), &config_map(name));
            }
            plan
        };
        let outcome = converge("two", &World::new(Timestamp::UNIX_EPOCH), &Key::new("n", "x"), planner);
        assert_eq!(outcome.writes, ["apply ConfigMap n/a", "apply ConfigMap n/b"]);
    }

    #[test]
    #[should_panic(expected = "still writing")]
    fn finds_a_planner_that_never_rests() {
        let planner = |world: &World, key: &Key, _: Timestamp| {
            let mut plan = Plan::default();
            match world.get::<ConfigMap>(&key.namespace, "a") {
                Some(seen) => plan.delete(seen.as_ref(), crate::Propagation::Background),
                None => plan.create(&config_map("a")),
            }
            plan
        };
        converge("flapping", &World::new(Timestamp::UNIX_EPOCH), &Key::new("n", "x"), planner);
    }
}
