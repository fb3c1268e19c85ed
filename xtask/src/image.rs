//! The container image of Dhow itself: one static program on nothing, as an OCI archive.
//!
//! Owns: the layout of that archive. Must not know: any registry; `skopeo` and `ctr` read what is written here. The
//! surprise: nothing in it depends on when or where it is made, so the same program gives the same digest.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cargo::cargo;

const NAME: &str = "dhow.dev/dhow";
/// Nobody's user, as distributions without a shell have it.
const USER: u32 = 65532;

struct Blob {
    media_type: &'static str,
    digest: String,
    bytes: Vec<u8>,
}

/// What the program is built for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build: for tests on a cluster.
    Dev,
    Release,
}

/// Builds the program and writes the archive; says where, and what the image is called.
pub fn run(profile: Profile) -> Result<(PathBuf, String)> {
    let program = build(profile)?;
    let bytes = std::fs::read(&program).with_context(|| program.display().to_string())?;
    let folder = PathBuf::from("target/image");
    std::fs::create_dir_all(&folder)?;
    let (file, version) = match profile {
        // Another program is another image, so that a cluster takes it for one.
        Profile::Dev => ("dhow-dev.tar", format!("dev-{}", &digest(&bytes)["sha256:".len()..][..12])),
        Profile::Release => ("dhow.tar", env!("CARGO_PKG_VERSION").to_owned()),
    };
    let archive = folder.join(file);
    std::fs::write(&archive, compose(&bytes, &version)?)?;
    Ok((archive, format!("{NAME}:{version}")))
}

/// The C library is linked in, since there is none in the image. Only the last step differs from other builds, so that
/// nothing else is compiled again for it.
fn build(profile: Profile) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let mut command = cargo();
    command.args(["rustc", "--quiet", "--package", "dhow", "--bin", "dhow"]);
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            command.arg("--release");
            "release"
        }
    };
    command.args(["--", "-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    let status = command.status().context("cargo")?;
    ensure!(status.success(), "the program was not built");
    Ok(target.join(folder).join("dhow"))
}

/// The archive around Dhow's own program.
fn compose(program: &[u8], version: &str) -> Result<Vec<u8>> {
    let labels = json!({"org.opencontainers.image.title": "Dhow", "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0"});
    archive(program, "dhow", &format!("{NAME}:{version}"), labels)
}

/// The archive around any static program that wants nothing beside itself.
pub fn of_program(program: &[u8], name: &str, reference: &str) -> Result<Vec<u8>> {
    archive(program, name, reference, json!({}))
}

fn archive(program: &[u8], name: &str, reference: &str, labels: Value) -> Result<Vec<u8>> {
    let layer = layer(program, name)?;
    let packed = gzip(&layer)?;
    let packed = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", packed);
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {
            "Entrypoint": [format!("/{name}")], "User": format!("{USER}:{USER}"), "WorkingDir": "/", "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config = Blob::new("application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config)?);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor(), "layers": [packed.descriptor()],
    });
    let manifest = Blob::new("application/vnd.oci.image.manifest.v1+json", serde_json::to_vec(&manifest)?);
    let mut named = manifest.descriptor();
    named["annotations"] = json!({
        "io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference,
    });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [named],
    });
    let mut archive = tar::Builder::new(vec![]);
    add(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut archive, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
    for blob in [config, packed, manifest] {
        add(&mut archive, blob.digest.replacen("sha256:", "blobs/sha256/", 1), 0o644, &blob.bytes)?;
    }
    Ok(archive.into_inner()?)
}

fn layer(program: &[u8], name: &str) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(vec![]);
    add(&mut layer, name, 0o755, program)?;
    Ok(layer.into_inner()?)
}

fn add(archive: &mut tar::Builder<Vec<u8>>, path: impl AsRef<Path>, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    header.set_mtime(0);
    archive.append_data(&mut header, path, bytes)?;
    Ok(())
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut packed = GzBuilder::new().mtime(0).write(vec![], Compression::default());
    packed.write_all(bytes)?;
    Ok(packed.finish()?)
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: digest(&bytes), bytes }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_is_the_same_image() -> Result<()> {
        let (one, again) = (compose(b"program", "1")?, compose(b"program", "1")?);
        assert!(one == again);
        assert!(one != compose(b"another", "1")?);
        let mut archive = tar::Archive::new(one.as_slice());
        let names: Vec<String> =
            archive.entries()?.map(|e| Ok(e?.path()?.display().to_string())).collect::<Result<_>>()?;
        assert_eq!(names[..2], ["oci-layout", "index.json"]);
        assert_eq!(names.len(), 5, "and a blob each for configuration, layer and manifest");
        Ok(())
    }
}
