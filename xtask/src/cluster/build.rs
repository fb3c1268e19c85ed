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
/// The first Go that fetches a newer one by itself when a module asks for it.
const OLDEST_GO: u32 = 21;

struct Program {
    name: &'static str,
    /// What it is made of, beside Go itself; each is built again when one of its own changes.
    files: &'static [&'static str],
    package: &'static str,
    /// What the image is called whose only content it is.
    image: Option<&'static str>,
}

const PROGRAMS: [Program; 3] = [
    Program { name: "cluster", files: &["go.mod", "go.sum", "main.go", "dns.go"], package: ".", image: None },
    Program { name: "pause", files: &["pause/main.go"], package: "./pause", image: Some(PAUSE) },
    Program { name: "hello", files: &["hello/main.go"], package: "./hello", image: Some(HELLO) },
];

pub fn run(layout: &Layout) -> Result<()> {
    let module =
        std::fs::read_to_string(Path::new(SOURCES).join("go.mod")).context("run it at the top of the repository")?;
    let version = kubernetes_version(&module).context("tests/cluster/go.mod names no k8s.io/kubernetes")?;
    let linker = format!("-s -w {}", version_flags(version));
    for program in &PROGRAMS {
        let stamp = layout.built(&format!("{}.stamp", program.name));
        let wanted = fingerprint(program.files, &linker)?;
        if std::fs::read_to_string(&stamp).is_ok_and(|built| built == wanted) {
            continue;
        }
        go_version()?;
        std::fs::create_dir_all(layout.built(""))?;
        let _ = std::fs::remove_file(&stamp);
        if program.image.is_none() {
            eprintln!("cluster: building Kubernetes {version}; the first time takes some ten minutes");
        }
        go_build(layout, program, &linker)?;
        finish(layout, program)?;
        std::fs::write(&stamp, wanted)?;
    }
    Ok(())
}

/// What is made of a program: an image, or its second name.
fn finish(layout: &Layout, program: &Program) -> Result<()> {
    let Some(reference) = program.image else {
        let kubectl = layout.built("kubectl");
        let _ = std::fs::remove_file(&kubectl);
        return Ok(std::os::unix::fs::symlink(program.name, &kubectl)?);
    };
    let bytes = std::fs::read(layout.built(program.name))?;
    let archive = crate::image::of_program(&bytes, program.name, reference)?;
    Ok(std::fs::write(layout.built(&format!("{}.tar", program.name)), archive)?)
}

fn fingerprint(files: &[&str], linker: &str) -> Result<String> {
    let mut hash = Sha256::new_with_prefix(linker);
    for file in files {
        let path = Path::new(SOURCES).join(file);
        hash.update(Sha256::digest(std::fs::read(&path).with_context(|| path.display().to_string())?));
    }
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

fn go_build(layout: &Layout, program: &Program, linker: &str) -> Result<()> {
    let status = Command::new("nice")
        .args(["-n", "19", "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", linker, "-o"])
        .args([layout.built(program.name).as_path(), Path::new(program.package)])
        .current_dir(SOURCES)
        .env("GOCACHE", layout.go_cache())
        .env("CGO_ENABLED", "0")
        .status()
        .context("nice go build")?;
    ensure!(status.success(), "go could not build {}", program.name);
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
