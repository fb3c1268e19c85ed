//! The pods of a ReplicaSet.

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use reconcile::view;
use sha2::{Digest, Sha256};

use crate::ownership::{child_meta, name_of};

/// Letters and digits that spell no words, as in Kubernetes' generated names.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;

/// A name that no pod of `taken` has: `<set>-<five letters>`, different for every `now`.
pub fn pod_name(set: &ReplicaSet, now: jiff::Timestamp, taken: &dyn Fn(&str) -> bool) -> String {
    let mut nonce = 0u32;
    loop {
        let seed = format!("{}/{}/{nonce}", view::uid(set), now.as_nanosecond());
        let digest = Sha256::digest(seed.as_bytes());
        let letters = digest.iter().take(SUFFIX).map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()]));
        let suffix: String = letters.collect();
        let name = crate::ownership::child_name(name_of(set), &format!("-{suffix}"));
        if !taken(&name) {
            return name;
        }
        nonce += 1;
    }
}

pub fn pod(set: &ReplicaSet, template: &PodTemplateSpec, name: &str, node: &str) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut spec = template.spec.clone().unwrap_or_default();
    spec.node_name = Some(node.to_owned());
    Pod {
        metadata: child_meta(set, name, meta.labels.unwrap_or_default(), meta.annotations.unwrap_or_default()),
        spec: Some(spec),
        status: None,
    }
}
