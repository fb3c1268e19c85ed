//! What a pod's volumes are for a Provider: file systems in memory, with the files that their sources say. Pure.
//!
//! What cannot be had here is refused by its name: nothing is mounted as something else than was meant.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath, ProjectedVolumeSource,
    SecretVolumeSource, Volume as PodVolume, VolumeProjection,
};
use runtime::{Limits, Mount, Source, Volume, VolumeFile};

use api::quantity;

use crate::environment::{Facts, expand, field};
use crate::sources::{Data, Sources};
use crate::translate::{Refusal, reason};

/// Of a file, unless its source says another.
const MODE: i32 = 0o644;

/// The volumes that a pod names, with what is in them from the start.
pub fn volumes(
    wanted: &[PodVolume],
    sources: &Sources,
    facts: &Facts<'_>,
    limits: &Limits,
) -> Result<Vec<Volume>, Refusal> {
    let made = |volume: &PodVolume| {
        let refused = |message| Refusal {
            reason: reason::CONFIG,
            message: format!("MountVolume.SetUp failed for volume {:?} : {message}", volume.name),
        };
        let files = Files { sources, facts };
        let (bytes, files) = match volume {
            PodVolume { empty_dir: Some(source), .. } => (space(source, limits).map_err(refused)?, vec![]),
            PodVolume { config_map: Some(source), .. } => (0, files.config_map(source).map_err(refused)?),
            PodVolume { secret: Some(source), .. } => (0, files.secret(source).map_err(refused)?),
            PodVolume { projected: Some(source), .. } => (0, files.projected(source).map_err(refused)?),
            PodVolume { downward_api: Some(source), .. } => {
                let items = source.items.as_deref().unwrap_or_default();
                (0, files.downward(items, source.default_mode.unwrap_or(MODE)).map_err(refused)?)
            }
            _ => return Err(unknown(volume)),
        };
        Ok(Volume { name: volume.name.clone(), bytes, files })
    };
    wanted.iter().map(made).collect()
}

/// Where a container wants them.
pub fn mounts(container: &Container, env: &[(String, String)]) -> Vec<Mount> {
    let wanted = container.volume_mounts.iter().flatten();
    let mount = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
        let path = match &mount.sub_path_expr {
            Some(template) => expand(template, env),
            None => mount.sub_path.clone().unwrap_or_default(),
        };
        Mount {
            source: Source::Volume { name: mount.name.clone(), path: path.trim_end_matches('/').to_owned() },
            inside: mount.mount_path.trim_end_matches('/').to_owned(),
            writable: mount.read_only != Some(true),
        }
    };
    wanted.map(mount).collect()
}

fn space(source: &EmptyDirVolumeSource, limits: &Limits) -> Result<u64, String> {
    let Some(limit) = &source.size_limit else { return Ok(limits.tmp_bytes) };
    quantity::units(limit)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("sizeLimit {:?} is no quantity above 0", limit.0))
}

fn unknown(volume: &PodVolume) -> Refusal {
    let manifest = serde_json::to_value(volume).unwrap_or_default();
    let kinds: Vec<&str> =
        manifest.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).filter(|k| *k != "name").collect();
    let message = format!(
        "volume {}: {} cannot be had here; emptyDir, configMap, secret, downwardAPI and projected can",
        volume.name,
        kinds.first().unwrap_or(&"a volume without a source")
    );
    Refusal { reason: reason::NO_PROVIDER, message }
}

/// Makes files of what a source names.
struct Files<'a> {
    sources: &'a Sources,
    facts: &'a Facts<'a>,
}

