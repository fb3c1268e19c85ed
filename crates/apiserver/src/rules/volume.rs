//! What a pod's volume must be.

use serde_json::Value;

use super::Must::{Be, Hold, Look};
use super::Rule;
use crate::forms::label_faults;
use crate::status::FieldError;

/// A name, and one source.
pub const VOLUME: &[Rule] = &[
    ("name", Be),
    ("name", Look(label_faults)),
    ("", Hold(source)),
    ("configMap.name", Be),
    ("configMap.items[].key", Be),
    ("configMap.items[].path", Be),
    ("secret.secretName", Be),
    ("secret.items[].key", Be),
    ("secret.items[].path", Be),
    ("hostPath.path", Be),
    ("persistentVolumeClaim.claimName", Be),
    ("nfs.server", Be),
    ("nfs.path", Be),
];

/// In the order in which Kubernetes looks for them.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn source(volume: &Value, at: &str) -> Vec<FieldError> {
    let sources = super::given(volume, &SOURCES);
    if sources.is_empty() {
        return vec![FieldError::required(at, "must specify a volume type")];
    }
    let more = sources.iter().skip(1);
    more.map(|name| FieldError::forbidden(format!("{at}.{name}"), "may not specify more than 1 volume type")).collect()
}
