//! Sets of fields, and who owns them: the `managedFields` of an object.
//!
//! A set is a trie whose steps are written as in `fieldsV1`: `f:name` for a member, `k:{...}` for an item of a keyed
//! list, `v:...` for an item of a set. The steps are kept in that form, since they are compared and stored far more
//! often than read.

mod managed;
mod walk;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub use managed::{Applied, Author, Managed, Operation, Owner, apply_ownership, before_first_apply, update_ownership};
pub use walk::{fields_of, item_step};

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Whether the path that ends here is in the set.
    pub own: bool,
    pub below: BTreeMap<Box<str>, Fields>,
}

impl Fields {
    pub fn leaf() -> Self {
        Self { own: true, below: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.own && self.below.is_empty()
    }

    pub fn get(&self, step: &str) -> Option<&Fields> {
        self.below.get(step)
    }

    pub fn child(&mut self, step: impl Into<Box<str>>) -> &mut Fields {
        self.below.entry(step.into()).or_default()
    }

    /// Takes a whole subtree out.
    pub fn remove(&mut self, path: &[&str]) {
        let Some((step, rest)) = path.split_first() else { return };
        if rest.is_empty() {
            self.below.remove(*step);
        } else if let Some(child) = self.below.get_mut(*step) {
            child.remove(rest);
            if child.is_empty() {
                self.below.remove(*step);
            }
        }
    }

    /// Forgets branches without a path.
    pub fn prune(&mut self) {
        self.below.retain(|_, child| {
            child.prune();
            !child.is_empty()
        });
    }

    pub fn add(&mut self, other: &Fields) {
        self.own |= other.own;
        for (step, child) in &other.below {
            self.below.entry(step.clone()).or_default().add(child);
        }
    }

    /// Takes out the paths of `other`, not what lies below them.
    pub fn subtract(&mut self, other: &Fields) {
        self.own &= !other.own;
        self.below.retain(|step, child| {
            if let Some(taken) = other.below.get(step) {
                child.subtract(taken);
            }
            !child.is_empty()
        });
    }

    pub fn intersection(&self, other: &Fields) -> Fields {
        let mut both = Fields { own: self.own && other.own, below: BTreeMap::new() };
        for (step, child) in &self.below {
            if let Some(other) = other.below.get(step) {
                let child = child.intersection(other);
                if !child.is_empty() {
                    both.below.insert(step.clone(), child);
                }
            }
        }
        both
    }

    /// Every path, as error messages write it: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = vec![];
        self.collect(&mut String::new(), &mut paths);
        paths
    }

    /// What is in the set itself comes before what lies below its members, as clients know it from Kubernetes.
    fn collect(&self, path: &mut String, paths: &mut Vec<String>) {
        let owned = self.below.iter().filter(|(_, child)| child.own);
        paths.extend(owned.map(|(step, _)| format!("{path}{}", shown(step))));
        for (step, child) in self.below.iter().filter(|(_, child)| !child.below.is_empty()) {
            let length = path.len();
            path.push_str(&shown(step));
            child.collect(path, paths);
            path.truncate(length);
        }
    }

    /// As `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        if self.own && !self.below.is_empty() {
            object.insert(".".into(), Value::Object(Map::new()));
        }
        for (step, child) in &self.below {
            object.insert(step.to_string(), child.to_json());
        }
        Value::Object(object)
    }

    /// From `fieldsV1`; anything else in it is left out.
    pub fn from_json(value: &Value) -> Self {
        let mut root = Self::read(value);
        root.own = value.get(".").is_some();
        root
    }

    fn read(value: &Value) -> Self {
        let Some(object) = value.as_object() else { return Self::leaf() };
        let mut fields = Self { own: object.is_empty(), below: BTreeMap::new() };
        for (step, child) in object {
            if step == "." {
                fields.own = true;
            } else {
                fields.below.insert(step.as_str().into(), Self::read(child));
            }
        }
        fields
    }
}

fn shown(step: &str) -> String {
    match step.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("k:", key)) => {
            let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
            let parts: Vec<_> = key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", parts.join(","))
        }
        Some(("v:", value)) => format!("[={value}]"),
        _ => format!("[{step}]"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(value: Value) -> Fields {
        Fields::from_json(&value)
    }

    #[test]
    fn json_round_trip() {
        for value in [
            json!({}),
            json!({"f:spec": {"f:replicas": {}}}),
            json!({"f:spec": {"f:c": {".": {}, "k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}, "f:x": {"v:1": {}}}}),
        ] {
            assert_eq!(set(value.clone()).to_json(), value);
        }
    }

    #[test]
    fn algebra() {
        let a = json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}});
        let b = json!({"f:a": {"f:b": {}}, "f:e": {}});
        let mut union = set(a.clone());
        union.add(&set(b.clone()));
        assert_eq!(union, set(json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}, "f:e": {}})));
        let mut difference = set(a.clone());
        difference.subtract(&set(b.clone()));
        assert_eq!(difference, set(json!({"f:a": {".": {}, "f:c": {}}, "f:d": {}})));
        assert_eq!(set(a.clone()).intersection(&set(b)), set(json!({"f:a": {"f:b": {}}})));
        let mut removed = set(a);
        removed.remove(&["f:a", "f:b"]);
        removed.remove(&["f:d"]);
        assert_eq!(removed, set(json!({"f:a": {".": {}, "f:c": {}}})));
    }

    #[test]
    fn paths() {
        let fields = set(json!({"f:spec": {
            "f:c": {"k:{\"name\":\"a\"}": {".": {}, "f:env": {"k:{\"name\":\"A\"}": {"f:value": {}}}, "f:image": {}}},
            "f:s": {"v:\"x\"": {}}, "f:t": {},
        }}));
        let want = [
            ".spec.t",
            r#".spec.c[name="a"]"#,
            r#".spec.c[name="a"].image"#,
            r#".spec.c[name="a"].env[name="A"].value"#,
            r#".spec.s[="x"]"#,
        ];
        assert_eq!(fields.paths(), want);
    }
}