impl Files<'_> {
    fn config_map(&self, source: &ConfigMapVolumeSource) -> Result<Vec<VolumeFile>, String> {
        let known = self.sources.config_maps.get(&source.name);
        keys(("configmap", &source.name), known, source.items.as_deref(), source.optional, source.default_mode)
    }

    fn secret(&self, source: &SecretVolumeSource) -> Result<Vec<VolumeFile>, String> {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let known = self.sources.secrets.get(name);
        keys(("secret", name), known, source.items.as_deref(), source.optional, source.default_mode)
    }

    /// The files of all sources; of two with the same path the later one counts.
    fn projected(&self, source: &ProjectedVolumeSource) -> Result<Vec<VolumeFile>, String> {
        let mut files: Vec<VolumeFile> = vec![];
        for projection in source.sources.iter().flatten() {
            for file in self.projection(projection, source.default_mode)? {
                files.retain(|known| known.path != file.path);
                files.push(file);
            }
        }
        Ok(files)
    }

    fn projection(&self, source: &VolumeProjection, mode: Option<i32>) -> Result<Vec<VolumeFile>, String> {
        match source {
            VolumeProjection { config_map: Some(s), .. } => {
                let known = self.sources.config_maps.get(&s.name);
                keys(("configmap", &s.name), known, s.items.as_deref(), s.optional, mode)
            }
            VolumeProjection { secret: Some(s), .. } => {
                let known = self.sources.secrets.get(&s.name);
                keys(("secret", &s.name), known, s.items.as_deref(), s.optional, mode)
            }
            VolumeProjection { downward_api: Some(s), .. } => {
                self.downward(s.items.as_deref().unwrap_or_default(), mode.unwrap_or(MODE))
            }
            VolumeProjection { service_account_token: Some(_), .. } => {
                Err("a serviceAccountToken cannot be had here: no tokens are issued to pods".to_owned())
            }
            _ => Err("this source cannot be had here; configMap, secret and downwardAPI can".to_owned()),
        }
    }

    fn downward(&self, items: &[DownwardAPIVolumeFile], mode: i32) -> Result<Vec<VolumeFile>, String> {
        let file = |item: &DownwardAPIVolumeFile| {
            let Some(reference) = &item.field_ref else {
                return Err(format!("{}: a resourceFieldRef is not known here", item.path));
            };
            let content = match reference.field_path.as_str() {
                "metadata.labels" => lines(self.facts.pod.metadata.labels.as_ref()),
                "metadata.annotations" => lines(self.facts.pod.metadata.annotations.as_ref()),
                path => field(path, self.facts).map_err(|refusal| refusal.message)?,
            };
            Ok(made(&item.path, item.mode.unwrap_or(mode), content.into()))
        };
        items.iter().map(file).collect()
    }
}

/// A map as a file: a line each, the value quoted.
fn lines(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

/// The wanted keys of a ConfigMap or Secret, all of them unless some are named.
fn keys(
    (kind, name): (&str, &str),
    known: Option<&Data>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: Option<i32>,
) -> Result<Vec<VolumeFile>, String> {
    let optional = optional == Some(true);
    let mode = mode.unwrap_or(MODE);
    let Some(data) = known else {
        return if optional { Ok(vec![]) } else { Err(format!("{kind} {name:?} not found")) };
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data.iter().map(|(key, content)| made(key, mode, content.clone())).collect());
    };
    let mut files = vec![];
    for item in items {
        match data.get(&item.key) {
            Some(content) => files.push(made(&item.path, item.mode.unwrap_or(mode), content.clone())),
            None if optional => {}
            None => return Err(format!("{kind} {name:?} references non-existent key: {}", item.key)),
        }
    }
    Ok(files)
}

