//! The crate table of ARCHITECTURE.md against `cargo metadata`: the same crates, and arrows only down the layers.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::cargo::cargo;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
}

pub fn check(architecture: &str) -> Result<Vec<String>> {
    let table = table(architecture);
    ensure!(!table.is_empty(), "ARCHITECTURE.md has no crate table: lines of `name  L<layer>  what it is`");
    let packages = metadata()?.packages;
    let mut complaints = vec![];
    for package in packages.iter().filter(|p| p.name != "xtask") {
        let Some(layer) = table.get(&package.name) else {
            complaints.push(format!("crate {} is not in ARCHITECTURE.md's table", package.name));
            continue;
        };
        // A crate may turn on its own `testing` feature for its tests.
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some() && d.name != package.name) {
            match table.get(&dependency.name) {
                Some(below) if below < layer => {}
                Some(below) => complaints.push(format!(
                    "{} (L{layer}) imports {} (L{below}): arrows point down the layers",
                    package.name, dependency.name
                )),
                None => complaints.push(format!("{} imports {}, which has no layer", package.name, dependency.name)),
            }
        }
    }
    for name in table.keys().filter(|name| !packages.iter().any(|p| p.name == **name)) {
        complaints.push(format!("ARCHITECTURE.md's table names {name}, which is no crate"));
    }
    Ok(complaints)
}

fn table(architecture: &str) -> BTreeMap<String, u8> {
    architecture
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            let layer = words.next()?.strip_prefix('L')?.parse().ok()?;
            line.starts_with("  ").then(|| (name.to_owned(), layer))
        })
        .collect()
}

fn metadata() -> Result<Metadata> {
    let output =
        cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output().context("running cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("reading cargo metadata")
}
