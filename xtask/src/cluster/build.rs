//! The Go programs of the cluster, built once and kept outside the clone.
//!
//! Owns: when they must be built again. The surprise: nothing asks Go when their sources are those of the last build,
//! so a machine with a kept cache needs no Go.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::Unable;
use super::plan::{HELLO, Layout, PAUSE};

const SOURCES: &str = "tests/cluster";
const FILES: [&str; 6] = ["go.mod", "go.sum", "main.go", "dns.go", "pause/main.go", "hello/main.go"];
/// The first Go that fetches a newer one by itself when a module asks for it.
const OLDEST_GO: u32 = 21;

pub fn run(layout: &Layout) -> Result<()> {
    let stamp = layout.built("stamp");
    let wanted = fingerprint(Path::new(SOURCES)).context("run it at the top of the repository")?;
    if std::fs::read_to_string(&stamp).is_ok_and(|built| built == wanted) {
        return Ok(());
    }
    go_version()?;
    std::fs::create_dir_all(layout.built(""))?;
    let _ = std::fs::remove_file(&stamp);
    let module = std::fs::read_to_string(Path::new(SOURCES).join("go.mod"))?;
    let version = kubernetes_version(&module).context("tests/cluster/go.mod names no k8s.io/kubernetes")?;
    eprintln!("cluster: building Kubernetes {version}; the first time takes some ten minutes");
    go_build(layout, ".", "cluster", &format!("-s -w {}", version_flags(version)))?;
    for (name, reference) in [("pause", PAUSE), ("hello", HELLO)] {
        go_build(layout, &format!("./{name}"), name, "-s -w")?;
        let program = std::fs::read(layout.built(name))?;
        let archive = crate::image::of_program(&program, name, reference)?;
        std::fs::write(layout.built(&format!("{name}.tar")), archive)?;
    }
    let kubectl = layout.built("kubectl");
    let _ = std::fs::remove_file(&kubectl);
    std::os::unix::fs::symlink("cluster", &kubectl)?;
    std::fs::write(&stamp, wanted)?;
    Ok(())
}

fn fingerprint(sources: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for file in FILES {
        let bytes = std::fs::read(sources.join(file)).with_context(|| sources.join(file).display().to_string())?;
        hash.update(Sha256::digest(&bytes));
    }
    // What is done with them belongs to them.
    hash.update(include_bytes!("build.rs"));
    Ok(hash.finalize().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
}

fn go_version() -> Result<()> {
    let Ok(output) = Command::new("go").arg("version").output() else {
        bail!(Unable("Go is not installed, and the cluster is not built yet".into()));
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match minor(&text) {
        Some(minor) if minor >= OLDEST_GO => Ok(()),
        _ => bail!(Unable(format!("Go 1.{OLDEST_GO} or newer is needed to build it, not {:?}", text.trim()))),
    }
}

/// The N of `go version go1.N.M linux/amd64`.
fn minor(version: &str) -> Option<u32> {
    let rest = version.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn kubernetes_version(module: &str) -> Option<&str> {
    module.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
}

/// Published modules do not know which release they are; clients look at the minor version.
fn version_flags(version: &str) -> String {
    let minor = version.split('.').nth(1).unwrap_or_default();
    let values = [
        ("gitVersion", version),
        ("gitMajor", "1"),
        ("gitMinor", minor),
        ("gitCommit", "published"),
        ("gitTreeState", "clean"),
    ];
    let flags = values.map(|(name, value)| format!("-X k8s.io/component-base/version.{name}={value}"));
    flags.join(" ")
}

fn go_build(layout: &Layout, package: &str, name: &str, linker: &str) -> Result<()> {
    let status = Command::new("nice")
        .args(["-n", "19", "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", linker, "-o"])
        .args([layout.built(name).as_path(), Path::new(package)])
        .current_dir(SOURCES)
        .env("GOCACHE", layout.go_cache())
        .env("CGO_ENABLED", "0")
        .status()
        .context("nice go build")?;
    ensure!(status.success(), "go could not build {name}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let check = |given: &str, want: Option<u32>| assert_eq!(minor(given), want, "{given}");
        check("go version go1.26.8 linux/amd64", Some(26));
        check("go version go1.27rc1 linux/amd64", Some(27));
        check("go version go1.19 linux/amd64", Some(19));
        check("go version devel", None);
        check("", None);
        let module = "require (\n\tk8s.io/client-go v0.36.3\n\tk8s.io/kubernetes v1.36.3\n)";
        assert_eq!(kubernetes_version(module), Some("v1.36.3"));
        assert_eq!(kubernetes_version("module x"), None);
        assert!(version_flags("v1.36.3").contains("version.gitMinor=36 "));
    }
}