fn made(path: &str, mode: i32, content: bytes::Bytes) -> VolumeFile {
    VolumeFile { path: path.to_owned(), mode: u32::try_from(mode).unwrap_or_default() & 0o777, content }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(volume: Value) -> Result<Volume, String> {
        let mut volume = volume;
        volume["name"] = "v".into();
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"a": "x", "b": "y \"z\""}},
            "spec": {"containers": []},
        }));
        let facts = Facts { pod: &pod.unwrap(), host_ip: std::net::Ipv4Addr::LOCALHOST.into() };
        let data =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), v.to_string().into())).collect();
        let sources = Sources {
            config_maps: [("m".to_owned(), data(&[("k", "v"), ("l", "w")]))].into(),
            secrets: [("s".to_owned(), data(&[("k", "hidden")]))].into(),
        };
        let wanted = [serde_json::from_value(volume).unwrap()];
        volumes(&wanted, &sources, &facts, &Limits::default()).map(|mut v| v.remove(0)).map_err(|r| r.message)
    }

    #[test]
    fn sources_become_files() {
        let both = json!([
            {"configMap": {"name": "m", "items": [{"key": "k", "path": "k"}]}},
            {"secret": {"name": "s", "items": [{"key": "k", "path": "k"}]}},
            {"downwardAPI": {"items": [{"path": "pod/name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        ]);
        let labels = json!({"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]});
        for (given, want) in [
            (json!({"configMap": {"name": "m"}}), "k 644 v, l 644 w"),
            (
                json!({"configMap": {"name": "m", "defaultMode": 0o400, "items": [{"key": "l", "path": "a/b"}]}}),
                "a/b 400 w",
            ),
            (
                json!({"secret": {"secretName": "s", "items": [{"key": "k", "path": "f", "mode": 0o600}]}}),
                "f 600 hidden",
            ),
            (json!({"configMap": {"name": "no", "optional": true}}), ""),
            (json!({"configMap": {"name": "m", "optional": true, "items": [{"key": "no", "path": "f"}]}}), ""),
            (json!({"projected": {"sources": both}}), "k 644 hidden, pod/name 644 p"),
            (json!({"downwardAPI": labels}), "l 644 a=\"x\"\nb=\"y \\\"z\\\"\""),
            (json!({"emptyDir": {}}), ""),
        ] {
            let made = run(given.clone()).unwrap();
            let text = |f: &VolumeFile| format!("{} {:o} {}", f.path, f.mode, String::from_utf8_lossy(&f.content));
            assert_eq!(made.files.iter().map(text).collect::<Vec<_>>().join(", "), want, "{given}");
        }
        assert_eq!(run(json!({"emptyDir": {"sizeLimit": "1Mi"}})).unwrap().bytes, 1 << 20);
        assert_eq!(run(json!({"emptyDir": {}})).unwrap().bytes, Limits::default().tmp_bytes);
    }

    #[test]
    fn refusals() {
        for (given, want) in [
            (json!({"configMap": {"name": "no"}}), "for volume \"v\" : configmap \"no\" not found"),
            (json!({"secret": {"secretName": "no"}}), "secret \"no\" not found"),
            (json!({"secret": {"secretName": "s", "items": [{"key": "x", "path": "f"}]}}), "non-existent key: x"),
            (json!({"emptyDir": {"sizeLimit": "0"}}), "no quantity above 0"),
            (json!({"hostPath": {"path": "/"}}), "volume v: hostPath cannot be had here"),
            (json!({"persistentVolumeClaim": {"claimName": "c"}}), "persistentVolumeClaim cannot be had"),
            (json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}), "no tokens are issued"),
        ] {
            let got = run(given.clone()).unwrap_err();
            assert!(got.contains(want), "{given}: {got}");
        }
    }

    #[test]
    fn places() {
        let container = serde_json::from_value(json!({"name": "c", "volumeMounts": [
            {"name": "a", "mountPath": "/a/"}, {"name": "b", "mountPath": "/b", "subPath": "x/", "readOnly": true},
            {"name": "c", "mountPath": "/c", "subPathExpr": "$(POD)/logs"},
        ]}));
        let made = mounts(&container.unwrap(), &[("POD".into(), "p-1".into())]);
        let text = |m: &Mount| match &m.source {
            Source::Volume { name, path } => format!("{name}/{path} {} {}", m.inside, m.writable),
            Source::Host(_) => String::new(),
        };
        assert_eq!(made.iter().map(text).collect::<Vec<_>>(), ["a/ /a true", "b/x /b false", "c/p-1/logs /c true"]);
    }
}
