//! Metadata that every child carries: its owner, its labels, a name short enough.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use md5::Md5;
use reconcile::Kind;
use sha2::{Digest, Sha256};

pub type Labels = BTreeMap<String, String>;

/// The longest name that still is a DNS label.
const MAX_NAME: usize = 63;

/// The reference of a controller to what it made: deleting the owner waits for the child.
pub fn owner_reference<K: Kind>(owner: &K) -> OwnerReference {
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Metadata of a child in its owner's namespace.
pub fn child_meta<K: Kind>(owner: &K, name: &str, labels: Labels, annotations: Labels) -> ObjectMeta {
    ObjectMeta {
        namespace: owner.meta().namespace.clone(),
        name: Some(name.to_owned()),
        labels: (!labels.is_empty()).then_some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner_references: Some(vec![owner_reference(owner)]),
        ..ObjectMeta::default()
    }
}

/// Whether `owner` is the controller of `child`.
pub fn controls<O: Kind, C: Kind>(owner: &O, child: &C) -> bool {
    reconcile::view::controller_of(child).is_some_and(|c| Some(&c.uid) == owner.meta().uid.as_ref())
}

pub fn name_of<K: Kind>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

pub fn namespace_of<K: Kind>(object: &K) -> &str {
    object.meta().namespace.as_deref().unwrap_or_default()
}

pub fn labels_of<K: Kind>(object: &K) -> Labels {
    object.meta().labels.clone().unwrap_or_default()
}

/// Annotations that travel to children: all but the marks of tools about the parent itself.
pub fn annotations_of<K: Kind>(object: &K) -> Labels {
    let mut annotations = object.meta().annotations.clone().unwrap_or_default();
    annotations
        .retain(|key, _| key != reconcile::gate::APPLIED && key != "kubectl.kubernetes.io/last-applied-configuration");
    annotations
}

pub fn generation_of<K: Kind>(object: &K) -> Option<i64> {
    object.meta().generation
}

/// `<parent><suffix>`, or the same shortened with a hash when it would be too long for a DNS label: as Knative shortens it,
/// since people and tests look for `<revision>-deployment` by its name.
pub fn child_name(parent: &str, suffix: &str) -> String {
    let whole = format!("{parent}{suffix}");
    if whole.len() <= MAX_NAME {
        return whole;
    }
    let hash = |text: &str| hex::encode(Md5::digest(text.as_bytes()));
    let room = MAX_NAME - hash("").len();
    if suffix.len() < room {
        return format!("{}{}{suffix}", start_of(parent, room - suffix.len()), hash(parent));
    }
    let named = format!("{}{}", start_of(parent, room), hash(&whole));
    let rest = start_of(suffix, MAX_NAME.saturating_sub(named.len()));
    format!("{named}{rest}").trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// The first bytes of a text, no more than `most`, and no half character.
fn start_of(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Ten hexadecimal digits that stand for some bytes.
pub fn short_hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))[..10].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_names_are_labels() {
        assert_eq!(child_name("hello-00001", "-deployment"), "hello-00001-deployment");
        let long = child_name(&"a".repeat(63), "-deployment");
        assert_eq!(long.len(), MAX_NAME);
        assert!(long.ends_with("-deployment"));
        assert_ne!(long, child_name(&"a".repeat(62), "-deployment"));
        let revision = "autoscale-up-down-up-in-a-namespace-of-its-own-qsjnnkvn-00001";
        assert_eq!(
            child_name(revision, "-deployment"),
            "autoscale-up-down-up4705c0c39332c03f6ea83af3f7eff439-deployment"
        );
        let both = child_name("short", &"-s".repeat(40));
        assert_eq!((both.len(), both.starts_with("short")), (MAX_NAME, true));
    }
}
