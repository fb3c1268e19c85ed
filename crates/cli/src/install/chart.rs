//! The Helm chart, rendered by what renders the manifests.

use std::path::Path;

use serde_json::Value;

use super::settings::Settings;
use super::yaml;

const VALUES: &str = include_str!("chart/values.yaml");
const SCHEMA: &str = include_str!("chart/values.schema.json");
const README: &str = include_str!("chart/README.md");
const NOTES: &str = include_str!("chart/NOTES.txt");

/// Name and content of every file.
pub fn files() -> Vec<(String, String)> {
    let version = env!("CARGO_PKG_VERSION");
    let about = format!(
        "apiVersion: v2\nname: dhow\ndescription: Containers and functions as a service, from and to zero\ntype: \
         application\nversion: {version}\nappVersion: \"{version}\"\nkubeVersion: \">=1.32.0-0\"\n"
    );
    let mut files = vec![
        ("Chart.yaml".to_owned(), about),
        ("values.yaml".into(), VALUES.replace("@version@", version)),
        ("values.schema.json".into(), SCHEMA.into()),
        ("README.md".into(), README.into()),
        ("templates/NOTES.txt".into(), NOTES.into()),
    ];
    let mut groups: Vec<(&str, Vec<Value>)> = vec![];
    for manifest in super::manifests(&Settings::of_chart()) {
        // Helm makes the namespace, when asked to.
        let Some(file) = room(&manifest) else { continue };
        match groups.iter_mut().find(|(name, _)| *name == file) {
            Some((_, group)) => group.push(manifest),
            None => groups.push((file, vec![manifest])),
        }
    }
    files.extend(groups.iter().map(|(name, group)| (format!("templates/{name}.yaml"), yaml::documents(group))));
    files
}

fn room(manifest: &Value) -> Option<&'static str> {
    let object = manifest.get(yaml::THEN).unwrap_or(manifest);
    Some(match object["kind"].as_str().unwrap_or_default() {
        "Namespace" => return None,
        "CustomResourceDefinition" => "definitions",
        "ServiceAccount" | "ClusterRole" | "ClusterRoleBinding" | "Role" | "RoleBinding" => "rbac",
        "NetworkPolicy" => "network",
        "ServiceMonitor" => "monitoring",
        "ConfigMap" => "endpoints",
        _ => "workloads",
    })
}

pub fn write(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder.join("templates"))?;
    files().iter().try_for_each(|(name, text)| std::fs::write(folder.join(name), text))
}
