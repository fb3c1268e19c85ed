//! The configuration of an image: what Dhow reads of it, in the shape the OCI specification gives it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Document", into = "Document")]
pub struct ImageConfig {
    pub env: Vec<(String, String)>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub labels: BTreeMap<String, String>,
    /// Such as `8080/tcp`.
    pub exposed_ports: Vec<String>,
    pub user: String,
    /// The digests of the layers before compression, lowest first.
    pub diff_ids: Vec<Digest>,
    pub architecture: String,
    pub os: String,
}

// Fields that are absent or null both mean the default: other builders write either.

#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    config: Option<Run>,
    rootfs: RootFs,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exposed_ports: Option<BTreeMap<String, Empty>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Serialize, Deserialize)]
struct Empty {}

#[derive(Serialize, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<Digest>,
}

impl From<Document> for ImageConfig {
    fn from(document: Document) -> Self {
        let run = document.config.unwrap_or_default();
        let variable = |text: String| match text.split_once('=') {
            Some((name, value)) => (name.into(), value.into()),
            None => (text, String::new()),
        };
        Self {
            env: run.env.unwrap_or_default().into_iter().map(variable).collect(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            labels: run.labels.unwrap_or_default(),
            exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
            user: run.user.unwrap_or_default(),
            diff_ids: document.rootfs.diff_ids,
            architecture: document.architecture.unwrap_or_default(),
            os: document.os.unwrap_or_default(),
        }
    }
}

impl From<ImageConfig> for Document {
    fn from(config: ImageConfig) -> Self {
        let run = Run {
            user: Some(config.user).filter(|user| !user.is_empty()),
            exposed_ports: Some(config.exposed_ports.into_iter().map(|port| (port, Empty {})).collect())
                .filter(|ports: &BTreeMap<_, _>| !ports.is_empty()),
            env: some(config.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
            entrypoint: some(config.entrypoint),
            cmd: some(config.cmd),
            working_dir: Some(config.working_dir).filter(|folder| !folder.is_empty()),
            labels: Some(config.labels).filter(|labels| !labels.is_empty()),
        };
        Document {
            architecture: Some(config.architecture),
            os: Some(config.os),
            config: Some(run),
            rootfs: RootFs { kind: "layers".into(), diff_ids: config.diff_ids },
        }
    }
}

fn some(items: Vec<String>) -> Option<Vec<String>> {
    Some(items).filter(|items| !items.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_others_write_and_writes_it_back() {
        let diff = Digest::of(b"layer");
        let text = serde_json::json!({
            "created": "2026-01-02T03:04:05Z",
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "User": "1000:1000",
                "ExposedPorts": {"8080/tcp": {}},
                "Env": ["PATH=/usr/bin", "EMPTY=", "BARE"],
                "Entrypoint": null,
                "Cmd": ["python3", "main.py"],
                "WorkingDir": "/app",
                "Labels": {"dev.dhow.runtime": "python"},
                "Volumes": null
            },
            "rootfs": {"type": "layers", "diff_ids": [diff]},
            "history": [{"created_by": "x"}]
        });
        let config: ImageConfig = serde_json::from_value(text).unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(config.env, [pair("PATH", "/usr/bin"), pair("EMPTY", ""), pair("BARE", "")]);
        assert_eq!((config.entrypoint.len(), config.cmd.len(), &*config.working_dir), (0, 2, "/app"));
        assert_eq!((config.exposed_ports.clone(), config.diff_ids.clone()), (vec!["8080/tcp".into()], vec![diff]));
        let again = serde_json::from_slice(&serde_json::to_vec(&config).unwrap()).unwrap();
        assert_eq!(config, again);
        let bare: ImageConfig =
            serde_json::from_value(serde_json::json!({"rootfs": {"type": "layers", "diff_ids": []}})).unwrap();
        assert_eq!(bare, ImageConfig::default());
    }
}
